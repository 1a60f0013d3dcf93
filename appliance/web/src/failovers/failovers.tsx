import { PageSection } from '@patternfly/react-core';
import { BoltIcon } from '@patternfly/react-icons/dist/esm/icons/bolt-icon';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import { Link } from 'react-router';
import { useLive } from '../api/use-live.ts';
import { formatDuration } from '../format.ts';
import { describeFailover } from '../jobs/words.ts';
import { Loading, Nothing, PageHead, StateLabel, When } from '../parts/parts.tsx';

export function FailoversPage() {
  const { failovers, jobs, synced } = useLive();
  const list = [...failovers.values()].sort((a, b) => b.startedAt.localeCompare(a.startedAt));
  return (
    <>
      <PageHead title="Failovers" />
      <PageSection hasBodyWrapper={false}>
        {!synced && list.length === 0 ? (
          <Loading what="failovers" />
        ) : list.length === 0 ? (
          <Nothing
            icon={BoltIcon}
            id="no-failovers"
            title="No failover yet"
            action={<Link to="/jobs">Go to the protection jobs</Link>}
          >
            When a source server is lost, open its protection job and choose “Fail over”.
          </Nothing>
        ) : (
          <Table aria-label="Failovers" id="failover-table">
            <Thead>
              <Tr>
                <Th>Replica VM</Th>
                <Th>Kind</Th>
                <Th>Source</Th>
                <Th>State</Th>
                <Th>Started</Th>
                <Th>Took</Th>
                <Th>Lost</Th>
              </Tr>
            </Thead>
            <Tbody>
              {list.map((one) => {
                const words = describeFailover(one);
                return (
                  <Tr
                    key={one.failoverId}
                    data-failover-id={one.failoverId}
                    data-testid="failover-row"
                  >
                    <Td dataLabel="Replica VM">
                      <Link to={`/failovers/${one.failoverId}`}>{one.replicaName}</Link>
                    </Td>
                    <Td dataLabel="Kind">{one.kind}</Td>
                    <Td dataLabel="Source">{jobs.get(one.jobId)?.sourceName ?? '–'}</Td>
                    <Td dataLabel="State">
                      <StateLabel tone={words.tone} state={one.state.name}>
                        {words.label}
                      </StateLabel>
                    </Td>
                    <Td dataLabel="Started">
                      <When at={one.startedAt} />
                    </Td>
                    <Td dataLabel="Took">
                      {one.endedAt
                        ? formatDuration(Date.parse(one.endedAt) - Date.parse(one.startedAt))
                        : '–'}
                    </Td>
                    <Td dataLabel="Lost">
                      {one.point.lossMs === null ? 'unknown' : formatDuration(one.point.lossMs)}
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
