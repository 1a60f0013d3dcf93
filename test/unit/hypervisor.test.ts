import fc from 'fast-check';
import t from 'tap';
import type { VmSpec } from '../../appliance/hypervisor/hypervisor.ts';
import { freeSlot, parseAddresses, stateOf } from '../../appliance/hypervisor/libvirt/domain.ts';
import { buildDomainXml, slotNumber } from '../../appliance/hypervisor/libvirt/domain-xml-build.ts';
import { parseDomainXml } from '../../appliance/hypervisor/libvirt/domain-xml-parse.ts';
import { versionsOf } from '../../appliance/hypervisor/libvirt/host.ts';
import { parseFirmwares } from '../../appliance/hypervisor/libvirt/host-xml-parse.ts';
import { LibvirtHypervisor } from '../../appliance/hypervisor/libvirt/libvirt-hypervisor.ts';
import { parseNetworkXml } from '../../appliance/hypervisor/libvirt/network-xml-parse.ts';
import { readAnswer, type Transport } from '../../appliance/hypervisor/libvirt/transport.ts';
import {
  attribute,
  element,
  escapeXml,
  parseXml,
  textOf,
  writeXml,
} from '../../appliance/hypervisor/libvirt/xml.ts';
import { volumeName } from '../../appliance/hypervisor/names.ts';
import { undError } from '../../protocol/errors.ts';

t.test('any text survives writing and parsing as XML', async (t) => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), (text) => {
      const kept = text
        .toWellFormed()
        // biome-ignore lint/suspicious/noControlCharactersInRegex: XML cannot hold them
        .replace(/[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]/g, '');
      const xml = writeXml(element('a', { b: text }, element('c', {}, `x${text}x`)));
      const root = parseXml(xml, 'a');
      return attribute(root, 'b') === kept && textOf(root, 'c') === `x${kept}x`;
    }),
    { numRuns: 500, examples: [['&lt;&#9;&amp;amp;']] },
  );
  t.equal(escapeXml(`<a b='"&\n`), '&lt;a b=&apos;&quot;&amp;&#10;');
});

t.test('slots: names as the kernel has them, every address once', async (t) => {
  t.same(
    [0, 25, 26, 701, 702].map((n) => slotNumber(n, 0).target),
    ['sda', 'sdz', 'sdaa', 'sdzz', 'sdaaa'],
  );
  const seen = new Set<string>();
  for (let n = 0; n < 1000; n++) {
    const slot = slotNumber(n, 0);
    t.ok(slot.scsiTarget < 256) || t.comment(n);
    seen.add(`${slot.target} ${slot.scsiTarget}:${slot.unit}`);
  }
  t.equal(seen.size, 1000);
});

const SPEC: VmSpec = {
  name: 'web01',
  title: `it's <a> "replica" & more`,
  vcpus: 2,
  memoryBytes: 512 * 1024 * 1024 + 1,
  firmware: 'uefi',
  disks: ['a', 'b'].map((name) => ({
    disk: { pool: 'default', name, path: `/pool/it's & ${name}` },
    serial: `u${name}`,
    readOnly: name === 'b',
  })),
  nics: [{ network: 'default', mac: '52:54:00:AA:BB:CC', model: 'virtio', connected: false }],
};

t.test('a domain is written and read back', async (t) => {
  const xml = buildDomainXml(SPEC, { virtType: 'kvm', caches: ['none', 'writeback'] });
  t.same(parseDomainXml(xml), {
    name: 'web01',
    uuid: '',
    virtioScsi: [0],
    disks: [
      ['sda', 'ua', false, 'none', "/pool/it's & a", 0],
      ['sdb', 'ub', true, 'writeback', "/pool/it's & b", 1],
    ].map(([target, serial, readOnly, cache, path, at]) => ({
      target,
      bus: 'scsi',
      serial,
      readOnly,
      cache,
      path,
      address: { controller: 0, target: at, unit: 0 },
    })),
  });
  const root = parseXml(xml, 'domain');
  t.equal(textOf(root, 'memory'), String(512 * 1024 + 1), 'rounded up to KiB');
  t.equal(textOf(root, 'title'), SPEC.title);
  t.match(xml, /firmware='efi'/);
  t.match(xml, /<link state='down'\/>/);
  t.match(xml, /error_policy='report'/);
  t.notMatch(xml, /unsafe/);
  t.match(buildDomainXml(SPEC, { virtType: 'qemu', caches: [] }), /<cpu mode='maximum'\/>/);
});

t.test(
  'a hot-attached disk takes the first slot that is free by name and by address',
  async (t) => {
    const domain = parseDomainXml(`<domain><name>x</name><devices>
    <controller type='scsi' index='1' model='virtio-scsi'/>
    <controller type='scsi' index='0' model='lsilogic'/>
    <disk type='file'><target dev='sda' bus='scsi'/><address type='drive' controller='1' target='2' unit='0'/></disk>
    <disk type='file'><target dev='sdd' bus='sata'/><address type='drive' controller='0' target='0' unit='0'/></disk>
    <disk type='file'><target dev='vdb' bus='virtio'/></disk></devices></domain>`);
    t.same(freeSlot(domain), { target: 'sdb', controller: 1, scsiTarget: 1, unit: 0 });
    domain.disks.push({ target: 'sdb', bus: 'scsi', readOnly: false, cache: 'none' });
    // sdc would be at target 2, which sda has; sdd is taken by the SATA disk.
    t.same(freeSlot(domain), { target: 'sde', controller: 1, scsiTarget: 4, unit: 0 });
    t.equal(freeSlot({ ...domain, virtioScsi: [] }), undefined);
  },
);

t.test('networks: forward mode, isolation, prefix from a netmask', async (t) => {
  t.same(
    parseNetworkXml(
      `<network><name>n</name><forward mode='nat'><nat/></forward><bridge name='virbr0'/><ip address='10.1.0.1' netmask='255.255.240.0'/><ip family='ipv6' address='fd00::1' prefix='64'/></network>`,
    ),
    {
      bridge: 'virbr0',
      forward: 'nat',
      isolated: false,
      addresses: ['10.1.0.1/20', 'fd00::1/64'],
    },
  );
  t.match(parseNetworkXml(`<network><bridge name='b'/></network>`), {
    forward: 'isolated',
    isolated: true,
  });
  t.match(parseNetworkXml(`<network><forward/></network>`), { forward: 'nat', isolated: false });
  t.match(parseNetworkXml(`<network><forward mode='hostdev'/></network>`), {
    forward: 'other',
    isolated: false,
  });
});

t.test('what virsh says, in the words of the interface', async (t) => {
  t.same(
    versionsOf('Using library: libvirt 9.0.0\nRunning hypervisor: QEMU 7.2.22\n'),
    'libvirt 9.0.0, QEMU 7.2.22',
  );
  t.same(
    parseFirmwares(
      `<domainCapabilities><os><enum name='firmware'><value>efi</value></enum></os></domainCapabilities>`,
    ),
    ['bios', 'uefi'],
  );
  t.same(parseFirmwares(`<domainCapabilities><os/></domainCapabilities>`), ['bios']);
  t.same(stateOf('running', 'booted'), { state: 'running' });
  t.same(stateOf('shut off', 'destroyed'), { state: 'off', reason: 'destroyed' });
  t.same(stateOf('paused', 'I/O error'), { state: 'paused', reason: 'I/O error' });
  t.same(stateOf('in shutdown', ''), { state: 'stopping' });
  t.same(
    parseAddresses(
      ' Name MAC address Protocol Address\n----\n vnet0  52:54:00:AA:00:01  ipv4  192.168.150.20/24\n -  -  ipv4  127.0.0.1/8\n',
      'lease',
    ),
    [{ mac: '52:54:00:aa:00:01', address: '192.168.150.20', prefixLength: 24, source: 'lease' }],
  );
});

t.test('names of image files', async (t) => {
  t.equal(volumeName('web01-vda'), 'understudy-web01-vda.qcow2');
  t.equal(volumeName('understudy-web01-vda.qcow2'), 'understudy-web01-vda.qcow2');
  for (const name of ['', '../x', 'a/b', '-x', 'a b', 'é', 'x'.repeat(192), 'understudy-.qcow2']) {
    t.throws(() => volumeName(name), { code: 'UND_HV_BAD_NAME' }, name);
  }
});

t.test('answers of the host: results, its coded errors, and neither', async (t) => {
  const said = (stdout: string, stderr = '') => ({ stdout, stderr, exitCode: 1, timedOut: false });
  t.same(readAnswer('h', 'host', said('{"ok":true,"result":[1]}')), [1]);
  const throws = (
    stdout: string,
    expected: { code: string; message?: string | RegExp },
    stderr = '',
  ) =>
    t.match(
      t.throws(() => readAnswer('h', 'host', said(stdout, stderr))),
      expected,
      stdout,
    );
  throws('{"ok":false,"code":"UND_HV_VM_NOT_FOUND","params":{"vm":"x"}}', {
    code: 'UND_HV_VM_NOT_FOUND',
    message: 'There is no VM x on the target host.',
  });
  throws('{"ok":false,"code":"UND_INTERNAL"}', { code: 'UND_HV_FAILED' });
  throws('{"ok":false,"code":"UND_HV___proto__"}', { code: 'UND_HV_FAILED' });
  throws('[]', { code: 'UND_HV_FAILED' });
  throws('', { code: 'UND_HV_UNREACHABLE', message: /Connection refused/ }, 'Connection refused\n');
});

/** A host whose libvirt says "detached" and keeps the disk for as long as it is told. */
function lyingHost(options: { staysForAsks: number; lockedForAsks: number }) {
  let asks = 0;
  let lockAsks = 0;
  const calls: string[] = [];
  const transport: Transport = {
    async call(verb) {
      calls.push(verb);
      switch (verb) {
        case 'vm-xml':
          return asks <= options.staysForAsks
            ? `<domain><devices><disk><target dev='sdb' bus='scsi'/><serial>u1</serial><source file='/p/understudy-d.qcow2'/></disk></devices></domain>`
            : '<domain><devices/></domain>';
        case 'disk-detach':
          asks++;
          // "Disk detached successfully", and then the false error of a second try.
          if (asks > 1) throw undError('UND_HV_FAILED', { action: 'x', reason: 'in the process' });
          return null;
        case 'pool-list':
          return [
            {
              name: 'default',
              active: true,
              xml: `<pool type='dir'><target><path>/p</path></target></pool>`,
            },
          ];
        case 'disk-info':
          return {
            layers: [
              {
                pool: 'default',
                name: 'understudy-d.qcow2',
                path: '/p/understudy-d.qcow2',
                sizeBytes: 1,
                allocatedBytes: 1,
              },
            ],
            locked: lockAsks++ < options.lockedForAsks,
          };
        default:
          throw new Error(verb);
      }
    },
    async close() {},
  };
  return { transport, calls };
}

t.test('detach: "detached successfully" is not believed while the XML has the disk', async (t) => {
  const { transport } = lyingHost({ staysForAsks: 99, lockedForAsks: 0 });
  const hypervisor = new LibvirtHypervisor(transport, { detachTimeoutMs: 600 });
  await t.rejects(hypervisor.detachDisk('appliance', 'u1'), {
    code: 'UND_HV_DETACH_TIMEOUT',
    params: { serial: 'u1', vm: 'appliance' },
  });
});

t.test('detach: waits until the image is free', async (t) => {
  const { transport, calls } = lyingHost({ staysForAsks: 0, lockedForAsks: 2 });
  await new LibvirtHypervisor(transport).detachDisk('appliance', 'u1');
  t.equal(calls.filter((verb) => verb === 'disk-info').length, 3);
});
