/**
 * The programs that guest preparation and the file browser start, each with the Debian package that has it. The appliance image must hold
 * every one; the type makes sure that no other is started.
 */
export const PREPARE_PROGRAMS = {
  bzip2: 'bzip2',
  e2fsck: 'e2fsprogs',
  losetup: 'mount',
  lz4: 'lz4',
  lzop: 'lzop',
  mcopy: 'mtools',
  mdir: 'mtools',
  mmd: 'mtools',
  mount: 'mount',
  'qemu-nbd': 'qemu-utils',
  setpriv: 'util-linux',
  umount: 'mount',
  unshare: 'util-linux',
  xz: 'xz-utils',
} as const;

export type PrepareProgram = keyof typeof PREPARE_PROGRAMS;
