import { setTimeout as sleep } from 'node:timers/promises';
import type { HostDescription } from '../hypervisor.ts';
import { asFields, type Fields, number, text } from './answer.ts';
import type { VirtType } from './domain-xml-build.ts';
import { parseFirmwares } from './host-xml-parse.ts';
import type { Transport } from './transport.ts';

/** Two samples closer than this say little about the host's use. */
const MIN_SAMPLE_MS = 500;

interface Sample {
  clockMs: number;
  totalTicks: number;
  idleTicks: number;
  receivedBytes: number;
  sentBytes: number;
}

/** Reads the host's description; keeps the last counters, because use is the difference of two readings. */
export class HostReader {
  readonly #transport: Transport;
  #last: Sample | undefined;
  #virtType: VirtType | undefined;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  async describe(): Promise<HostDescription> {
    if (this.#last === undefined) {
      this.#last = sampleOf(asFields(await this.#transport.call('host')));
      await sleep(MIN_SAMPLE_MS);
    }
    const fields = asFields(await this.#transport.call('host'));
    const before = this.#last;
    const now = sampleOf(fields);
    // A restarted host counts from zero again.
    if (now.clockMs - before.clockMs >= MIN_SAMPLE_MS || now.clockMs < before.clockMs) {
      this.#last = now;
    }
    const seconds = (now.clockMs - before.clockMs) / 1000;
    const perSecond = (key: 'receivedBytes' | 'sentBytes') =>
      seconds > 0 ? Math.max(0, Math.round((now[key] - before[key]) / seconds)) : 0;
    const ticks = now.totalTicks - before.totalTicks;
    this.#virtType = virtTypeOf(fields);
    return {
      name: text(fields, 'name'),
      os: text(fields, 'os'),
      kernel: text(fields, 'kernel'),
      hypervisor: versionsOf(text(fields, 'version')),
      cpu: {
        model: text(fields, 'cpuModel'),
        count: number(fields, 'cpuCount'),
        use: ticks > 0 ? clamp(1 - (now.idleTicks - before.idleTicks) / ticks) : 0,
        loadAverage1: number(fields, 'loadAverage1'),
      },
      memory: {
        totalBytes: number(fields, 'memoryTotalBytes'),
        availableBytes: number(fields, 'memoryAvailableBytes'),
      },
      network: {
        receiveBytesPerSecond: perSecond('receivedBytes'),
        sendBytesPerSecond: perSecond('sentBytes'),
      },
      acceleration: this.#virtType,
      firmwares: parseFirmwares(text(fields, 'capabilities')),
      applianceVm: text(fields, 'appliance'),
    };
  }

  /** How the host runs guests. It is a fact of the host and does not change while it runs. */
  async virtType(): Promise<VirtType> {
    this.#virtType ??= virtTypeOf(asFields(await this.#transport.call('host')));
    return this.#virtType;
  }
}

function virtTypeOf(fields: Fields): VirtType {
  return text(fields, 'virtType') === 'kvm' ? 'kvm' : 'qemu';
}

function sampleOf(fields: Fields): Sample {
  const ticks = asFields(fields.cpuTicks);
  return {
    clockMs: number(fields, 'clockMs'),
    totalTicks: number(ticks, 'total'),
    idleTicks: number(ticks, 'idle'),
    receivedBytes: number(fields, 'receivedBytes'),
    sentBytes: number(fields, 'sentBytes'),
  };
}

function clamp(share: number): number {
  return Math.min(1, Math.max(0, share));
}

/** `virsh version` -> `libvirt 9.0.0, QEMU 7.2.22`. */
export function versionsOf(said: string): string {
  const library = /^Using library: (.+)$/m.exec(said)?.[1];
  const hypervisor = /^Running hypervisor: (.+)$/m.exec(said)?.[1];
  return [library, hypervisor].filter(Boolean).join(', ');
}
