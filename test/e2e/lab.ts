/** The lab as the end-to-end tests use it: brought up by the same command that the README gives to a person. */
import { execFile, spawn } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
export const root = join(import.meta.dirname, '../..');
const APPLIANCE_ADDRESS = '192.168.150.10';
const SOURCE_ADDRESS = '192.168.150.20';

export type LabDescription = {
  name: string;
  url: string;
  username: string;
  password: string;
  pool: string;
  network: string;
  dir: string;
  source: { domain: string; address: string; username: string; password: string };
};

/** A row that the sample source said it had committed, as its second serial port told the host. */
export type DiaryRow = { n: number; atMs: number };

export class Lab {
  name: string;
  #env: NodeJS.ProcessEnv;

  constructor(name: string, port: number) {
    this.name = name;
    this.#env = { ...process.env, LAB_NAME: name, PORT: String(port) };
  }

  /** Runs scripts/demo; its progress goes to stderr, so that a log shows how far it came. */
  async up(limitMs: number): Promise<LabDescription> {
    await this.#script('scripts/demo', ['up'], limitMs);
    return this.description();
  }

  /** Another sample server beside the first, as a person has it from scripts/demo. */
  async addSource(number: number): Promise<{ domain: string; address: string }> {
    await this.#script('scripts/demo', ['source', String(number)], 20 * 60_000);
    return { domain: `source-${number}`, address: `192.168.150.${19 + number}` };
  }

  description(): LabDescription {
    return JSON.parse(readFileSync(join(root, 'build/lab', this.name, 'demo.json'), 'utf8'));
  }

  async down(): Promise<void> {
    await this.#script('scripts/demo', ['down'], 120_000);
  }

  #script(script: string, args: string[], limitMs: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const child = spawn(join(root, script), args, {
        cwd: root,
        env: this.#env,
        stdio: ['ignore', 2, 2],
        timeout: limitMs,
      });
      child.on('error', reject);
      child.on('close', (code, signal) =>
        code === 0
          ? resolve()
          : reject(new Error(`${script} ${args.join(' ')} ended with ${code ?? signal}`)),
      );
    });
  }

  /** Runs a command on the lab's target host. */
  async exec(command: string[], limitMs = 120_000): Promise<string> {
    const { stdout } = await run(join(root, 'scripts/lab'), ['exec', ...command], {
      env: this.#env,
      timeout: limitMs,
      maxBuffer: 64 << 20,
    });
    return stdout;
  }

  virsh(...args: string[]): Promise<string> {
    return this.exec(['virsh', ...args]);
  }

  /** Runs a shell command on a guest that was made from the sample source. */
  ssh(address: string, command: string, limitMs = 120_000, user = 'admin'): Promise<string> {
    const options = [
      'BatchMode=yes',
      'StrictHostKeyChecking=no',
      'UserKnownHostsFile=/dev/null',
      'LogLevel=ERROR',
      'ConnectTimeout=20',
    ];
    return this.exec(
      [
        'ssh',
        '-i',
        join(root, 'build/images/source_key'),
        ...options.flatMap((o) => ['-o', o]),
        `${user}@${address}`,
        command,
      ],
      limitMs,
    );
  }

  /** Every row that the source's writer has told of so far. */
  diary(domain = 'source'): DiaryRow[] {
    const file = join(root, 'build/lab', this.name, `${domain}-diary.log`);
    if (!existsSync(file)) return [];
    const rows: DiaryRow[] = [];
    for (const match of readFileSync(file, 'utf8').matchAll(/committed (\d+) at (\S+Z)/g)) {
      rows.push({ n: Number(match[1]), atMs: Date.parse(match[2] ?? '') });
    }
    return rows;
  }

  /** Keeps what is needed to look at a failure: serial logs, service logs, libvirt's own. */
  async keepEvidence(folder: string): Promise<void> {
    mkdirSync(folder, { recursive: true });
    const dir = join(root, 'build/lab', this.name);
    await run('sh', [
      '-c',
      `find '${dir}' -type f -size -64M \\( -name '*.log' -o -name '*.console' -o -name '*.json' -o -name '*.xml' \\)`,
    ])
      .then(({ stdout }) => {
        for (const file of stdout.split('\n').filter(Boolean)) {
          cpSync(file, join(folder, file.slice(dir.length + 1).replaceAll('/', '_')));
        }
      })
      .catch(() => undefined);
    // What the services themselves say; a machine that does not answer has only its console.
    for (const [name, address, unit] of [
      ['appliance', APPLIANCE_ADDRESS, 'understudy-appliance'],
      ['source', SOURCE_ADDRESS, 'understudy-agent'],
    ] as const) {
      const user = name === 'appliance' ? 'root' : 'admin';
      await this.ssh(
        address,
        `$(command -v sudo) journalctl -u ${unit} --no-pager | tail -c 8M`,
        60_000,
        user,
      )
        .then((text) => writeFileSync(join(folder, `${name}-service.log`), text))
        .catch(() => undefined);
    }
  }

  /** As the power of the target host failing under the appliance, and coming back. */
  async restartAppliance(): Promise<void> {
    await this.virsh('destroy', 'understudy');
    await this.virsh('start', 'understudy');
  }

  /** The README's way to a newer version: another system disk, the same data disk. */
  async upgradeAppliance(limitMs: number): Promise<void> {
    await this.exec(['scripts/deploy', '--host', 'local', '--upgrade'], limitMs);
  }

  /** Runs scripts/config-backup or scripts/config-restore as an administrator would, from outside the lab. */
  async transferConfig(
    act: 'backup' | 'restore',
    args: string[],
    secrets: { password: string; passphrase: string },
  ): Promise<void> {
    await run(join(root, `scripts/config-${act}`), args, {
      timeout: 300_000,
      env: {
        ...process.env,
        UNDERSTUDY_PASSWORD: secrets.password,
        UNDERSTUDY_PASSPHRASE: secrets.passphrase,
      },
    });
  }
}
