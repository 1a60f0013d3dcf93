import { Button, PageSection } from '@patternfly/react-core';
import { LayerGroupIcon } from '@patternfly/react-icons/dist/esm/icons/layer-group-icon';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import { Link } from 'react-router';
import { useLive } from '../api/use-live.ts';
import { count } from '../format.ts';
import { Loading, Nothing, PageHead, StateLabel, When } from '../parts/parts.tsx';
import { useUser } from '../session/session.tsx';
import { describeRun, inOrder, runOf } from './words.ts';

function NewGroupButton() {
  const { mayOperate } = useUser();
  if (!mayOperate) return null;
  return (
    <Button
      variant="primary"
      id="new-group"
      component={(more) => <Link {...more} to="/groups/new" />}
    >
      New group
    </Button>
  );
}

export function GroupsPage() {
  const { groups, groupRuns, jobs, synced } = useLive();
  const list = [...groups.values()].sort((a, b) => a.name.localeCompare(b.name));
  return (
    <>
      <PageHead title="Groups" actions={list.length > 0 ? <NewGroupButton /> : undefined}>
        Source servers that belong together are recovered to one moment, in an order.
      </PageHead>
      <PageSection hasBodyWrapper={false}>
        {!synced && list.length === 0 ? (
          <Loading what="groups" />
        ) : list.length === 0 ? (
          <Nothing
            icon={LayerGroupIcon}
            id="no-groups"
            title="No group yet"
            action={<NewGroupButton />}
          >
            Put a database server and the servers that use it into one group: they come up as they
            were at the same time, the database first.
          </Nothing>
        ) : (
          <Table aria-label="Groups" id="group-table">
            <Thead>
              <Tr>
                <Th>Group</Th>
                <Th>Members</Th>
                <Th>Last failover or test</Th>
                <Th>Started</Th>
              </Tr>
            </Thead>
            <Tbody>
              {list.map((group) => {
                const run = runOf(group, groupRuns);
                const words = run && describeRun(run);
                return (
                  <Tr key={group.groupId} data-testid="group-row" data-group-id={group.groupId}>
                    <Td dataLabel="Group">
                      <Link to={`/groups/${group.groupId}`} id={`group-link-${group.name}`}>
                        {group.name}
                      </Link>
                    </Td>
                    <Td dataLabel="Members">
                      {count(group.members.length, 'member')}
                      <div className="und-quiet">
                        {inOrder(group.members)
                          .map(({ jobId }) => jobs.get(jobId)?.sourceName ?? '–')
                          .join(', ')}
                      </div>
                    </Td>
                    <Td dataLabel="Last failover or test">
                      {run && words ? (
                        <Link to={`/group-runs/${run.runId}`}>
                          <StateLabel tone={words.tone} state={run.state.name}>
                            {run.kind}: {words.label}
                          </StateLabel>
                        </Link>
                      ) : (
                        'none yet'
                      )}
                    </Td>
                    <Td dataLabel="Started">
                      <When at={run?.startedAt} absent="–" />
                    </Td>
                  </Tr>
                );
              })}
            </Tbody>
          </Table>
        )}
      </PageSection>
    </>
  );
}
