/** Which recovery point a failover begins from: the newest, or a moment of the kept history. */
import {
  FormGroup,
  FormHelperText,
  HelperText,
  HelperTextItem,
  Radio,
  TextInput,
} from '@patternfly/react-core';
import type { Job } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { formatAbsolute, formatDuration } from '../format.ts';
import { useNow, usePolled } from '../parts/hooks.ts';
import { type ChosenPoint, checkpointBefore, chosenMoment } from './chosen-point.ts';
import { momentOf } from './timeline-view.ts';

const POLL_MS = 10_000;

export function PointChoice(props: {
  job: Job;
  chosen: ChosenPoint;
  set: (chosen: ChosenPoint) => void;
}) {
  const { job, chosen, set } = props;
  const now = useNow();
  const { data } = usePolled(() => api.points(job.jobId), POLL_MS);
  const { data: checkpoints } = usePolled(() => api.checkpoints(job.jobId), POLL_MS);
  const moment = chosenMoment(chosen);
  const at = moment && moment !== 'newest' ? Date.parse(moment.sourceTime) : null;
  const found = at !== null && data ? momentOf(data, at, now) : null;
  const alone =
    found?.name === 'outside' && at !== null ? checkpointBefore(checkpoints ?? [], at) : null;
  const words = () => {
    if (at === null) return 'A moment such as 2026-01-31T12:00:00Z (UTC).';
    if (found?.name === 'gap') {
      return `There is no point just then: ${found.reason}. The newest one before it is taken.`;
    }
    if (alone) {
      return `The kept history does not reach there: the checkpoint of ${formatAbsolute(new Date(alone.sourceTime))}, the newest before it, is taken.`;
    }
    if (found?.name === 'outside') return 'The kept history does not reach there.';
    return `The newest point at or before ${formatAbsolute(new Date(at))}. What was written in the ${formatDuration(Math.max(0, now - at))} since then is not in it.`;
  };
  const bad = chosen.kind === 'moment' && (at === null || (found?.name === 'outside' && !alone));
  return (
    <FormGroup label="Recovery point" role="radiogroup" fieldId="point-choice">
      <Radio
        id="point-newest"
        name="point-choice"
        label="The newest point"
        description={
          job.figures.newestPointAt
            ? `The newest is of ${formatAbsolute(new Date(job.figures.newestPointAt))}.`
            : 'There is none yet.'
        }
        isChecked={chosen.kind === 'newest'}
        onChange={() => set({ ...chosen, kind: 'newest' })}
      />
      <Radio
        id="point-moment"
        name="point-choice"
        label="A moment in the past"
        isChecked={chosen.kind === 'moment'}
        onChange={() => set({ ...chosen, kind: 'moment' })}
      />
      {chosen.kind === 'moment' && (
        <>
          <TextInput
            id="point-moment-at"
            aria-label="Moment in UTC"
            value={chosen.text}
            spellCheck={false}
            validated={bad ? 'error' : 'default'}
            onChange={(_event, text) => set({ kind: 'moment', text })}
          />
          <FormHelperText>
            <HelperText>
              <HelperTextItem variant={bad ? 'error' : 'default'} id="point-moment-help">
                {words()}
              </HelperTextItem>
            </HelperText>
          </FormHelperText>
        </>
      )}
    </FormGroup>
  );
}
