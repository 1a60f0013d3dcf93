import type { FailoverRequest, JobSettingsPatch } from '../api/schema.ts';
import type { HandoverPlan } from './types.ts';

/** What a failover does on the source; null: nothing, it is an unplanned one. */
export function handoverPlan(
  request: FailoverRequest,
  settings: Pick<JobSettingsPatch, 'stopUnits'>,
): HandoverPlan | null {
  if (request.kind === 'unplanned') return null;
  return {
    stopUnits: [...new Set(request.stopUnits ?? settings.stopUnits ?? [])],
    powerOff: request.powerOff ?? true,
  };
}
