import type { Source } from '../../../api/schema.ts';
import type { Tone } from '../parts/tone.ts';

export interface Words {
  label: string;
  tone: Tone;
  /** Why, or what it waits for. */
  reason?: string;
}

/** A source server's state as a person reads it. */
export function describeSource(state: Source['state']): Words {
  switch (state.name) {
    case 'installing':
      return { label: 'Installing agent', tone: 'busy', reason: state.step };
    case 'install-failed':
      return { label: 'Install failed', tone: 'bad', reason: state.error.message };
    case 'waiting-for-agent':
      return {
        label: 'Waiting for agent',
        tone: 'busy',
        reason: 'The agent is installed and has not connected yet.',
      };
    case 'online':
      return { label: 'Online', tone: 'good' };
    case 'offline':
      return { label: 'Offline', tone: 'attention', reason: state.reason };
    case 'passive':
      return { label: 'Passive', tone: 'attention', reason: state.reason };
    case 'refused':
      return { label: 'Refused', tone: 'bad', reason: state.error.message };
    case 'uninstalling':
      return { label: 'Uninstalling', tone: 'busy', reason: state.step };
  }
}

/** An agent with this server's identity that was turned away, where the state does not say so already. */
export const turnedAway = ({ state, alert }: Pick<Source, 'state' | 'alert'>): Source['alert'] =>
  'error' in state && state.error.message === alert?.message ? undefined : alert;
