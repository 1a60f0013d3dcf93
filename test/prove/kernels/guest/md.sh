#!/bin/busybox sh
# shellcheck shell=dash
# md.sh DISK DISK SEED : a mirror of both, with its first synchronisation, a member that drops out, and its return.
set -e
# shellcheck source=filesystems.sh
. /lib/kernels/filesystems.sh
# Faster than the emulated processor empties the ring, the first synchronisation would end order by an overflow.
echo 15000 >/proc/sys/dev/raid/speed_limit_max
blank "$1"
blank "$2"
mdadm -q --create /dev/md0 --level=1 --raid-devices=2 --metadata=1.2 --bitmap=internal --run "$1" "$2"
kernels-io raw /dev/md0 "$3" 16
on_ext4 /dev/md0 "$3"
mdadm -q /dev/md0 --fail "$2"
tries=0
until mdadm -q /dev/md0 --remove "$2" 2>/dev/null; do
  tries=$((tries + 1))
  [ $tries -lt 100 ]
  sleep 0.1
done
mount -t ext4 /dev/md0 /mnt
kernels-io files /mnt "$3" 12
umount /mnt
mdadm -q /dev/md0 --add "$2"
mdadm -q --wait /dev/md0 || true
mdadm -q --stop /dev/md0
