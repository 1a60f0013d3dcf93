#!/usr/bin/env bash
# Run on a target host, as root: lets one appliance in, and nothing more than its forced command.
#
#   install-host.sh --appliance VM --key "ssh-ed25519 AAAA... comment" [options]
#   install-host.sh --appliance VM --remove
#
#   --appliance VM          the name that the VM of the appliance has, or will have, on this host
#   --key PUBLIC_KEY        the appliance's public key, one line; a new one replaces the old
#   --pools A,B             storage pools that it may use (default: all)
#   --networks A,B          networks that its VMs may be connected to (default: all)
#   --virt-type TYPE        auto (default), kvm or qemu
#   --console-dir DIR       where serial consoles are logged (default /var/log/libvirt/qemu)
#   --lib-dir DIR           where the wrapper goes (default /usr/local/lib/understudy)
#   --etc-dir DIR           where its configuration goes, as VM.json (default /etc/understudy)
#   --authorized-keys FILE  default /root/.ssh/authorized_keys
#
# understudy-host-shell must lie beside this script. Running it again with the same arguments changes nothing.
set -euo pipefail

die() { echo "install-host.sh: $*" >&2; exit 2; }

appliance='' key='' pools='*' networks='*' virt_type=auto console_dir=/var/log/libvirt/qemu remove=
lib_dir=/usr/local/lib/understudy etc_dir=/etc/understudy authorized=/root/.ssh/authorized_keys
while [ $# -gt 0 ]; do
  case "$1" in
    --remove) remove=1; shift; continue ;;
    --appliance|--key|--pools|--networks|--virt-type|--console-dir|--lib-dir|--etc-dir|--authorized-keys)
      [ $# -ge 2 ] || die "$1 needs a value" ;;
    *) die "unknown argument: $1" ;;
  esac
  case "$1" in
    --appliance) appliance=$2 ;;
    --key) key=$2 ;;
    --pools) pools=$2 ;;
    --networks) networks=$2 ;;
    --virt-type) virt_type=$2 ;;
    --console-dir) console_dir=$2 ;;
    --lib-dir) lib_dir=$2 ;;
    --etc-dir) etc_dir=$2 ;;
    --authorized-keys) authorized=$2 ;;
  esac
  shift 2
done

[ "$(id -u)" = 0 ] || die "run this as root"
[[ $appliance =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$ ]] || die "--appliance: not a VM's name: '$appliance'"
# They become part of a command line in authorized_keys.
for path in "$lib_dir" "$etc_dir" "$authorized" "$console_dir"; do
  [[ $path =~ ^/[A-Za-z0-9._/@+-]*$ ]] || die "not a plain absolute path: '$path'"
done
wrapper="$lib_dir/understudy-host-shell"
config="$etc_dir/$appliance.json"
command="command=\"/usr/bin/python3 -I $wrapper $config\",restrict"

# Everybody else's lines stay as they are; this appliance's line is known by its configuration.
write_keys() {
  local line=$1 new
  [ -d "${authorized%/*}" ] || install -d -m 700 "${authorized%/*}"
  new=$(mktemp "$authorized.XXXXXX")
  if [ -f "$authorized" ]; then
    grep -vF -- "$command " "$authorized" >"$new" || true
    chmod --reference="$authorized" "$new"
    chown --reference="$authorized" "$new"
  fi
  [ -z "$line" ] || printf '%s\n' "$line" >>"$new"
  mv -f "$new" "$authorized"
}

if [ -n "$remove" ]; then
  write_keys ''
  rm -f "$config"
  rmdir "$etc_dir" 2>/dev/null && rm -f "$wrapper" && rmdir "$lib_dir" 2>/dev/null
  exit 0
fi

key=$(printf '%s' "$key" | head -n1)
[[ $key =~ ^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp[0-9]+)\ [A-Za-z0-9+/=]+(\ [A-Za-z0-9@._:\ -]*)?$ ]] ||
  die "--key: not a plain public key (one line, without options)"
[[ $pools =~ ^(\*|[A-Za-z0-9._,-]+)$ ]] || die "--pools: not a list of names: '$pools'"
[[ $networks =~ ^(\*|[A-Za-z0-9._,-]+)$ ]] || die "--networks: not a list of names: '$networks'"
[[ $virt_type =~ ^(auto|kvm|qemu)$ ]] || die "--virt-type: auto, kvm or qemu"
# python3-minimal has not all of it.
/usr/bin/python3 -Ic 'import json, xml.etree.ElementTree, xml.parsers.expat' 2>/dev/null ||
  die "python3 is missing or incomplete on this host (apt-get install python3)"
for program in virsh qemu-img; do
  command -v "$program" >/dev/null || die "$program is missing on this host"
done

install -d -m 755 "$lib_dir"
install -d -m 755 "$etc_dir"
install -m 755 "$(dirname "$(readlink -f "$0")")/understudy-host-shell" "$wrapper"
umask 077
/usr/bin/python3 -I - "$appliance" "$pools" "$networks" "$virt_type" "$console_dir" >"$config.new" <<'END'
import json, sys
def names(text):
    return text if text == "*" else [name for name in text.split(",") if name]
appliance, pools, networks, virt_type, console_dir = sys.argv[1:]
json.dump({"appliance": appliance, "pools": names(pools), "networks": names(networks),
           "virtType": virt_type, "consoleDir": console_dir}, sys.stdout, indent=2)
print()
END
mv -f "$config.new" "$config"
write_keys "$command $key"
