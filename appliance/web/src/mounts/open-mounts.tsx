/** The recovery points of a job that are open just now, with the way to them. */
import { List, ListItem } from '@patternfly/react-core';
import { Link } from 'react-router';
import type { Job } from '../../../api/schema.ts';
import { useLive } from '../api/use-live.ts';
import { StateLabel, When } from '../parts/parts.tsx';
import { describeMount } from './words.ts';

const OVER: readonly string[] = ['undone', 'failed'];

export function OpenMounts(props: { job: Job }) {
  const { mounts } = useLive();
  const open = [...mounts.values()]
    .filter(({ jobId, state }) => jobId === props.job.jobId && !OVER.includes(state.name))
    .sort((a, b) => b.startedAt.localeCompare(a.startedAt));
  if (open.length === 0) return null;
  return (
    <List isPlain id="open-mounts">
      {open.map((one) => {
        const words = describeMount(one);
        return (
          <ListItem key={one.failoverId} data-testid="open-mount">
            <StateLabel tone={words.tone} state={one.state.name}>
              {words.label}
            </StateLabel>{' '}
            <Link to={`/mounts/${one.failoverId}`}>
              {one.mount?.purpose === 'nbd' ? 'Disks over NBD' : 'Files'} of the point{' '}
              <When at={one.point.sourceTime} absent="that is being looked for" />
            </Link>
          </ListItem>
        );
      })}
    </List>
  );
}
