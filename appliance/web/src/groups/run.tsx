/** The failover or test of a group as one thing: where it is, each member, and what can be decided. */
import {
  Alert,
  Button,
  Card,
  CardBody,
  DescriptionList,
  Flex,
  PageSection,
  Progress,
} from '@patternfly/react-core';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import { useState } from 'react';
import { Link, useParams } from 'react-router';
import type { GroupRunView } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { useLive } from '../api/use-live.ts';
import { formatDuration } from '../format.ts';
import { ConfirmDialog } from '../parts/confirm.tsx';
import { useAction, useNow } from '../parts/hooks.ts';
import { ErrorAlert, Fact, Loading, Nothing, PageHead, StateLabel, When } from '../parts/parts.tsx';
import { useUser } from '../session/session.tsx';
import { apartWords, describeMember, describeRun, inOrder, targetWords } from './words.ts';

export function GroupRunPage() {
  const { runId = '' } = useParams();
  const { groupRuns, synced } = useLive();
  const run = groupRuns.get(runId);
  if (run) return <Shown run={run} />;
  if (!synced) return <Loading what="the failover of the group" />;
  return (
    <>
      <PageHead title="Failover of a group" crumbs={[['Groups', '/groups']]} />
      <Nothing title="There is no such failover" action={<Link to="/groups">All groups</Link>}>
        The address may be of another appliance.
      </Nothing>
    </>
  );
}

function Shown({ run }: { run: GroupRunView }) {
  const { groups } = useLive();
  const { mayOperate } = useUser();
  const now = useNow();
  const [asking, setAsking] = useState<'undo' | 'commit'>();
  const ending = useAction(() => api.undoGroup(run.runId, ''));
  const resuming = useAction(() => api.resumeGroup(run.runId));
  const { state, kind, test, target } = run;
  const words = describeRun(run);
  const isTest = kind === 'test';
  const mayUndo = ['running', 'stopping', 'stopped', 'completed'].includes(state.name);
  const tookMs = (run.endedAt ? Date.parse(run.endedAt) : now) - Date.parse(run.startedAt);
  const crumbs: [string, string][] = [['Groups', '/groups']];
  if (groups.has(run.groupId)) crumbs.push([run.groupName, `/groups/${run.groupId}`]);
  return (
    <>
      <PageHead
        title={`${isTest ? 'Test failover' : 'Failover'} of ${run.groupName}`}
        crumbs={crumbs}
        beside={
          <StateLabel tone={words.tone} state={state.name} id="group-run-state">
            {words.label}
          </StateLabel>
        }
        actions={
          mayOperate && (
            <Flex gap={{ default: 'gapSm' }}>
              {isTest && mayUndo && (
                <Button
                  variant="secondary"
                  id="group-end-test"
                  isDisabled={ending.busy}
                  onClick={() => void ending.run()}
                >
                  End the test
                </Button>
              )}
              {!isTest && state.name === 'completed' && (
                <Button variant="primary" id="group-commit" onClick={() => setAsking('commit')}>
                  Commit all…
                </Button>
              )}
              {state.name === 'stopped' && (
                <Button
                  variant="primary"
                  id="group-resume"
                  isDisabled={resuming.busy}
                  onClick={() => void resuming.run()}
                >
                  Try again and go on
                </Button>
              )}
              {!isTest && mayUndo && (
                <Button
                  variant="secondary"
                  isDanger
                  id="group-undo"
                  onClick={() => setAsking('undo')}
                >
                  Undo all…
                </Button>
              )}
            </Flex>
          )
        }
      />
      <PageSection
        hasBodyWrapper={false}
        className="und-stack"
        id="group-run"
        data-run-id={run.runId}
      >
        <ErrorAlert error={ending.error ?? resuming.error} id="group-run-error" />
        {'error' in state && (
          <ErrorAlert
            error={state.error}
            id="group-run-reason"
            level={state.name === 'failed' ? 'danger' : 'warning'}
            title={
              state.name === 'stopped'
                ? 'A member failed: nothing more is begun. Undo all, or try again and go on.'
                : state.name === 'stopping'
                  ? 'A member failed: nothing more is begun, what is under way comes to its end.'
                  : 'It failed: all members replicate as before.'
            }
          />
        )}
        {!('error' in state) && words.reason && (
          <Alert variant="info" isInline isPlain title={words.reason} id="group-run-words" />
        )}
        <Card>
          <CardBody>
            <DescriptionList isHorizontal isCompact>
              <Fact term="Recovered to" id="group-run-target">
                {targetWords(run)}
                {target.name !== 'final' && (
                  <>
                    {': '}
                    <When at={target.at} />
                  </>
                )}
              </Fact>
              {target.name !== 'final' && (
                <Fact term="Members apart">{apartWords(target.errorMs)}</Fact>
              )}
              <Fact term="Started">
                <When at={run.startedAt} />
              </Fact>
              <Fact term="Report">
                <a
                  href={api.groupReportUrl(run.runId)}
                  target="_blank"
                  rel="noreferrer"
                  id="group-run-report"
                >
                  Open
                </a>
              </Fact>
              <Fact term="Took">{formatDuration(tookMs)}</Fact>
              {test?.verdict && (
                <Fact term="Verdict" id="group-run-verdict">
                  {test.verdict.passed ? 'passed' : 'failed'}: {test.verdict.words}
                </Fact>
              )}
              {test && state.name === 'completed' && (
                <Fact term="Kept until">
                  <When at={test.endsAt} />
                </Fact>
              )}
            </DescriptionList>
          </CardBody>
        </Card>
        <Table aria-label="Members" id="group-run-members">
          <Thead>
            <Tr>
              <Th modifier="fitContent">Priority</Th>
              <Th width={20}>Source</Th>
              <Th>State</Th>
              <Th width={30}>Progress</Th>
            </Tr>
          </Thead>
          <Tbody>
            {inOrder(run.members).map((member) => (
              <Member key={member.jobId} member={member} />
            ))}
          </Tbody>
        </Table>
      </PageSection>
      {asking && (
        <ConfirmDialog
          id={`group-${asking}-dialog`}
          title={
            asking === 'undo'
              ? `Undo the failover of ${run.groupName}?`
              : `Commit ${run.groupName}?`
          }
          submit={asking === 'undo' ? 'Undo all' : 'Commit all'}
          danger
          typed={run.groupName}
          typedLabel="Type the group's name to confirm"
          close={() => setAsking(undefined)}
          act={(confirm) =>
            asking === 'undo'
              ? api.undoGroup(run.runId, confirm)
              : api.commitGroup(run.runId, confirm)
          }
        >
          {asking === 'undo'
            ? 'All replica VMs are destroyed with what they have written since they were powered on, the last priority first; every member replicates again. What is under way just now is waited for.'
            : 'The replicas are the servers from then on, and the jobs end. It cannot be undone after that.'}
        </ConfirmDialog>
      )}
    </>
  );
}

function Member({ member }: { member: GroupRunView['members'][number] }) {
  const words = describeMember(member);
  const { state } = member;
  const shown = state.name === 'begun' ? state.failover.name : state.name;
  return (
    <Tr data-testid="group-run-member" id={`group-run-member-${member.replicaName}`}>
      <Td dataLabel="Priority">{member.priority}</Td>
      <Td dataLabel="Source">
        {member.failoverId ? (
          <Link to={`/failovers/${member.failoverId}`}>{member.sourceName}</Link>
        ) : (
          member.sourceName
        )}
      </Td>
      <Td dataLabel="State">
        <StateLabel tone={words.tone} state={shown}>
          {words.label}
        </StateLabel>
        {words.reason && <div className="und-quiet">{words.reason}</div>}
      </Td>
      <Td dataLabel="Progress">
        {state.name === 'begun' && (
          <Progress
            size="sm"
            value={(state.stepsDone / Math.max(1, state.stepsAll)) * 100}
            label={`${state.stepsDone} of ${state.stepsAll} steps`}
            aria-label={`Progress of ${member.sourceName}`}
          />
        )}
      </Td>
    </Tr>
  );
}
