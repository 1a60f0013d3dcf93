#!/usr/bin/env bash
# Builds build/unmodified-host/{disk.qcow2,vmlinuz,initrd.img,key}: a Debian 12 with libvirt as `apt-get install` leaves
# it (AppArmor, QEMU as a user of its own), to be the target host of hypervisor-unmodified.long.ts.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/../../scripts/lib/env.sh"
. "$UNDERSTUDY_ROOT/image/base/apt.sh"
. "$UNDERSTUDY_ROOT/image/base/tree.sh"
require_root
apt_need mmdebstrap e2fsprogs qemu-utils openssh-client

out=$UNDERSTUDY_ROOT/build/unmodified-host
[ -f "$out/disk.qcow2" ] && exit 0
mkdir -p "$out" "$UNDERSTUDY_ROOT/build/logs"
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
tree=$work/tree
_told() { echo "$(grep -c ' status installed ' "$tree/var/log/dpkg.log") packages set up"; }
still "the unmodified host's Debian" _told tree_bootstrap "$tree" \
  linux-image-cloud-amd64,initramfs-tools,systemd-sysv,udev,dbus,kmod,iproute2,procps,openssh-server,python3,apparmor,libvirt-daemon-system,libvirt-clients,libvirt-daemon-driver-qemu,qemu-system-x86,qemu-utils,ovmf,dnsmasq-base,iptables \
  "$UNDERSTUDY_ROOT/build/logs/unmodified-host.log"
[ -f "$out/key" ] || ssh-keygen -q -t ed25519 -N '' -C unmodified-host -f "$out/key"
install -d -m 700 "$tree/root/.ssh"
install -m 600 "$out/key.pub" "$tree/root/.ssh/authorized_keys"
ssh-keygen -q -A -f "$tree" >/dev/null
echo unmodified >"$tree/etc/hostname"
printf '[Match]\nName=en*\n[Network]\nDHCP=yes\n' >"$tree/etc/systemd/network/10-dhcp.network"
chroot "$tree" systemctl enable -q systemd-networkd
tree_quiet_boot "$tree"
kernel=$(tree_kernel "$tree")
cp "$tree/boot/vmlinuz-$kernel" "$out/vmlinuz"
cp "$tree/boot/initrd.img-$kernel" "$out/initrd.img"
mke2fs -q -t ext4 -d "$tree" "$work/disk.raw" 4G
qemu-img convert -f raw -O qcow2 "$work/disk.raw" "$work/disk.qcow2"
mv "$work/disk.qcow2" "$out/disk.qcow2"
