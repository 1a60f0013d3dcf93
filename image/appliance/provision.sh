#!/bin/sh
# Runs as root in the base image while Packer has it booted: puts the product on, and removes all traces of the build.
set -eu
zstd -q -dc /tmp/appliance.tar.zst | tar -x -C / --no-same-owner
rm /tmp/appliance.tar.zst

systemctl -q enable understudy-data understudy-config understudy-banner.service understudy-banner.path understudy-banner.timer \
  understudy-appliance ssh
ln -sf /run/understudy/resolv.conf /etc/resolv.conf
printf '\n' >/etc/issue
# A first boot finds out who it is: nothing of this build's identity stays.
rm -rf /etc/ssh/sshd_config.d/packer.conf /etc/ssh/ssh_host_*_key* /root/.ssh /root/.bash_history \
  /var/lib/systemd/random-seed /var/lib/dbus/machine-id /var/log/journal/* /var/lib/systemd/network /var/tmp/* \
  /var/lib/systemd/timesync/clock
: >/etc/machine-id
: >/var/log/lastlog
: >/var/log/wtmp
/usr/lib/understudy/node --version
fstrim / || true
sync
