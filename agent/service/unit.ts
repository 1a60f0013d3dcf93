/** The agent's systemd unit. */
import { type AgentPaths, agentPaths } from '../config.ts';
import { CPU_WEIGHT } from './processor-share.ts';

/** The exit status that means: trying again is of no use until someone installs the agent anew. */
export const EXIT_NOT_ENROLLED = 78;

/**
 * The unit's text. The agent yields to the server's own work in everything: processor, disk, and who is killed first
 * when memory runs out. It sees the host's real mounts and devices (a private mount namespace would show it another
 * tree than the one it mirrors), so its hardening is by capabilities, system calls and address families.
 */
export function unitText(paths: AgentPaths = agentPaths()): string {
  return `[Unit]
Description=Understudy agent: replicates this server's disks to its recovery appliance
After=network.target local-fs.target
StartLimitIntervalSec=0

[Service]
Type=simple
ExecStart=${paths.programDir}/understudy-agent run
# However it ended: the post-hooks of a point that it was taking.
ExecStopPost=-${paths.programDir}/understudy-agent settle
Restart=always
RestartSec=2
RestartPreventExitStatus=${EXIT_NOT_ENROLLED}
# To all of the group: the watchdog that thaws file systems must get the chance to thaw.
KillMode=control-group
TimeoutStopSec=30
WorkingDirectory=/
UMask=0077
# Large buffers go back to the system when they are freed, otherwise they leave holes that nothing else fits; smaller ones
# stay, otherwise each costs its page faults again.
Environment=MALLOC_ARENA_MAX=2 MALLOC_MMAP_THRESHOLD_=524288 MALLOC_TRIM_THRESHOLD_=16777216
Environment=LC_ALL=C UNDERSTUDY_CAPTURE=${paths.programDir}/understudy-capture
Environment="NODE_OPTIONS=--max-old-space-size=192 --max-semi-space-size=4"

Nice=10
# Batch: waking up for a batch of captured writes never takes the processor from who has it. The agent also makes its
# group idle where the kernel can, and takes the weight back when it does not get to run (processor-share.ts).
CPUSchedulingPolicy=batch
CPUWeight=${CPU_WEIGHT}
IOWeight=20
IOSchedulingClass=best-effort
IOSchedulingPriority=7
OOMScoreAdjust=300
# A backstop: the ring (at most an eighth of the memory) and the dirty maps are charged to it as well.
MemoryMax=40%
TasksMax=128
LimitMEMLOCK=infinity
LimitNOFILE=65536
LimitCORE=0

# CAP_NET_ADMIN: for the rules that cut off a server that comes back beside its replica.
CapabilityBoundingSet=CAP_BPF CAP_PERFMON CAP_SYS_ADMIN CAP_SYS_RESOURCE CAP_IPC_LOCK CAP_DAC_READ_SEARCH CAP_NET_ADMIN
NoNewPrivileges=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
KeyringMode=private

[Install]
WantedBy=multi-user.target
`;
}
