import {
  Alert,
  Button,
  Card,
  CardBody,
  CardTitle,
  DescriptionList,
  Flex,
  Grid,
  GridItem,
  Icon,
  List,
  ListItem,
  PageSection,
  Spinner,
} from '@patternfly/react-core';
import { CheckCircleIcon } from '@patternfly/react-icons/dist/esm/icons/check-circle-icon';
import { ExclamationCircleIcon } from '@patternfly/react-icons/dist/esm/icons/exclamation-circle-icon';
import { OutlinedCircleIcon } from '@patternfly/react-icons/dist/esm/icons/outlined-circle-icon';
import { UndoIcon } from '@patternfly/react-icons/dist/esm/icons/undo-icon';
import { useState } from 'react';
import { Link, useParams } from 'react-router';
import type { Failover, FailoverStep } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { learn } from '../api/live.ts';
import { useLive } from '../api/use-live.ts';
import { formatClock, formatDuration } from '../format.ts';
import { describeFailover } from '../jobs/words.ts';
import { ConfirmDialog } from '../parts/confirm.tsx';
import { useAction, useNow } from '../parts/hooks.ts';
import { ErrorAlert, Fact, Loading, Nothing, PageHead, StateLabel, When } from '../parts/parts.tsx';
import { useUser } from '../session/session.tsx';
import { AutoEndAlert, AutoEndDialog } from './auto-end.tsx';
import { ChecksCard } from './checks.tsx';

const STEP_WORDS = {
  waiting: 'waiting',
  running: 'under way',
  done: 'done',
  failed: 'failed',
  compensating: 'being undone',
  compensated: 'undone',
} as const;

function StepIcon(props: { state: FailoverStep['state'] }) {
  const label = STEP_WORDS[props.state];
  switch (props.state) {
    case 'running':
    case 'compensating':
      return <Spinner size="md" aria-label={label} />;
    case 'done':
      return (
        <Icon status="success">
          <CheckCircleIcon aria-label={label} role="img" />
        </Icon>
      );
    case 'failed':
      return (
        <Icon status="danger">
          <ExclamationCircleIcon aria-label={label} role="img" />
        </Icon>
      );
    case 'compensated':
      return (
        <Icon>
          <UndoIcon aria-label={label} role="img" />
        </Icon>
      );
    case 'waiting':
      return (
        <Icon>
          <OutlinedCircleIcon aria-label={label} role="img" />
        </Icon>
      );
  }
}

export function Step(props: { step: FailoverStep }) {
  const { step } = props;
  const now = useNow();
  const started = step.startedAt ? Date.parse(step.startedAt) : undefined;
  const tookMs =
    started === undefined ? undefined : (step.endedAt ? Date.parse(step.endedAt) : now) - started;
  return (
    <li
      className={`und-step und-step-${step.state}`}
      id={`failover-step-${step.name}`}
      data-state={step.state}
      data-testid="failover-step"
    >
      <StepIcon state={step.state} />
      <div>
        <strong>{step.title}</strong>
        {step.state !== 'waiting' && step.state !== 'done' && (
          <span className="und-quiet"> {STEP_WORDS[step.state]}</span>
        )}
        {step.detail && <div className="und-quiet">{step.detail}</div>}
      </div>
      <div className="und-quiet und-nowrap">
        {started !== undefined && (
          <>
            {formatClock(new Date(started))}
            {tookMs !== undefined && ` · ${formatDuration(tookMs)}`}
          </>
        )}
      </div>
    </li>
  );
}

function Screenshot(props: { failover: Failover }) {
  const { failover } = props;
  const [broken, setBroken] = useState(false);
  const proof = failover.steps.find((step) => step.name === 'prove-boot');
  if (!failover.hasScreenshot) {
    return (
      <p className="und-quiet">
        {failover.state.name === 'running'
          ? 'It is taken when the replica has been powered on.'
          : 'None was taken.'}
      </p>
    );
  }
  return broken ? (
    <Alert variant="warning" isInline title="The screenshot could not be loaded." />
  ) : (
    <img
      id="failover-screenshot"
      className="und-screenshot"
      alt={`Console of ${failover.replicaName}`}
      src={api.screenshotUrl(failover.failoverId, `${proof?.state}-${failover.endedAt ?? ''}`)}
      onError={() => setBroken(true)}
    />
  );
}

export function FailoverPage() {
  const { failoverId = '' } = useParams();
  const { failovers, jobs, synced } = useLive();
  const { mayOperate } = useUser();
  const now = useNow();
  const [asking, setAsking] = useState<'undo' | 'commit' | 'auto-end'>();
  const ending = useAction(async () => learn.failover(() => api.endTest(failoverId)));
  const failover = failovers.get(failoverId);
  const crumbs: [string, string][] = [['Failovers', '/failovers']];
  if (!failover) {
    return synced ? (
      <>
        <PageHead title="Failover" crumbs={crumbs} />
        <Nothing
          title="There is no such failover"
          action={<Link to="/failovers">All failovers</Link>}
        >
          The address may be of another appliance.
        </Nothing>
      </>
    ) : (
      <Loading what="the failover" />
    );
  }
  const { state, point } = failover;
  const job = jobs.get(failover.jobId);
  const words = describeFailover(failover);
  const settled = state.name === 'completed';
  const tookMs =
    (failover.endedAt ? Date.parse(failover.endedAt) : now) - Date.parse(failover.startedAt);
  return (
    <>
      <PageHead
        title={`${failover.kind === 'test' ? 'Test failover' : 'Failover'} of ${job?.sourceName ?? failover.replicaName}`}
        crumbs={crumbs}
        beside={
          <StateLabel tone={words.tone} state={state.name} id="failover-state">
            {words.label}
          </StateLabel>
        }
        actions={
          mayOperate && failover.kind === 'test' ? (
            !failover.endedAt || settled ? (
              <Button
                variant="secondary"
                id="end-test-button"
                isDisabled={ending.busy}
                onClick={() => void ending.run()}
              >
                End the test
              </Button>
            ) : undefined
          ) : (
            mayOperate &&
            settled && (
              <Flex gap={{ default: 'gapSm' }}>
                <Button variant="primary" id="commit-button" onClick={() => setAsking('commit')}>
                  Commit…
                </Button>
                <Button
                  variant="secondary"
                  isDanger
                  id="undo-button"
                  onClick={() => setAsking('undo')}
                >
                  Undo…
                </Button>
                {!failover.autoEnd && (
                  <Button variant="link" id="auto-end-button" onClick={() => setAsking('auto-end')}>
                    By itself…
                  </Button>
                )}
              </Flex>
            )
          )
        }
      />
      <PageSection
        hasBodyWrapper={false}
        className="und-stack"
        id="failover"
        data-failover-id={failover.failoverId}
      >
        {'error' in state ? (
          <ErrorAlert
            error={state.error}
            title={
              state.name === 'compensating'
                ? 'A step failed; what was done is being undone'
                : 'The failover failed and was undone'
            }
            id="failover-error"
          />
        ) : (
          words.reason && (
            <Alert
              variant={words.tone === 'good' ? 'success' : words.tone === 'bad' ? 'danger' : 'info'}
              isInline
              title={words.reason}
              id="failover-reason"
            />
          )
        )}
        <AutoEndAlert
          failover={failover}
          change={mayOperate ? () => setAsking('auto-end') : undefined}
        />
        <ErrorAlert error={ending.error} id="end-test-error" />
        {failover.notes.length > 0 && (
          <Alert variant="warning" isInline title="Left over" id="failover-notes">
            <List>
              {failover.notes.map((note) => (
                <ListItem key={note}>{note}</ListItem>
              ))}
            </List>
          </Alert>
        )}
        <Grid hasGutter>
          <GridItem lg={6}>
            <Card isFullHeight>
              <CardTitle component="h2">Steps</CardTitle>
              <CardBody>
                <ol className="und-steps" id="failover-steps" aria-live="polite">
                  {failover.steps.map((step) => (
                    <Step key={step.name} step={step} />
                  ))}
                </ol>
              </CardBody>
            </Card>
          </GridItem>
          <GridItem lg={6}>
            <div className="und-stack">
              <Card>
                <CardTitle component="h2">Result</CardTitle>
                <CardBody>
                  <DescriptionList isHorizontal isCompact>
                    <Fact term="Replica VM" id="failover-replica">
                      {failover.replicaName}
                    </Fact>
                    {failover.replicaVm && (
                      <Fact term="The VM now" id="failover-vm">
                        <span data-state={failover.replicaVm.state}>
                          {failover.replicaVm.state}
                        </span>
                        , since <When at={failover.replicaVm.since} />
                      </Fact>
                    )}
                    <Fact term="Recovered to" id="failover-recovered-to">
                      <When at={point.sourceTime} absent="not chosen yet" />
                    </Fact>
                    <Fact term="Lost">
                      <span id="failover-lost" data-ms={point.lossMs ?? ''}>
                        {point.lossMs === null
                          ? 'not known'
                          : `what was written in the ${formatDuration(point.lossMs)} before the failover`}
                      </span>
                    </Fact>
                    <Fact term="Proof of boot" id="failover-proof">
                      {state.name === 'completed'
                        ? state.proof
                        : failover.test?.verdict?.passed
                          ? failover.test.verdict.words
                          : (failover.steps.find(
                              (step) => step.name === 'prove-boot' && step.state === 'done',
                            )?.detail ?? 'none yet')}
                    </Fact>
                    <Fact term="Addresses" id="failover-addresses">
                      {failover.addresses.join(', ') || 'none seen yet'}
                    </Fact>
                    <Fact term="Started">
                      <When at={failover.startedAt} />
                    </Fact>
                    <Fact term={failover.endedAt ? 'Took' : 'Running for'} id="failover-took">
                      {formatDuration(tookMs)}
                    </Fact>
                    {failover.test && (
                      <Fact term="Network" id="failover-network">
                        {failover.test.network}, isolated
                        {failover.test.endsAt && settled && (
                          <>
                            ; the VM is kept until <When at={failover.test.endsAt} />
                          </>
                        )}
                      </Fact>
                    )}
                    {failover.isolateOnReturn && (
                      <Fact term="If the source comes back" id="failover-isolates">
                        it cuts itself off from the network
                      </Fact>
                    )}
                    <Fact term="Report">
                      <a
                        id="failover-report"
                        href={api.reportUrl(failover.failoverId)}
                        target="_blank"
                        rel="noreferrer"
                      >
                        As one page
                      </a>
                    </Fact>
                    <Fact term="Protection job">
                      {job ? <Link to={`/jobs/${job.jobId}`}>{job.name}</Link> : 'deleted'}
                    </Fact>
                  </DescriptionList>
                </CardBody>
              </Card>
              {failover.test && failover.test.checks.length > 0 && (
                <ChecksCard checks={failover.test.checks} />
              )}
              <Card>
                <CardTitle component="h2">Console</CardTitle>
                <CardBody>
                  <Screenshot
                    failover={failover}
                    key={`${failover.hasScreenshot} ${failover.endedAt}`}
                  />
                </CardBody>
              </Card>
              <Card>
                <CardTitle component="h2">Changes in the guest</CardTitle>
                <CardBody id="failover-guest-changes">
                  {failover.guestChanges.length === 0 ? (
                    <p className="und-quiet">None yet.</p>
                  ) : (
                    <List>
                      {failover.guestChanges.map((change) => (
                        <ListItem key={change}>{change}</ListItem>
                      ))}
                    </List>
                  )}
                </CardBody>
              </Card>
            </div>
          </GridItem>
        </Grid>
      </PageSection>
      {asking === 'auto-end' && (
        <AutoEndDialog failover={failover} close={() => setAsking(undefined)} />
      )}
      {asking === 'undo' && (
        <ConfirmDialog
          id="undo-dialog"
          title={`Undo the failover to ${failover.replicaName}?`}
          submit="Undo failover"
          danger
          typed={failover.replicaName}
          typedLabel="Type the replica's name to confirm"
          close={() => setAsking(undefined)}
          act={(confirm) => learn.failover(() => api.undo(failover.failoverId, confirm))}
        >
          <p>
            The replica VM is powered off and removed.{' '}
            <strong>Everything that was written in it since the failover is lost.</strong> The
            replica disks return to the appliance as they were, and the job goes on when its source
            is there.
          </p>
        </ConfirmDialog>
      )}
      {asking === 'commit' && (
        <ConfirmDialog
          id="commit-dialog"
          title={`Commit the failover to ${failover.replicaName}?`}
          submit="Commit failover"
          typed={failover.replicaName}
          typedLabel="Type the replica's name to confirm"
          close={() => setAsking(undefined)}
          act={(confirm) => learn.failover(() => api.commit(failover.failoverId, confirm))}
        >
          <p>
            The replica becomes the server for good: its disks keep what was written in it, and the
            failover cannot be undone any more.
          </p>
        </ConfirmDialog>
      )}
    </>
  );
}
