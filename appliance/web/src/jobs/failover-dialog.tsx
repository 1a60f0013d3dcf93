import { Alert, Checkbox, DescriptionList, Form } from '@patternfly/react-core';
import { useState } from 'react';
import { useNavigate } from 'react-router';
import type { Job, Source } from '../../../api/schema.ts';
import { ApiFailure, api } from '../api/client.ts';
import { learn } from '../api/live.ts';
import { useLive } from '../api/use-live.ts';
import { AutoEndForm } from '../failovers/auto-end.tsx';
import { autoEndFields, autoEndOf } from '../failovers/auto-end-fields.ts';
import { formatDuration } from '../format.ts';
import { ConfirmDialog } from '../parts/confirm.tsx';
import { useNow } from '../parts/hooks.ts';
import { Fact, When } from '../parts/parts.tsx';
import { chosenMoment, chosenPoint } from './chosen-point.ts';
import { type HandoverFields, HandoverForm, unitsOf } from './handover-fields.tsx';
import { PointChoice } from './point-choice.tsx';
import { describeLag, mirrorIncomplete } from './words.ts';

/** Asks for a failover: planned or not, what will be lost, what must be true, and the replica's name. */
export function FailoverDialog(props: {
  job: Job;
  source: Source | undefined;
  /** The moment that was picked on the timeline. */
  atMs?: number | null;
  close: () => void;
}) {
  const { job, source } = props;
  const navigate = useNavigate();
  const now = useNow();
  const { link } = useLive();
  const { figures, settings } = job;
  const lag = describeLag(figures, now);
  const sourceLives = source?.state.name === 'online';
  const incomplete = mirrorIncomplete(job);
  const [fields, setFields] = useState<HandoverFields>({
    kind: 'unplanned',
    units: (settings.stopUnits ?? []).join('\n'),
    powerOff: true,
  });
  /** The appliance has found the old server on its address. */
  const [answers, setAnswers] = useState(false);
  const [evenIfAlive, setEvenIfAlive] = useState(false);
  const [ending, setEnding] = useState(() => autoEndFields(null));
  const autoEnd = autoEndOf(ending);
  const [isolateOnReturn, setIsolate] = useState(false);
  const planned = sourceLives && fields.kind === 'planned';
  const [chosen, setChosen] = useState(() => chosenPoint(props.atMs ?? null, Date.now()));
  const point = planned ? 'newest' : chosenMoment(chosen);
  const atMs = point && point !== 'newest' ? Date.parse(point.sourceTime) : null;
  const units = unitsOf(fields.units);
  const ageMs = figures.newestPointAt ? now - Date.parse(figures.newestPointAt) : null;
  return (
    <ConfirmDialog
      id="failover-dialog"
      title={`Fail over ${job.sourceName}?`}
      submit="Fail over"
      danger
      wide
      typed={settings.replicaName}
      typedLabel="Type the replica's name to confirm"
      blocked={(planned && !units.ok) || point === null || autoEnd === undefined}
      close={props.close}
      act={async (confirm) => {
        const failover = await learn
          .failover(() =>
            api.failOver(
              job.jobId,
              planned && units.ok
                ? {
                    kind: 'planned',
                    confirm,
                    stopUnits: units.units,
                    powerOff: fields.powerOff,
                    autoEnd,
                    isolateOnReturn,
                  }
                : {
                    kind: 'unplanned',
                    confirm,
                    point: point ?? undefined,
                    evenIfAlive,
                    autoEnd,
                    isolateOnReturn,
                  },
            ),
          )
          .catch((error) => {
            if (error instanceof ApiFailure && error.error.code === 'UND_FAILOVER_SOURCE_ALIVE') {
              setAnswers(true);
            }
            throw error;
          });
        navigate(`/failovers/${failover.failoverId}`);
      }}
    >
      <div className="und-stack">
        <p>
          The replica VM <strong>{settings.replicaName}</strong> is started on the target host from
          {planned ? ' the last state of the source server. ' : ' the chosen recovery point. '}
          Replication of this job stops. You can undo it until you commit.
        </p>
        {sourceLives && (
          <HandoverForm
            fields={fields}
            services={source?.inventory?.services ?? []}
            set={(change) => setFields((current) => ({ ...current, ...change }))}
          />
        )}
        <Form onSubmit={(event) => event.preventDefault()}>
          {!planned && <PointChoice job={job} chosen={chosen} set={setChosen} />}
          <AutoEndForm fields={ending} set={setEnding} />
          <Checkbox
            id="failover-isolate"
            label="If the source server comes back, it cuts itself off from the network"
            description="Its agent leaves only the way to the appliance open, until the failover is undone. It needs nftables there."
            isChecked={isolateOnReturn}
            onChange={(_event, checked) => setIsolate(checked)}
          />
        </Form>
        <div
          id="failover-loss"
          data-lag-ms={figures.lagMs ?? ''}
          data-lag-bytes={figures.lagBytes ?? ''}
        >
          <h3 className="pf-v6-c-title pf-m-md und-sub">What will be lost</h3>
          <DescriptionList isHorizontal isCompact>
            <Fact term="Time" id="failover-loss-time">
              {planned
                ? 'nothing that was written before the services had stopped'
                : atMs !== null
                  ? `everything written in the ${formatDuration(Math.max(0, now - atMs))} since the chosen moment`
                  : figures.lagMs === null
                    ? `not known: ${lag.time.note}`
                    : `everything written in the last ${formatDuration(figures.lagMs)}`}
            </Fact>
            <Fact term="Data not arrived" id="failover-loss-bytes">
              {lag.data.value} ({lag.data.note})
            </Fact>
            <Fact term="Newest point" id="failover-point">
              <When at={figures.newestPointAt} absent="none yet" />
            </Fact>
          </DescriptionList>
        </div>
        {link.name !== 'live' && (
          <Alert
            variant="danger"
            isInline
            title="The connection to the appliance is lost: these figures are old"
          />
        )}
        {sourceLives && !planned && (
          <Alert
            variant="warning"
            isInline
            id="failover-source-lives"
            title={`${job.sourceName} is still connected`}
          >
            An unplanned failover does not stop it: two servers with the same name and addresses
            would run. Power the source off first, unless you know that it cannot do harm.
          </Alert>
        )}
        {answers && !planned && (
          <Checkbox
            id="failover-even-if-alive"
            label="Start the replica all the same"
            description="Two servers with one address disturb each other and those who use them."
            isChecked={evenIfAlive}
            onChange={(_event, checked) => setEvenIfAlive(checked)}
          />
        )}
        {incomplete && (
          <Alert
            variant="danger"
            isInline
            id="failover-incomplete"
            title="The mirror is not complete: the replica would most likely not boot"
          >
            Wait for the mirror if the source still runs.
          </Alert>
        )}
        {job.stream.mode !== 'ordered' && !incomplete && (
          <Alert
            variant="warning"
            isInline
            title={`The stream is in ${job.stream.mode === 'none' ? 'no' : job.stream.mode} mode`}
          >
            {job.stream.reason ?? 'New writes make no recovery points now.'}
            {ageMs !== null && ` The newest point is ${formatDuration(ageMs)} old.`}
          </Alert>
        )}
      </div>
    </ConfirmDialog>
  );
}
