import {
  Card,
  CardBody,
  CardTitle,
  DescriptionList,
  Grid,
  GridItem,
  Label,
  PageSection,
  Progress,
} from '@patternfly/react-core';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import type { HostView } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { count, formatRate } from '../format.ts';
import { usePolled } from '../parts/hooks.ts';
import {
  ErrorAlert,
  Fact,
  Loading,
  Nothing,
  PageHead,
  StateLabel,
  Usage,
} from '../parts/parts.tsx';

/** CPU, memory and network of the host now. */
export function HostUse(props: { host: HostView }) {
  const { host } = props;
  return (
    <div className="und-stack">
      {host.cpuUsePercent !== null && (
        <Progress
          size="sm"
          title="CPU"
          value={Math.round(host.cpuUsePercent)}
          label={`${Math.round(host.cpuUsePercent)} % of ${count(host.cpuCount, 'CPU')}`}
          aria-label="CPU"
          variant={host.cpuUsePercent >= 95 ? 'warning' : undefined}
        />
      )}
      <Usage
        label="Memory"
        usedBytes={host.memoryTotalBytes - host.memoryFreeBytes}
        totalBytes={host.memoryTotalBytes}
      />
      {host.networkRxBytesPerSec !== null && host.networkTxBytesPerSec !== null && (
        <div className="und-quiet">
          Network: {formatRate(host.networkRxBytesPerSec)} in,{' '}
          {formatRate(host.networkTxBytesPerSec)} out
        </div>
      )}
    </div>
  );
}

export function HostPage() {
  const { data: host, error } = usePolled(api.host, 5000);
  return (
    <>
      <PageHead title="Target host">
        <p>Where the appliance runs, the replica disks lie and the replica VMs start.</p>
      </PageHead>
      <PageSection hasBodyWrapper={false} className="und-stack">
        <ErrorAlert error={error} title="The target host could not be asked" id="host-error" />
        {!host && !error && <Loading what="the target host" />}
        {host && (
          <>
            <Grid hasGutter>
              <GridItem lg={6}>
                <Card isFullHeight>
                  <CardTitle component="h2">{host.name}</CardTitle>
                  <CardBody>
                    <DescriptionList isHorizontal isCompact>
                      <Fact term="Hypervisor">{host.hypervisor}</Fact>
                      <Fact term="CPU">
                        {host.cpuCount} × {host.cpuModel}
                      </Fact>
                      <Fact term="Acceleration" id="host-acceleration">
                        {host.acceleration === 'kvm' ? (
                          'KVM'
                        ) : (
                          <>
                            none (TCG){' '}
                            <span className="und-quiet">
                              The host has no working KVM: replicas run, but slowly.
                            </span>
                          </>
                        )}
                      </Fact>
                    </DescriptionList>
                  </CardBody>
                </Card>
              </GridItem>
              <GridItem lg={6}>
                <Card isFullHeight>
                  <CardTitle component="h2">Use now</CardTitle>
                  <CardBody>
                    <HostUse host={host} />
                  </CardBody>
                </Card>
              </GridItem>
            </Grid>
            <Card>
              <CardTitle component="h2">Storage pools</CardTitle>
              <CardBody>
                {host.pools.length === 0 ? (
                  <Nothing title="No storage pool" small>
                    Define one on the host, for example with virsh pool-define-as; it appears here
                    by itself.
                  </Nothing>
                ) : (
                  <Table
                    variant="compact"
                    aria-label="Storage pools"
                    borders={false}
                    id="pool-table"
                  >
                    <Thead>
                      <Tr>
                        <Th>Name</Th>
                        <Th>Type</Th>
                        <Th width={40}>Space</Th>
                        <Th width={35}>Replica disks</Th>
                      </Tr>
                    </Thead>
                    <Tbody>
                      {host.pools.map((pool) => (
                        <Tr key={pool.name} id={`pool-${pool.name}`}>
                          <Td dataLabel="Name">{pool.name}</Td>
                          <Td dataLabel="Type">{pool.type}</Td>
                          <Td dataLabel="Space">
                            <Usage
                              usedBytes={pool.totalBytes - pool.freeBytes}
                              totalBytes={pool.totalBytes}
                            />
                          </Td>
                          <Td dataLabel="Replica disks">
                            {pool.usable ? (
                              <StateLabel tone="good" state="usable">
                                Usable
                              </StateLabel>
                            ) : (
                              <>
                                <StateLabel tone="neutral" state="unusable">
                                  Not usable
                                </StateLabel>
                                <div className="und-quiet">{pool.reason}</div>
                              </>
                            )}
                          </Td>
                        </Tr>
                      ))}
                    </Tbody>
                  </Table>
                )}
              </CardBody>
            </Card>
            <Grid hasGutter>
              <GridItem lg={6}>
                <Card isFullHeight>
                  <CardTitle component="h2">Networks</CardTitle>
                  <CardBody>
                    <Table
                      variant="compact"
                      aria-label="Networks"
                      borders={false}
                      id="network-table"
                    >
                      <Thead>
                        <Tr>
                          <Th>Name</Th>
                          <Th>Kind</Th>
                          <Th>Bridge</Th>
                          <Th>State</Th>
                        </Tr>
                      </Thead>
                      <Tbody>
                        {host.networks.map((network) => (
                          <Tr key={network.name}>
                            <Td dataLabel="Name">{network.name}</Td>
                            <Td dataLabel="Kind">{network.mode}</Td>
                            <Td dataLabel="Bridge">{network.bridge ?? '–'}</Td>
                            <Td dataLabel="State">
                              <StateLabel
                                tone={network.active ? 'good' : 'neutral'}
                                state={network.active ? 'active' : 'inactive'}
                              >
                                {network.active ? 'Active' : 'Not started'}
                              </StateLabel>
                            </Td>
                          </Tr>
                        ))}
                      </Tbody>
                    </Table>
                  </CardBody>
                </Card>
              </GridItem>
              <GridItem lg={6}>
                <Card isFullHeight>
                  <CardTitle component="h2">Virtual machines</CardTitle>
                  <CardBody>
                    <Table
                      variant="compact"
                      aria-label="Virtual machines"
                      borders={false}
                      id="vm-table"
                    >
                      <Thead>
                        <Tr>
                          <Th>Name</Th>
                          <Th>State</Th>
                          <Th>Role</Th>
                        </Tr>
                      </Thead>
                      <Tbody>
                        {host.vms.map((vm) => (
                          <Tr key={vm.name} id={`vm-${vm.name}`}>
                            <Td dataLabel="Name">{vm.name}</Td>
                            <Td dataLabel="State">{vm.state}</Td>
                            <Td dataLabel="Role">
                              {vm.isAppliance ? (
                                <Label isCompact color="blue">
                                  this appliance
                                </Label>
                              ) : vm.isReplica ? (
                                <Label isCompact color="teal">
                                  replica
                                </Label>
                              ) : (
                                '–'
                              )}
                            </Td>
                          </Tr>
                        ))}
                      </Tbody>
                    </Table>
                  </CardBody>
                </Card>
              </GridItem>
            </Grid>
          </>
        )}
      </PageSection>
    </>
  );
}
