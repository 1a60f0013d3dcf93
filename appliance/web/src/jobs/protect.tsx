import {
  Alert,
  DescriptionList,
  Form,
  FormGroup,
  FormHelperText,
  Grid,
  GridItem,
  HelperText,
  HelperTextItem,
  InputGroup,
  InputGroupItem,
  InputGroupText,
  PageSection,
  Radio,
  Spinner,
  TextInput,
  Wizard,
  WizardStep,
} from '@patternfly/react-core';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import { type ReactNode, useEffect, useMemo, useRef, useState } from 'react';
import { Link, useNavigate, useParams } from 'react-router';
import type { HostView, ProtectPlan, ProtectRequest, Source } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { learn } from '../api/live.ts';
import { useLive } from '../api/use-live.ts';
import { count, formatBytes, formatRate } from '../format.ts';
import { useAction, usePolled } from '../parts/hooks.ts';
import { ErrorAlert, Fact, Loading, Nothing, PageHead, Usage } from '../parts/parts.tsx';
import { wizardButtons } from '../parts/wizard.tsx';
import {
  type HistoryFields,
  HistoryForm,
  historyFields,
  historyLimits,
} from './history-fields.tsx';
import {
  compressionLabel,
  defaultExclusions,
  exclusionsOf,
  limitBytesPerSec,
  ringBytes,
  ringLabel,
  type TransferFields,
  TransferForm,
} from './settings-fields.tsx';

const MIB = 2 ** 20;
const REPLICA_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;

interface Fields extends TransferFields, HistoryFields {
  diskIds: string[];
  pool: string;
  network: string;
  replicaName: string;
  vcpus: string;
  memoryMib: string;
}

const whole = (text: string, least: number, most: number): number | undefined => {
  const value = Number(text);
  return Number.isInteger(value) && value >= least && value <= most ? value : undefined;
};

const usablePools = (host: HostView | undefined) => host?.pools.filter((pool) => pool.usable) ?? [];
const usableNetworks = (host: HostView | undefined) =>
  host?.networks.filter((network) => network.active) ?? [];

function Helper(props: { bad?: boolean; children: ReactNode }) {
  return (
    <FormHelperText>
      <HelperText>
        <HelperTextItem variant={props.bad ? 'error' : 'default'}>{props.children}</HelperTextItem>
      </HelperText>
    </FormHelperText>
  );
}

function DisksStep(props: {
  source: Source;
  chosen: string[];
  choose: (diskIds: string[]) => void;
}) {
  const disks = props.source.inventory!.disks;
  const left = disks.filter((disk) => disk.protectable && !props.chosen.includes(disk.diskId));
  const bootLeft = left.some((disk) => disk.isBoot);
  const chosenBytes = disks
    .filter((disk) => props.chosen.includes(disk.diskId))
    .reduce((sum, disk) => sum + disk.sizeBytes, 0);
  return (
    <div className="und-stack">
      <Table variant="compact" aria-label="Disks of the source" id="protect-disks">
        <Thead>
          <Tr>
            <Th screenReaderText="Chosen" />
            <Th>Disk</Th>
            <Th>Size</Th>
            <Th>Used</Th>
            <Th>Holds</Th>
          </Tr>
        </Thead>
        <Tbody>
          {disks.map((disk, rowIndex) => (
            <Tr key={disk.diskId} id={`protect-disk-${disk.name}`}>
              <Td
                select={{
                  rowIndex,
                  isSelected: props.chosen.includes(disk.diskId),
                  isDisabled: !disk.protectable,
                  onSelect: (_event, selected) =>
                    props.choose(
                      selected
                        ? [...props.chosen, disk.diskId]
                        : props.chosen.filter((id) => id !== disk.diskId),
                    ),
                  props: { 'aria-label': `Protect ${disk.name}` },
                }}
              />
              <Td dataLabel="Disk">
                <span className="und-mono">{disk.devicePath}</span>
                {disk.isBoot && <div className="und-quiet">the server boots from it</div>}
                {disk.reason && <div className="und-quiet">{disk.reason}</div>}
              </Td>
              <Td dataLabel="Size">{formatBytes(disk.sizeBytes)}</Td>
              <Td dataLabel="Used">
                {disk.usedBytes === null ? '–' : formatBytes(disk.usedBytes)}
              </Td>
              <Td dataLabel="Holds">
                {disk.volumes.flatMap((volume) => volume.fileSystem?.mountpoint ?? []).join(', ') ||
                  '–'}
              </Td>
            </Tr>
          ))}
        </Tbody>
      </Table>
      <p className="und-quiet">
        {count(props.chosen.length, 'disk')} of {disks.length} chosen, {formatBytes(chosenBytes)}.
        All disks of a job share one stream, so their writes stay in order across disks.
      </p>
      {bootLeft && (
        <Alert
          variant="warning"
          isInline
          title="Without the disk that the server boots from, its replica cannot start."
        />
      )}
      {!bootLeft && left.length > 0 && (
        <Alert
          variant="warning"
          isInline
          title="What is on the disks left out will be missing in the replica."
        />
      )}
    </div>
  );
}

/**
 * One of a table's rows. Not the table's own `select`: that gives all radio buttons of a page one name, and of those a
 * browser lets only one be chosen, so two tables would take each other's choice away.
 */
function Choice(props: {
  group: string;
  value: string;
  label: string;
  isChosen: boolean;
  isDisabled: boolean;
  choose: () => void;
}) {
  return (
    <Td className="pf-v6-c-table__check">
      <Radio
        id={`${props.group}-choice-${props.value}`}
        name={props.group}
        aria-label={props.label}
        isChecked={props.isChosen}
        isDisabled={props.isDisabled}
        onChange={props.choose}
      />
    </Td>
  );
}

function TargetStep(props: {
  host: HostView;
  neededBytes: number;
  fields: Fields;
  set: (change: Partial<Fields>) => void;
}) {
  const { host, fields, set } = props;
  return (
    <div className="und-stack">
      <Grid hasGutter>
        <GridItem md={6}>
          <Usage
            label={`Memory of ${host.name}`}
            usedBytes={host.memoryTotalBytes - host.memoryFreeBytes}
            totalBytes={host.memoryTotalBytes}
          />
        </GridItem>
        <GridItem md={6} className="und-quiet">
          {count(host.cpuCount, 'CPU')}
          {host.cpuUsePercent !== null && `, ${Math.round(host.cpuUsePercent)} % busy`}
          <br />
          {host.networkRxBytesPerSec !== null &&
            `Network: ${formatRate(host.networkRxBytesPerSec)} in, ${formatRate(host.networkTxBytesPerSec ?? 0)} out`}
        </GridItem>
      </Grid>
      <Table variant="compact" aria-label="Storage pools" id="protect-pools">
        <Thead>
          <Tr>
            <Th screenReaderText="Chosen" />
            <Th>Storage pool</Th>
            <Th>Type</Th>
            <Th width={50}>Space</Th>
          </Tr>
        </Thead>
        <Tbody>
          {host.pools.map((pool) => (
            <Tr key={pool.name} id={`protect-pool-${pool.name}`} data-usable={pool.usable}>
              <Choice
                group="protect-pool"
                value={pool.name}
                label={`Store in ${pool.name}`}
                isChosen={fields.pool === pool.name}
                isDisabled={!pool.usable}
                choose={() => set({ pool: pool.name })}
              />
              <Td dataLabel="Storage pool">
                {pool.name}
                {!pool.usable && <div className="und-quiet">{pool.reason ?? 'not usable'}</div>}
              </Td>
              <Td dataLabel="Type">{pool.type}</Td>
              <Td dataLabel="Space">
                <Usage usedBytes={pool.totalBytes - pool.freeBytes} totalBytes={pool.totalBytes} />
              </Td>
            </Tr>
          ))}
        </Tbody>
      </Table>
      {host.pools.some(
        (pool) => pool.name === fields.pool && pool.freeBytes < props.neededBytes,
      ) && (
        <Alert
          variant="warning"
          isInline
          title={`The chosen disks have ${formatBytes(props.neededBytes)}, more than the pool has free.`}
        >
          Replica disks grow as they fill, so this can work for long; when the pool is full,
          replication stops.
        </Alert>
      )}
      <Table variant="compact" aria-label="Networks" id="protect-networks">
        <Thead>
          <Tr>
            <Th screenReaderText="Chosen" />
            <Th>Network of the replica</Th>
            <Th>Kind</Th>
            <Th width={50}>Bridge</Th>
          </Tr>
        </Thead>
        <Tbody>
          {host.networks.map((network) => (
            <Tr key={network.name} id={`protect-network-${network.name}`}>
              <Choice
                group="protect-network"
                value={network.name}
                label={`Connect to ${network.name}`}
                isChosen={fields.network === network.name}
                isDisabled={!network.active}
                choose={() => set({ network: network.name })}
              />
              <Td dataLabel="Network">
                {network.name}
                {!network.active && <div className="und-quiet">not started on the host</div>}
              </Td>
              <Td dataLabel="Kind">{network.mode}</Td>
              <Td dataLabel="Bridge">{network.bridge ?? '–'}</Td>
            </Tr>
          ))}
        </Tbody>
      </Table>
    </div>
  );
}

function ReplicaStep(props: {
  source: Source;
  host: HostView | undefined;
  fields: Fields;
  set: (change: Partial<Fields>) => void;
}) {
  const { fields, set, host } = props;
  const inventory = props.source.inventory!;
  const nameBad = !REPLICA_NAME.test(fields.replicaName);
  const nameUsed = host?.vms.some((vm) => vm.name === fields.replicaName);
  const vcpusBad = whole(fields.vcpus, 1, 512) === undefined;
  const memory = whole(fields.memoryMib, 128, 2 ** 31);
  const tooMuch = memory !== undefined && host && memory * MIB > host.memoryTotalBytes;
  return (
    <Form className="und-form" onSubmit={(event) => event.preventDefault()}>
      <FormGroup label="Name of the replica VM" fieldId="replica-name" isRequired>
        <TextInput
          id="replica-name"
          value={fields.replicaName}
          onChange={(_event, replicaName) => set({ replicaName: replicaName.trim() })}
          spellCheck={false}
          validated={nameBad || nameUsed ? 'error' : 'default'}
        />
        <Helper bad={nameBad || nameUsed}>
          {nameUsed
            ? `The target host has a VM of this name already.`
            : nameBad
              ? 'Letters, digits, dot, underscore and hyphen, at most 63.'
              : 'The VM is made at failover; you will type this name to confirm one.'}
        </Helper>
      </FormGroup>
      <FormGroup label="Virtual CPUs" fieldId="replica-vcpus" isRequired>
        <TextInput
          id="replica-vcpus"
          inputMode="numeric"
          value={fields.vcpus}
          onChange={(_event, vcpus) => set({ vcpus: vcpus.trim() })}
          validated={vcpusBad ? 'error' : 'default'}
        />
        <Helper bad={vcpusBad}>
          {vcpusBad
            ? '1 to 512.'
            : `The source has ${inventory.cpuCount}${host ? `, the target host ${host.cpuCount}` : ''}.`}
        </Helper>
      </FormGroup>
      <FormGroup label="Memory" fieldId="replica-memory-mib" isRequired>
        <InputGroup>
          <InputGroupItem isFill>
            <TextInput
              id="replica-memory-mib"
              inputMode="numeric"
              value={fields.memoryMib}
              onChange={(_event, memoryMib) => set({ memoryMib: memoryMib.trim() })}
              validated={memory === undefined ? 'error' : tooMuch ? 'warning' : 'default'}
            />
          </InputGroupItem>
          <InputGroupText>MiB</InputGroupText>
        </InputGroup>
        <Helper bad={memory === undefined}>
          {memory === undefined
            ? 'At least 128 MiB.'
            : tooMuch
              ? `More than the target host has (${formatBytes(host.memoryTotalBytes)}): the replica would not start.`
              : `The source has ${formatBytes(inventory.memoryBytes)}${host ? `, the target host has ${formatBytes(host.memoryFreeBytes)} free now` : ''}.`}
        </Helper>
      </FormGroup>
    </Form>
  );
}

function Summary(props: {
  request: ProtectRequest;
  source: Source;
  plan: ProtectPlan | undefined;
  planning: boolean;
  planError: ReactNode;
  startError: ReactNode;
}) {
  const { request, plan, source } = props;
  const disks = source.inventory!.disks.filter((disk) => request.diskIds.includes(disk.diskId));
  return (
    <div
      className="und-stack"
      id="protect-summary"
      data-state={props.planning ? 'busy' : plan?.ok ? 'ok' : 'problems'}
    >
      <DescriptionList isHorizontal isCompact columnModifier={{ lg: '2Col' }}>
        <Fact term="Source">{source.name}</Fact>
        <Fact term="Disks">
          {disks.map((disk) => disk.name).join(', ')} (
          {formatBytes(disks.reduce((sum, disk) => sum + disk.sizeBytes, 0))})
        </Fact>
        <Fact term="Replica VM">
          {request.replicaName}: {count(request.vcpus, 'CPU')}, {formatBytes(request.memoryBytes)}
        </Fact>
        <Fact term="Pool, network">
          {request.pool}, {request.network}
        </Fact>
        <Fact term="Compression">{compressionLabel(request.compression)}</Fact>
        <Fact term="Bandwidth">
          {request.bandwidthLimitBytesPerSec === null
            ? 'no limit'
            : `at most ${formatRate(request.bandwidthLimitBytesPerSec)}`}
        </Fact>
        <Fact term="Buffer on the source">{ringLabel(request.ringBytes)}</Fact>
        <Fact term="Not mirrored">
          {request.exclusions?.length
            ? count(request.exclusions.length, 'excluded place')
            : 'nothing is excluded'}
        </Fact>
        <Fact term="Planned restarts">
          {request.carryRestarts ? 'carried over' : 'compared anew'}
        </Fact>
      </DescriptionList>
      {props.planning && (
        <p role="status">
          <Spinner size="md" aria-hidden /> Working out what has to be done.
        </p>
      )}
      {props.planError}
      {plan?.problems.map((problem) => (
        <ErrorAlert key={`${problem.code} ${problem.message}`} error={problem} />
      ))}
      {plan?.warnings.map((warning) => (
        <Alert
          key={warning}
          variant="warning"
          isInline
          title={warning}
          data-testid="plan-warning"
        />
      ))}
      {plan && (
        <div>
          <h2 className="pf-v6-c-title pf-m-md und-sub">
            {plan.ok ? 'What will be done, in this order' : 'What would be done'}
          </h2>
          <ol id="plan-actions" className="pf-v6-c-list">
            {plan.actions.map((action) => (
              <li key={action}>{action}</li>
            ))}
          </ol>
        </div>
      )}
      {props.startError}
    </div>
  );
}

function ProtectWizard(props: { source: Source }) {
  const { source } = props;
  const inventory = source.inventory!;
  const navigate = useNavigate();
  const host = usePolled(api.host, 5000);
  const [fields, setFields] = useState<Fields>(() => ({
    diskIds: inventory.disks.filter((disk) => disk.protectable).map((disk) => disk.diskId),
    pool: '',
    network: '',
    replicaName: `${source.name.replace(/[^A-Za-z0-9._-]/g, '-').slice(0, 55)}-replica`,
    vcpus: String(inventory.cpuCount),
    // Firmware and kernel keep a part of the memory; the source's modules add up to whole 64 MiB.
    memoryMib: String(Math.max(128, Math.ceil(inventory.memoryBytes / MIB / 64) * 64)),
    compression: 'fast',
    limited: false,
    limitMib: '50',
    ring: 'auto',
    exclusions: defaultExclusions,
    carryRestarts: false,
    ...historyFields(undefined, undefined),
  }));
  const set = (change: Partial<Fields>) => setFields((now) => ({ ...now, ...change }));

  // With nothing chosen yet, the roomiest usable pool and the first active network are proposed.
  const pools = usablePools(host.data);
  const networks = usableNetworks(host.data);
  const pool = fields.pool || [...pools].sort((a, b) => b.freeBytes - a.freeBytes)[0]?.name || '';
  const network = fields.network || networks[0]?.name || '';

  const request = useMemo<ProtectRequest | undefined>(() => {
    const vcpus = whole(fields.vcpus, 1, 512);
    const memoryMib = whole(fields.memoryMib, 128, 2 ** 31);
    const limit = limitBytesPerSec(fields);
    const excluded = exclusionsOf(fields.exclusions);
    const history = historyLimits(fields);
    if (
      fields.diskIds.length === 0 ||
      !pool ||
      !network ||
      !REPLICA_NAME.test(fields.replicaName) ||
      vcpus === undefined ||
      memoryMib === undefined ||
      limit === undefined ||
      !excluded.ok ||
      history === undefined
    ) {
      return undefined;
    }
    return {
      sourceId: source.sourceId,
      diskIds: fields.diskIds,
      pool,
      network,
      replicaName: fields.replicaName,
      vcpus,
      memoryBytes: memoryMib * MIB,
      compression: fields.compression,
      bandwidthLimitBytesPerSec: limit,
      ringBytes: ringBytes(fields),
      exclusions: excluded.patterns,
      carryRestarts: fields.carryRestarts,
      ...history,
    };
  }, [fields, pool, network, source.sourceId]);

  const [plan, setPlan] = useState<ProtectPlan>();
  const planning = useAction(async (asked: ProtectRequest) => setPlan(await api.planJob(asked)));
  const start = useAction(async (asked: ProtectRequest) => {
    const job = await learn.job(() => api.createJob(asked));
    navigate(`/jobs/${job.jobId}`);
  });

  const nameUsed = host.data?.vms.some((vm) => vm.name === fields.replicaName);
  const replicaReady =
    REPLICA_NAME.test(fields.replicaName) &&
    !nameUsed &&
    whole(fields.vcpus, 1, 512) !== undefined &&
    whole(fields.memoryMib, 128, 2 ** 31) !== undefined;
  const targetReady = Boolean(pool && network);
  const transferReady =
    limitBytesPerSec(fields) !== undefined &&
    exclusionsOf(fields.exclusions).ok &&
    historyLimits(fields) !== undefined;
  const neededBytes = inventory.disks
    .filter((disk) => fields.diskIds.includes(disk.diskId))
    .reduce((sum, disk) => sum + disk.sizeBytes, 0);

  return (
    <Wizard
      className="und-wizard"
      isVisitRequired
      navAriaLabel="Steps"
      onClose={() => navigate(`/sources/${source.sourceId}`)}
      onSave={() => {
        if (request) void start.run(request);
      }}
    >
      <WizardStep
        name="Disks"
        id="step-disks"
        footer={{ ...wizardButtons, isNextDisabled: fields.diskIds.length === 0 }}
      >
        <DisksStep source={source} chosen={fields.diskIds} choose={(diskIds) => set({ diskIds })} />
      </WizardStep>
      <WizardStep
        name="Target"
        id="step-target"
        footer={{ ...wizardButtons, isNextDisabled: !targetReady }}
      >
        <ErrorAlert error={host.error} id="host-error" />
        {host.data ? (
          <TargetStep
            host={host.data}
            neededBytes={neededBytes}
            fields={{ ...fields, pool, network }}
            set={set}
          />
        ) : (
          !host.error && <Loading what="the target host" />
        )}
        {host.data && pools.length === 0 && (
          <Alert
            variant="danger"
            isInline
            title="No storage pool of the target host can hold replica disks."
          >
            Make one of type dir, fs or netfs on the host; it appears here by itself.
          </Alert>
        )}
      </WizardStep>
      <WizardStep
        name="Replica VM"
        id="step-replica"
        footer={{ ...wizardButtons, isNextDisabled: !replicaReady }}
      >
        <ReplicaStep source={source} host={host.data} fields={fields} set={set} />
      </WizardStep>
      <WizardStep
        name="Transfer"
        id="step-transfer"
        footer={{ ...wizardButtons, isNextDisabled: !transferReady }}
      >
        <Form className="und-form" onSubmit={(event) => event.preventDefault()}>
          <TransferForm fields={fields} set={set} />
          <HistoryForm fields={fields} set={set} />
        </Form>
      </WizardStep>
      <WizardStep
        name="Summary"
        id="step-summary"
        footer={{
          ...wizardButtons,
          nextButtonText: 'Start protection',
          isNextDisabled: !request || !plan?.ok || planning.busy || start.busy,
        }}
      >
        {request ? (
          <PlanWhenShown
            request={request}
            ask={(asked) => {
              setPlan(undefined);
              start.clear();
              void planning.run(asked);
            }}
          >
            <Summary
              request={request}
              source={source}
              plan={plan}
              planning={planning.busy}
              planError={<ErrorAlert error={planning.error} id="plan-error" />}
              startError={
                <ErrorAlert
                  error={start.error}
                  title="Protection was not started"
                  id="protect-error"
                />
              }
            />
          </PlanWhenShown>
        ) : (
          <Alert variant="warning" isInline title="Something is missing: go back one step." />
        )}
      </WizardStep>
    </Wizard>
  );
}

/** Asks for the plan when the summary is shown: the host may have changed since the last time. */
function PlanWhenShown(props: {
  request: ProtectRequest;
  ask: (request: ProtectRequest) => void;
  children: ReactNode;
}) {
  const { ask, request } = props;
  const latest = useRef(ask);
  latest.current = ask;
  const key = JSON.stringify(request);
  useEffect(() => latest.current(JSON.parse(key) as ProtectRequest), [key]);
  return props.children;
}

export function ProtectPage() {
  const { sourceId = '' } = useParams();
  const { sources, synced } = useLive();
  const source = sources.get(sourceId);
  if (!source && !synced) return <Loading what="the source server" />;
  const crumbs: [string, string][] = [['Source servers', '/sources']];
  if (source) crumbs.push([source.name, `/sources/${sourceId}`]);
  return (
    <>
      <PageHead title={`Protect ${source?.name ?? 'a source server'}`} crumbs={crumbs}>
        <p>
          The chosen disks are mirrored to replica disks on the target host while every write is
          captured. The server stays in full use; nothing starts before you have seen the summary.
        </p>
      </PageHead>
      <PageSection hasBodyWrapper={false}>
        {!source ? (
          <Nothing title="This source server is not in the list any more">
            It was uninstalled.
          </Nothing>
        ) : source.jobId ? (
          <Nothing
            title={`${source.name} is protected already`}
            action={<Link to={`/jobs/${source.jobId}`}>Go to its job</Link>}
          >
            A source server has one protection job.
          </Nothing>
        ) : !source.inventory ? (
          <Nothing title="The inventory is not known yet">
            It comes as soon as the agent of {source.name} has connected; this page goes on by
            itself.
          </Nothing>
        ) : (
          <ProtectWizard source={source} />
        )}
      </PageSection>
    </>
  );
}
