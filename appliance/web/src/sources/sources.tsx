import { Button, PageSection } from '@patternfly/react-core';
import { ServerIcon } from '@patternfly/react-icons/dist/esm/icons/server-icon';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import { Link } from 'react-router';
import type { Source } from '../../../api/schema.ts';
import { useLive } from '../api/use-live.ts';
import { count, formatBytes } from '../format.ts';
import { describeJob } from '../jobs/words.ts';
import { Loading, Nothing, PageHead, StateLabel } from '../parts/parts.tsx';
import { useUser } from '../session/session.tsx';
import { describeSource } from './words.ts';

export function AddSourceButton() {
  const { mayOperate } = useUser();
  if (!mayOperate) return null;
  return (
    <Button
      variant="primary"
      id="add-source"
      component={(props) => <Link {...props} to="/sources/add" />}
    >
      Add source server
    </Button>
  );
}

function Row(props: { source: Source }) {
  const { source } = props;
  const { jobs } = useLive();
  const { mayOperate } = useUser();
  const job = source.jobId ? jobs.get(source.jobId) : undefined;
  const words = describeSource(source.state);
  const { inventory } = source;
  const totalBytes = inventory?.disks.reduce((sum, disk) => sum + disk.sizeBytes, 0) ?? 0;
  return (
    <Tr id={`source-row-${source.name}`} data-source-id={source.sourceId} data-testid="source-row">
      <Td dataLabel="Name">
        <Link to={`/sources/${source.sourceId}`} id={`source-link-${source.name}`}>
          {source.name}
        </Link>
        <div className="und-quiet">{source.address}</div>
      </Td>
      <Td dataLabel="State">
        <StateLabel tone={words.tone} state={source.state.name}>
          {words.label}
        </StateLabel>
        {words.reason && <div className="und-quiet">{words.reason}</div>}
      </Td>
      <Td dataLabel="System">
        {inventory ? (
          <>
            {inventory.os}
            <div className="und-quiet">
              {count(inventory.cpuCount, 'CPU')}, {formatBytes(inventory.memoryBytes)} memory
            </div>
          </>
        ) : (
          <span className="und-quiet">not known yet</span>
        )}
      </Td>
      <Td dataLabel="Disks">
        {inventory ? (
          <>
            {count(inventory.disks.length, 'disk')}
            <div className="und-quiet">{formatBytes(totalBytes)}</div>
          </>
        ) : (
          '–'
        )}
      </Td>
      <Td dataLabel="Protection">
        {job ? (
          <Link to={`/jobs/${job.jobId}`}>{describeJob(job).label}</Link>
        ) : source.jobId ? (
          <Link to={`/jobs/${source.jobId}`}>Job</Link>
        ) : inventory && mayOperate && source.state.name === 'online' ? (
          <Button
            variant="secondary"
            size="sm"
            id={`protect-${source.name}`}
            component={(more) => <Link {...more} to={`/sources/${source.sourceId}/protect`} />}
          >
            Protect
          </Button>
        ) : (
          <span className="und-quiet">Not protected</span>
        )}
      </Td>
    </Tr>
  );
}

export function SourcesPage() {
  const { sources, synced } = useLive();
  const list = [...sources.values()].sort((a, b) => a.name.localeCompare(b.name));
  return (
    <>
      <PageHead title="Source servers" actions={list.length > 0 && <AddSourceButton />} />
      <PageSection hasBodyWrapper={false}>
        {!synced && list.length === 0 ? (
          <Loading what="source servers" />
        ) : list.length === 0 ? (
          <Nothing
            icon={ServerIcon}
            id="no-sources"
            title="No source server yet"
            action={<AddSourceButton />}
          >
            A source server is a running Linux machine that is to be protected. You need its address
            and an SSH login that may become root. The server keeps running; it is not rebooted.
          </Nothing>
        ) : (
          <Table aria-label="Source servers" id="source-table">
            <Thead>
              <Tr>
                <Th>Name</Th>
                <Th>State</Th>
                <Th>System</Th>
                <Th>Disks</Th>
                <Th>Protection</Th>
              </Tr>
            </Thead>
            <Tbody>
              {list.map((source) => (
                <Row key={source.sourceId} source={source} />
              ))}
            </Tbody>
          </Table>
        )}
      </PageSection>
    </>
  );
}
