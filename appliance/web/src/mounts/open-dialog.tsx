/** Opens a recovery point for reading: for its files, or for a backup tool. */
import { Form, FormGroup, FormSelect, FormSelectOption, Radio } from '@patternfly/react-core';
import { useState } from 'react';
import { useNavigate } from 'react-router';
import type { Job, MountRequest } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { learn } from '../api/live.ts';
import { chosenMoment, chosenPoint } from '../jobs/chosen-point.ts';
import { PointChoice } from '../jobs/point-choice.tsx';
import { ConfirmDialog } from '../parts/confirm.tsx';

const KEPT: [number, string][] = [
  [15, '15 minutes'],
  [60, '1 hour'],
  [480, '8 hours'],
  [1440, '1 day'],
];

export function OpenPointDialog(props: { job: Job; atMs: number | null; close: () => void }) {
  const { job } = props;
  const navigate = useNavigate();
  const [chosen, setChosen] = useState(() => chosenPoint(props.atMs, Date.now()));
  const [purpose, setPurpose] = useState<MountRequest['purpose']>('files');
  const [keepMinutes, setKeepMinutes] = useState(60);
  const point = chosenMoment(chosen);
  return (
    <ConfirmDialog
      id="mount-dialog"
      title={`Look into a recovery point of ${job.sourceName}`}
      submit="Open it"
      wide
      blocked={point === null}
      close={props.close}
      act={async () => {
        const request = { point: point ?? undefined, purpose, keepMinutes };
        const mount = await learn.failover(() => api.mount(job.jobId, request));
        navigate(`/mounts/${mount.failoverId}`);
      }}
    >
      <Form onSubmit={(event) => event.preventDefault()}>
        <p>
          Nothing is booted and nothing of the point is changed. The replication goes on meanwhile.
        </p>
        <PointChoice job={job} chosen={chosen} set={setChosen} />
        <FormGroup label="Open it for" role="radiogroup" fieldId="mount-purpose">
          <Radio
            id="mount-files"
            name="mount-purpose"
            label="Browsing and downloading files"
            description="Its file systems are mounted read-only, as they would be after a power cut."
            isChecked={purpose === 'files'}
            onChange={() => setPurpose('files')}
          />
          <Radio
            id="mount-nbd"
            name="mount-purpose"
            label="A backup tool, over NBD"
            description="Its whole disks, byte for byte, read-only, with TLS and certificates of this export alone."
            isChecked={purpose === 'nbd'}
            onChange={() => setPurpose('nbd')}
          />
        </FormGroup>
        <FormGroup label="Close it after" fieldId="mount-keep">
          <FormSelect
            id="mount-keep"
            value={keepMinutes}
            onChange={(_event, value) => setKeepMinutes(Number(value))}
          >
            {KEPT.map(([minutes, label]) => (
              <FormSelectOption key={minutes} value={minutes} label={label} />
            ))}
          </FormSelect>
        </FormGroup>
      </Form>
    </ConfirmDialog>
  );
}
