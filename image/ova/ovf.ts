/**
 * The descriptor and the manifest of the appliance's OVA (DMTF DSP0243, OVF 1.1: the version that every import dialog
 * reads). Pure: what is measured of the files comes in, text comes out.
 */

export type OvaDisk = {
  /** File name inside the OVA. */
  file: string;
  /** Size of that file. */
  fileBytes: number;
  /** Size of the disk that the guest sees. */
  capacityBytes: number;
  /** Bytes of the disk that hold anything. */
  populatedBytes: number;
};

export type OvaMachine = {
  version: string;
  vcpus: number;
  memoryMib: number;
  /** The network's name in the import dialog, where the person chooses one of theirs. */
  network: string;
  /** In the order in which the guest sees them. */
  disks: OvaDisk[];
};

const ENTITIES: Record<string, string> = { '<': '&lt;', '>': '&gt;', '&': '&amp;', '"': '&quot;' };
const xml = (text: string): string => text.replace(/[<>&"]/g, (c) => ENTITIES[c] ?? c);

type Rasd = Record<string, string | number>;

/**
 * One virtual hardware item. The schema of CIM_ResourceAllocationSettingData is a sequence in alphabetical order, and
 * strict importers hold one to it.
 */
function item(fields: Rasd): string {
  const lines = Object.entries(fields)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, value]) => `        <rasd:${name}>${xml(String(value))}</rasd:${name}>`);
  return `      <Item>\n${lines.join('\n')}\n      </Item>`;
}

/**
 * The OVF descriptor. The hardware is what VMware, VirtualBox and the QEMU-based importers all know and emulate in the
 * same way: an AHCI SATA controller and an E1000 network card. ("LSI Logic" is another chip on each of them. On libvirt,
 * scripts/deploy uses the qcow2 image and virtio.) A virtio-scsi controller, which replica disks are attached to, is not
 * named here, because not every importer knows one (VMware and virt-v2v were not tried): the libvirt driver adds it when
 * the first disk is attached. Resource types are CIM's: 3 processor, 4 memory, 10 Ethernet, 17 disk,
 * 20 other storage, which is where SATA went; 96 is 64-bit Debian.
 */
export function ovfDescriptor(machine: OvaMachine): string {
  const { disks, network } = machine;
  const references = disks
    .map(
      (d, i) =>
        `    <File ovf:id="file${i + 1}" ovf:href="${xml(d.file)}" ovf:size="${d.fileBytes}"/>`,
    )
    .join('\n');
  const diskSection = disks
    .map(
      (d, i) =>
        `    <Disk ovf:diskId="disk${i + 1}" ovf:fileRef="file${i + 1}" ovf:capacity="${d.capacityBytes}" ` +
        `ovf:capacityAllocationUnits="byte" ovf:populatedSize="${d.populatedBytes}" ` +
        'ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>',
    )
    .join('\n');
  const items = [
    item({
      InstanceID: 1,
      ResourceType: 3,
      AllocationUnits: 'hertz * 10^6',
      Description: 'Number of virtual CPUs',
      ElementName: `${machine.vcpus} virtual CPUs`,
      VirtualQuantity: machine.vcpus,
    }),
    item({
      InstanceID: 2,
      ResourceType: 4,
      AllocationUnits: 'byte * 2^20',
      Description: 'Memory',
      ElementName: `${machine.memoryMib} MB of memory`,
      VirtualQuantity: machine.memoryMib,
    }),
    item({
      InstanceID: 3,
      ResourceType: 20,
      ResourceSubType: 'vmware.sata.ahci',
      Address: 0,
      Description: 'SATA controller',
      ElementName: 'SATA controller 0',
    }),
    ...disks.map((_, i) =>
      item({
        InstanceID: 4 + i,
        ResourceType: 17,
        AddressOnParent: i,
        ElementName: `Hard disk ${i + 1}`,
        HostResource: `ovf:/disk/disk${i + 1}`,
        Parent: 3,
      }),
    ),
    item({
      InstanceID: 4 + disks.length,
      ResourceType: 10,
      ResourceSubType: 'E1000',
      AddressOnParent: 7,
      AutomaticAllocation: 'true',
      Connection: network,
      ElementName: 'Network adapter 1',
    }),
  ];
  return `<?xml version="1.0" encoding="UTF-8"?>
<Envelope ovf:version="1.0" xml:lang="en-US" xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
  <References>
${references}
  </References>
  <DiskSection>
    <Info>The system disk, and an empty disk for the appliance's state and journal</Info>
${diskSection}
  </DiskSection>
  <NetworkSection>
    <Info>The networks of this machine</Info>
    <Network ovf:name="${xml(network)}">
      <Description>Reaches the source servers, the target host and the people who use the page</Description>
    </Network>
  </NetworkSection>
  <VirtualSystem ovf:id="understudy">
    <Info>The Understudy recovery appliance</Info>
    <Name>understudy</Name>
    <OperatingSystemSection ovf:id="96">
      <Info>The guest operating system</Info>
      <Description>Debian GNU/Linux 12 (64-bit)</Description>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>What the machine needs</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>understudy</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>vmx-14</vssd:VirtualSystemType>
      </System>
${items.join('\n')}
    </VirtualHardwareSection>
    <ProductSection>
      <Info>About the product</Info>
      <Product>Understudy</Product>
      <Vendor>Understudy</Vendor>
      <Version>${xml(machine.version)}</Version>
      <FullVersion>${xml(machine.version)}</FullVersion>
    </ProductSection>
    <AnnotationSection>
      <Info>Notes</Info>
      <Annotation>After its first start the console shows the address of its page and the password for the first login.</Annotation>
    </AnnotationSection>
  </VirtualSystem>
</Envelope>
`;
}

/** The manifest: one line per file, in the form that VMware's and VirtualBox's checkers both parse. */
export function ovfManifest(files: { file: string; sha256Hex: string }[]): string {
  return files.map(({ file, sha256Hex }) => `SHA256(${file})= ${sha256Hex}\n`).join('');
}
