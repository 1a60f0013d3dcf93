# Sourced by the image builders: turns a directory tree into a bootable disk image without loop devices, kernel
# partition parsing or VFAT mounts, so that it works in containers and on kernels that lack them.
# shellcheck shell=bash

# One layout for every image: 1 = BIOS boot (MiB 1), 2 = ESP, 3 = ext4 root, 4 = swap if DISK_SWAP_MIB is set. The same
# disk boots with BIOS and UEFI.
DISK_ESP_MIB=16
DISK_ROOT_START_MIB=$((2 + DISK_ESP_MIB))

# disk_grub_modules : what both boot loaders carry built in, so that the root file system needs no grub modules.
disk_grub_modules() {
  echo part_gpt ext2 fat normal linux echo test configfile search search_label ls minicmd serial terminal gzio smbios reboot
}

# disk_make_root RAW TREE SIZE_MIB LABEL : writes a GPT disk of SIZE_MIB whose root file system holds TREE.
disk_make_root() {
  local raw=$1 tree=$2 size_mib=$3 label=$4
  local swap_mib=${DISK_SWAP_MIB:-0}
  local root_mib=$((size_mib - DISK_ROOT_START_MIB - swap_mib - 1))
  rm -f "$raw"
  truncate -s "${size_mib}M" "$raw"
  sgdisk --clear \
    --new=1:1M:+1M --typecode=1:ef02 --change-name=1:bios-boot \
    --new=2:2M:+${DISK_ESP_MIB}M --typecode=2:ef00 --change-name=2:esp \
    --new=3:${DISK_ROOT_START_MIB}M:+${root_mib}M --typecode=3:8300 --change-name=3:root \
    "$raw" >/dev/null || return 1
  mke2fs -q -F -t ext4 -L "$label" -U "${DISK_ROOT_UUID:-random}" -d "$tree" \
    -E "offset=$((DISK_ROOT_START_MIB * 1048576)),lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0" \
    "$raw" "${root_mib}M" || return 1
  if [ "$swap_mib" -gt 0 ]; then
    disk_add_swap "$raw" $((DISK_ROOT_START_MIB + root_mib)) "$swap_mib" || return 1
  fi
  disk_install_bios "$raw" && disk_install_efi "$raw"
}

# disk_add_swap RAW START_MIB SIZE_MIB : partition 4, formatted as swap.
disk_add_swap() {
  local swap
  swap=$(mktemp)
  sgdisk --new=4:"$2"M:+"$3"M --typecode=4:8200 --change-name=4:swap "$1" >/dev/null || return 1
  truncate -s "$3M" "$swap"
  chmod 0600 "$swap"
  mkswap -q "$swap" && dd if="$swap" of="$1" bs=1M seek="$2" conv=notrunc,sparse status=none || return 1
  rm -f "$swap"
}

# disk_qcow2 RAW QCOW2 : appears under its name only when it is complete.
disk_qcow2() {
  qemu-img convert -f raw -O qcow2 -o compat=1.1,lazy_refcounts=off "$1" "$2.part" && mv "$2.part" "$2"
}

# disk_make_data RAW TREE SIZE_MIB LABEL : a GPT disk with one ext4 partition that holds TREE.
disk_make_data() {
  local raw=$1 tree=$2 size_mib=$3 label=$4
  rm -f "$raw"
  truncate -s "${size_mib}M" "$raw"
  sgdisk --clear --new=1:1M:+$((size_mib - 2))M --typecode=1:8300 --change-name=1:"$label" "$raw" >/dev/null || return 1
  mke2fs -q -F -t ext4 -L "$label" -d "$tree" \
    -E "offset=1048576,lazy_itable_init=1,lazy_journal_init=1" "$raw" "$((size_mib - 2))M"
}

# disk_poke FILE OFFSET_BYTES HEX : overwrites bytes in place.
disk_poke() {
  # shellcheck disable=SC2059
  printf "$(echo "$3" | sed 's/../\\x&/g')" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# disk_le64 NUMBER : as 8 little-endian bytes in hex.
disk_le64() {
  printf '%016x' "$1" | sed 's/\(..\)\(..\)\(..\)\(..\)\(..\)\(..\)\(..\)\(..\)/\8\7\6\5\4\3\2\1/'
}

# disk_install_bios RAW : what grub-bios-setup does for a BIOS boot partition, on a file. The offsets are those of
# GRUB's boot.S (GRUB_BOOT_MACHINE_KERNEL_SECTOR 0x5c, GRUB_BOOT_MACHINE_DRIVE_CHECK 0x66) and diskboot.S (the last
# block list entry, 12 bytes before the end of the first sector of core.img).
disk_install_bios() {
  local raw=$1 core lba=2048
  core=$(mktemp)
  # shellcheck disable=SC2046
  grub-mkimage -O i386-pc -o "$core" -p '(,gpt3)/boot/grub' biosdisk $(disk_grub_modules) || return 1
  [ "$(stat -c %s "$core")" -le 1048576 ] || { echo "grub's core.img does not fit its partition" >&2; return 1; }
  disk_poke "$core" $((512 - 12)) "$(disk_le64 $((lba + 1)))"
  dd if=/usr/lib/grub/i386-pc/boot.img of="$raw" bs=440 count=1 conv=notrunc status=none
  disk_poke "$raw" $((0x5c)) "$(disk_le64 $lba)"
  disk_poke "$raw" $((0x66)) 9090
  dd if="$core" of="$raw" bs=512 seek=$lba conv=notrunc status=none
  rm -f "$core"
}

# disk_install_efi RAW : formats the ESP and puts GRUB at the fallback path that firmware without boot entries takes.
disk_install_efi() {
  local raw=$1 efi esp
  efi=$(mktemp)
  esp=$(mktemp)
  # shellcheck disable=SC2046
  grub-mkimage -O x86_64-efi -o "$efi" -p '(,gpt3)/boot/grub' efi_gop efi_uga $(disk_grub_modules) || return 1
  truncate -s ${DISK_ESP_MIB}M "$esp"
  mformat -i "$esp" -v ESP :: && mmd -i "$esp" ::/EFI ::/EFI/BOOT &&
    mcopy -i "$esp" "$efi" ::/EFI/BOOT/BOOTX64.EFI || return 1
  dd if="$esp" of="$raw" bs=1M seek=2 conv=notrunc,sparse status=none
  rm -f "$efi" "$esp"
}
