import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { XMLParser, XMLValidator } from 'fast-xml-parser';
import t from 'tap';
import { type OvaMachine, ovfDescriptor, ovfManifest } from '../../image/ova/ovf.ts';

const machine: OvaMachine = {
  version: '1.2.3 <beta> & "co"',
  vcpus: 2,
  memoryMib: 2048,
  network: 'LAN',
  disks: [
    { file: 'a-disk1.vmdk', fileBytes: 1234, capacityBytes: 4 * 1024 ** 3, populatedBytes: 999 },
    { file: 'a-disk2.vmdk', fileBytes: 70, capacityBytes: 32 * 1024 ** 3, populatedBytes: 0 },
  ],
};

type Node = Record<string, unknown>;
const list = (value: unknown): Node[] => (Array.isArray(value) ? value : [value]) as Node[];
const parse = (xml: string): Node =>
  new XMLParser({
    ignoreAttributes: false,
    parseTagValue: false,
    parseAttributeValue: false,
  }).parse(xml).Envelope as Node;
const at = (node: unknown, ...path: string[]): unknown =>
  path.reduce((value, key) => (value as Node)?.[key], node);
const items = (envelope: Node): Node[] =>
  list(at(envelope, 'VirtualSystem', 'VirtualHardwareSection', 'Item'));
const ofType = (envelope: Node, type: string): Node[] =>
  items(envelope).filter((i) => i['rasd:ResourceType'] === type);

t.test('the descriptor is well-formed whatever the version is called', async (t) => {
  t.equal(XMLValidator.validate(ovfDescriptor(machine)), true);
  t.equal(
    at(parse(ovfDescriptor(machine)), 'VirtualSystem', 'ProductSection', 'Version'),
    '1.2.3 <beta> & "co"',
  );
});

t.test('the sections come in the order of the schema', async (t) => {
  const envelope = parse(ovfDescriptor(machine));
  const sections = (node: unknown) => Object.keys(node as Node).filter((k) => !k.startsWith('@'));
  t.same(sections(envelope), ['References', 'DiskSection', 'NetworkSection', 'VirtualSystem']);
  t.same(sections(envelope.VirtualSystem), [
    'Info',
    'Name',
    'OperatingSystemSection',
    'VirtualHardwareSection',
    'ProductSection',
    'AnnotationSection',
  ]);
});

t.test('every disk has a file, a format and a place on a controller that exists', async (t) => {
  const envelope = parse(ovfDescriptor(machine));
  const files = list(at(envelope, 'References', 'File'));
  const disks = list(at(envelope, 'DiskSection', 'Disk'));
  t.same(
    files.map((f) => [f['@_ovf:href'], f['@_ovf:size']]),
    [
      ['a-disk1.vmdk', '1234'],
      ['a-disk2.vmdk', '70'],
    ],
  );
  const ids = new Set(files.map((f) => f['@_ovf:id']));
  const drives = ofType(envelope, '17');
  const controller = ofType(envelope, '20')[0]?.['rasd:InstanceID'];
  t.ok(controller);
  t.equal(drives.length, disks.length);
  for (const [i, disk] of disks.entries()) {
    t.ok(ids.has(disk['@_ovf:fileRef']));
    t.match(disk['@_ovf:format'], /streamOptimized$/);
    t.equal(disk['@_ovf:capacityAllocationUnits'], 'byte');
    t.equal(disk['@_ovf:capacity'], String(machine.disks[i]?.capacityBytes));
    t.equal(drives[i]?.['rasd:HostResource'], `ovf:/disk/${disk['@_ovf:diskId']}`);
    t.equal(drives[i]?.['rasd:Parent'], controller);
    t.equal(drives[i]?.['rasd:AddressOnParent'], String(i));
  }
});

t.test('processor, memory and network card are there once each', async (t) => {
  const envelope = parse(ovfDescriptor(machine));
  t.equal(ofType(envelope, '3')[0]?.['rasd:VirtualQuantity'], '2');
  const memory = ofType(envelope, '4')[0];
  t.equal(memory?.['rasd:VirtualQuantity'], '2048');
  t.equal(memory?.['rasd:AllocationUnits'], 'byte * 2^20');
  const cards = ofType(envelope, '10');
  t.equal(cards.length, 1);
  t.equal(cards[0]?.['rasd:Connection'], at(envelope, 'NetworkSection', 'Network', '@_ovf:name'));
});

t.test(
  'items are numbered uniquely and their fields are in the order that strict importers ask for',
  async (t) => {
    const all = items(parse(ovfDescriptor(machine)));
    t.equal(new Set(all.map((i) => i['rasd:InstanceID'])).size, all.length);
    for (const one of all) {
      const names = Object.keys(one);
      t.same(names, [...names].sort());
      t.ok(names.includes('rasd:ElementName'));
    }
  },
);

t.test('the manifest has the form that importers parse', async (t) => {
  t.equal(
    ovfManifest([
      { file: 'a.ovf', sha256Hex: 'ab' },
      { file: 'd.vmdk', sha256Hex: 'cd' },
    ]),
    'SHA256(a.ovf)= ab\nSHA256(d.vmdk)= cd\n',
  );
});

t.test('a packed OVA: ustar, descriptor first, sums that hold, disks that read back', async (t) => {
  await execa('bash', ['-c', '. scripts/lib/env.sh; apt_need qemu-utils'], {
    cwd: join(import.meta.dirname, '../..'),
  });
  const { packOva } = await import('../../image/ova/pack.ts');
  const folder = await mkdtemp(join(tmpdir(), 'ova-test-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  const image = join(folder, 'system.qcow2');
  await execa('qemu-img', ['create', '-q', '-f', 'qcow2', image, '8M']);
  await execa('qemu-io', ['-f', 'qcow2', '-c', 'write -P 0x5a 1M 1M', image]);
  const ova = join(folder, 'understudy-appliance-9.9.9.ova');
  await packOva(image, '9.9.9', ova);

  const archive = await readFile(ova);
  t.equal(archive.subarray(257, 263).toString('latin1'), 'ustar\0');
  const members = (await execa('tar', ['-tf', ova])).stdout.split('\n');
  t.same(
    members,
    ['ovf', 'mf', 'vmdk', 'vmdk'].map((kind, i) =>
      kind === 'vmdk'
        ? `understudy-appliance-9.9.9-disk${i - 1}.vmdk`
        : `understudy-appliance-9.9.9.${kind}`,
    ),
  );
  await execa('tar', ['-xf', ova, '-C', folder]);
  const manifest = await readFile(join(folder, members[1] as string), 'utf8');
  const lines = [...manifest.matchAll(/^SHA256\((.+)\)= ([0-9a-f]{64})$/gm)];
  t.same(
    lines.map((l) => l[1]),
    [members[0], members[2], members[3]],
  );
  for (const [, file, sum] of lines) {
    const content = await readFile(join(folder, file as string));
    t.equal(createHash('sha256').update(content).digest('hex'), sum);
  }
  const envelope = parse(await readFile(join(folder, members[0] as string), 'utf8'));
  const disks = list(at(envelope, 'DiskSection', 'Disk'));
  t.equal(disks[0]?.['@_ovf:capacity'], String(8 * 1024 * 1024));
  t.equal(disks[0]?.['@_ovf:populatedSize'], String(1024 * 1024));
  const files = list(at(envelope, 'References', 'File'));
  for (const [i, member] of [members[2], members[3]].entries()) {
    const bytes = (await readFile(join(folder, member as string))).length;
    t.equal(files[i]?.['@_ovf:size'], String(bytes));
  }
  await execa('qemu-img', [
    'compare',
    '-f',
    'vmdk',
    '-F',
    'qcow2',
    join(folder, members[2] as string),
    image,
  ]);
});
