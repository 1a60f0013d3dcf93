/** A lab whose host has a VM in the place of the appliance that is powered on and never runs. */
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { execa } from 'execa';
import { APPLIANCE, type Lab, ROOT, startLab } from '../integration/hypervisor-lab.ts';
import type { LocalHostConfig } from './local-host.ts';

export interface HostLab {
  lab: Lab;
  config: LocalHostConfig;
  close(): Promise<void>;
}

/** @param attachments see LocalHostConfig */
export async function startHostLab(name: string, attachments: number): Promise<HostLab> {
  const keys = mkdtempSync('/tmp/und-bench-');
  const lab = await startLab(name);
  const close = async () => {
    await lab.down();
    rmSync(keys, { recursive: true, force: true });
  };
  try {
    await execa('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(keys, 'key')]);
    const { stdout: publicKey } = await execa('cat', [join(keys, 'key.pub')]);
    await execa(join(ROOT, 'scripts/lab'), ['admit', APPLIANCE, publicKey], {
      env: { LAB_NAME: name },
    });
    const xml = `
      <domain type='${lab.virtType}'>
        <name>${APPLIANCE}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
        <os><type arch='x86_64' machine='q35'>hvm</type></os>
        <devices><controller type='scsi' index='0' model='virtio-scsi'/></devices>
      </domain>`;
    await lab.exec(['virsh', 'define', '/dev/stdin'], xml);
    await lab.exec(['virsh', 'start', APPLIANCE, '--paused']);
  } catch (error) {
    await close();
    throw error;
  }
  return {
    lab,
    config: {
      wrapper: [
        ...lab.launcher,
        ...['/usr/bin/python3', '-I', join(lab.dir, 'host/lib/understudy-host-shell')],
        join(lab.dir, 'host/etc', `${APPLIANCE}.json`),
      ],
      applianceVm: APPLIANCE,
      dir: join(keys, 'x'),
      attachments,
    },
    close,
  };
}
