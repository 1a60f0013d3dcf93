#!/bin/bash
# Builds build/kernels/SUITE/{vmlinuz,base.cpio,release}: the stock kernel of a Debian release, the modules of the disk
# buses and of LVM, md and multipath, and the release's own tools for them. No boot loader, no systemd, no Node: what is
# under test is the capture on that kernel, and an emulated processor is slow.
# Usage: test/prove/kernels/build-guest.sh SUITE
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../../../scripts/lib/env.sh
source "$here/../../../scripts/lib/env.sh"
# shellcheck source=../../../image/base/apt.sh
source "$UNDERSTUDY_ROOT/image/base/apt.sh"

# Read by debian_sources.
# shellcheck disable=SC2034
UNDERSTUDY_SUITE=$1
out=$UNDERSTUDY_ROOT/build/kernels/$1
PACKAGES=(linux-image-amd64 busybox-static util-linux fdisk lvm2 dmsetup mdadm e2fsprogs xfsprogs)
TOOLS=(lsblk sfdisk lvm dmsetup mdadm mke2fs mkfs.xfs)
MODULES=(virtio_pci virtio_console virtio_blk virtio_scsi sd_mod nvme ahci
  dm-mod dm-snapshot dm-multipath dm-round-robin raid1 ext4 xfs)
# Looked for by name when a file system is mounted, so no module names them as its dependency.
MODULES+=(crc32c_generic)

sum=$(cat "${BASH_SOURCE[0]}" "$UNDERSTUDY_ROOT/image/base/apt.sh" | sha256sum | cut -d' ' -f1)
[ "$(cat "$out/.built-from" 2>/dev/null)" = "$sum" ] && exit 0
require_root
apt_need cpio kmod xz-utils dpkg
mkdir -p "$out"
# Two builds at once must not see each other's half-written files.
exec 9>"$out/.lock"
flock 9
[ "$(cat "$out/.built-from" 2>/dev/null)" = "$sum" ] && exit 0
echo "building the guest of $1"
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT

# An apt of its own that knows nothing as installed, so that it fetches all that the packages need.
apt=$work/apt
debs=$UNDERSTUDY_ROOT/build/debs/kernels-$1
mkdir -p "$apt/lists/partial" "$debs/partial"
: >"$apt/status"
debian_sources >"$apt/sources.list"
debian_apt_options >"$apt/apt.conf"
fetch() {
  APT_CONFIG=$apt/apt.conf apt-get -qq \
    -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
    -o Dir::State="$apt" -o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/status" \
    -o Dir::Cache="$apt" -o Dir::Cache::archives="$debs" -o Acquire::Languages=none -o APT::Architecture=amd64 "$@"
}
# A release past its end has no -updates any more: what matters is whether the kernel is found.
fetch update >"$work/apt.log" 2>&1 || true
fetch autoclean >>"$work/apt.log" 2>&1
fetch install -y --no-install-recommends --download-only "${PACKAGES[@]}" >>"$work/apt.log" 2>&1 ||
  { tail -5 "$work/apt.log" >&2; echo "the packages of $1 are not to be had from this machine's Debian mirror" >&2; exit 1; }

tree=$work/tree
mkdir -p "$tree"/usr/{bin,sbin,lib,lib64}
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$tree/$dir"; done
for deb in "$debs"/*.deb; do
  case ${deb##*/} in python* | perl* | libpython* | libperl* | firmware*) continue ;; esac
  dpkg-deb --fsys-tarfile "$deb" | tar -xf - -C "$tree" --keep-directory-symlink \
    --exclude='./usr/share/*' --exclude='./var/*' --exclude='./etc/*' --exclude='./lib/modules/*/kernel/sound/*' \
    --exclude='./lib/modules/*/kernel/drivers/gpu/*' --exclude='./lib/modules/*/kernel/drivers/net/*' \
    --exclude='./lib/modules/*/kernel/drivers/media/*' --exclude='./usr/lib/modules/*/kernel/drivers/gpu/*' \
    --exclude='./usr/lib/modules/*/kernel/drivers/net/*' --exclude='./usr/lib/modules/*/kernel/drivers/media/*'
done
releases=("$tree"/lib/modules/*)
[ ${#releases[@]} -eq 1 ] || { echo "expected one kernel, found: ${releases[*]##*/}; empty $debs" >&2; exit 1; }
release=${releases[0]##*/}
depmod -b "$tree" "$release"

initrd=$work/initrd
mkdir -p "$initrd"/{dev,proc,sys,run,tmp,mnt,modules,etc,var} "$initrd"/usr/{bin,sbin,lib,lib64}
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$initrd/$dir"; done
cp "$tree/bin/busybox" "$initrd/bin/"

loader=$(chroot "$tree" /bin/busybox readlink -f /lib64/ld-linux-x86-64.so.2)
for tool in "${TOOLS[@]}"; do
  path=usr/sbin/$tool
  [ -e "$tree/$path" ] || path=usr/bin/$tool
  [ -e "$tree/$path" ] || { echo "$1 has no $tool" >&2; exit 1; }
  cp -L "$tree/$path" "$initrd/$path"
  chroot "$tree" "$loader" --list "/$path" | sed -n 's|.* => /\(.*\) (0x.*|\1|p'
done | sed 's|^lib/|usr/lib/|' | sort -u >"$work/libraries"
while read -r path; do
  mkdir -p "$initrd/${path%/*}"
  cp -L "$tree/$path" "$initrd/$path"
done <"$work/libraries"
cp "$tree$loader" "$initrd/usr/lib64/ld-linux-x86-64.so.2"

for module in "${MODULES[@]}"; do
  modprobe -d "$tree" -S "$release" --show-depends "$module" >"$work/depends" ||
    { echo "the kernel $release has no $module" >&2; exit 1; }
  sed -n 's/^insmod \([^ ]*\).*/\1/p' "$work/depends"
done | awk '!seen[$0]++' >"$work/modules"
n=100
while read -r file; do
  n=$((n + 1))
  name=$(basename "$file")
  case $name in
    *.xz) xz -dc "$file" >"$initrd/modules/$n-${name%.xz}" ;;
    *) cp "$file" "$initrd/modules/$n-$name" ;;
  esac
done <"$work/modules"

(cd "$initrd" && find . | cpio -o -H newc -R 0:0 --quiet) >"$work/base.cpio"
cp "$tree/boot/vmlinuz-$release" "$out/vmlinuz"
mv "$work/base.cpio" "$out/base.cpio"
echo "$release" >"$out/release"
echo "$sum" >"$out/.built-from"
