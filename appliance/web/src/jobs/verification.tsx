/** Verification of a job's replica disks: what it came to, the button, and the schedule as a field of the settings. */
import { Button, FormGroup, FormSelect, FormSelectOption } from '@patternfly/react-core';
import type { DiskVerification, Job, JobSettingsPatch } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { learn } from '../api/live.ts';
import { count, formatBytes, percentOf } from '../format.ts';
import { useAction } from '../parts/hooks.ts';
import { ErrorAlert, When } from '../parts/parts.tsx';

type Every = NonNullable<JobSettingsPatch['verifyEvery']>;
const LABELS: Record<Every, string> = { off: 'Only on demand', daily: 'Daily', weekly: 'Weekly' };

export function VerifyButton(props: { job: Job }) {
  const { job } = props;
  const verify = useAction(async () => learn.job(() => api.verifyJob(job.jobId)));
  const running = job.disks.every(({ verification }) => verification.running);
  return (
    <>
      <Button
        variant="secondary"
        id="job-verify"
        isDisabled={verify.busy || running || job.state.name === 'creating'}
        onClick={() => void verify.run()}
      >
        {running ? 'Being verified' : 'Verify now'}
      </Button>
      <ErrorAlert error={verify.error} id="job-verify-error" />
    </>
  );
}

export function NextVerification(props: { job: Job }) {
  const { settings, verifyNextAt } = props.job;
  return (
    <p className="und-quiet">
      Verification: {LABELS[settings.verifyEvery ?? 'off'].toLowerCase()}
      {verifyNextAt && (
        <>
          ; due <When at={verifyNextAt} id="job-verify-next" />
        </>
      )}
      . The disks are compared while replication and recovery points go on.
    </p>
  );
}

export function Verified(props: { verification: DiskVerification; sizeBytes: number }) {
  const { running, last } = props.verification;
  return (
    <div className="und-quiet" data-testid="disk-verified" data-mismatches={last?.mismatches}>
      {running && (
        <div>being verified: {percentOf(running.doneBytes, props.sizeBytes).toFixed(0)} %</div>
      )}
      {last ? (
        <>
          verified <When at={last.at} />: {formatBytes(last.comparedBytes)} compared,{' '}
          {last.mismatches === 0
            ? 'all equal'
            : `${count(last.mismatches, 'block')} of 4 KiB differed, ${last.repaired} repaired`}
        </>
      ) : (
        !running && 'not verified yet'
      )}
    </div>
  );
}

export function VerifyField(props: { every: Every; set: (every: Every) => void }) {
  return (
    <FormGroup label="Verification of the replica disks" fieldId="verify-schedule">
      <FormSelect
        id="verify-schedule"
        value={props.every}
        onChange={(_event, value) => props.set(value as Every)}
      >
        {Object.entries(LABELS).map(([every, label]) => (
          <FormSelectOption key={every} value={every} label={label} />
        ))}
      </FormSelect>
    </FormGroup>
  );
}
