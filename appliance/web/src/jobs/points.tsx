/** Points that were asked for: the list of the newest, taking one now, and the schedule. */
import {
  Button,
  Card,
  CardBody,
  CardTitle,
  Checkbox,
  Flex,
  Form,
  FormGroup,
  FormSelect,
  FormSelectOption,
  TextInput,
} from '@patternfly/react-core';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import { useState } from 'react';
import type { Job, TakenPoint } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { formatDuration } from '../format.ts';
import { ConfirmDialog } from '../parts/confirm.tsx';
import { ErrorAlert, StateLabel, When } from '../parts/parts.tsx';
import { describePoint, SCHEDULES, scheduleLabel } from './words.ts';

function PointRow(props: { point: TakenPoint }) {
  const { point } = props;
  const words = describePoint(point);
  const hooks = point.hooks.filter(({ outcome }) => outcome !== 'skipped');
  return (
    <Tr data-testid="job-point" data-point-id={point.pointId} data-quiesced={point.quiesced}>
      <Td dataLabel="Point">
        {point.name}
        <div className="und-quiet">
          <When at={point.at} />
        </div>
      </Td>
      <Td dataLabel="Kind">
        <StateLabel tone={words.tone} state={point.quiesced ? 'quiesced' : 'crash-consistent'}>
          {words.label}
        </StateLabel>
        {point.reason && <div className="und-quiet">{point.reason}</div>}
      </Td>
      <Td dataLabel="Writes held up">
        {point.freezeMs === null ? 'not at all' : formatDuration(point.freezeMs)}
        {point.fileSystems.length > 0 && (
          <div className="und-quiet und-mono">{point.fileSystems.join(', ')}</div>
        )}
      </Td>
      <Td dataLabel="Hooks">
        {hooks.length === 0
          ? 'none'
          : hooks.map(({ name, outcome, text }) => (
              <div key={name}>
                <span className="und-mono">{name}</span> {outcome}
                {text && <span className="und-quiet"> {text}</span>}
              </div>
            ))}
      </Td>
    </Tr>
  );
}

export function PointsCard(props: { job: Job; mayTake: boolean; take: () => void }) {
  const { job } = props;
  const { newest, nextAt, problem } = job.askedPoints;
  return (
    <Card id="job-points">
      <CardTitle component="h2">
        <Flex
          justifyContent={{ default: 'justifyContentSpaceBetween' }}
          alignItems={{ default: 'alignItemsCenter' }}
        >
          Points that were asked for
          {props.mayTake && (
            <Button variant="secondary" id="job-point-take" onClick={props.take}>
              Take a point…
            </Button>
          )}
        </Flex>
      </CardTitle>
      <CardBody className="und-stack">
        {problem && (
          <ErrorAlert
            error={problem}
            title="The last scheduled point was not taken"
            id="job-points-problem"
          />
        )}
        <p className="und-quiet">
          {nextAt ? (
            <>
              {scheduleLabel(job.settings.pointEveryMinutes)}; the next one{' '}
              <When at={nextAt} id="job-points-next" />.
            </>
          ) : (
            'No schedule. Without any of these there are crash-consistent points all the time.'
          )}
        </p>
        {newest.length > 0 && (
          <Table variant="compact" aria-label="Points that were asked for" borders={false}>
            <Thead>
              <Tr>
                <Th width={20}>Point</Th>
                <Th width={30}>Kind</Th>
                <Th width={25}>Writes held up</Th>
                <Th width={25}>Hooks</Th>
              </Tr>
            </Thead>
            <Tbody>
              {newest.map((point) => (
                <PointRow key={point.pointId} point={point} />
              ))}
            </Tbody>
          </Table>
        )}
      </CardBody>
    </Card>
  );
}

export function PointDialog(props: { job: Job; close: () => void }) {
  const { job } = props;
  const [name, setName] = useState('');
  const [quiesce, setQuiesce] = useState(true);
  return (
    <ConfirmDialog
      id="point-dialog"
      title={`Take a recovery point of ${job.sourceName}`}
      submit="Take the point"
      close={props.close}
      act={() => api.takePoint(job.jobId, { name: name.trim() || undefined, quiesce })}
    >
      <Form onSubmit={(event) => event.preventDefault()}>
        <FormGroup label="Name" fieldId="point-name">
          <TextInput
            id="point-name"
            value={name}
            maxLength={100}
            placeholder="On demand"
            onChange={(_event, value) => setName(value)}
          />
        </FormGroup>
        <Checkbox
          id="point-quiesce"
          label="Bring the applications to rest and freeze the file systems"
          description="Hooks run on the source server, and its writes are held up for a moment. If that fails, the point is crash-consistent and says why."
          isChecked={quiesce}
          onChange={(_event, checked) => setQuiesce(checked)}
        />
      </Form>
    </ConfirmDialog>
  );
}

/** The schedule, as a field of the job's settings. */
export function ScheduleField(props: {
  everyMinutes: number | null;
  set: (everyMinutes: number | null) => void;
}) {
  return (
    <FormGroup label="Points with the applications at rest" fieldId="point-schedule">
      <FormSelect
        id="point-schedule"
        value={props.everyMinutes ?? 0}
        onChange={(_event, value) => props.set(Number(value) || null)}
      >
        {[...new Set([...SCHEDULES, props.everyMinutes])].map((minutes) => (
          <FormSelectOption
            key={minutes ?? 0}
            value={minutes ?? 0}
            label={scheduleLabel(minutes)}
          />
        ))}
      </FormSelect>
    </FormGroup>
  );
}
