import {
  Alert,
  Button,
  Card,
  CardBody,
  CardTitle,
  DescriptionList,
  Dropdown,
  DropdownItem,
  DropdownList,
  Flex,
  Form,
  Grid,
  GridItem,
  MenuToggle,
  PageSection,
  Progress,
  Radio,
} from '@patternfly/react-core';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import { useState } from 'react';
import { Link, useNavigate, useParams } from 'react-router';
import type { Job, JobDisk } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { learn, SAMPLES_KEPT_MS, samplesOf } from '../api/live.ts';
import { useLive } from '../api/use-live.ts';
import { count, formatBytes, formatDuration, formatRate, percentOf } from '../format.ts';
import { LiveChart } from '../parts/chart.tsx';
import { ConfirmDialog } from '../parts/confirm.tsx';
import { useAction, useNow } from '../parts/hooks.ts';
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
import { FailoverDialog } from './failover-dialog.tsx';
import { UnitsField, unitsOf } from './handover-fields.tsx';
import { HistoryForm, historyFields, historyLimits } from './history-fields.tsx';
import { PointDialog, PointsCard, ScheduleField } from './points.tsx';
import { RecoveryPoints } from './recovery-points.tsx';
import {
  compressionLabel,
  exclusionsOf,
  limitBytesPerSec,
  ringBytes,
  ringLabel,
  TransferForm,
  transferFields,
} from './settings-fields.tsx';
import { TestChecksForm } from './test-check-fields.tsx';
import { testCheckFields, testChecksOf } from './test-checks.ts';
import { TestDialog, TestField, TestsCard } from './tests.tsx';
import { NextVerification, Verified, VerifyButton, VerifyField } from './verification.tsx';
import {
  describeJob,
  describeLag,
  describeRestarts,
  describeStream,
  mirrorTotal,
} from './words.ts';

function Figure(props: {
  id: string;
  label: string;
  value: string;
  note?: React.ReactNode;
  data?: Record<`data-${string}`, string | number>;
}) {
  return (
    <dl className="und-figure pf-v6-u-m-0">
      <dt>{props.label}</dt>
      <dd id={props.id} {...props.data}>
        {props.value}
      </dd>
      {props.note && <dd className="und-note">{props.note}</dd>}
    </dl>
  );
}

function Figures(props: { job: Job }) {
  const { figures } = props.job;
  const mirroring = props.job.state.name === 'mirroring';
  const lag = describeLag(figures, useNow());
  return (
    <div className="und-figures">
      <Figure
        id="job-lag"
        label="Lag"
        value={lag.time.value}
        note={lag.time.note}
        data={{ 'data-ms': figures.lagMs ?? '' }}
      />
      <Figure
        id="job-lag-bytes"
        label="Lag in data"
        value={lag.data.value}
        note={lag.data.note}
        data={{ 'data-bytes': figures.lagBytes ?? '' }}
      />
      <Figure
        id="job-rate"
        label="Rate"
        value={formatRate(figures.rateBytesPerSec)}
        note="received over the network"
        data={{ 'data-bytes-per-sec': figures.rateBytesPerSec }}
      />
      {mirroring && (
        <Figure
          id="job-eta"
          label="Mirror done in"
          value={
            figures.etaSeconds === null ? 'unknown' : formatDuration(figures.etaSeconds * 1000)
          }
          note="at the present rate"
          data={{ 'data-seconds': figures.etaSeconds ?? '' }}
        />
      )}
      <Figure
        id="job-journal"
        label="Journal"
        value={formatBytes(figures.journalBytes)}
        note={`${formatBytes(figures.applyBacklogBytes)} of it not applied yet`}
        data={{ 'data-bytes': figures.journalBytes }}
      />
    </div>
  );
}

const MIRROR_KINDS = {
  full: { title: 'Full mirror', skipped: 'unallocated, excluded, zero or swap' },
  difference: { title: 'Difference mirror', skipped: 'equal on both sides' },
  drain: { title: 'Drain of missed writes', skipped: '' },
} as const;

function Exclusions(props: { patterns: readonly string[] }) {
  const { patterns } = props;
  if (patterns.length === 0) return 'nothing is excluded';
  return (
    <details>
      <summary>{count(patterns.length, 'excluded place')}</summary>
      {patterns.map((pattern) => (
        <div key={pattern} className="und-mono">
          {pattern}
        </div>
      ))}
    </details>
  );
}

function DiskRow(props: { disk: JobDisk }) {
  const { disk } = props;
  const { mirror } = disk;
  const done = mirror ? percentOf(mirror.doneBytes, mirror.totalBytes) : 100;
  const kind = mirror && MIRROR_KINDS[mirror.kind].title;
  const skipped =
    mirror &&
    (mirror.kind === 'drain'
      ? 'nothing but what was missed'
      : `of them ${formatBytes(mirror.skippedBytes)} skipped (${MIRROR_KINDS[mirror.kind].skipped})`);
  return (
    <Tr id={`job-disk-${disk.name}`} data-disk-id={disk.diskId} data-testid="job-disk">
      <Td dataLabel="Disk">
        <span className="und-mono">{disk.name}</span>
        <div className="und-quiet">{formatBytes(disk.sizeBytes)}</div>
      </Td>
      <Td dataLabel="Mirror">
        {mirror && mirror.doneBytes >= mirror.totalBytes ? (
          <>
            {kind} done
            <div className="und-quiet">
              {formatBytes(mirror.totalBytes)}, {skipped}
            </div>
          </>
        ) : mirror ? (
          <>
            <Progress
              size="sm"
              title={`${kind}: ${mirror.reason}`}
              value={Math.floor(done)}
              label={`${done.toFixed(1)} %`}
              data-testid="disk-mirror"
              data-done-bytes={mirror.doneBytes}
              data-total-bytes={mirror.totalBytes}
            />
            <span className="und-quiet">
              {formatBytes(mirror.doneBytes)} of {formatBytes(mirror.totalBytes)}, {skipped}
            </span>
          </>
        ) : (
          <span className="und-quiet">none running</span>
        )}
        <Verified verification={disk.verification} sizeBytes={disk.sizeBytes} />
        {disk.excluded && disk.excluded.files > 0 && (
          <div className="und-quiet" data-testid="disk-excluded" data-bytes={disk.excluded.bytes}>
            excluded: {formatBytes(disk.excluded.bytes)} in {count(disk.excluded.files, 'file')}
          </div>
        )}
      </Td>
      <Td dataLabel="Replica disk">
        <span className="und-mono und-fingerprint">{disk.replicaPath ?? 'not made yet'}</span>
        <div className="und-quiet">
          {disk.attached ? 'held by the appliance' : 'not attached to the appliance'}, serial{' '}
          <span className="und-mono">{disk.serial}</span>
        </div>
      </Td>
    </Tr>
  );
}

function Charts(props: { job: Job }) {
  const now = useNow();
  const samples = samplesOf(props.job.jobId);
  const clock = Date.now();
  // `now` only makes the charts move when no event comes.
  void now;
  return (
    <div className="und-charts">
      <LiveChart
        id="chart-rate"
        title="Rate"
        points={samples.map((one) => ({ atMs: one.atMs, value: one.rateBytesPerSec }))}
        windowMs={SAMPLES_KEPT_MS}
        nowMs={clock}
        binary
        format={formatRate}
      />
      <LiveChart
        id="chart-lag"
        title="Lag"
        tone="orange"
        points={samples.map((one) => ({ atMs: one.atMs, value: one.lagMs }))}
        windowMs={SAMPLES_KEPT_MS}
        nowMs={clock}
        binary={false}
        format={formatDuration}
      />
    </div>
  );
}

function SettingsDialog(props: { job: Job; close: () => void }) {
  const { job } = props;
  const [fields, setFields] = useState(() => ({
    ...transferFields(
      job.settings.compression,
      job.settings.bandwidthLimitBytesPerSec,
      job.settings.ringBytes,
      job.settings.exclusions ?? [],
      job.settings.carryRestarts,
    ),
    ...historyFields(job.settings.historyHours, job.settings.historyBytes),
  }));
  const [everyMinutes, setEveryMinutes] = useState(job.settings.pointEveryMinutes ?? null);
  const [verifyEvery, setVerifyEvery] = useState(job.settings.verifyEvery ?? 'off');
  const [testEvery, setTestEvery] = useState(job.settings.testEvery ?? 'off');
  const [unitLines, setUnitLines] = useState((job.settings.stopUnits ?? []).join('\n'));
  const units = unitsOf(unitLines);
  const { sources } = useLive();
  const [checkFields, setCheckFields] = useState(() => testCheckFields(job.settings.testChecks));
  const checks = testChecksOf(checkFields);
  const limit = limitBytesPerSec(fields);
  const excluded = exclusionsOf(fields.exclusions);
  const history = historyLimits(fields);
  return (
    <ConfirmDialog
      id="settings-dialog"
      title={`Settings of ${job.name}`}
      submit="Save"
      blocked={
        limit === undefined || !excluded.ok || history === undefined || !checks.ok || !units.ok
      }
      close={props.close}
      act={() =>
        learn.job(() =>
          api.patchJob(job.jobId, {
            compression: fields.compression,
            bandwidthLimitBytesPerSec: limit,
            ringBytes: ringBytes(fields),
            exclusions: excluded.ok ? excluded.patterns : undefined,
            carryRestarts: fields.carryRestarts,
            ...history,
            pointEveryMinutes: everyMinutes,
            verifyEvery,
            testEvery,
            testChecks: checks.ok ? checks.checks : undefined,
            stopUnits: units.ok ? units.units : undefined,
          }),
        )
      }
    >
      <Form onSubmit={(event) => event.preventDefault()}>
        <TransferForm
          fields={fields}
          set={(change) => setFields((now) => ({ ...now, ...change }))}
        />
        <HistoryForm
          fields={fields}
          set={(change) => setFields((now) => ({ ...now, ...change }))}
        />
        <ScheduleField everyMinutes={everyMinutes} set={setEveryMinutes} />
        <VerifyField every={verifyEvery} set={setVerifyEvery} />
        <UnitsField
          id="settings-units"
          label="Services that a planned failover stops"
          value={unitLines}
          set={setUnitLines}
          services={sources.get(job.sourceId)?.inventory?.services ?? []}
        />
        <TestField every={testEvery} set={setTestEvery} />
        <TestChecksForm
          fields={checkFields}
          set={(change) => setCheckFields((now) => ({ ...now, ...change }))}
        />
      </Form>
    </ConfirmDialog>
  );
}

function DeleteDialog(props: { job: Job; close: () => void }) {
  const { job } = props;
  const navigate = useNavigate();
  const [disks, setDisks] = useState<'keep' | 'delete'>('keep');
  return (
    <ConfirmDialog
      id="delete-dialog"
      title={`Delete the protection of ${job.sourceName}?`}
      submit="Delete job"
      danger
      typed={job.settings.replicaName}
      typedLabel="Type the replica's name to confirm"
      close={props.close}
      act={async () => {
        await api.deleteJob(job.jobId, disks);
        navigate('/jobs');
      }}
    >
      <div className="und-stack">
        <p>
          Replication ends and the journal with its recovery points is removed. The source server
          goes on running and stays in the list.
        </p>
        <Form onSubmit={(event) => event.preventDefault()}>
          <Radio
            id="delete-keep-disks"
            name="delete-disks"
            label="Keep the replica disks"
            description="Each stays in the storage pool as one plain image, as it is now. Merging its checkpoints may take a while."
            isChecked={disks === 'keep'}
            onChange={() => setDisks('keep')}
          />
          <Radio
            id="delete-delete-disks"
            name="delete-disks"
            label="Delete the replica disks, too"
            description="Their data is gone then."
            isChecked={disks === 'delete'}
            onChange={() => setDisks('delete')}
          />
        </Form>
      </div>
    </ConfirmDialog>
  );
}

type Open = 'failover' | 'test' | 'point' | 'settings' | 'delete' | 'mirror' | undefined;

function Actions(props: {
  job: Job;
  open: (dialog: Open) => void;
  pauseResume: () => void;
  busy: boolean;
}) {
  const { job } = props;
  const [menu, setMenu] = useState(false);
  const state = job.state.name;
  const over = state === 'failing-over' || state === 'failed-over';
  const gone = state === 'deleting';
  const pausable = !over && !gone && state !== 'creating' && state !== 'paused';
  const resumable = state === 'paused' || state === 'error';
  return (
    <Flex gap={{ default: 'gapSm' }}>
      <Button
        variant="danger"
        id="failover-button"
        isDisabled={over || gone || state === 'creating'}
        onClick={() => props.open('failover')}
      >
        Fail over…
      </Button>
      {resumable ? (
        <Button
          variant="secondary"
          id="job-resume"
          isDisabled={props.busy}
          onClick={props.pauseResume}
        >
          Resume
        </Button>
      ) : (
        <Button
          variant="secondary"
          id="job-pause"
          isDisabled={!pausable || props.busy}
          onClick={props.pauseResume}
        >
          Pause
        </Button>
      )}
      <Dropdown
        isOpen={menu}
        onOpenChange={setMenu}
        onSelect={() => setMenu(false)}
        popperProps={{ position: 'right' }}
        toggle={(ref) => (
          <MenuToggle ref={ref} id="job-menu" onClick={() => setMenu(!menu)} isExpanded={menu}>
            More
          </MenuToggle>
        )}
      >
        <DropdownList>
          <DropdownItem id="job-settings" isDisabled={gone} onClick={() => props.open('settings')}>
            Settings…
          </DropdownItem>
          <DropdownItem
            id="job-mirror"
            isDisabled={over || gone || state === 'creating'}
            onClick={() => props.open('mirror')}
          >
            Difference mirror…
          </DropdownItem>
          <DropdownItem
            id="job-delete"
            isDanger
            isDisabled={gone || state === 'failing-over'}
            onClick={() => props.open('delete')}
          >
            Delete job…
          </DropdownItem>
        </DropdownList>
      </Dropdown>
    </Flex>
  );
}

export function JobPage() {
  const { jobId = '' } = useParams();
  const { jobs, sources, synced, link } = useLive();
  const { mayOperate } = useUser();
  const [dialog, setDialog] = useState<Open>();
  const job = jobs.get(jobId);
  const pauseResume = useAction(async (resume: boolean) =>
    learn.job(() => (resume ? api.resumeJob(jobId) : api.pauseJob(jobId))),
  );
  const crumbs: [string, string][] = [['Protection jobs', '/jobs']];
  if (!job) {
    return synced ? (
      <>
        <PageHead title="Protection job" crumbs={crumbs} />
        <Nothing
          title="This protection job is not there any more"
          action={<Link to="/jobs">All protection jobs</Link>}
        >
          It was deleted.
        </Nothing>
      </>
    ) : (
      <Loading what="the protection job" />
    );
  }
  const words = describeJob(job);
  const stream = describeStream(job.stream);
  const mirror = mirrorTotal(job);
  const mirroring = job.state.name === 'mirroring' && mirror;
  const { figures, settings, state } = job;
  // What stops the job is said above.
  const problems = job.problems.filter(
    ({ message }) => state.name !== 'error' || state.error.message !== message,
  );
  const close = () => setDialog(undefined);
  return (
    <>
      <PageHead
        title={job.name}
        crumbs={crumbs}
        beside={
          <>
            <StateLabel tone={words.tone} state={job.state.name} id="job-state">
              {words.label}
            </StateLabel>
            <StateLabel
              tone={job.provenBootableAt ? 'good' : 'neutral'}
              state={job.provenBootableAt ? 'proven' : 'unproven'}
              id="job-proven"
            >
              {job.provenBootableAt ? (
                <>
                  Proven bootable <Ago at={job.provenBootableAt} />
                </>
              ) : (
                'Boot not proven yet'
              )}
            </StateLabel>
          </>
        }
        actions={
          mayOperate && (
            <Actions
              job={job}
              open={setDialog}
              busy={pauseResume.busy || link.name !== 'live'}
              pauseResume={() =>
                void pauseResume.run(job.state.name === 'paused' || job.state.name === 'error')
              }
            />
          )
        }
      />
      <PageSection
        hasBodyWrapper={false}
        className="und-stack"
        id="job"
        data-job-id={job.jobId}
        data-stale={link.name !== 'live'}
      >
        <ErrorAlert error={pauseResume.error} id="job-action-error" />
        {job.state.name === 'error' ? (
          <ErrorAlert error={job.state.error} title="The job is stopped" id="job-error" />
        ) : (
          words.reason && (
            <Alert
              variant={words.tone === 'attention' ? 'warning' : 'info'}
              isInline
              title={words.reason}
              id="job-reason"
            />
          )
        )}
        {problems.map((problem) => (
          <ErrorAlert
            key={problem.message}
            error={problem}
            title="The source server has a problem"
            id="job-problem"
          />
        ))}
        {job.failoverId && (
          <Alert
            variant="info"
            isInline
            title="This job has been failed over"
            actionLinks={
              <Link to={`/failovers/${job.failoverId}`} id="job-failover">
                Look at the failover
              </Link>
            }
          />
        )}
        <Card>
          <CardBody className="und-stack">
            <Figures job={job} />
            {mirroring && (
              <Progress
                id="job-mirror-progress"
                title={`Mirror of ${count(job.disks.length, 'disk')}`}
                value={Math.floor(percentOf(mirroring.doneBytes, mirroring.totalBytes))}
                label={`${formatBytes(mirroring.doneBytes)} of ${formatBytes(mirroring.totalBytes)}, ${percentOf(mirroring.doneBytes, mirroring.totalBytes).toFixed(1)} %`}
              />
            )}
            <Charts job={job} />
          </CardBody>
        </Card>
        <RecoveryPoints job={job} />
        <Grid hasGutter>
          <GridItem lg={6}>
            <Card isFullHeight>
              <CardTitle component="h2">Replication</CardTitle>
              <CardBody>
                <DescriptionList isHorizontal isCompact>
                  <Fact term="Stream">
                    <StateLabel tone={stream.tone} state={job.stream.mode} id="job-stream">
                      {stream.label}
                    </StateLabel>{' '}
                    <span className="und-quiet">{stream.promise}</span>
                  </Fact>
                  {job.stream.reason && <Fact term="Reason">{job.stream.reason}</Fact>}
                  {job.stream.since && (
                    <Fact term="In this mode since">
                      <When at={job.stream.since} />
                    </Fact>
                  )}
                  <Fact term="Newest recovery point">
                    <When at={figures.newestPointAt} absent="none yet" id="job-newest-point" />
                  </Fact>
                  <Fact term="Safe here">
                    frame <span id="job-durable-seq">{figures.durableSeq}</span>
                  </Fact>
                  <Fact term="Applied">
                    frame <span id="job-applied-seq">{figures.appliedSeq}</span>
                    {figures.applyBacklogBytes > 0 &&
                      `, ${formatBytes(figures.applyBacklogBytes)} to go`}
                  </Fact>
                </DescriptionList>
              </CardBody>
            </Card>
          </GridItem>
          <GridItem lg={6}>
            <Card isFullHeight>
              <CardTitle component="h2">Settings</CardTitle>
              <CardBody>
                <DescriptionList isHorizontal isCompact>
                  <Fact term="Source server">
                    <Link to={`/sources/${job.sourceId}`}>{job.sourceName}</Link>
                  </Fact>
                  <Fact term="Replica VM" id="job-replica">
                    {settings.replicaName}: {count(settings.vcpus, 'CPU')},{' '}
                    {formatBytes(settings.memoryBytes)}
                  </Fact>
                  <Fact term="Pool, network">
                    {settings.pool}, {settings.network}
                  </Fact>
                  <Fact term="Compression" id="job-compression">
                    {compressionLabel(settings.compression)}
                  </Fact>
                  <Fact term="Bandwidth" id="job-bandwidth">
                    {settings.bandwidthLimitBytesPerSec === null
                      ? 'no limit'
                      : `at most ${formatRate(settings.bandwidthLimitBytesPerSec)}`}
                  </Fact>
                  <Fact term="Buffer on the source" id="job-ring">
                    {ringLabel(settings.ringBytes)}
                  </Fact>
                  <Fact term="Not mirrored" id="job-exclusions">
                    <Exclusions patterns={settings.exclusions ?? []} />
                  </Fact>
                  <Fact term="Planned restarts" id="job-restarts">
                    {describeRestarts(settings.carryRestarts, figures.agent)}
                  </Fact>
                  <Fact term="Created">
                    <When at={job.createdAt} />
                  </Fact>
                </DescriptionList>
              </CardBody>
            </Card>
          </GridItem>
        </Grid>
        <TestsCard
          job={job}
          mayTest={mayOperate && !job.failoverId}
          test={() => setDialog('test')}
        />
        <PointsCard
          job={job}
          mayTake={mayOperate && !job.failoverId}
          take={() => setDialog('point')}
        />
        <Card>
          <CardTitle component="h2">
            <Flex
              justifyContent={{ default: 'justifyContentSpaceBetween' }}
              alignItems={{ default: 'alignItemsCenter' }}
            >
              Disks
              {mayOperate && !job.failoverId && <VerifyButton job={job} />}
            </Flex>
          </CardTitle>
          <CardBody>
            <NextVerification job={job} />
            <Table variant="compact" aria-label="Disks of the job" borders={false}>
              <Thead>
                <Tr>
                  <Th width={15}>Disk</Th>
                  <Th width={45}>Mirror</Th>
                  <Th width={40}>Replica disk</Th>
                </Tr>
              </Thead>
              <Tbody>
                {job.disks.map((disk) => (
                  <DiskRow key={disk.diskId} disk={disk} />
                ))}
              </Tbody>
            </Table>
          </CardBody>
        </Card>
      </PageSection>
      {dialog === 'failover' && (
        <FailoverDialog job={job} source={sources.get(job.sourceId)} close={close} />
      )}
      {dialog === 'test' && <TestDialog job={job} atMs={null} close={close} />}
      {dialog === 'point' && <PointDialog job={job} close={close} />}
      {dialog === 'settings' && <SettingsDialog job={job} close={close} />}
      {dialog === 'delete' && <DeleteDialog job={job} close={close} />}
      {dialog === 'mirror' && (
        <ConfirmDialog
          id="mirror-dialog"
          title={`Compare ${job.sourceName} with its replica?`}
          submit="Start difference mirror"
          close={close}
          act={() => learn.job(() => api.mirrorJob(job.jobId))}
        >
          <p>
            All {count(job.disks.length, 'disk')} are read on both sides and what differs is sent
            again. It costs the source server reads; replication goes on, but there are no new
            recovery points until it is done.
          </p>
        </ConfirmDialog>
      )}
    </>
  );
}
