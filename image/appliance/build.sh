# Sourced by scripts/build-images: the appliance. mmdebstrap makes a base image with every Debian package in it, which
# changes rarely; Packer boots that and puts the product on it.
# shellcheck shell=bash

BASE_INPUTS=(image/base/apt.sh image/base/disk.sh image/base/tree.sh image/appliance/build.sh image/appliance/base image/appliance/early)
BASE_MIB=4096

# base_build WORK OUT : leaves appliance-base.qcow2 and packer_key, which opens its root account, in OUT.
base_build() {
  local work=$1 out=$2 tree=$1/tree from=$UNDERSTUDY_ROOT/image/appliance kernel uuid
  [ -f "$out/packer_key" ] || ssh-keygen -q -t ed25519 -N '' -C understudy-image-build -f "$out/packer_key"

  step "Debian packages"
  tree_bootstrap "$tree" \
    linux-image-amd64,initramfs-tools,systemd-sysv,systemd-timesyncd,udev,dbus,kmod,e2fsprogs,xfsprogs,btrfs-progs,dosfstools,fdisk,gdisk,iproute2,iputils-ping,netbase,procps,less,openssh-server,openssh-client,ca-certificates,cpio,zstd,xz-utils,lz4,bzip2,lzop,mtools,qemu-utils,libatomic1 \
    "$UNDERSTUDY_ROOT/build/logs/base.log" \
    --essential-hook="cp -r --no-preserve=ownership '$from/early/.' \"\$1/\"" \
    --essential-hook="cp -r --no-preserve=ownership '$from/base/.' \"\$1/\"" || return 1

  step "configuration"
  kernel=$(tree_kernel "$tree") || return 1
  uuid=$(cat /proc/sys/kernel/random/uuid)
  sed "s/@UUID@/$uuid/" "$tree/boot/grub/grub.cfg.in" >"$tree/boot/grub/grub.cfg"
  rm "$tree/boot/grub/grub.cfg.in"
  printf 'UUID=%s / ext4 errors=remount-ro 0 1\n' "$uuid" >"$tree/etc/fstab"
  ln -sf "boot/vmlinuz-$kernel" "$tree/vmlinuz"
  ln -sf "boot/initrd.img-$kernel" "$tree/initrd.img"
  echo understudy >"$tree/etc/hostname"
  printf '127.0.0.1 localhost\n127.0.1.1 understudy\n::1 localhost\n' >"$tree/etc/hosts"
  chroot "$tree" passwd -q -l root
  install -d -m 0700 "$tree/root/.ssh"
  install -m 0600 "$out/packer_key.pub" "$tree/root/.ssh/authorized_keys"
  ssh-keygen -q -A -f "$tree" >/dev/null
  chroot "$tree" systemctl enable -q systemd-networkd || return 1
  tree_quiet_boot "$tree"

  step "file system"
  DISK_ROOT_UUID=$uuid disk_make_root "$work/base.raw" "$tree" "$BASE_MIB" understudy || return 1
  step "qcow2"
  disk_qcow2 "$work/base.raw" "$out/appliance-base.qcow2"
}

build_base() {
  build base base_build "$(inputs_key "${BASE_INPUTS[@]}")" appliance-base.qcow2 packer_key
}
APPLIANCE_INPUTS=(image/appliance/tree image/appliance/provision.sh image/appliance/build.sh image/ova Packerfile.pkr.hcl)

# appliance_build WORK OUT : Packer puts build/appliance on the base image; the result is packed as qcow2 and as OVA.
appliance_build() {
  local work=$1 out=$2 root=$1/root version name accelerator
  version=$(cat build/appliance/version)
  name=understudy-appliance-$version

  step "the product, packed"
  mkdir -p "$root/usr/lib/understudy"
  cp -r --no-preserve=ownership image/appliance/tree/. "$root/"
  cp -r build/appliance/. "$root/usr/lib/understudy/"
  rm -f "$root/usr/lib/understudy/.inputs"
  # The umask of the builder must not decide who can read the units.
  chmod -R u=rwX,go=rX "$root"
  tar -C "$root" --owner=0 --group=0 --numeric-owner --sort=name -c . | zstd -q -6 -T0 -o "$work/appliance.tar.zst" || return 1

  accelerator=$(. scripts/lib/lab.sh && lab_virt_type)
  [ "$accelerator" = kvm ] || accelerator=tcg
  step "Packer boots the base image ($accelerator) and installs $version ($(du -h "$work/appliance.tar.zst" | cut -f1))"
  if ! CHECKPOINT_DISABLE=1 PACKER_LOG=1 PACKER_LOG_PATH=$UNDERSTUDY_ROOT/build/logs/packer.log \
    packer build -color=false -var accelerator="$accelerator" -var cpus="$(nproc)" \
    -var base="$out/appliance-base.qcow2" -var bundle="$work/appliance.tar.zst" -var ssh_key="$out/packer_key" \
    -var output="$work/packer" -var name="$name.qcow2" Packerfile.pkr.hcl >"$UNDERSTUDY_ROOT/build/logs/appliance.log" 2>&1; then
    tail -15 "$UNDERSTUDY_ROOT/build/logs/appliance.log" >&2
    return 1
  fi

  step "qcow2"
  qemu-img convert -O qcow2 -c -o compat=1.1,compression_type=zstd "$work/packer/$name.qcow2" "$work/$name.qcow2" || return 1
  step "OVA"
  node image/ova/pack.ts "$work/packer/$name.qcow2" "$version" "$work/$name.ova" || return 1
  mv "$work/$name.qcow2" "$work/$name.ova" "$out/" || return 1
  step "$name.qcow2 $(du -h "$out/$name.qcow2" | cut -f1), $name.ova $(du -h "$out/$name.ova" | cut -f1)"
}

build_appliance() {
  local name
  apt_need packer qemu-system-x86 qemu-utils ovmf
  echo "[appliance] the service, the page and the agent"
  scripts/build-appliance || return 1
  name=understudy-appliance-$(cat build/appliance/version)
  build appliance appliance_build \
    "$(inputs_key "${APPLIANCE_INPUTS[@]}" build/appliance "$IMAGES/base.key")" "$name.qcow2" "$name.ova"
}
