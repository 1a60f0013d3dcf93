# Sourced: file systems with a mixed workload on them, unmounted at the end.
# shellcheck shell=dash

# blank DISK : without the partitions and signatures of the case before.
blank() {
  dd if=/dev/zero of="$1" bs=1M count=2 conv=notrunc 2>/dev/null
  dd if=/dev/zero of="$1" bs=1M seek=62 count=2 conv=notrunc 2>/dev/null
  sync
  blockdev --rereadpt "$1"
}

on_ext4() {
  # By its path: the shell prefers its own applet of that name.
  /usr/sbin/mke2fs -q -F -t ext4 -E lazy_itable_init=0 "$1"
  mount -t ext4 -o discard "$1" /mnt
  kernels-io files /mnt "$2" 24
  fstrim /mnt
  kernels-io files /mnt "$2" 20
  umount /mnt
}

# mkfs.xfs refuses less than 300 MiB from 5.19 on, but for its own tests, which say so by these three.
on_xfs() {
  TEST_DIR=1 TEST_DEV=1 QA_CHECK_FS=1 mkfs.xfs -q -f "$1"
  mount -t xfs -o discard "$1" /mnt
  kernels-io files /mnt "$2" 20
  umount /mnt
}
