/** Recovery points of a job: the timeline, labels, how far the history will reach, and the check of the journal. */
import {
  Alert,
  Button,
  Card,
  CardBody,
  CardTitle,
  DescriptionList,
  Flex,
  Form,
  FormGroup,
  Progress,
  TextInput,
} from '@patternfly/react-core';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import { useState } from 'react';
import type { Job, JobPoints, JournalCheck } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { useLive } from '../api/use-live.ts';
import { count, formatAbsolute, formatBytes, formatDuration, formatRate } from '../format.ts';
import { OpenPointDialog } from '../mounts/open-dialog.tsx';
import { OpenMounts } from '../mounts/open-mounts.tsx';
import { ConfirmDialog } from '../parts/confirm.tsx';
import { useAction, useNow, usePolled } from '../parts/hooks.ts';
import { ErrorAlert, Fact, Loading, When } from '../parts/parts.tsx';
import { useUser } from '../session/session.tsx';
import { FailoverDialog } from './failover-dialog.tsx';
import { TestDialog } from './tests.tsx';
import { Timeline } from './timeline.tsx';
import { momentOf, wholeRange } from './timeline-view.ts';

const POLL_MS = 5000;
const CHECK_POLL_MS = 2000;

export function RecoveryPoints(props: { job: Job }) {
  const { jobId } = props.job;
  const polled = usePolled(() => api.points(jobId), POLL_MS);
  const points = polled.data;
  return (
    <Card id="recovery-points">
      <CardTitle component="h2">Recovery points</CardTitle>
      <CardBody className="und-stack">
        <ErrorAlert error={polled.error} id="points-error" />
        {points ? (
          <Shown job={props.job} points={points} reload={polled.reload} />
        ) : (
          !polled.error && <Loading what="the recovery points" />
        )}
      </CardBody>
    </Card>
  );
}

function Shown(props: { job: Job; points: JobPoints; reload: () => void }) {
  const { job, points, reload } = props;
  const { mayOperate } = useUser();
  const nowMs = useNow();
  const [cursorMs, setCursor] = useState<number | null>(null);
  const { sources } = useLive();
  const [recovering, setRecovering] = useState<'test' | 'failover' | 'mount' | null>(null);
  const [labelling, setLabelling] = useState(false);
  const whole = wholeRange(points, nowMs);
  const { history } = points;
  const newestMs = points.newestAt ? Date.parse(points.newestAt) : null;
  const chosenMs = cursorMs ?? newestMs;
  const oldest = points.stretches[0];
  return (
    <>
      {whole && points.stretches.length + points.gaps.length > 0 ? (
        <Timeline
          points={points}
          whole={whole}
          nowMs={nowMs}
          cursorMs={cursorMs}
          setCursor={setCursor}
        />
      ) : (
        <p id="points-none">There is no history yet: it begins with the first mirror.</p>
      )}
      {points.rebuildPercent !== null && (
        <Alert
          variant="info"
          isInline
          title={`The recovery points are being read from the journal: ${points.rebuildPercent} %`}
          id="points-rebuild"
        >
          Replication goes on. Until it is done only older points are shown, and only the newest
          point can be recovered.
        </Alert>
      )}
      {history?.warning && (
        <Alert variant="warning" isInline title={history.warning} id="history-warning">
          Keep less time or give the journal more room in the settings of the job.
        </Alert>
      )}
      <DescriptionList isHorizontal isCompact>
        <Fact term="Oldest point">
          <When at={oldest?.fromAt} absent="none yet" id="points-oldest" />
        </Fact>
        {history && (
          <>
            <Fact term="History kept" id="history-kept">
              {history.hours === null
                ? 'as long as it fits'
                : formatDuration(history.hours * 3_600_000)}
              , at most {formatBytes(history.limitBytes)}; {formatBytes(history.usedBytes)} in use
            </Fact>
            <Fact term="Forecast" id="history-forecast">
              {history.churnBytesPerSec === null
                ? 'not known before there are 10 minutes of history'
                : `history for ${history.reachMs === null ? 'any time' : formatDuration(history.reachMs)} at today's churn of ${formatRate(history.churnBytesPerSec)}${history.boundBy === 'size' ? ', bound by size' : ''}`}
            </Fact>
          </>
        )}
      </DescriptionList>
      {mayOperate && whole && (
        <Flex gap={{ default: 'gapSm' }}>
          <Button
            variant="secondary"
            id="label-button"
            isDisabled={chosenMs === null || momentOf(points, chosenMs, nowMs).name !== 'point'}
            onClick={() => setLabelling(true)}
          >
            Label this moment
          </Button>
          <Button
            variant="secondary"
            id="mount-moment-button"
            isDisabled={chosenMs === null || Boolean(job.failoverId)}
            onClick={() => setRecovering('mount')}
          >
            Browse files or export…
          </Button>
          <Button
            variant="secondary"
            id="test-moment-button"
            isDisabled={chosenMs === null || Boolean(job.failoverId)}
            onClick={() => setRecovering('test')}
          >
            Test this moment…
          </Button>
          <Button
            variant="secondary"
            id="failover-moment-button"
            isDisabled={chosenMs === null || Boolean(job.failoverId)}
            onClick={() => setRecovering('failover')}
          >
            Fail over to this moment…
          </Button>
        </Flex>
      )}
      {points.labels.length > 0 && (
        <Labels job={job} points={points} mayAct={mayOperate} reload={reload} choose={setCursor} />
      )}
      <OpenMounts job={job} />
      <JournalCheckPart job={job} mayAct={mayOperate} />
      {recovering === 'mount' && (
        <OpenPointDialog job={job} atMs={chosenMs} close={() => setRecovering(null)} />
      )}
      {recovering === 'test' && (
        <TestDialog job={job} atMs={chosenMs} close={() => setRecovering(null)} />
      )}
      {recovering === 'failover' && (
        <FailoverDialog
          job={job}
          source={sources.get(job.sourceId)}
          atMs={chosenMs}
          close={() => setRecovering(null)}
        />
      )}
      {labelling && chosenMs !== null && (
        <LabelDialog
          job={job}
          atMs={chosenMs}
          close={() => setLabelling(false)}
          done={() => {
            setLabelling(false);
            reload();
          }}
        />
      )}
    </>
  );
}

function LabelDialog(props: { job: Job; atMs: number; close: () => void; done: () => void }) {
  const [text, setText] = useState('');
  const at = new Date(props.atMs);
  return (
    <ConfirmDialog
      id="label-dialog"
      title={`Label ${formatAbsolute(at)}`}
      submit="Save label"
      blocked={text.trim() === ''}
      close={props.close}
      act={async () => {
        await api.addLabel(props.job.jobId, { at: at.toISOString(), text: text.trim() });
        props.done();
      }}
    >
      <Form onSubmit={(event) => event.preventDefault()}>
        <FormGroup label="Name of this moment" fieldId="label-text" isRequired>
          <TextInput
            id="label-text"
            value={text}
            maxLength={200}
            placeholder="before the upgrade"
            onChange={(_event, value) => setText(value)}
          />
        </FormGroup>
      </Form>
    </ConfirmDialog>
  );
}

function Labels(props: {
  job: Job;
  points: JobPoints;
  mayAct: boolean;
  reload: () => void;
  choose: (atMs: number) => void;
}) {
  const remove = useAction(async (labelId: string) => {
    await api.removeLabel(props.job.jobId, labelId);
    props.reload();
  });
  return (
    <>
      <ErrorAlert error={remove.error} id="label-error" />
      <Table variant="compact" aria-label="Labels" borders={false} id="label-table">
        <Thead>
          <Tr>
            <Th>Label</Th>
            <Th>Moment</Th>
            <Th>By</Th>
            <Th screenReaderText="Actions" />
          </Tr>
        </Thead>
        <Tbody>
          {props.points.labels.map(({ labelId, text, at, createdBy, recoverable }) => (
            <Tr key={labelId} data-testid="label" data-label-id={labelId}>
              <Td dataLabel="Label">
                <Button variant="link" isInline onClick={() => props.choose(Date.parse(at))}>
                  {text}
                </Button>
                {!recoverable && (
                  <div className="und-quiet">its moment cannot be recovered (any more)</div>
                )}
              </Td>
              <Td dataLabel="Moment">
                <When at={at} />
              </Td>
              <Td dataLabel="By">{createdBy}</Td>
              <Td className="und-row-actions">
                {props.mayAct && (
                  <Button
                    variant="link"
                    isInline
                    isDanger
                    isDisabled={remove.busy}
                    aria-label={`Remove the label ${text}`}
                    onClick={() => void remove.run(labelId)}
                  >
                    Remove
                  </Button>
                )}
              </Td>
            </Tr>
          ))}
        </Tbody>
      </Table>
    </>
  );
}

function JournalCheckPart(props: { job: Job; mayAct: boolean }) {
  const { jobId } = props.job;
  const polled = usePolled(() => api.journalCheck(jobId), CHECK_POLL_MS);
  const start = useAction(async () => {
    await api.startJournalCheck(jobId);
    polled.reload();
  });
  const check = polled.data;
  return (
    <div className="und-stack" id="journal-check" data-state={check?.state ?? 'none'}>
      <ErrorAlert error={start.error ?? polled.error} id="journal-check-error" />
      {check && <CheckResult check={check} />}
      {props.mayAct && (
        <Button
          variant="secondary"
          className="und-start"
          id="journal-check-button"
          isDisabled={check?.state === 'running' || start.busy}
          onClick={() => void start.run()}
        >
          Check the journal
        </Button>
      )}
    </div>
  );
}

function CheckResult(props: { check: JournalCheck }) {
  const { check } = props;
  switch (check.state) {
    case 'none':
      return null;
    case 'running':
      return (
        <Progress
          id="journal-check-progress"
          size="sm"
          title="Reading the journal back"
          value={Math.min(100, Math.floor((check.readBytes / Math.max(1, check.totalBytes)) * 100))}
        />
      );
    case 'failed':
      return <ErrorAlert error={check.error} title="The journal could not be checked" />;
    case 'done':
      return check.faultCount === 0 ? (
        <Alert variant="success" isInline isPlain title="The journal is whole" id="journal-whole">
          {count(check.frames, 'frame')}, {formatBytes(check.bytes)}, read back{' '}
          <When at={check.endedAt} />
        </Alert>
      ) : (
        <Alert
          variant="danger"
          isInline
          title={`The journal has ${count(check.faultCount, 'fault')}`}
          id="journal-faults"
        >
          <p>
            Recovery to points behind them is not possible. A new difference mirror begins a new
            history.
          </p>
          <ul className="pf-v6-c-list">
            {check.faults.map(({ segment, offsetBytes, reason }) => (
              <li key={`${segment}-${offsetBytes}-${reason}`}>
                <span className="und-mono">{segment}</span> at byte {offsetBytes}: {reason}
              </li>
            ))}
          </ul>
          {check.faultCount > check.faults.length && (
            <p>{check.faultCount - check.faults.length} more are not listed.</p>
          )}
        </Alert>
      );
  }
}
