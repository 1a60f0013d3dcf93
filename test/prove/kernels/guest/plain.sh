#!/bin/busybox sh
# shellcheck shell=dash
# plain.sh DISK SEED : writes to the bare disk, then partitions with ext4 and XFS on it.
set -e
kernels-io raw "$1" "$2" 24
printf 'label: gpt\nstart=2048, size=40960\nstart=43008\n' | sfdisk -q --wipe always "$1"
part=$1
case $part in *[0-9]) part=${part}p ;; esac
# shellcheck source=filesystems.sh
. /lib/kernels/filesystems.sh
on_ext4 "${part}1" "$2"
on_xfs "${part}2" "$2"
