/** One group: its members, what all of them can be recovered to, and what is done with them together. */
import {
  Button,
  Card,
  CardBody,
  CardTitle,
  Checkbox,
  DescriptionList,
  Flex,
  Form,
  FormGroup,
  PageSection,
  TextInput,
} from '@patternfly/react-core';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import { useState } from 'react';
import { Link, useNavigate, useParams } from 'react-router';
import type { Group, GroupPoints } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { learn } from '../api/live.ts';
import { useLive } from '../api/use-live.ts';
import { testScheduleWords } from '../jobs/tests.tsx';
import { Timeline } from '../jobs/timeline.tsx';
import { wholeRange } from '../jobs/timeline-view.ts';
import { describeJob, scheduleLabel } from '../jobs/words.ts';
import { ConfirmDialog } from '../parts/confirm.tsx';
import { useNow, usePolled } from '../parts/hooks.ts';
import {
  Ago,
  ErrorAlert,
  Fact,
  Loading,
  Nothing,
  PageHead,
  StateLabel,
  When,
} from '../parts/parts.tsx';
import { useUser } from '../session/session.tsx';
import { GroupFailoverDialog } from './group-failover-dialog.tsx';
import { apartWords, describeRun, groupTimeline, inOrder, markAt, waitWords } from './words.ts';

const POLL_MS = 5000;
const CRUMBS: [string, string][] = [['Groups', '/groups']];

export function GroupPage() {
  const { groupId = '' } = useParams();
  const { groups, synced } = useLive();
  const group = groups.get(groupId);
  if (group) return <Shown key={groupId} group={group} />;
  if (!synced) return <Loading what="the group" />;
  return (
    <>
      <PageHead title="Group" crumbs={CRUMBS} />
      <Nothing title="There is no such group" action={<Link to="/groups">All groups</Link>}>
        It may have been dissolved.
      </Nothing>
    </>
  );
}

function Shown({ group }: { group: Group }) {
  const { mayOperate } = useUser();
  const navigate = useNavigate();
  const [cursorMs, setCursor] = useState<number | null>(null);
  const [asking, setAsking] = useState<'failover' | 'test' | 'mark' | 'remove'>();
  const polled = usePolled(() => api.groupPoints(group.groupId), POLL_MS);
  const points = polled.data;
  const busy = group.runId !== null;
  const mayAct = mayOperate && !busy && group.members.length > 0;
  const close = () => setAsking(undefined);
  return (
    <>
      <PageHead
        title={group.name}
        crumbs={CRUMBS}
        actions={
          mayOperate && (
            <Flex gap={{ default: 'gapSm' }}>
              <Button
                variant="danger"
                id="group-failover-button"
                isDisabled={!mayAct}
                onClick={() => setAsking('failover')}
              >
                Fail over…
              </Button>
              <Button
                variant="secondary"
                id="group-test-button"
                isDisabled={!mayAct}
                onClick={() => setAsking('test')}
              >
                Test…
              </Button>
              <Button
                variant="secondary"
                id="group-mark-button"
                isDisabled={!mayAct}
                onClick={() => setAsking('mark')}
              >
                Take a mark…
              </Button>
              <Button
                variant="secondary"
                id="group-edit"
                isDisabled={busy}
                component={(more) => <Link {...more} to={`/groups/${group.groupId}/edit`} />}
              >
                Change
              </Button>
              <Button
                variant="link"
                isDanger
                id="group-remove"
                isDisabled={busy}
                onClick={() => setAsking('remove')}
              >
                Dissolve…
              </Button>
            </Flex>
          )
        }
      />
      <PageSection
        hasBodyWrapper={false}
        className="und-stack"
        id="group"
        data-group-id={group.groupId}
      >
        <Members group={group} points={points} />
        <Card id="group-points">
          <CardTitle component="h2">Recovery points of all members</CardTitle>
          <CardBody className="und-stack">
            <ErrorAlert error={polled.error} id="group-points-error" />
            <ErrorAlert
              error={group.markProblem ?? undefined}
              id="group-mark-problem"
              level="warning"
              title="The last scheduled mark was not taken"
            />
            {points ? (
              <Points
                points={points}
                schedule={group.schedule}
                cursorMs={cursorMs}
                setCursor={setCursor}
              />
            ) : (
              !polled.error && <Loading what="the recovery points" />
            )}
          </CardBody>
        </Card>
        <Runs group={group} />
      </PageSection>
      {(asking === 'failover' || asking === 'test') && (
        <GroupFailoverDialog
          group={group}
          points={points}
          atMs={cursorMs}
          test={asking === 'test'}
          close={close}
        />
      )}
      {asking === 'mark' && <MarkDialog group={group} close={close} taken={polled.reload} />}
      {asking === 'remove' && (
        <ConfirmDialog
          id="group-remove-dialog"
          title={`Dissolve ${group.name}?`}
          submit="Dissolve"
          danger
          close={close}
          act={async () => {
            await api.removeGroup(group.groupId);
            learn.groupRemoved(group.groupId);
            navigate('/groups');
          }}
        >
          Its jobs go on, each on its own. The marks of the group are forgotten; the points of the
          jobs stay.
        </ConfirmDialog>
      )}
    </>
  );
}

function Members({ group, points }: { group: Group; points: GroupPoints | undefined }) {
  const { jobs } = useLive();
  return (
    <Card>
      <CardTitle component="h2">Members</CardTitle>
      <CardBody className="und-stack">
        {group.members.length === 0 && <p id="group-empty">It has no members any more.</p>}
        <Table aria-label="Members" id="group-member-table" variant="compact">
          <Thead>
            <Tr>
              <Th>Priority</Th>
              <Th>Source</Th>
              <Th>State</Th>
              <Th>Newest point</Th>
              <Th>Clock</Th>
            </Tr>
          </Thead>
          <Tbody>
            {inOrder(group.members).map(({ jobId, priority }) => {
              const job = jobs.get(jobId);
              const words = job && describeJob(job);
              const seen = points?.members.find((one) => one.jobId === jobId);
              return (
                <Tr key={jobId} data-testid="group-member" data-job-id={jobId}>
                  <Td dataLabel="Priority">{priority}</Td>
                  <Td dataLabel="Source">
                    <Link to={`/jobs/${jobId}`}>{job?.sourceName ?? jobId}</Link>
                  </Td>
                  <Td dataLabel="State">
                    {job && words && (
                      <StateLabel tone={words.tone} state={job.state.name}>
                        {words.label}
                      </StateLabel>
                    )}
                  </Td>
                  <Td dataLabel="Newest point">
                    <Ago at={seen?.newestAt} absent="none yet" />
                  </Td>
                  <Td dataLabel="Clock">
                    {seen && (seen.clockErrorMs === null || seen.clockOffsetMs === null)
                      ? 'never compared'
                      : seen &&
                        `${seen.clockOffsetMs! >= 0 ? '+' : '−'}${Math.abs(Math.round(seen.clockOffsetMs!))} ms ± ${Math.ceil(seen.clockErrorMs!)} ms`}
                  </Td>
                </Tr>
              );
            })}
          </Tbody>
        </Table>
        <p className="und-quiet">The next priority begins {waitWords(group.wait)}.</p>
      </CardBody>
    </Card>
  );
}

function Points(props: {
  points: GroupPoints;
  schedule: Group['schedule'];
  cursorMs: number | null;
  setCursor: (atMs: number) => void;
}) {
  const { points } = props;
  const nowMs = useNow();
  const drawn = groupTimeline(points);
  const whole = wholeRange(drawn, nowMs);
  return (
    <>
      {whole ? (
        <Timeline
          points={drawn}
          whole={whole}
          nowMs={nowMs}
          cursorMs={props.cursorMs}
          setCursor={props.setCursor}
          outside="not every member has a point: the newest common one before it is taken"
        />
      ) : (
        <p id="group-no-points">
          There is no moment yet at which every member has a recovery point.
        </p>
      )}
      <DescriptionList isHorizontal isCompact>
        <Fact term="Marks on schedule" id="group-schedule">
          {scheduleLabel(props.schedule?.everyMinutes)}
        </Fact>
        <Fact term="Newest common moment">
          <When at={points.newestAt} absent="none yet" id="group-newest" />
        </Fact>
        <Fact term="Members apart" id="group-apart">
          {apartWords(points.errorMs)}
        </Fact>
      </DescriptionList>
      {points.marks.length > 0 && (
        <Table aria-label="Marks" id="group-mark-table" variant="compact">
          <Thead>
            <Tr>
              <Th>Mark</Th>
              <Th>Taken</Th>
              <Th>Consistent for</Th>
              <Th>Members apart</Th>
            </Tr>
          </Thead>
          <Tbody>
            {points.marks.toReversed().map((mark) => (
              <Tr key={mark.markId} data-testid="group-mark" data-mark-id={mark.markId}>
                <Td dataLabel="Mark">
                  {mark.recoverable ? (
                    <Button
                      variant="link"
                      isInline
                      onClick={() => props.setCursor(Date.parse(mark.at))}
                    >
                      {mark.name}
                    </Button>
                  ) : (
                    <>
                      {mark.name} <span className="und-quiet">(has left the history)</span>
                    </>
                  )}
                </Td>
                <Td dataLabel="Taken">
                  <When at={mark.at} />
                </Td>
                <Td dataLabel="Consistent for">{mark.quiesced ? 'applications' : 'crash'}</Td>
                <Td dataLabel="Members apart">{apartWords(mark.apartMs)}</Td>
              </Tr>
            ))}
          </Tbody>
        </Table>
      )}
      {markAt(points, props.cursorMs) && (
        <p className="und-quiet" id="group-at-mark">
          The moment is the mark “{markAt(points, props.cursorMs)?.name}”: each member is recovered
          to its own point of it.
        </p>
      )}
    </>
  );
}

function Runs({ group: { groupId, testEvery } }: { group: Group }) {
  const { groupRuns } = useLive();
  const mine = [...groupRuns.values()]
    .filter((run) => run.groupId === groupId)
    .sort((a, b) => b.startedAt.localeCompare(a.startedAt));
  return (
    <Card>
      <CardTitle component="h2">Failovers and tests</CardTitle>
      <CardBody className="und-stack">
        <p className="und-quiet" id="group-tests-schedule">
          Tests: {testScheduleWords(testEvery)}.
        </p>
        <Table aria-label="Failovers and tests" id="group-run-table" variant="compact">
          <Tbody>
            {mine.slice(0, 10).map((run) => {
              const words = describeRun(run);
              return (
                <Tr key={run.runId}>
                  <Td dataLabel="Kind">
                    <Link to={`/group-runs/${run.runId}`}>{run.kind}</Link>
                  </Td>
                  <Td dataLabel="State">
                    <StateLabel tone={words.tone} state={run.state.name}>
                      {words.label}
                    </StateLabel>
                  </Td>
                  <Td dataLabel="Started">
                    <When at={run.startedAt} />
                  </Td>
                  <Td dataLabel="Report">
                    <a href={api.groupReportUrl(run.runId)} target="_blank" rel="noreferrer">
                      Report
                    </a>
                  </Td>
                </Tr>
              );
            })}
          </Tbody>
        </Table>
      </CardBody>
    </Card>
  );
}

function MarkDialog(props: { group: Group; close: () => void; taken: () => void }) {
  const [name, setName] = useState('');
  const [quiesce, setQuiesce] = useState(true);
  const [checkpoint, setCheckpoint] = useState(false);
  return (
    <ConfirmDialog
      id="group-mark-dialog"
      title={`Take a mark of ${props.group.name}`}
      submit="Take the mark"
      wide
      close={props.close}
      act={async () => {
        const given = name.trim();
        const named = given === '' ? {} : { name: given };
        await api.markGroup(props.group.groupId, { ...named, quiesce, checkpoint });
        props.taken();
      }}
    >
      <Form onSubmit={(event) => event.preventDefault()}>
        <FormGroup label="Name" fieldId="group-mark-name">
          <TextInput
            id="group-mark-name"
            value={name}
            maxLength={100}
            placeholder="before the upgrade"
            onChange={(_event, text) => setName(text)}
          />
        </FormGroup>
        <Checkbox
          id="group-mark-quiesce"
          label="With the applications at rest"
          description="Hooks run and file systems are frozen for a moment, on all members at the same time as far as their clocks allow."
          isChecked={quiesce}
          onChange={(_event, checked) => setQuiesce(checked)}
        />
        <Checkbox
          id="group-mark-checkpoint"
          label="Also take a checkpoint of all replica disks there"
          description="Recovery to it needs no replay."
          isChecked={checkpoint}
          onChange={(_event, checked) => setCheckpoint(checked)}
        />
      </Form>
    </ConfirmDialog>
  );
}
