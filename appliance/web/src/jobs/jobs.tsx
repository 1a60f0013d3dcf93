import {
  Button,
  PageSection,
  Progress,
  ToggleGroup,
  ToggleGroupItem,
} from '@patternfly/react-core';
import { ShieldAltIcon } from '@patternfly/react-icons/dist/esm/icons/shield-alt-icon';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import { Link, useSearchParams } from 'react-router';
import type { Job } from '../../../api/schema.ts';
import { useLive } from '../api/use-live.ts';
import { formatRate, percentOf } from '../format.ts';
import { useNow } from '../parts/hooks.ts';
import { Ago, Loading, Nothing, PageHead, StateLabel } from '../parts/parts.tsx';
import { AddSourceButton } from '../sources/sources.tsx';
import {
  describeJob,
  describeLag,
  describeStream,
  type Heap,
  heapOf,
  mirrorTotal,
} from './words.ts';

export function JobTable(props: { jobs: Job[] }) {
  const now = useNow();
  return (
    <Table aria-label="Protection jobs" id="job-table">
      <Thead>
        <Tr>
          <Th width={20}>Job</Th>
          <Th width={20}>State</Th>
          <Th>Stream</Th>
          <Th>Lag</Th>
          <Th>Rate</Th>
          <Th modifier="wrap">Newest point</Th>
          <Th modifier="wrap">Proven bootable</Th>
        </Tr>
      </Thead>
      <Tbody>
        {props.jobs.map((job) => {
          const words = describeJob(job);
          const stream = describeStream(job.stream);
          const mirror = job.state.name === 'mirroring' ? mirrorTotal(job) : null;
          const { figures } = job;
          const lag = describeLag(figures, now);
          return (
            <Tr
              key={job.jobId}
              id={`job-row-${job.name}`}
              data-job-id={job.jobId}
              data-testid="job-row"
            >
              <Td dataLabel="Job">
                <Link to={`/jobs/${job.jobId}`} id={`job-link-${job.name}`}>
                  {job.name}
                </Link>
                {job.sourceName !== job.name && <div className="und-quiet">{job.sourceName}</div>}
              </Td>
              <Td dataLabel="State">
                <StateLabel tone={words.tone} state={job.state.name}>
                  {words.label}
                </StateLabel>
                {mirror ? (
                  <Progress
                    size="sm"
                    value={Math.floor(percentOf(mirror.doneBytes, mirror.totalBytes))}
                    aria-label={`Mirror of ${job.name}`}
                  />
                ) : (
                  words.reason && <div className="und-quiet">{words.reason}</div>
                )}
              </Td>
              <Td dataLabel="Stream">
                <StateLabel tone={stream.tone} state={job.stream.mode}>
                  {stream.label}
                </StateLabel>
              </Td>
              <Td dataLabel="Lag" modifier="nowrap">
                {lag.time.value}
                <div className="und-quiet">{lag.data.value}</div>
              </Td>
              <Td dataLabel="Rate" modifier="nowrap">
                {formatRate(figures.rateBytesPerSec)}
              </Td>
              <Td dataLabel="Newest point">
                <Ago at={figures.newestPointAt} absent="none yet" />
              </Td>
              <Td dataLabel="Proven bootable">
                <Ago at={job.provenBootableAt} absent="not yet" />
              </Td>
            </Tr>
          );
        })}
      </Tbody>
    </Table>
  );
}

const HEAPS: [Heap, string][] = [
  ['protected', 'Protected'],
  ['mirroring', 'Mirroring'],
  ['attention', 'Needs attention'],
  ['failed-over', 'Failed over'],
];

export function JobsPage() {
  const { jobs, sources, synced } = useLive();
  const [params, setParams] = useSearchParams();
  const heap = params.get('heap');
  const all = [...jobs.values()].sort((a, b) => a.name.localeCompare(b.name));
  const shown = heap ? all.filter((job) => heapOf(job) === heap) : all;
  const unprotected = [...sources.values()].filter(
    (source) => !source.jobId && source.state.name === 'online',
  );
  return (
    <>
      <PageHead title="Protection jobs" />
      <PageSection hasBodyWrapper={false} className="und-stack">
        {!synced && all.length === 0 ? (
          <Loading what="protection jobs" />
        ) : all.length === 0 ? (
          <Nothing
            icon={ShieldAltIcon}
            id="no-jobs"
            title="Nothing is protected yet"
            action={
              unprotected.length > 0 ? (
                <Button
                  variant="primary"
                  component={(more) => (
                    <Link {...more} to={`/sources/${unprotected[0]!.sourceId}/protect`} />
                  )}
                >
                  Protect {unprotected[0]!.name}
                </Button>
              ) : (
                <AddSourceButton />
              )
            }
          >
            {unprotected.length > 0
              ? 'A source server is connected: the next thing is to choose its disks and where their replicas go.'
              : 'First add a source server, then choose its disks and where their replicas go.'}
          </Nothing>
        ) : (
          <>
            <ToggleGroup aria-label="Show" isCompact>
              <ToggleGroupItem
                text={`All (${all.length})`}
                isSelected={!heap}
                onChange={() => setParams({})}
              />
              {HEAPS.map(([value, label]) => (
                <ToggleGroupItem
                  key={value}
                  buttonId={`heap-${value}`}
                  text={`${label} (${all.filter((job) => heapOf(job) === value).length})`}
                  isSelected={heap === value}
                  onChange={() => setParams({ heap: value })}
                />
              ))}
            </ToggleGroup>
            {shown.length > 0 ? (
              <JobTable jobs={shown} />
            ) : (
              <Nothing title="None" small>
                No job is in this state.
              </Nothing>
            )}
          </>
        )}
      </PageSection>
    </>
  );
}
