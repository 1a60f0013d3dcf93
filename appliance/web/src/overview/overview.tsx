import {
  Button,
  Card,
  CardBody,
  CardTitle,
  Grid,
  GridItem,
  List,
  ListItem,
  PageSection,
} from '@patternfly/react-core';
import { ShieldAltIcon } from '@patternfly/react-icons/dist/esm/icons/shield-alt-icon';
import { Link } from 'react-router';
import { api } from '../api/client.ts';
import { useLive } from '../api/use-live.ts';
import { HostUse } from '../host/host.tsx';
import { JobTable } from '../jobs/jobs.tsx';
import { describeFailover, describeJob, type Heap, heapOf } from '../jobs/words.ts';
import { usePolled } from '../parts/hooks.ts';
import { ErrorAlert, Loading, Nothing, PageHead, StateLabel, Usage } from '../parts/parts.tsx';
import type { Tone } from '../parts/tone.ts';
import { AddSourceButton } from '../sources/sources.tsx';
import { describeSource } from '../sources/words.ts';

const HEAPS: [Heap, string, Tone][] = [
  ['protected', 'Protected', 'good'],
  ['mirroring', 'Mirroring', 'busy'],
  ['attention', 'Need attention', 'attention'],
  ['failed-over', 'Failed over', 'neutral'],
];

interface Concern {
  key: string;
  to: string;
  who: string;
  tone: Tone;
  state: string;
  label: string;
  reason?: string;
}

export function OverviewPage() {
  const { jobs, sources, failovers, synced } = useLive();
  const host = usePolled(api.host, 5000);
  const system = usePolled(api.system, 10_000);
  const list = [...jobs.values()].sort((a, b) => a.name.localeCompare(b.name));
  const unprotected = [...sources.values()].filter((source) => !source.jobId);

  const concerns: Concern[] = [
    ...list
      .filter((job) => heapOf(job) === 'attention')
      .map((job) => ({
        key: job.jobId,
        to: `/jobs/${job.jobId}`,
        who: job.name,
        state: job.state.name,
        ...describeJob(job),
      })),
    ...[...sources.values()]
      .map((source) => ({ source, words: describeSource(source.state) }))
      .filter(({ words }) => words.tone === 'bad' || words.tone === 'attention')
      .map(({ source, words }) => ({
        key: source.sourceId,
        to: `/sources/${source.sourceId}`,
        who: source.name,
        state: source.state.name,
        ...words,
      })),
    ...[...failovers.values()]
      .filter((one) => one.state.name === 'completed' || one.state.name === 'compensating')
      .map((one) => ({
        key: one.failoverId,
        to: `/failovers/${one.failoverId}`,
        who: one.replicaName,
        state: one.state.name,
        ...describeFailover(one),
      })),
  ];

  return (
    <>
      <PageHead title="Overview" actions={list.length > 0 && <AddSourceButton />} />
      <PageSection hasBodyWrapper={false} className="und-stack">
        {!synced && list.length === 0 && <Loading what="the overview" />}
        {synced && list.length === 0 && (
          <Card>
            <CardBody>
              <Nothing
                icon={ShieldAltIcon}
                id="overview-empty"
                title={
                  sources.size === 0 ? 'Nothing is protected yet' : 'Now choose what to protect'
                }
                action={
                  unprotected[0]?.inventory ? (
                    <Button
                      variant="primary"
                      component={(more) => (
                        <Link {...more} to={`/sources/${unprotected[0]!.sourceId}/protect`} />
                      )}
                    >
                      Protect {unprotected[0].name}
                    </Button>
                  ) : sources.size > 0 ? (
                    <Link to="/sources">Go to the source servers</Link>
                  ) : (
                    <AddSourceButton />
                  )
                }
              >
                <p>Three steps to a server that can be recovered:</p>
                <List component="ol" className="und-left">
                  <ListItem>
                    Add the source server: the appliance installs its agent there.
                  </ListItem>
                  <ListItem>
                    Choose its disks and where their replicas go; the mirror starts.
                  </ListItem>
                  <ListItem>When its source is lost, fail over: the replica starts here.</ListItem>
                </List>
              </Nothing>
            </CardBody>
          </Card>
        )}
        {list.length > 0 && (
          <Grid hasGutter>
            {HEAPS.map(([heap, label, tone]) => {
              const size = list.filter((job) => heapOf(job) === heap).length;
              return (
                <GridItem key={heap} sm={6} lg={3}>
                  <Card isFullHeight isCompact>
                    <CardBody>
                      <div className="und-big" id={`overview-${heap}`} data-count={size}>
                        {size}
                      </div>
                      <StateLabel tone={size === 0 ? 'neutral' : tone} state={heap}>
                        {label}
                      </StateLabel>{' '}
                      {size > 0 && <Link to={`/jobs?heap=${heap}`}>Show</Link>}
                    </CardBody>
                  </Card>
                </GridItem>
              );
            })}
          </Grid>
        )}
        {concerns.length > 0 && (
          <Card id="overview-concerns">
            <CardTitle component="h2">Wants your attention</CardTitle>
            <CardBody className="und-stack">
              {concerns.map((one) => (
                <div key={one.key} data-testid="concern">
                  <Link to={one.to}>
                    <strong>{one.who}</strong>
                  </Link>{' '}
                  <StateLabel tone={one.tone} state={one.state}>
                    {one.label}
                  </StateLabel>
                  {one.reason && <div className="und-quiet">{one.reason}</div>}
                </div>
              ))}
            </CardBody>
          </Card>
        )}
        {list.length > 0 && (
          <Card>
            <CardTitle component="h2">Protection jobs</CardTitle>
            <CardBody>
              <JobTable jobs={list} />
            </CardBody>
          </Card>
        )}
        <Grid hasGutter>
          <GridItem lg={4}>
            <Card isFullHeight>
              <CardTitle component="h2">Target host{host.data && ` ${host.data.name}`}</CardTitle>
              <CardBody>
                <ErrorAlert error={host.error} id="host-error" />
                {host.data ? <HostUse host={host.data} /> : !host.error && <Loading what="host" />}
              </CardBody>
            </Card>
          </GridItem>
          <GridItem lg={4}>
            <Card isFullHeight>
              <CardTitle component="h2">Storage pools</CardTitle>
              <CardBody className="und-stack">
                {host.data?.pools
                  .filter((pool) => pool.usable)
                  .map((pool) => (
                    <Usage
                      key={pool.name}
                      label={pool.name}
                      usedBytes={pool.totalBytes - pool.freeBytes}
                      totalBytes={pool.totalBytes}
                    />
                  ))}
                {host.data && !host.data.pools.some((pool) => pool.usable) && (
                  <p>
                    No pool can hold replica disks. <Link to="/host">See why</Link>
                  </p>
                )}
              </CardBody>
            </Card>
          </GridItem>
          <GridItem lg={4}>
            <Card isFullHeight>
              <CardTitle component="h2">Journal</CardTitle>
              <CardBody className="und-stack">
                <ErrorAlert error={system.error} />
                {system.data && (
                  <Usage
                    id="overview-journal"
                    label="Journal disk"
                    usedBytes={system.data.journal.totalBytes - system.data.journal.freeBytes}
                    totalBytes={system.data.journal.totalBytes}
                  />
                )}
                <p className="und-quiet">
                  What arrives is kept here in order before it is applied to the replica disks.
                </p>
              </CardBody>
            </Card>
          </GridItem>
        </Grid>
      </PageSection>
    </>
  );
}
