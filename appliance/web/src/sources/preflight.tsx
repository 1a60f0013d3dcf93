import { Alert, Button, Checkbox, ClipboardCopy, Icon, Spinner } from '@patternfly/react-core';
import { CheckCircleIcon } from '@patternfly/react-icons/dist/esm/icons/check-circle-icon';
import { ExclamationCircleIcon } from '@patternfly/react-icons/dist/esm/icons/exclamation-circle-icon';
import { ExclamationTriangleIcon } from '@patternfly/react-icons/dist/esm/icons/exclamation-triangle-icon';
import type { ApiError, PreflightCheck, PreflightReport } from '../../../api/schema.ts';
import { count } from '../format.ts';
import { ErrorAlert } from '../parts/parts.tsx';

const ICONS = {
  ok: { status: 'success', Picture: CheckCircleIcon, word: 'In order' },
  warning: { status: 'warning', Picture: ExclamationTriangleIcon, word: 'Warning' },
  failed: { status: 'danger', Picture: ExclamationCircleIcon, word: 'Failed' },
} as const;

function Check(props: { check: PreflightCheck }) {
  const { check } = props;
  const { status, Picture, word } = ICONS[check.result];
  return (
    <li
      className="und-check"
      id={`preflight-${check.id}`}
      data-testid="preflight-check"
      data-result={check.result}
      data-code={check.code}
    >
      <Icon status={status}>
        <Picture aria-label={word} role="img" />
      </Icon>
      <div>
        <strong>{check.title}</strong>
        <div>{check.detail}</div>
        {check.hint && check.result !== 'ok' && <div className="und-quiet">{check.hint}</div>}
        {check.code && <div className="und-code">{check.code}</div>}
      </div>
    </li>
  );
}

/** The fingerprint to compare, and where to find it on the server. */
function HostKey(props: {
  address: string;
  fingerprint: string;
  accepted: boolean;
  accept: (accepted: boolean) => void;
  changed: boolean;
  busy: boolean;
}) {
  return (
    <Alert
      variant={props.accepted ? 'success' : props.changed ? 'danger' : 'warning'}
      isInline
      id="host-key"
      title={
        props.accepted
          ? `You confirmed the host key of ${props.address}`
          : props.changed
            ? `The host key of ${props.address} is not the one that this appliance knows`
            : `Is this ${props.address}?`
      }
    >
      <p>
        {props.changed && !props.accepted
          ? 'Either the server was installed anew, or something between it and the appliance answers in its place. Do not go on before you know which.'
          : 'The server shows this host key. Compare the fingerprint with the one on the server itself, for example at its console:'}
      </p>
      <p className="und-fingerprint" id="host-key-fingerprint">
        {props.fingerprint}
      </p>
      {!props.accepted && (
        <ClipboardCopy isReadOnly isCode hoverTip="Copy" clickTip="Copied" variant="inline-compact">
          {'for k in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $k; done'}
        </ClipboardCopy>
      )}
      <Checkbox
        className="und-gap"
        id="host-key-accept"
        label="I compared the fingerprint: it is the server's"
        isChecked={props.accepted}
        isDisabled={props.busy}
        onChange={(_event, accepted) => props.accept(accepted)}
      />
    </Alert>
  );
}

/** True if the report says that the key differs from a known one, and not just that none is known yet. */
const keyChanged = (report: PreflightReport) =>
  report.checks.some(
    (check) => check.result === 'failed' && /HOST_?KEY.*CHANGED/.test(check.code ?? ''),
  );

export function Preflight(props: {
  address: string;
  report: PreflightReport | undefined;
  error: ApiError | undefined;
  busy: boolean;
  accepted: string | undefined;
  accept: (fingerprint: string | undefined) => void;
  again: () => void;
}) {
  const { report, busy } = props;
  const fingerprint = report?.hostKeyFingerprint;
  const asks = report && fingerprint && (!report.hostKeyKnown || props.accepted === fingerprint);
  const waitsForKey = Boolean(asks && props.accepted !== fingerprint);
  // The question about the host key says it already.
  const shown =
    report?.checks.filter((check) => !(asks && /HOST_?KEY/.test(check.code ?? ''))) ?? [];
  const failed = report?.checks.filter((check) => check.result === 'failed') ?? [];
  const warnings = report?.checks.filter((check) => check.result === 'warning') ?? [];
  return (
    <div
      className="und-stack"
      id="preflight"
      data-state={busy ? 'busy' : report?.ok ? 'ok' : 'failed'}
    >
      {busy && (
        <p role="status">
          <Spinner size="md" aria-hidden /> Asking {props.address} whether everything is in order.
          Nothing is changed on it.
        </p>
      )}
      <ErrorAlert error={props.error} title="The check could not be made" id="preflight-error" />
      {asks && (
        <HostKey
          address={props.address}
          fingerprint={fingerprint}
          accepted={props.accepted === fingerprint}
          accept={(yes) => props.accept(yes ? fingerprint : undefined)}
          changed={keyChanged(report)}
          busy={busy}
        />
      )}
      {report && !busy && report.ok && (
        <Alert
          variant={warnings.length ? 'warning' : 'success'}
          isInline
          isPlain
          id="preflight-verdict"
          title={
            warnings.length
              ? `The agent can be installed, with ${count(warnings.length, 'warning')}.`
              : 'Everything is in order: the agent can be installed.'
          }
        />
      )}
      {report && !busy && !report.ok && (report.hostKeyKnown || props.accepted || !fingerprint) && (
        <Alert
          variant="danger"
          isInline
          isPlain
          id="preflight-verdict"
          title={`${count(failed.length, 'thing')} to put right first. Nothing was changed on ${props.address}.`}
        />
      )}
      {report && shown.length > 0 && (
        <ul className="und-checks" aria-label="Checks">
          {shown.map((check) => (
            <Check key={check.id} check={check} />
          ))}
        </ul>
      )}
      {!busy && (report || props.error) && !waitsForKey && (
        <Button
          variant="secondary"
          onClick={props.again}
          id="preflight-again"
          className="und-start"
        >
          Check again
        </Button>
      )}
    </div>
  );
}
