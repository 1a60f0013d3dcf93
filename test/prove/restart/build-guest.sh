#!/bin/bash
# Builds build/restart/SUITE/{tree.tar,vmlinuz,initrd.img}: a Debian release as it is installed, with systemd, its own
# initramfs and its own kernel, and what LVM and XFS need. Usage: test/prove/restart/build-guest.sh SUITE
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../../../scripts/lib/env.sh
source "$here/../../../scripts/lib/env.sh"
# shellcheck source=../../../image/base/apt.sh
source "$UNDERSTUDY_ROOT/image/base/apt.sh"
# shellcheck source=../../../image/base/tree.sh
source "$UNDERSTUDY_ROOT/image/base/tree.sh"

# Read by tree_bootstrap.
# shellcheck disable=SC2034
UNDERSTUDY_SUITE=$1
out=$UNDERSTUDY_ROOT/build/restart/$1
sum=$(cat "${BASH_SOURCE[0]}" "$UNDERSTUDY_ROOT"/image/base/{apt,tree}.sh | sha256sum | cut -d' ' -f1)
[ "$(cat "$out/.built-from" 2>/dev/null)" = "$sum" ] && exit 0
require_root
mkdir -p "$out" "$UNDERSTUDY_ROOT/build/logs" "$UNDERSTUDY_ROOT/build/scratch"
exec 9>"$out/.lock"
flock 9
[ "$(cat "$out/.built-from" 2>/dev/null)" = "$sum" ] && exit 0
echo "building the guest of $1"
work=$(mktemp -d -p "$UNDERSTUDY_ROOT/build/scratch")
trap 'rm -rf --one-file-system "$work"' EXIT
tree=$work/tree

# Only what the guest has: the initramfs is unpacked by an emulated processor at each start.
mkdir -p "$work/early/etc/initramfs-tools/conf.d"
echo "MODULES=list" >"$work/early/etc/initramfs-tools/conf.d/guest"
printf '%s\n' virtio_pci virtio_blk ext4 xfs dm_mod crc32c >"$work/early/etc/initramfs-tools/modules"
tree_bootstrap "$tree" \
  linux-image-amd64,initramfs-tools,systemd-sysv,udev,dbus,kmod,e2fsprogs,xfsprogs,lvm2,procps \
  "$UNDERSTUDY_ROOT/build/logs/restart-$1.log" \
  --essential-hook="cp -r --no-preserve=ownership '$work/early/.' \"\$1/\""
kernel=$(tree_kernel "$tree")
tree_quiet_boot "$tree"
echo guest >"$tree/etc/hostname"
chroot "$tree" passwd -q -d root
cp "$tree/boot/vmlinuz-$kernel" "$out/vmlinuz"
cp "$tree/boot/initrd.img-$kernel" "$out/initrd.img"
rm -rf "${tree:?}"/boot/* "${tree:?}"/var/lib/apt/lists/* "${tree:?}"/usr/share/doc
tar -C "$tree" --numeric-owner -cf "$out/tree.tar.new" .
mv "$out/tree.tar.new" "$out/tree.tar"
echo "$sum" >"$out/.built-from"
