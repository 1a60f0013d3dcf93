# Sourced by the image builders: where Debian packages come from. Nothing here names a mirror; the machine's own apt
# configuration does.
# shellcheck shell=bash

UNDERSTUDY_SUITE=bookworm

# debian_sources : prints one-line apt sources for UNDERSTUDY_SUITE out of the Debian entries this machine uses.
# The release files that apt fetched say which entries are Debian's (their Origin), so vendors' repositories that use
# the same suite names are left out. A machine that runs another Debian release lends its mirrors, not its suites.
debian_sources() {
  local own found
  own=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  list() {
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(ORIGIN)' 'Created-By: Packages' 2>/dev/null |
      awk -v own="$own" -v want="$UNDERSTUDY_SUITE" '
        $3 == "Debian" && ($2 == own || $2 == own "-updates" || $2 == own "-security") {
          suite = $2; sub("^" own, want, suite)
          line = "deb " $1 " " suite " main"
          if (!seen[line]++) print line
        }'
  }
  found=$(list)
  if [ -z "$found" ]; then
    apt-get update -qq >/dev/null 2>&1 || true
    found=$(list)
  fi
  if [ -z "$found" ]; then
    echo "no Debian entry in this machine's apt configuration: add one to /etc/apt/sources.list and run apt-get update" >&2
    return 1
  fi
  echo "$found"
}

# debian_apt_options : this machine's own fetch options (proxy, certificates, date checks), one `name "value";` a line.
debian_apt_options() {
  apt-config dump | grep -E '^Acquire::(https?|ftp|Check-|ForceIPv|Retries)[^ ]* "[^"]+";$' || true
}
