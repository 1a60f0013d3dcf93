/** What the long walks with real machines share: a source is added, a job becomes protected, a failover comes to its end. */
import type { Failover, Job, PreflightReport, Source } from '../../appliance/api/schema.ts';
import { type ApplianceClient, GiveUp, until } from '../../scripts/lib/api-client.ts';

export const MINUTE = 60_000;

export type SourceLogin = { address: string; username: string; password: string };

/** Pushes the agent, with the key of the server accepted as it is; what is there already is not added again. */
export async function addSource(api: ApplianceClient, login: SourceLogin): Promise<Source> {
  const known = await api.call<Source[]>('/api/sources');
  const there = known.find(({ address }) => address === login.address);
  if (there) return there;
  const target = { ...login, port: 22 };
  const preflight = (body: object) =>
    api.call<PreflightReport>('/api/sources/preflight', { body, timeoutMs: 5 * MINUTE });
  const acceptHostKey = (await preflight(target)).hostKeyFingerprint ?? undefined;
  const body = { ...target, acceptHostKey };
  const report = await preflight(body);
  if (!report.ok) throw new GiveUp(JSON.stringify(report.checks));
  return api.call<Source>('/api/sources', { body, timeoutMs: 5 * MINUTE });
}

/** Waits for its agent, with what it has found on the server. */
export const onlineSource = (api: ApplianceClient, sourceId: string): Promise<Source> =>
  until('the source to be online with its inventory', 15 * MINUTE, async () => {
    const one = await api.source(sourceId);
    if (one.state.name === 'install-failed' || one.state.name === 'refused')
      throw new GiveUp(JSON.stringify(one.state.error));
    return one.state.name === 'online' && one.inventory ? one : undefined;
  });

export const protectedJob = (api: ApplianceClient, jobId: string, limitMs: number): Promise<Job> =>
  until('the job to be protected', limitMs, async () => {
    const one = await api.job(jobId);
    if (one.state.name === 'error') throw new GiveUp(JSON.stringify(one.state.error));
    return one.state.name === 'protected' && one.stream.mode === 'ordered' ? one : undefined;
  });

const FATAL = ['failed', 'compensating'];
/** Waits for one of the states of a failover, a test or a mount; gives up when it is being taken back. */
export async function reach(
  api: ApplianceClient,
  path: string,
  state: string,
  limitMs: number,
): Promise<Failover> {
  let seen = '';
  return until(`${path} to be ${state}`, limitMs, async () => {
    const one = await api.call<Failover>(path);
    const now = one.steps.find((s) => s.state === 'running' || s.state === 'compensating');
    const told = `${one.state.name} ${now?.name ?? ''} ${now?.detail ?? ''}`;
    if (told !== seen) console.error(`# ${new Date().toISOString()} ${path}: ${told}`);
    seen = told;
    if (one.state.name === state) return one;
    if (FATAL.includes(one.state.name)) throw new GiveUp(JSON.stringify([one.state, one.steps]));
    return undefined;
  });
}

/** What a failover took, step by step. */
export const took = ({ steps }: Failover): string =>
  steps
    .map(({ name, startedAt, endedAt }) =>
      startedAt && endedAt
        ? `${name} ${((Date.parse(endedAt) - Date.parse(startedAt)) / 1000).toFixed(0)} s`
        : name,
    )
    .join(', ');

/** Words of a listing, sorted. */
export const words = (text: string): string[] => text.split(/\s+/).filter(Boolean).sort();
