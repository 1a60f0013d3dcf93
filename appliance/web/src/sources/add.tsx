import {
  Alert,
  Button,
  Form,
  Icon,
  PageSection,
  Spinner,
  Wizard,
  WizardStep,
} from '@patternfly/react-core';
import { CheckCircleIcon } from '@patternfly/react-icons/dist/esm/icons/check-circle-icon';
import { ExclamationCircleIcon } from '@patternfly/react-icons/dist/esm/icons/exclamation-circle-icon';
import { type ReactNode, useEffect, useRef, useState } from 'react';
import { Link, useNavigate } from 'react-router';
import type { PreflightReport } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { learn } from '../api/live.ts';
import { useLive } from '../api/use-live.ts';
import { formatClock } from '../format.ts';
import { useAction } from '../parts/hooks.ts';
import { ErrorAlert, PageHead } from '../parts/parts.tsx';
import { GateFooter, wizardButtons } from '../parts/wizard.tsx';
import { Preflight } from './preflight.tsx';
import { emptySsh, SshForm, sshReady, sshTarget } from './ssh-form.tsx';

/** Runs something when its step is shown, and again whenever the step is entered anew. */
function OnEnter(props: { act: () => void; children: ReactNode }) {
  const act = useRef(props.act);
  useEffect(() => act.current(), []);
  return props.children;
}

interface Line {
  atMs: number;
  text: string;
}

export function AddSourcePage() {
  const navigate = useNavigate();
  const { sources } = useLive();
  const [fields, setFields] = useState(() => emptySsh());
  const [accepted, setAccepted] = useState<string>();
  const [report, setReport] = useState<PreflightReport>();
  const [sourceId, setSourceId] = useState<string>();
  const [lines, setLines] = useState<Line[]>([]);

  const preflight = useAction(async (acceptHostKey: string | undefined) => {
    setReport(await api.preflight(sshTarget(fields, acceptHostKey)));
  });
  const install = useAction(async () => {
    const source = await learn.source(() => api.addSource(sshTarget(fields, accepted)));
    setSourceId(source.sourceId);
    // The credentials are not needed any more: they leave the page's memory, too.
    setFields((now) => ({ ...now, password: '', privateKey: '', passphrase: '' }));
  });

  const source = sourceId ? sources.get(sourceId) : undefined;
  const state = source?.state;
  const step = state?.name === 'installing' ? state.step : state?.name;
  useEffect(() => {
    if (!step) return;
    const text =
      step === 'waiting-for-agent'
        ? 'The agent is installed; waiting for it to connect'
        : step === 'online'
          ? 'The agent is connected'
          : step;
    if (step === 'install-failed' || step === 'refused') return;
    setLines((old) => (old.at(-1)?.text === text ? old : [...old, { atMs: Date.now(), text }]));
  }, [step]);

  const hostKeySettled =
    report !== undefined &&
    (report.hostKeyKnown || (accepted !== undefined && accepted === report.hostKeyFingerprint));
  const mayInstall = Boolean(report?.ok && hostKeySettled && !preflight.busy);
  const failedError =
    state?.name === 'install-failed' || state?.name === 'refused' ? state.error : undefined;
  const started = install.busy || sourceId !== undefined;
  const online = state?.name === 'online';

  const check = (acceptHostKey: string | undefined) => void preflight.run(acceptHostKey);

  return (
    <>
      <PageHead title="Add a source server" crumbs={[['Source servers', '/sources']]}>
        <p>
          The appliance checks the server by SSH, then installs its agent there: one executable and
          a systemd unit. No reboot, no kernel module, no compiler.
        </p>
      </PageHead>
      <PageSection hasBodyWrapper={false}>
        <Wizard
          className="und-wizard"
          isVisitRequired
          navAriaLabel="Steps"
          onClose={() => navigate('/sources')}
          onSave={() => navigate(sourceId ? `/sources/${sourceId}` : '/sources')}
        >
          <WizardStep
            name="Address and login"
            id="step-address"
            isDisabled={started}
            footer={{
              ...wizardButtons,
              isNextDisabled: !sshReady(fields),
              nextButtonText: 'Check',
            }}
          >
            <Form
              className="und-form"
              onSubmit={(event) => {
                event.preventDefault();
                document.getElementById('wizard-next')?.click();
              }}
            >
              <SshForm
                fields={fields}
                set={(change) => {
                  setFields((now) => ({ ...now, ...change }));
                  if (change.address !== undefined || change.port !== undefined) {
                    setAccepted(undefined);
                  }
                }}
              />
              <button type="submit" hidden aria-hidden tabIndex={-1} />
            </Form>
          </WizardStep>
          <WizardStep
            name="Check"
            id="step-check"
            isDisabled={started}
            footer={
              <GateFooter
                text="Install agent"
                disabled={!mayInstall}
                act={() => {
                  setLines([]);
                  setSourceId(undefined);
                  void install.run();
                }}
              />
            }
          >
            <OnEnter
              act={() => {
                setReport(undefined);
                check(accepted);
              }}
            >
              <Preflight
                address={fields.address}
                report={report}
                error={preflight.error}
                busy={preflight.busy}
                accepted={accepted}
                accept={(fingerprint) => {
                  setAccepted(fingerprint);
                  // What the key stood in the way of is checked now.
                  if (fingerprint) check(fingerprint);
                }}
                again={() => check(accepted)}
              />
            </OnEnter>
          </WizardStep>
          <WizardStep
            name="Install"
            id="step-install"
            footer={{
              ...wizardButtons,
              nextButtonText: 'Done',
              isNextDisabled: !sourceId,
              isBackHidden: started && !failedError,
              isBackDisabled: install.busy,
              isCancelHidden: true,
            }}
          >
            <div
              className="und-stack"
              id="install-progress"
              data-state={install.error ? 'refused' : (state?.name ?? 'starting')}
              data-source-id={sourceId}
              aria-live="polite"
            >
              {install.busy && lines.length === 0 && (
                <p>
                  <Spinner size="md" aria-hidden /> Checking {fields.address} once more, then
                  installing.
                </p>
              )}
              <ErrorAlert
                error={install.error}
                title="The installation was not started"
                id="install-error"
              />
              <ul className="und-checks" aria-label="Installation">
                {lines.map((line, i) => {
                  const last = i === lines.length - 1;
                  const running = last && !online && !failedError;
                  return (
                    <li key={line.text} className="und-check">
                      {running ? (
                        <Spinner size="md" aria-label="under way" />
                      ) : last && failedError ? (
                        <Icon status="danger">
                          <ExclamationCircleIcon aria-label="failed" role="img" />
                        </Icon>
                      ) : (
                        <Icon status="success">
                          <CheckCircleIcon aria-label="done" role="img" />
                        </Icon>
                      )}
                      <div>
                        {line.text}{' '}
                        <span className="und-quiet">{formatClock(new Date(line.atMs))}</span>
                      </div>
                    </li>
                  );
                })}
              </ul>
              <ErrorAlert error={failedError} title="The installation failed" id="install-failed" />
              {online && source && (
                <Alert
                  variant="success"
                  isInline
                  id="install-done"
                  title={`${source.name} is connected`}
                  actionLinks={
                    <>
                      <Button
                        variant="primary"
                        id={`protect-${source.name}`}
                        isDisabled={!source.inventory}
                        component={(props) => (
                          <Link {...props} to={`/sources/${source.sourceId}/protect`} />
                        )}
                      >
                        Protect it now
                      </Button>{' '}
                      <Button
                        variant="link"
                        component={(props) => (
                          <Link {...props} to={`/sources/${source.sourceId}`} />
                        )}
                      >
                        Look at its inventory
                      </Button>
                    </>
                  }
                >
                  From now on its agent speaks to the appliance with a certificate of its own.
                  Nothing is protected yet: the next thing is to choose its disks.
                </Alert>
              )}
            </div>
          </WizardStep>
        </Wizard>
      </PageSection>
    </>
  );
}
