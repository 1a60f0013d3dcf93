/** Test failovers of a job: the dialog that begins one, the last results, the schedule. */
import {
  Button,
  Card,
  CardBody,
  CardTitle,
  Flex,
  Form,
  FormGroup,
  FormSelect,
  FormSelectOption,
} from '@patternfly/react-core';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import { useState } from 'react';
import { Link, useNavigate } from 'react-router';
import type { Job, TestEvery } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { learn } from '../api/live.ts';
import { useLive } from '../api/use-live.ts';
import { ConfirmDialog } from '../parts/confirm.tsx';
import { StateLabel, When } from '../parts/parts.tsx';
import { chosenMoment, chosenPoint } from './chosen-point.ts';
import { PointChoice } from './point-choice.tsx';
import { checksInWords } from './test-checks.ts';
import { describeFailover } from './words.ts';

const EVERY: Record<TestEvery, string> = {
  off: 'No schedule',
  daily: 'Every day',
  weekly: 'Every Sunday',
  monthly: 'On the first of every month',
};

export const testScheduleWords = (every: TestEvery = 'off'): string =>
  every === 'off' ? EVERY.off : `${EVERY[every]}, at 03:00 UTC`;

const KEPT: [number, string][] = [
  [0, 'Until its verdict'],
  [15, '15 minutes longer'],
  [60, '1 hour longer'],
  [480, '8 hours longer'],
];
const SHOWN = 5;

export function TestDialog(props: { job: Job; atMs: number | null; close: () => void }) {
  const { job } = props;
  const navigate = useNavigate();
  const [chosen, setChosen] = useState(() => chosenPoint(props.atMs, Date.now()));
  const [keepMinutes, setKeepMinutes] = useState(0);
  const point = chosenMoment(chosen);
  const checks = checksInWords(job.settings.testChecks);
  return (
    <ConfirmDialog
      id="test-dialog"
      title={`Test the failover of ${job.sourceName}`}
      submit="Start the test"
      wide
      blocked={point === null}
      close={props.close}
      act={async () => {
        const asked = { point: point ?? undefined, keepMinutes };
        const test = await learn.failover(() => api.testFailover(job.jobId, asked));
        navigate(`/failovers/${test.failoverId}`);
      }}
    >
      <Form onSubmit={(event) => event.preventDefault()}>
        <p>
          A VM of its own is started on an isolated network. The source server and the replication
          are not touched, and nothing is left behind.
        </p>
        {checks && <p id="test-checks">Beside the boot it checks {checks}.</p>}
        <PointChoice job={job} chosen={chosen} set={setChosen} />
        <FormGroup label="Keep the VM" fieldId="test-keep">
          <FormSelect
            id="test-keep"
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

export function TestsCard(props: { job: Job; mayTest: boolean; test: () => void }) {
  const { job } = props;
  const { failovers } = useLive();
  const checks = checksInWords(job.settings.testChecks);
  const tests = [...failovers.values()]
    .filter(({ jobId, kind }) => jobId === job.jobId && kind === 'test')
    .sort((a, b) => b.startedAt.localeCompare(a.startedAt));
  return (
    <Card id="job-tests">
      <CardTitle component="h2">
        <Flex
          justifyContent={{ default: 'justifyContentSpaceBetween' }}
          alignItems={{ default: 'alignItemsCenter' }}
        >
          Test failovers
          {props.mayTest && (
            <Button variant="secondary" id="test-button" onClick={props.test}>
              Test failover…
            </Button>
          )}
        </Flex>
      </CardTitle>
      <CardBody className="und-stack">
        <p className="und-quiet" id="job-tests-schedule">
          {testScheduleWords(job.settings.testEvery)}.
        </p>
        <p className="und-quiet" id="job-tests-checks">
          {checks ? `Beside the boot it checks ${checks}.` : 'It checks nothing beside the boot.'}
        </p>
        {tests.length > 0 && (
          <Table variant="compact" aria-label="Test failovers" borders={false}>
            <Thead>
              <Tr>
                <Th width={25}>Began</Th>
                <Th width={30}>Verdict</Th>
                <Th width={25}>Point</Th>
                <Th width={20}>Report</Th>
              </Tr>
            </Thead>
            <Tbody>
              {tests.slice(0, SHOWN).map((test) => {
                const words = describeFailover(test);
                return (
                  <Tr key={test.failoverId} data-testid="job-test-row">
                    <Td dataLabel="Began">
                      <Link to={`/failovers/${test.failoverId}`}>
                        <When at={test.startedAt} />
                      </Link>
                    </Td>
                    <Td dataLabel="Verdict">
                      <StateLabel tone={words.tone} state={test.state.name}>
                        {words.label}
                      </StateLabel>
                    </Td>
                    <Td dataLabel="Point">
                      <When at={test.point.sourceTime} absent="not chosen yet" />
                    </Td>
                    <Td dataLabel="Report">
                      <a href={api.reportUrl(test.failoverId)} target="_blank" rel="noreferrer">
                        Report
                      </a>
                    </Td>
                  </Tr>
                );
              })}
            </Tbody>
          </Table>
        )}
      </CardBody>
    </Card>
  );
}

/** The schedule, as a field of a form. */
export function TestField(props: {
  id?: string;
  every: TestEvery;
  set: (every: TestEvery) => void;
}) {
  const { id = 'test-schedule' } = props;
  return (
    <FormGroup label="Test failovers" fieldId={id}>
      <FormSelect
        id={id}
        value={props.every}
        onChange={(_event, value) => props.set(value as TestEvery)}
      >
        {Object.entries(EVERY).map(([every, label]) => (
          <FormSelectOption key={every} value={every} label={label} />
        ))}
      </FormSelect>
    </FormGroup>
  );
}
