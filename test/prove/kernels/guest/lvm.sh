#!/bin/busybox sh
# shellcheck shell=dash
# lvm.sh DISK DISK SEED : two physical volumes, a linear and a striped logical volume over both, a snapshot.
set -e
mkdir -p /etc/lvm
cat >/etc/lvm/lvm.conf <<'END'
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
devices { obtain_device_list_from_udev = 0 external_device_info_source = "none" }
backup { backup = 0 archive = 0 }
END
# shellcheck source=filesystems.sh
. /lib/kernels/filesystems.sh
blank "$1"
blank "$2"
lvm vgcreate -y -Zy vg "$1" "$2"
lvm lvcreate -y -Wn -Zn -n striped -i 2 -I 64 -L 32M vg
lvm lvcreate -y -Wn -Zn -n linear -L 64M vg
kernels-io raw /dev/mapper/vg-striped "$3" 16
on_xfs /dev/mapper/vg-striped "$3"
on_ext4 /dev/mapper/vg-linear "$3"
lvm lvcreate -y -s -n snap -L 8M vg/linear
mount -t ext4 /dev/mapper/vg-linear /mnt
kernels-io files /mnt "$3" 12
umount /mnt
lvm lvremove -y vg/snap
lvm vgchange -an vg
