/** Makes a group or changes one: its name, its members and their order. */
import {
  ActionGroup,
  Button,
  Checkbox,
  Form,
  FormGroup,
  FormHelperText,
  FormSelect,
  FormSelectOption,
  HelperText,
  HelperTextItem,
  PageSection,
  Radio,
  TextInput,
} from '@patternfly/react-core';
import { useState } from 'react';
import { Link, useNavigate, useParams } from 'react-router';
import type { Group } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { learn } from '../api/live.ts';
import { useLive } from '../api/use-live.ts';
import { TestField } from '../jobs/tests.tsx';
import { scheduleLabel } from '../jobs/words.ts';
import { useAction } from '../parts/hooks.ts';
import { ErrorAlert, Loading, Nothing, PageHead } from '../parts/parts.tsx';

const EVERY = [15, 60, 240, 1440];
const PRIORITIES = [1, 2, 3, 4, 5, 6, 7, 8, 9];

export function GroupEditPage() {
  const { groupId } = useParams();
  const { groups, synced } = useLive();
  const group = groupId === undefined ? null : groups.get(groupId);
  if (group === undefined || !synced) {
    return synced ? (
      <Nothing title="There is no such group" action={<Link to="/groups">All groups</Link>}>
        It may have been dissolved.
      </Nothing>
    ) : (
      <Loading what="the group" />
    );
  }
  return <GroupForm key={groupId ?? 'new'} group={group} />;
}

function GroupForm({ group }: { group: Group | null }) {
  const { jobs, groups } = useLive();
  const navigate = useNavigate();
  const [name, setName] = useState(group?.name ?? '');
  /** Priority by job: who is in it. */
  const [members, setMembers] = useState<ReadonlyMap<string, number>>(
    () => new Map(group?.members.map(({ jobId, priority }) => [jobId, priority])),
  );
  const [waitFor, setWaitFor] = useState(group?.wait.for ?? 'proof');
  const [seconds, setSeconds] = useState(
    group?.wait.for === 'delay' ? String(group.wait.seconds) : '60',
  );
  const [every, setEvery] = useState(group?.schedule?.everyMinutes ?? 0);
  const [quiesce, setQuiesce] = useState(group?.schedule?.quiesce ?? true);
  const [checkpoint, setCheckpoint] = useState(group?.schedule?.checkpoint ?? false);
  const [testEvery, setTestEvery] = useState(group?.testEvery ?? 'off');
  const intervals = [...new Set([0, ...EVERY, every])].sort((a, b) => a - b);
  const others = [...groups.values()].filter((one) => one.groupId !== group?.groupId);
  const elsewhere = (jobId: string) =>
    others.find((one) => one.members.some((member) => member.jobId === jobId))?.name;
  const list = [...jobs.values()].sort((a, b) => a.sourceName.localeCompare(b.sourceName));
  const delay = Number(seconds);
  const badDelay =
    waitFor === 'delay' && !(Number.isInteger(delay) && delay >= 0 && delay <= 86_400);
  const set = (jobId: string, priority: number | null) => {
    const next = new Map(members);
    if (priority === null) next.delete(jobId);
    else next.set(jobId, priority);
    setMembers(next);
  };
  const saving = useAction(async () => {
    const request = {
      name: name.trim(),
      members: [...members].map(([jobId, priority]) => ({ jobId, priority })),
      schedule: every === 0 ? null : { everyMinutes: every, quiesce, checkpoint },
      testEvery,
      wait: waitFor === 'proof' ? { for: waitFor } : { for: waitFor, seconds: delay },
    } as const;
    const wanted = { ...request, members: [...request.members] };
    const saved = await learn.group(() =>
      group ? api.changeGroup(group.groupId, wanted) : api.createGroup(wanted),
    );
    navigate(`/groups/${saved.groupId}`);
  });
  const title = group ? `Change ${group.name}` : 'New group';
  return (
    <>
      <PageHead title={title} crumbs={[['Groups', '/groups']]} />
      <PageSection hasBodyWrapper={false}>
        <Form
          id="group-form"
          className="und-form"
          onSubmit={(event) => {
            event.preventDefault();
            void saving.run();
          }}
        >
          <FormGroup label="Name" isRequired fieldId="group-name">
            <TextInput
              id="group-name"
              value={name}
              maxLength={63}
              onChange={(_event, text) => setName(text)}
            />
          </FormGroup>
          <FormGroup label="Members" role="group" fieldId="group-members">
            {list.length === 0 && <p>There is no protection job yet.</p>}
            {list.map((job) => {
              const other = elsewhere(job.jobId);
              const priority = members.get(job.jobId);
              return (
                <div key={job.jobId} className="und-member">
                  <Checkbox
                    id={`group-member-${job.name}`}
                    label={job.sourceName}
                    description={other ? `In the group ${other}.` : job.name}
                    isDisabled={other !== undefined}
                    isChecked={priority !== undefined}
                    onChange={(_event, checked) => set(job.jobId, checked ? 1 : null)}
                  />
                  {priority !== undefined && (
                    <FormSelect
                      id={`group-priority-${job.name}`}
                      aria-label={`Priority of ${job.sourceName}`}
                      value={priority}
                      onChange={(_event, value) => set(job.jobId, Number(value))}
                    >
                      {PRIORITIES.map((value) => (
                        <FormSelectOption
                          key={value}
                          value={value}
                          label={value === 1 ? 'Priority 1 (first)' : `Priority ${value}`}
                        />
                      ))}
                    </FormSelect>
                  )}
                </div>
              );
            })}
          </FormGroup>
          <FormGroup label="The next priority begins" role="radiogroup" fieldId="group-wait">
            <Radio
              id="group-wait-proof"
              name="group-wait"
              label="When all before have proven that they boot"
              isChecked={waitFor === 'proof'}
              onChange={() => setWaitFor('proof')}
            />
            <Radio
              id="group-wait-delay"
              name="group-wait"
              label="Some time after the last before was powered on"
              isChecked={waitFor === 'delay'}
              onChange={() => setWaitFor('delay')}
            />
            {waitFor === 'delay' && (
              <>
                <TextInput
                  id="group-delay"
                  aria-label="Seconds"
                  value={seconds}
                  validated={badDelay ? 'error' : 'default'}
                  onChange={(_event, text) => setSeconds(text)}
                />
                <FormHelperText>
                  <HelperText>
                    <HelperTextItem variant={badDelay ? 'error' : 'default'}>
                      Seconds, 0 to 86400.
                    </HelperTextItem>
                  </HelperText>
                </FormHelperText>
              </>
            )}
          </FormGroup>
          <FormGroup label="Marks on schedule" fieldId="group-schedule">
            <FormSelect
              id="group-schedule"
              value={every}
              onChange={(_event, value) => setEvery(Number(value))}
            >
              {intervals.map((minutes) => (
                <FormSelectOption key={minutes} value={minutes} label={scheduleLabel(minutes)} />
              ))}
            </FormSelect>
            {every !== 0 && (
              <>
                <Checkbox
                  id="group-schedule-quiesce"
                  label="With the applications at rest"
                  isChecked={quiesce}
                  onChange={(_event, checked) => setQuiesce(checked)}
                />
                <Checkbox
                  id="group-schedule-checkpoint"
                  label="With a checkpoint of all replica disks"
                  isChecked={checkpoint}
                  onChange={(_event, checked) => setCheckpoint(checked)}
                />
              </>
            )}
          </FormGroup>
          <TestField id="group-test-schedule" every={testEvery} set={setTestEvery} />
          <ErrorAlert error={saving.error} id="group-error" />
          <ActionGroup>
            <Button
              id="group-save"
              type="submit"
              variant="primary"
              isLoading={saving.busy}
              isDisabled={saving.busy || name.trim() === '' || members.size === 0 || badDelay}
            >
              Save
            </Button>
            <Button
              variant="link"
              component={(more) => (
                <Link {...more} to={group ? `/groups/${group.groupId}` : '/groups'} />
              )}
            >
              Cancel
            </Button>
          </ActionGroup>
        </Form>
      </PageSection>
    </>
  );
}
