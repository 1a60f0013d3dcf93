# Sourced by scripts/build-images: the sample source server. A plain Debian 12 with PostgreSQL, set up the way servers
# are that nobody meant to move: device names in fstab and on the kernel's command line, an initramfs that knows only
# the disk bus it runs on, the network interface configured by its name.
# shellcheck shell=bash

# Read by scripts/build-images, which sources this file.
# shellcheck disable=SC2034
SOURCE_INPUTS=(image/base/apt.sh image/base/disk.sh image/base/tree.sh image/source)
SOURCE_ROOT_MIB=3072
SOURCE_SWAP_MIB=128
SOURCE_DATA_MIB=1024

# source_build WORK OUT : leaves source-root.qcow2, source-data.qcow2 and source_key in OUT.
source_build() {
  local work=$1 out=$2 tree=$1/tree data=$1/data from=$UNDERSTUDY_ROOT/image/source kernel uid
  source_key "$out" || return 1

  # qemu-guest-agent: a server that is a VM mostly has it, and it is what asks a replica in a test failover what it holds.
  # It starts where the machine has its channel, as a replica has.
  step "Debian packages"
  tree_bootstrap "$tree" \
    linux-image-amd64,initramfs-tools,systemd-sysv,udev,dbus,kmod,e2fsprogs,iproute2,iputils-ping,netbase,procps,less,nano,openssh-server,sudo,grub2-common,grub-pc-bin,postgresql-15,qemu-guest-agent,ca-certificates \
    "$UNDERSTUDY_ROOT/build/logs/source.log" \
    --dpkgopt='path-exclude=/usr/lib/x86_64-linux-gnu/libLLVM*' \
    --dpkgopt='path-exclude=/usr/lib/llvm-*' \
    --dpkgopt='path-exclude=/usr/lib/postgresql/15/lib/bitcode/*' \
    --dpkgopt='path-exclude=/usr/lib/postgresql/15/lib/llvmjit*' \
    --essential-hook="cp -r --no-preserve=ownership '$from/early/.' \"\$1/\"" \
    --customize-hook='chroot "$1" pg_createcluster 15 main -- --locale=C.UTF-8 --encoding=UTF8 --data-checksums --wal-segsize=4' ||
    return 1

  step "configuration"
  kernel=$(tree_kernel "$tree") || return 1
  cp -r --no-preserve=ownership "$from/tree/." "$tree/"
  chmod 0440 "$tree/etc/sudoers.d/admin"
  ln -sf "boot/vmlinuz-$kernel" "$tree/vmlinuz"
  ln -sf "boot/initrd.img-$kernel" "$tree/initrd.img"
  echo "source" >"$tree/etc/hostname"
  printf '127.0.0.1 localhost\n127.0.1.1 source\n' >"$tree/etc/hosts"
  chroot "$tree" useradd --create-home --shell /bin/bash --groups sudo admin
  echo "admin:$(cat "$from/password")" | chroot "$tree" chpasswd
  chroot "$tree" passwd -q -l root
  install -d -m 0700 "$tree/home/admin/.ssh"
  install -m 0600 "$out/source_key.pub" "$tree/home/admin/.ssh/authorized_keys"
  chroot "$tree" chown -R admin:admin /home/admin
  # Made here because a software-emulated processor takes a minute for an RSA key.
  ssh-keygen -q -A -f "$tree" >/dev/null && rm -f "$tree"/etc/ssh/ssh_host_dsa_key*
  chroot "$tree" systemctl enable -q systemd-networkd understudy-writer.service || return 1
  chroot "$tree" systemctl disable -q e2scrub_reap.service 2>/dev/null || true
  tree_quiet_boot "$tree"

  step "file systems"
  uid=$(chroot "$tree" id -u postgres)
  install -d -m 0755 "$data"
  install -d -m 0700 -o "$uid" -g "$(chroot "$tree" id -g postgres)" "$data/postgresql"
  mkdir -p "$tree/srv/data"
  DISK_SWAP_MIB=$SOURCE_SWAP_MIB disk_make_root "$work/root.raw" "$tree" "$SOURCE_ROOT_MIB" root || return 1
  disk_make_data "$work/data.raw" "$data" "$SOURCE_DATA_MIB" data || return 1

  step "qcow2"
  disk_qcow2 "$work/root.raw" "$out/source-root.qcow2" && disk_qcow2 "$work/data.raw" "$out/source-data.qcow2"
}

# source_key OUT : the key that logs in as admin; kept over rebuilds, so that a running sample source stays reachable.
source_key() {
  [ -f "$1/source_key" ] || ssh-keygen -q -t ed25519 -N '' -C understudy-sample-source -f "$1/source_key"
}
