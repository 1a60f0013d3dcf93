/** Asks for a failover or a test of a whole group: of what kind, to which moment, and the group's name. */
import { Alert, Checkbox, DescriptionList, Form, FormGroup, Radio } from '@patternfly/react-core';
import { useState } from 'react';
import { useNavigate } from 'react-router';
import type { Group, GroupFailoverRequest, GroupPoints } from '../../../api/schema.ts';
import { ApiFailure, api } from '../api/client.ts';
import { learn } from '../api/live.ts';
import { useLive } from '../api/use-live.ts';
import { formatAbsolute } from '../format.ts';
import { ConfirmDialog } from '../parts/confirm.tsx';
import { Fact } from '../parts/parts.tsx';
import { apartWords, inOrder, markAt } from './words.ts';

const KEPT_MINUTES = 60;

export function GroupFailoverDialog(props: {
  group: Group;
  points: GroupPoints | undefined;
  /** Picked on the common timeline; null: the newest. */
  atMs: number | null;
  test: boolean;
  close: () => void;
}) {
  const { group, points, atMs, test } = props;
  const { jobs, sources } = useLive();
  const navigate = useNavigate();
  const [planned, setPlanned] = useState(false);
  const [powerOff, setPowerOff] = useState(true);
  const [keep, setKeep] = useState(false);
  const [answers, setAnswers] = useState(false);
  const [evenIfAlive, setEvenIfAlive] = useState(false);
  const members = inOrder(group.members).map(({ jobId }) => jobs.get(jobId));
  const alive = members.filter((job) => job && sources.get(job.sourceId)?.state.name === 'online');
  const mayPlan = !test && alive.length === members.length;
  const isPlanned = planned && mayPlan;
  const mark = points ? markAt(points, atMs) : null;
  const request = (confirm: string): GroupFailoverRequest => {
    if (isPlanned) return { kind: 'planned', confirm, powerOff };
    const point = mark
      ? { markId: mark.markId }
      : atMs === null
        ? ('newest' as const)
        : { at: new Date(atMs).toISOString() };
    if (test) return { kind: 'test', point, keepMinutes: keep ? KEPT_MINUTES : 0 };
    return { kind: 'unplanned', confirm, point, evenIfAlive };
  };
  return (
    <ConfirmDialog
      id="group-failover-dialog"
      title={test ? `Test the failover of ${group.name}` : `Fail over ${group.name}?`}
      submit={test ? 'Start the test' : 'Fail over'}
      danger={!test}
      wide
      {...(test ? {} : { typed: group.name, typedLabel: "Type the group's name to confirm" })}
      close={props.close}
      act={async (confirm) => {
        const asked = request(confirm);
        const run = await learn
          .groupRun(() => api.failOverGroup(group.groupId, asked))
          .catch((error) => {
            if (error instanceof ApiFailure && error.error.code === 'UND_FAILOVER_SOURCE_ALIVE') {
              setAnswers(true);
            }
            throw error;
          });
        navigate(`/group-runs/${run.runId}`);
      }}
    >
      <div className="und-stack">
        <p>
          {test
            ? 'All members are started together on an isolated network. Replication goes on.'
            : 'The replica VMs are started in the order of their priorities. You can undo it as a whole until you commit.'}
        </p>
        <Form onSubmit={(event) => event.preventDefault()}>
          {mayPlan && (
            <FormGroup label="Kind" role="radiogroup" fieldId="group-kind">
              <Radio
                id="group-kind-unplanned"
                name="group-kind"
                label="Unplanned"
                description="The source servers are left as they are: they are lost."
                isChecked={!planned}
                onChange={() => setPlanned(false)}
              />
              <Radio
                id="group-kind-planned"
                name="group-kind"
                label="Planned"
                description="Each source stops its services, is flushed and powered off in its turn. Nothing is lost."
                isChecked={planned}
                onChange={() => setPlanned(true)}
              />
            </FormGroup>
          )}
          {isPlanned && (
            <Checkbox
              id="group-power-off"
              label="Power the source servers off"
              isChecked={powerOff}
              onChange={(_event, checked) => setPowerOff(checked)}
            />
          )}
          {test && (
            <Checkbox
              id="group-keep"
              label="Keep the VMs for an hour when all have proven that they boot"
              isChecked={keep}
              onChange={(_event, checked) => setKeep(checked)}
            />
          )}
          {answers && !isPlanned && (
            <Checkbox
              id="group-even-if-alive"
              label="Start the replicas all the same"
              description="Two servers with one address disturb each other and those who use them."
              isChecked={evenIfAlive}
              onChange={(_event, checked) => setEvenIfAlive(checked)}
            />
          )}
        </Form>
        <DescriptionList isHorizontal isCompact>
          <Fact term="Recovered to" id="group-target">
            {isPlanned
              ? 'the last state of each source server'
              : mark
                ? `the mark “${mark.name}”`
                : atMs !== null
                  ? `the newest common moment at or before ${formatAbsolute(new Date(atMs))}`
                  : points?.newestAt
                    ? `the newest common moment, now ${formatAbsolute(new Date(points.newestAt))}`
                    : 'there is no common moment yet'}
          </Fact>
          {!isPlanned && (
            <Fact term="Members apart">
              {apartWords((mark ? mark.apartMs : points?.errorMs) ?? null)}
            </Fact>
          )}
        </DescriptionList>
        {!test && !isPlanned && alive.length > 0 && (
          <Alert
            variant="warning"
            isInline
            id="group-sources-live"
            title={`${alive.map((job) => job?.sourceName).join(', ')} still connected`}
          >
            An unplanned failover does not stop source servers. Power them off first, unless you
            know that they cannot do harm.
          </Alert>
        )}
      </div>
    </ConfirmDialog>
  );
}
