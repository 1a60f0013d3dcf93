# Sourced: a lab is a target host in a box. Its own process, mount and network namespaces hold a libvirtd, its networks,
# an sshd, and every VM; the machine's own libvirt and network are not touched. Needs env.sh sourced before, and root.
#
#   LAB_NAME   which lab (default "lab"); labs of different names run side by side
#   LAB_DIR    where it keeps everything: $UNDERSTUDY_ROOT/build/lab/$LAB_NAME
#   LAB_LIBVIRT=stock   with the distribution's qemu.conf (QEMU as a user of its own, file ownership, mount namespaces,
#              virtlogd) instead of one where QEMU is root; asked only when the lab is made
#
# Inside, the target host has the address LAB_HOST_ADDRESS on its network "default" (NAT, DHCP from .100 up; below is
# for fixed addresses) and a network "isolated"; the storage pool "default" is $LAB_DIR/images, the same path inside
# and outside.
# shellcheck shell=bash
LAB_NAME=${LAB_NAME:-lab}
LAB_DIR="$UNDERSTUDY_ROOT/build/lab/$LAB_NAME"
LAB_HOST_ADDRESS=192.168.150.1
LAB_POOL_DIR="$LAB_DIR/images"
export LAB_NAME LAB_DIR LAB_HOST_ADDRESS LAB_POOL_DIR

lab_need() {
  apt_need qemu-system-x86 qemu-utils libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients ovmf \
    dnsmasq-base iptables openssh-server openssh-client iproute2 util-linux python3 passwd
  _lab_qemu_user
}

# libvirtd does not start without the user that Debian's QEMU runs as, whatever qemu.conf says. It comes with
# libvirt-daemon-system, which would also start a libvirtd of the machine's own; so the user alone, with Debian's numbers.
_lab_qemu_user() {
  getent group kvm >/dev/null || groupadd --system kvm || return
  getent group libvirt-qemu >/dev/null || groupadd --system --gid 64055 libvirt-qemu || return
  getent passwd libvirt-qemu >/dev/null || useradd --system --uid 64055 --gid kvm --groups libvirt-qemu \
    --home-dir /var/lib/libvirt --no-create-home --shell /usr/sbin/nologin libvirt-qemu
}

# The process that holds the lab's namespaces, as this machine numbers it; fails when the lab is not up. The start time
# guards against another process that got the same number later.
lab_pid() {
  local pid started
  [ -f "$LAB_DIR/holder" ] || return 1
  read -r pid started <"$LAB_DIR/holder" || return 1
  [ "$(_lab_start_time "$pid")" = "$started" ] && echo "$pid"
}

_lab_start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# lab_exec CMD... : runs a command on the lab's target host (its network, processes and mounts; the working directory
# stays).
lab_exec() {
  local pid
  pid=$(lab_pid) || { echo "the lab '$LAB_NAME' is not up (scripts/lab up)" >&2; return 1; }
  nsenter -t "$pid" -n -m -p --wd="$PWD" -- "$@"
}

# lab_wait SECONDS WHAT CMD... : polls until CMD succeeds.
lab_wait() {
  local limit=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $limit ] || { echo "lab '$LAB_NAME': gave up waiting for $what" >&2; return 1; }
    sleep 0.1
  done
}

# Prints kvm when a guest really runs under KVM here, else qemu. /dev/kvm proves nothing: there are machines where it
# opens, a boot sector even runs, and the first 64-bit guest stops. So UEFI firmware is booted until it speaks on the
# serial port: it is a 64-bit guest that is installed anyway. Once per boot of the machine.
lab_virt_type() {
  local cache="$UNDERSTUDY_ROOT/build/lab/kvm-probe" boot type=qemu log pid limit=$((SECONDS + 20))
  boot=$(cat /proc/sys/kernel/random/boot_id)
  if [ -f "$cache" ] && [ "$(sed -n 1p "$cache")" = "$boot" ]; then
    sed -n 2p "$cache"
    return
  fi
  if [ -w /dev/kvm ]; then
    echo "trying whether a guest runs under KVM here (20 s at most)" >&2
    log=$(mktemp)
    timeout -s KILL 30 qemu-system-x86_64 -M q35 -accel kvm -cpu host -m 256 -display none -nodefaults \
      -no-user-config -no-reboot -serial stdio \
      -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE.fd </dev/null >"$log" 2>&1 &
    pid=$!
    while [ $SECONDS -lt $limit ] && kill -0 "$pid" 2>/dev/null; do
      grep -qaE 'KVM internal error' "$log" && break
      grep -qaE 'BdsDxe|startup\.nsh|Shell>' "$log" && type=kvm && break
      sleep 0.1
    done
    # `timeout` passes its own end on to QEMU only when it gets a signal that it can catch.
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    rm -f "$log"
  fi
  mkdir -p "${cache%/*}"
  printf '%s\n%s\n' "$boot" "$type" >"$cache"
  echo "$type"
}

# Builds up what is missing; does nothing when all is up.
lab_up() {
  lab_need
  mkdir -p "$UNDERSTUDY_ROOT/build/lab"
  (
    flock -w 300 9 || { echo "another start of lab '$LAB_NAME' does not end" >&2; exit 1; }
    _lab_up
  ) 9>"$UNDERSTUDY_ROOT/build/lab/.$LAB_NAME.lock"
}

_lab_up() {
  mkdir -p "$LAB_DIR"/{etc,lib,run,log,cache,ssh,images,host,forward,console}
  chmod 711 "$LAB_DIR/images"
  chmod 700 "$LAB_DIR/ssh"
  lab_pid >/dev/null || _lab_namespaces || return
  lab_exec virsh -q version >/dev/null 2>&1 || _lab_libvirtd || return
  _lab_network default "<forward mode='nat'/>" virbr0 192.168.150 || return
  _lab_network isolated '' virbr1 192.168.151 || return
  _lab_pool || return
  _lab_sshd || return
  cat >"$LAB_DIR/lab.env" <<END
LAB_NAME='$LAB_NAME'
LAB_DIR='$LAB_DIR'
LAB_HOST_ADDRESS=$LAB_HOST_ADDRESS
LAB_POOL_DIR='$LAB_POOL_DIR'
LAB_VIRT_TYPE=$(lab_virt_type)
END
}

# libvirt's settings, once: a lab that starts again keeps its VMs, networks and pools.
_lab_settings() {
  cp -a /etc/libvirt/. "$LAB_DIR/etc/"
  rm -rf "$LAB_DIR"/etc/qemu/networks
  cat >"$LAB_DIR/etc/libvirtd.conf" <<'END'
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_group = "root"
END
  if [ "${LAB_LIBVIRT:-plain}" = stock ]; then
    # The only thing that the namespaces cannot give: control groups of their own.
    echo 'cgroup_controllers = []' >>"$LAB_DIR/etc/qemu.conf"
    return
  fi
  cat >"$LAB_DIR/etc/qemu.conf" <<'END'
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
END
}

_lab_namespaces() {
  rm -rf "${LAB_DIR:?}"/run/* "$LAB_DIR"/forward/* "$LAB_DIR/holder"
  [ -f "$LAB_DIR/etc/qemu.conf" ] || _lab_settings || return
  # The shell that makes the mounts becomes process 1 of the lab. Its pid out here is the child of unshare's.
  # shellcheck disable=SC2016
  setsid unshare --net --mount --pid --fork --kill-child --propagation private bash -c '
    set -e
    lab=$1
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mkdir -p "$lab/run/libvirt" "$lab/run/sshd" /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt
    mount --bind "$lab/etc" /etc/libvirt
    mount --bind "$lab/lib" /var/lib/libvirt
    mount --bind "$lab/cache" /var/cache/libvirt
    mount --bind "$lab/log" /var/log/libvirt
    mount --bind "$lab/run" /run
    ip link set lo up
    touch "$lab/run/ready"
    exec /usr/bin/python3 -I "$2"
  ' lab-init "$LAB_DIR" "$UNDERSTUDY_ROOT/scripts/lib/lab-init.py" </dev/null >"$LAB_DIR/log/init.log" 2>&1 9>&- &
  local outer=$! pid
  if ! lab_wait 20 "its namespaces (see $LAB_DIR/log/init.log)" test -f "$LAB_DIR/run/ready" ||
    ! pid=$(grep -o '[0-9]*' "/proc/$outer/task/$outer/children"); then
    # What is not on record could not be ended later.
    kill -9 "$outer"
    return 1
  fi
  echo "$pid $(_lab_start_time "$pid")" >"$LAB_DIR/holder"
}

# _lab_daemon LOG CMD... : starts a long-lived process inside, apart from this shell and its lock.
_lab_daemon() {
  local log="$LAB_DIR/log/$1" pid
  shift
  pid=$(lab_pid) || return
  setsid nsenter -t "$pid" -n -m -p --wd=/ -- "$@" </dev/null >>"$log" 2>&1 9>&- &
}

_lab_libvirtd() {
  # What opens the console logs for QEMU where that runs as a user of its own.
  if ! grep -q '^stdio_handler = "file"' "$LAB_DIR/etc/qemu.conf"; then
    _lab_daemon virtlogd.log virtlogd
    lab_wait 20 "virtlogd (see $LAB_DIR/log/virtlogd.log)" test -S "$LAB_DIR/run/libvirt/virtlogd-sock" || return
  fi
  _lab_daemon libvirtd.log libvirtd
  lab_wait 60 "libvirtd (see $LAB_DIR/log/libvirtd.log)" lab_exec virsh -q version
}

# _lab_network NAME FORWARD BRIDGE PREFIX
_lab_network() {
  if ! lab_exec virsh -q net-info "$1" >/dev/null 2>&1; then
    lab_exec virsh -q net-define /dev/stdin >/dev/null <<END || return
<network>
  <name>$1</name>
  $2
  <bridge name='$3' stp='off' delay='0'/>
  <ip address='$4.1' netmask='255.255.255.0'>
    <dhcp><range start='$4.100' end='$4.199'/></dhcp>
  </ip>
</network>
END
    lab_exec virsh -q net-autostart "$1" || return
  fi
  lab_exec ip link show "$3" >/dev/null 2>&1 || lab_exec virsh -q net-start "$1"
}

_lab_pool() {
  if ! lab_exec virsh -q pool-info default >/dev/null 2>&1; then
    lab_exec virsh -q pool-define-as default dir --target "$LAB_POOL_DIR" || return
    lab_exec virsh -q pool-autostart default || return
  fi
  # Not through a pipe: grep would end before virsh has, and a caller with pipefail would see that as a failure.
  [[ $(lab_exec virsh -q pool-info default) == *running* ]] || lab_exec virsh -q pool-start default
}

# The host's sshd as the appliance meets it in production, and a key for the administrator, who deploys.
_lab_sshd() {
  local ssh="$LAB_DIR/ssh"
  [ -f "$ssh/admin_key" ] || ssh-keygen -q -t ed25519 -N '' -C "admin of $LAB_NAME" -f "$ssh/admin_key"
  [ -f "$ssh/host_key" ] || ssh-keygen -q -t ed25519 -N '' -C "$LAB_NAME" -f "$ssh/host_key"
  [ -f "$ssh/authorized_keys" ] || cp "$ssh/admin_key.pub" "$ssh/authorized_keys"
  echo "$LAB_HOST_ADDRESS,127.0.0.1 $(cut -d' ' -f1,2 "$ssh/host_key.pub")" >"$ssh/known_hosts"
  cat >"$ssh/sshd_config" <<END
ListenAddress $LAB_HOST_ADDRESS
ListenAddress 127.0.0.1
HostKey $ssh/host_key
AuthorizedKeysFile $ssh/authorized_keys
PidFile $LAB_DIR/run/sshd.pid
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
StrictModes no
MaxStartups 100:30:200
Subsystem sftp internal-sftp
END
  cat >"$ssh/config" <<END
# ssh -F $ssh/config host : the administrator on the lab's target host, from this machine
Host host $LAB_HOST_ADDRESS
  HostName $LAB_HOST_ADDRESS
  User root
  IdentityFile $ssh/admin_key
  IdentitiesOnly yes
  UserKnownHostsFile $ssh/known_hosts
  StrictHostKeyChecking yes
  ProxyCommand env LAB_NAME=$LAB_NAME $UNDERSTUDY_ROOT/scripts/lab connect $LAB_HOST_ADDRESS 22
END
  _lab_sshd_answers 2>/dev/null && return 0
  _lab_daemon sshd.log /usr/sbin/sshd -D -e -f "$ssh/sshd_config"
  lab_wait 20 "sshd (see $LAB_DIR/log/sshd.log)" _lab_sshd_answers
}

_lab_sshd_answers() { lab_exec bash -c "exec 3<>/dev/tcp/$LAB_HOST_ADDRESS/22 && read -r -t 5 line <&3 && [[ \$line == SSH-* ]]"; }

# lab_forward PORT ADDRESS:PORT : 127.0.0.1:PORT of this machine leads to an address inside, until the lab goes down.
lab_forward() {
  local pid ready="$LAB_DIR/forward/$1"
  pid=$(lab_pid) || { echo "the lab '$LAB_NAME' is not up" >&2; return 1; }
  if [ -f "$ready" ]; then
    [ "$(cat "$ready")" = "$2" ] && return 0
    echo "port $1 is forwarded to $(cat "$ready") already" >&2
    return 1
  fi
  # In the lab's process namespace, so that it ends with the lab, but with this machine's network and /proc.
  setsid nsenter -t "$pid" -p -- \
    /usr/bin/python3 -I "$UNDERSTUDY_ROOT/scripts/lib/lab-forward.py" "$1" "/proc/$pid/ns/net" "$2" "$ready" \
    </dev/null >>"$LAB_DIR/log/forward.log" 2>&1 &
  lab_wait 10 "the forward of port $1 (see $LAB_DIR/log/forward.log)" test -f "$ready"
}

# Ends every process of the lab by ending process 1 of its namespace, and removes all it made, disks included.
lab_down() {
  local pid
  [ -d "$LAB_DIR" ] || return 0
  if pid=$(lab_pid); then
    kill -9 "$pid"
    lab_wait 30 "its processes to end" _lab_gone "$pid" || return
  fi
  rm -rf "${LAB_DIR:?}" "$UNDERSTUDY_ROOT/build/lab/.$LAB_NAME.lock"
}

# A pid namespace's process 1 is reaped only after all others in it are gone.
_lab_gone() { ! lab_pid || [ "$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -c1)" = Z ]; }

lab_status() {
  local pid
  if ! pid=$(lab_pid); then
    echo "lab $LAB_NAME: down"
    return 1
  fi
  # shellcheck source=/dev/null
  . "$LAB_DIR/lab.env"
  echo "lab $LAB_NAME: up (process $pid, guests run by ${LAB_VIRT_TYPE}, host $LAB_HOST_ADDRESS, $LAB_DIR)"
  lab_exec virsh list --all
  local forward
  for forward in "$LAB_DIR"/forward/*; do
    [ -f "$forward" ] && echo "127.0.0.1:${forward##*/} -> $(cat "$forward")"
  done
  return 0
}

# lab_admit VM PUBLIC_KEY : lets an appliance in, as install-host.sh does on a real host.
lab_admit() {
  "$UNDERSTUDY_ROOT/image/host/install-host.sh" --appliance "$1" --key "$2" --virt-type "$(lab_virt_type)" \
    --console-dir "$LAB_DIR/console" --lib-dir "$LAB_DIR/host/lib" --etc-dir "$LAB_DIR/host/etc" \
    --authorized-keys "$LAB_DIR/ssh/authorized_keys"
}
