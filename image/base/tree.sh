# Sourced by the image builders: a Debian tree by mmdebstrap, with the packages it fetched kept for the next build.
# shellcheck shell=bash

# Nobody reads manuals on an appliance or in the sample source, and each file costs build and mirror time.
TREE_TRIM=(
  --dpkgopt='path-exclude=/usr/share/man/*'
  --dpkgopt='path-exclude=/usr/share/info/*'
  --dpkgopt='path-exclude=/usr/share/locale/*'
  --dpkgopt='path-include=/usr/share/locale/locale.alias'
  --dpkgopt='path-exclude=/usr/share/doc/*'
  --dpkgopt='path-include=/usr/share/doc/*/copyright'
  --dpkgopt='path-exclude=/usr/share/bug/*'
  --dpkgopt='path-exclude=/usr/share/lintian/*'
  # Modules of hardware that virtual machines have no use for: udev would load some of them at every boot.
  --dpkgopt='path-exclude=/lib/modules/*/kernel/sound/*'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/media/*'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/net/wireless/*'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/net/mac80211/*'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/net/wireless/*'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/gpu/*'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/infiniband/*'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/staging/*'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/iio/*'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/isdn/*'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/parport/*'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/char/ppdev.ko'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/block/floppy.ko'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/bluetooth/*'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/net/bluetooth/*'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/arch/x86/kvm/*'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/input/misc/*'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/mtd/*'
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/i2c/busses/*'
)

# tree_bootstrap TREE PACKAGES LOG [MMDEBSTRAP_OPTION...] : PACKAGES is comma-separated. TREE must not exist.
tree_bootstrap() {
  local tree=$1 packages=$2 log=$3 debs options status=0
  shift 3
  debs=$UNDERSTUDY_ROOT/build/debs/$(basename "$log" .log)
  options=$(mktemp)
  mkdir -p "$debs"
  debian_apt_options >"$options"
  debian_sources | mmdebstrap --mode=root --variant=minbase --format=directory --include="$packages" \
    --aptopt="$options" --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "0"' \
    --dpkgopt=force-unsafe-io --dpkgopt=force-confold "${TREE_TRIM[@]}" \
    --skip=download/empty --skip=essential/unlink --skip=cleanup/apt/cache \
    --setup-hook='mkdir -p "$1/var/cache/apt/archives"' \
    --setup-hook="cp -al '$debs/.' \"\$1/var/cache/apt/archives/\" 2>/dev/null || true" \
    "$@" \
    --customize-hook="cp -an \"\$1\"/var/cache/apt/archives/*.deb '$debs/'" \
    --customize-hook='rm -rf "$1"/var/cache/apt/archives "$1"/var/cache/apt/*.bin "$1"/var/cache/debconf/*-old' \
    "$UNDERSTUDY_SUITE" "$tree" - >"$log" 2>&1 || status=$?
  rm -f "$options"
  if [ $status -ne 0 ]; then
    tail -15 "$log" >&2
    echo "mmdebstrap failed ($status), see $log" >&2
    return 1
  fi
  # The builder's mirror, proxy and dpkg shortcuts are nobody else's business.
  rm -f "$tree"/etc/apt/apt.conf.d/99mmdebstrap "$tree"/etc/dpkg/dpkg.cfg.d/99mmdebstrap \
    "$tree"/etc/apt/sources.list.d/* "$tree"/etc/resolv.conf
  : >"$tree/etc/apt/sources.list"
  # An empty machine-id is filled in at boot, without the first-boot presets that would enable what we masked.
  : >"$tree/etc/machine-id"
  rm -f "$tree"/etc/ssh/ssh_host_*_key* "$tree"/var/lib/dbus/machine-id
}

# tree_kernel TREE : prints the kernel release in TREE, of which there must be exactly one.
tree_kernel() {
  local found=("$1"/lib/modules/*)
  [ ${#found[@]} -eq 1 ] || { echo "expected one kernel in $1, found ${#found[@]}" >&2; return 1; }
  basename "${found[0]}"
}

# tree_unit TREE NAME < CONTENT : installs and enables a systemd unit.
tree_unit() {
  cat >"$1/etc/systemd/system/$2"
  chroot "$1" systemctl enable -q "$2"
}

# tree_quiet_boot TREE : turns off what costs boot time and serves nothing in a server without a user at its desk.
tree_quiet_boot() {
  chroot "$1" systemctl mask -q systemd-networkd-wait-online.service getty-static.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer systemd-pstore.service dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
    systemd-firstboot.service systemd-update-utmp.service modprobe@drm.service 2>/dev/null || true
}
