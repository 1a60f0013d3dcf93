/**
 * What a server is, found out by a plain shell script that only reads: nothing of ours is there yet. The script prints
 * `key=value` lines; the parser makes values of them; judging them is judge.ts.
 */
import { type AgentPaths, agentPaths } from '../../agent/config.ts';
import { LSBLK_COLUMNS } from '../../agent/inventory/lsblk.ts';

export interface Reach {
  address: string;
  port: number;
  /** `ok`, `unknown` (no tool to try it with), or what went wrong. */
  result: string;
}

export interface SourceFacts {
  system: string;
  kernel: string;
  architecture: string;
  os: string;
  init: string;
  systemd: boolean;
  btf: boolean;
  bpfFs: boolean;
  /** The active mode of kernel lockdown, or null where there is none. */
  lockdown: string | null;
  glibc: string | null;
  availableMemoryBytes: number | null;
  /** By folder: the file system's device, free space, and whether it can be written. */
  folders: Map<string, { device: string; freeBytes: number; writable: boolean }>;
  tools: Set<string>;
  smbiosUuid: string | null;
  /** The authority's fingerprint of the appliance that the agent there belongs to; null when there is none. */
  owner: string | null;
  agentInstalled: boolean;
  isAppliance: boolean;
  clockSeconds: number | null;
  reach: Reach[];
  lsblkJson: string | null;
}

export const FOLDERS = ['/usr/lib', '/var/lib', '/var/tmp'] as const;
export const TOOLS = [
  'gzip',
  'zstd',
  'tar',
  'sha256sum',
  'lsblk',
  'findmnt',
  'bash',
  'timeout',
] as const;

/** The script. `ways` are tried from the server to the appliance. */
export function factsScript(
  ways: readonly { address: string; port: number }[],
  paths: AgentPaths = agentPaths(),
): string {
  const reach = ways.map(({ address, port }) => `reach '${address}' ${port}`).join('\n');
  return `
say() { printf '%s=%s\\n' "$1" "$2"; }
say system "$(uname -s)"
say kernel "$(uname -r)"
say architecture "$(uname -m)"
say os "$(. /etc/os-release 2>/dev/null && printf %s "$PRETTY_NAME")"
say init "$(cat /proc/1/comm 2>/dev/null)"
[ ! -d /run/systemd/system ] || say systemd yes
[ ! -r /sys/kernel/btf/vmlinux ] || say btf yes
! grep -q ' /sys/fs/bpf bpf ' /proc/self/mounts 2>/dev/null || say bpffs yes
say lockdown "$(sed -n 's/.*\\[\\(.*\\)\\].*/\\1/p' /sys/kernel/security/lockdown 2>/dev/null)"
say glibc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
say memory "$(sed -n 's/^MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)"
for d in ${FOLDERS.join(' ')}; do
  w=no; [ ! -w "$d" ] || w=yes
  say folder "$d $w $(df -Pk "$d" 2>/dev/null | sed -n '2s/^\\(.*[^ ]\\)  *[0-9][0-9]*  *[0-9][0-9]*  *\\([0-9-][0-9]*\\)  *[0-9-]*%.*/\\2 \\1/p')"
done
for t in ${TOOLS.join(' ')}; do ! command -v "$t" >/dev/null 2>&1 || say tool "$t"; done
say uuid "$(cat /sys/class/dmi/id/product_uuid 2>/dev/null)"
[ ! -e ${paths.programDir}/understudy-agent ] || say installed yes
say owner "$(sed -n 's/.*"caFingerprintSha256": *"\\([^"]*\\)".*/\\1/p' ${paths.stateDir}/identity.json 2>/dev/null)"
[ ! -e /usr/lib/understudy/appliance.mjs ] || say appliance yes
reach() {
  if command -v bash >/dev/null 2>&1 && command -v timeout >/dev/null 2>&1; then
    r=$(timeout 8 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$1" "$2" 2>&1) && r=ok || r="\${r:-no answer within 8 s}"
  elif command -v nc >/dev/null 2>&1; then
    r=$(nc -z -w 8 "$1" "$2" 2>&1) && r=ok || r="\${r:-no answer within 8 s}"
  else
    r=unknown
  fi
  say reach "$1 $2 $(printf %s "$r" | tail -n 1)"
}
${reach}
say clock "$(date +%s)"
printf 'lsblk='; lsblk -J -b -o '${LSBLK_COLUMNS}' 2>/dev/null | tr -d '\\n'; echo
`;
}

/** What the script printed. Unknown lines (a talkative login script's) are left aside. */
export function parseFacts(stdout: string): SourceFacts {
  const single = new Map<string, string>();
  const facts: SourceFacts = {
    system: '',
    kernel: '',
    architecture: '',
    os: '',
    init: '',
    systemd: false,
    btf: false,
    bpfFs: false,
    lockdown: null,
    glibc: null,
    availableMemoryBytes: null,
    folders: new Map(),
    tools: new Set(),
    smbiosUuid: null,
    owner: null,
    agentInstalled: false,
    isAppliance: false,
    clockSeconds: null,
    reach: [],
    lsblkJson: null,
  };
  for (const line of stdout.split('\n')) {
    const at = line.indexOf('=');
    if (at < 0) continue;
    const key = line.slice(0, at);
    const value = line.slice(at + 1).trim();
    if (key === 'folder') {
      const [folder = '', writable, freeKb, ...device] = value.split(' ');
      facts.folders.set(folder, {
        device: device.join(' ') || folder,
        freeBytes: Number(freeKb ?? 0) * 1024 || 0,
        writable: writable === 'yes',
      });
    } else if (key === 'tool') facts.tools.add(value);
    else if (key === 'reach') {
      const [address = '', port = '0', ...result] = value.split(' ');
      facts.reach.push({ address, port: Number(port), result: tidy(result.join(' ')) });
    } else single.set(key, value);
  }
  const text = (key: string) => single.get(key) || null;
  const number = (key: string) => (single.get(key) ? Number(single.get(key)) : null);
  facts.system = text('system') ?? 'unknown';
  facts.kernel = text('kernel') ?? 'unknown';
  facts.architecture = text('architecture') ?? 'unknown';
  facts.os = text('os') ?? 'unknown';
  facts.init = text('init') ?? 'unknown';
  facts.systemd = single.get('systemd') === 'yes';
  facts.btf = single.get('btf') === 'yes';
  facts.bpfFs = single.get('bpffs') === 'yes';
  facts.lockdown = text('lockdown');
  facts.glibc = text('glibc');
  const memoryKb = number('memory');
  facts.availableMemoryBytes = memoryKb === null ? null : memoryKb * 1024;
  facts.smbiosUuid = text('uuid')?.toLowerCase() ?? null;
  facts.owner = text('owner');
  facts.agentInstalled = single.get('installed') === 'yes';
  facts.isAppliance = single.get('appliance') === 'yes';
  facts.clockSeconds = number('clock');
  facts.lsblkJson = text('lsblk');
  return facts;
}

/** bash's "bash: line 1: /dev/tcp/10.0.0.1/7443: Connection refused" down to its last part. */
const tidy = (said: string): string => said.replace(/^.*\/dev\/tcp\/[^:]*(:[^ ]*)?: /, '').trim();
