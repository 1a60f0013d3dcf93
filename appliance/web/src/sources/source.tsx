import {
  Alert,
  Button,
  Card,
  CardBody,
  CardTitle,
  Checkbox,
  DescriptionList,
  Flex,
  Form,
  Grid,
  GridItem,
  Label,
  PageSection,
} from '@patternfly/react-core';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import { useState } from 'react';
import { Link, useNavigate, useParams } from 'react-router';
import type { JobFigures, Source, SourceDisk } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { learn } from '../api/live.ts';
import { useLive } from '../api/use-live.ts';
import { formatBytes, percentOf } from '../format.ts';
import { ConfirmDialog } from '../parts/confirm.tsx';
import { useAction } from '../parts/hooks.ts';
import { ErrorAlert, Fact, Loading, Nothing, PageHead, StateLabel, When } from '../parts/parts.tsx';
import { useUser } from '../session/session.tsx';
import { emptySsh, SshForm, sshReady, sshTarget } from './ssh-form.tsx';
import { describeSource, turnedAway } from './words.ts';

const KINDS = {
  partition: 'partition',
  lv: 'logical volume',
  md: 'software RAID',
  crypt: 'encrypted volume',
  whole: 'whole disk',
  other: 'other',
} as const;

function Disk(props: { disk: SourceDisk }) {
  const { disk } = props;
  const facts = [disk.model, disk.bus, disk.serial && `serial ${disk.serial}`].filter(Boolean);
  return (
    <Card isCompact id={`disk-${disk.name}`} data-disk-id={disk.diskId} data-testid="source-disk">
      <CardTitle>
        <Flex gap={{ default: 'gapSm' }} alignItems={{ default: 'alignItemsCenter' }}>
          <span className="und-mono">{disk.devicePath}</span>
          <span>{formatBytes(disk.sizeBytes)}</span>
          {disk.usedBytes !== null && (
            <span className="und-quiet">{formatBytes(disk.usedBytes)} used in file systems</span>
          )}
          {disk.partitionTable && (
            <Label isCompact variant="outline">
              {disk.partitionTable.toUpperCase()}
            </Label>
          )}
          {disk.isBoot && (
            <Label isCompact color="blue">
              boots from it
            </Label>
          )}
          {!disk.protectable && (
            <Label isCompact status="warning">
              cannot be protected
            </Label>
          )}
        </Flex>
      </CardTitle>
      <CardBody>
        {facts.length > 0 && <p className="und-quiet">{facts.join(' · ')}</p>}
        {disk.reason && (
          <Alert variant="warning" isInline isPlain title={disk.reason} className="und-gap" />
        )}
        {disk.volumes.length > 0 && (
          <Table variant="compact" aria-label={`Volumes of ${disk.name}`} borders={false}>
            <Thead>
              <Tr>
                <Th>Volume</Th>
                <Th>Size</Th>
                <Th>File system</Th>
                <Th>Mounted at</Th>
                <Th>Use</Th>
              </Tr>
            </Thead>
            <Tbody>
              {disk.volumes.map((volume) => {
                const fs = volume.fileSystem;
                const size = fs?.sizeBytes ?? volume.sizeBytes;
                return (
                  <Tr key={volume.name}>
                    <Td dataLabel="Volume">
                      <span className="und-mono">{volume.name}</span>{' '}
                      {volume.kind !== 'partition' && (
                        <span className="und-quiet">{KINDS[volume.kind]}</span>
                      )}
                    </Td>
                    <Td dataLabel="Size">{formatBytes(volume.sizeBytes)}</Td>
                    <Td dataLabel="File system">
                      {fs ? (
                        <>
                          {fs.type} {fs.label && <span className="und-quiet">“{fs.label}”</span>}
                        </>
                      ) : (
                        '–'
                      )}
                    </Td>
                    <Td dataLabel="Mounted at">
                      {fs?.mountpoint ? <span className="und-mono">{fs.mountpoint}</span> : '–'}
                    </Td>
                    <Td dataLabel="Use">
                      {fs && fs.usedBytes !== null
                        ? `${formatBytes(fs.usedBytes)} (${Math.round(percentOf(fs.usedBytes, size))} %)`
                        : '–'}
                    </Td>
                  </Tr>
                );
              })}
            </Tbody>
          </Table>
        )}
      </CardBody>
    </Card>
  );
}

function Inventory(props: { source: Source }) {
  const { inventory } = props.source;
  if (!inventory) {
    return (
      <Nothing title="No inventory yet" small>
        It is taken as soon as the agent has connected.
      </Nothing>
    );
  }
  return (
    <div className="und-stack" id="inventory">
      <Grid hasGutter>
        <GridItem lg={6}>
          <Card isFullHeight>
            <CardTitle component="h2">System</CardTitle>
            <CardBody>
              <DescriptionList isHorizontal isCompact>
                <Fact term="Host name">{inventory.hostname}</Fact>
                <Fact term="System">{inventory.os}</Fact>
                <Fact term="Kernel">{inventory.kernel}</Fact>
                <Fact term="CPU">
                  {inventory.cpuCount} × {inventory.cpuModel}
                </Fact>
                <Fact term="Memory">{formatBytes(inventory.memoryBytes)}</Fact>
                <Fact term="Firmware">{inventory.firmware === 'uefi' ? 'UEFI' : 'BIOS'}</Fact>
                <Fact term="Machine">
                  {inventory.virtualisation ? `virtual (${inventory.virtualisation})` : 'physical'}
                </Fact>
                <Fact term="Taken">
                  <When at={inventory.takenAt} />
                </Fact>
              </DescriptionList>
            </CardBody>
          </Card>
        </GridItem>
        <GridItem lg={6}>
          <Card isFullHeight>
            <CardTitle component="h2">Network interfaces</CardTitle>
            <CardBody>
              <Table variant="compact" aria-label="Network interfaces" borders={false}>
                <Thead>
                  <Tr>
                    <Th>Name</Th>
                    <Th>Addresses</Th>
                    <Th>Gateway</Th>
                  </Tr>
                </Thead>
                <Tbody>
                  {inventory.nics.map((nic) => (
                    <Tr key={nic.name}>
                      <Td dataLabel="Name">
                        {nic.name}
                        <div className="und-quiet und-mono">{nic.mac}</div>
                      </Td>
                      <Td dataLabel="Addresses">
                        {nic.addresses.length ? nic.addresses.join(', ') : 'none'}
                        {nic.dhcp !== null && (
                          <div className="und-quiet">{nic.dhcp ? 'by DHCP' : 'static'}</div>
                        )}
                      </Td>
                      <Td dataLabel="Gateway">{nic.gateway ?? '–'}</Td>
                    </Tr>
                  ))}
                </Tbody>
              </Table>
            </CardBody>
          </Card>
        </GridItem>
      </Grid>
      <h2 className="pf-v6-c-title pf-m-lg">Disks</h2>
      {inventory.disks.map((disk) => (
        <Disk key={disk.diskId} disk={disk} />
      ))}
    </div>
  );
}

function UninstallDialog(props: { source: Source; close: () => void }) {
  const { source } = props;
  const navigate = useNavigate();
  const offline = source.state.name !== 'online';
  const [withSsh, setWithSsh] = useState(offline);
  const [force, setForce] = useState(false);
  const [fields, setFields] = useState(() => emptySsh(source.address));
  return (
    <ConfirmDialog
      title={`Uninstall the agent from ${source.name}?`}
      submit={force ? 'Forget the source' : 'Uninstall'}
      danger
      wide
      typed={source.name}
      typedLabel="Type the source's name to confirm"
      blocked={Boolean(source.jobId) || (withSsh && !force && !sshReady(fields))}
      close={props.close}
      act={async () => {
        await api.uninstall(source.sourceId, {
          ...(withSsh && !force ? { ssh: sshTarget(fields) } : {}),
          ...(force ? { force: true } : {}),
        });
        navigate('/sources');
      }}
    >
      <div className="und-stack">
        {source.jobId ? (
          <Alert
            variant="warning"
            isInline
            title="This source is protected. Delete its protection job first."
          />
        ) : (
          <p>
            The agent, its unit and its state are removed from the server, its certificate is
            revoked, and the source leaves this list. The server itself goes on running.
          </p>
        )}
        <Form>
          <Checkbox
            id="uninstall-ssh"
            label="Log in by SSH to remove it"
            description={
              offline
                ? 'The agent is not connected, so it cannot be told to remove itself.'
                : 'Not needed while the agent is connected.'
            }
            isChecked={withSsh}
            isDisabled={force}
            onChange={(_event, checked) => setWithSsh(checked)}
          />
          {withSsh && !force && (
            <SshForm
              fields={fields}
              set={(change) => setFields((now) => ({ ...now, ...change }))}
            />
          )}
          <Checkbox
            id="uninstall-force"
            label="The server is gone: only forget it here"
            description="Nothing is removed on the server. If it comes back, its agent is refused."
            isChecked={force}
            onChange={(_event, checked) => setForce(checked)}
          />
        </Form>
      </div>
    </ConfirmDialog>
  );
}

/** What the agent takes of the server, as it said last; only while it replicates. */
function AgentFacts(props: { agent: NonNullable<JobFigures['agent']> }) {
  const { agent } = props;
  const percent = (value: number) => `${value.toFixed(value < 10 ? 1 : 0)} %`;
  return (
    <>
      <Fact term="CPU" id="agent-cpu">
        {percent(agent.agentCpuPercent + agent.helperCpuPercent)} of one processor (capture{' '}
        {percent(agent.helperCpuPercent)})
      </Fact>
      <Fact term="Memory" id="agent-memory">
        {formatBytes(agent.agentRssBytes + agent.helperRssBytes)}, at most{' '}
        {formatBytes(agent.windowBytes)} of it for frames on the way
      </Fact>
      <Fact term="Buffer" id="agent-ring">
        {formatBytes(agent.ringUsedBytes)} of {formatBytes(agent.ringBytes)} used
      </Fact>
    </>
  );
}

function CertificateCard(props: { source: Source; agent: JobFigures['agent'] }) {
  const { source } = props;
  const { isAdmin } = useUser();
  const [asking, setAsking] = useState<'renew' | 'revoke'>();
  const { certificate } = source;
  return (
    <Card isFullHeight>
      <CardTitle component="h2">Agent</CardTitle>
      <CardBody className="und-stack">
        <DescriptionList isHorizontal isCompact>
          <Fact term="Version">{source.agentVersion ?? 'not known yet'}</Fact>
          <Fact term="Certificate" id="certificate-state">
            {certificate ? (
              <StateLabel
                tone={certificate.revoked ? 'bad' : 'good'}
                state={certificate.revoked ? 'revoked' : 'valid'}
              >
                {certificate.revoked ? 'Revoked' : 'Valid'}
              </StateLabel>
            ) : (
              'none yet'
            )}
          </Fact>
          {certificate && (
            <>
              <Fact term="Serial">
                <span className="und-fingerprint">{certificate.serial}</span>
              </Fact>
              <Fact term="Expires">
                <When at={certificate.notAfter} />
              </Fact>
            </>
          )}
          {props.agent && <AgentFacts agent={props.agent} />}
        </DescriptionList>
        {isAdmin && certificate && !certificate.revoked && (
          <Flex>
            <Button
              variant="secondary"
              size="sm"
              id="certificate-renew"
              onClick={() => setAsking('renew')}
            >
              Renew certificate
            </Button>
            <Button
              variant="secondary"
              isDanger
              size="sm"
              id="certificate-revoke"
              onClick={() => setAsking('revoke')}
            >
              Revoke certificate
            </Button>
          </Flex>
        )}
        {asking && (
          <ConfirmDialog
            title={
              asking === 'renew'
                ? `Renew the certificate of ${source.name}?`
                : `Revoke the certificate of ${source.name}?`
            }
            submit={asking === 'renew' ? 'Renew' : 'Revoke'}
            danger={asking === 'revoke'}
            typed={asking === 'revoke' ? source.name : undefined}
            close={() => setAsking(undefined)}
            act={() => learn.source(() => api.certificate(source.sourceId, asking))}
          >
            <p>
              {asking === 'renew'
                ? 'The agent gets a new certificate over its present connection. Certificates also renew themselves before they expire.'
                : 'The agent is cut off at once and refused from then on: replication stops. To connect it again, its agent has to be installed anew.'}
            </p>
          </ConfirmDialog>
        )}
      </CardBody>
    </Card>
  );
}

export function SourcePage() {
  const { sourceId = '' } = useParams();
  const { sources, jobs, synced } = useLive();
  const { mayOperate } = useUser();
  const [uninstalling, setUninstalling] = useState(false);
  const refresh = useAction(async () => learn.source(() => api.refreshInventory(sourceId)));
  const source = sources.get(sourceId);
  const crumbs: [string, string][] = [['Source servers', '/sources']];
  if (!source) {
    return synced ? (
      <>
        <PageHead title="Source server" crumbs={crumbs} />
        <Nothing
          title="This source server is not in the list any more"
          action={<Link to="/sources">All source servers</Link>}
        >
          It was uninstalled.
        </Nothing>
      </>
    ) : (
      <Loading what="the source server" />
    );
  }
  const words = describeSource(source.state);
  const job = source.jobId ? jobs.get(source.jobId) : undefined;
  return (
    <>
      <PageHead
        title={source.name}
        crumbs={crumbs}
        beside={
          <StateLabel tone={words.tone} state={source.state.name} id="source-state">
            {words.label}
          </StateLabel>
        }
        actions={
          mayOperate && (
            <Flex gap={{ default: 'gapSm' }}>
              {!source.jobId && (
                <Button
                  variant="primary"
                  id={`protect-${source.name}`}
                  isAriaDisabled={!source.inventory || source.state.name !== 'online'}
                  component={(props) => (
                    <Link {...props} to={`/sources/${source.sourceId}/protect`} />
                  )}
                >
                  Protect
                </Button>
              )}
              <Button
                variant="secondary"
                id="refresh-inventory"
                isDisabled={source.state.name !== 'online' || refresh.busy}
                isLoading={refresh.busy}
                onClick={() => void refresh.run()}
              >
                Refresh inventory
              </Button>
              <Button
                variant="secondary"
                isDanger
                id="uninstall-source"
                isDisabled={source.state.name === 'uninstalling'}
                onClick={() => setUninstalling(true)}
              >
                Uninstall
              </Button>
            </Flex>
          )
        }
      />
      <PageSection hasBodyWrapper={false} className="und-stack">
        <ErrorAlert error={refresh.error} id="refresh-error" />
        {'error' in source.state ? (
          <ErrorAlert error={source.state.error} title={words.label} id="source-error" />
        ) : (
          words.reason && <Alert variant="info" isInline title={words.reason} id="source-reason" />
        )}
        <ErrorAlert
          error={turnedAway(source)}
          title="An agent with this server's identity was turned away"
          level="warning"
          id="source-alert"
        />
        <Grid hasGutter>
          <GridItem lg={6}>
            <Card isFullHeight>
              <CardTitle component="h2">Source server</CardTitle>
              <CardBody>
                <DescriptionList isHorizontal isCompact>
                  <Fact term="Address">{source.address}</Fact>
                  <Fact term="Added">
                    <When at={source.addedAt} />
                  </Fact>
                  {'since' in source.state && (
                    <Fact term={`${words.label} since`}>
                      <When at={source.state.since} />
                    </Fact>
                  )}
                  <Fact term="Protection">
                    {source.jobId ? (
                      <Link to={`/jobs/${source.jobId}`} id="source-job">
                        {job ? job.name : 'its job'}
                      </Link>
                    ) : (
                      'not protected'
                    )}
                  </Fact>
                </DescriptionList>
              </CardBody>
            </Card>
          </GridItem>
          <GridItem lg={6}>
            <CertificateCard source={source} agent={job?.figures.agent ?? null} />
          </GridItem>
        </Grid>
        <Inventory source={source} />
      </PageSection>
      {uninstalling && <UninstallDialog source={source} close={() => setUninstalling(false)} />}
    </>
  );
}
