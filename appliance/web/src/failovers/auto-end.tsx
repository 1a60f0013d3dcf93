/** What a failover comes to by itself when nobody decides: the choice, and the countdown. */
import {
  Alert,
  AlertActionLink,
  Form,
  FormGroup,
  FormHelperText,
  FormSelect,
  FormSelectOption,
  HelperText,
  HelperTextItem,
  InputGroup,
  InputGroupItem,
  InputGroupText,
  TextInput,
} from '@patternfly/react-core';
import { useState } from 'react';
import type { AutoEnd, Failover } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { learn } from '../api/live.ts';
import { formatDuration } from '../format.ts';
import { ConfirmDialog } from '../parts/confirm.tsx';
import { useNow } from '../parts/hooks.ts';
import { When } from '../parts/parts.tsx';
import { type AutoEndFields, autoEndFields, autoEndOf, MAX_MINUTES } from './auto-end-fields.ts';

const ACTS: Record<AutoEndFields['act'], string> = {
  none: 'It stays until somebody commits or undoes it',
  undo: 'It is undone by itself after',
  commit: 'It is committed by itself after',
};

export function AutoEndForm(props: {
  fields: AutoEndFields;
  set: (fields: AutoEndFields) => void;
}) {
  const { fields, set } = props;
  const bad = autoEndOf(fields) === undefined;
  return (
    <FormGroup label="When the replica has booted" fieldId="auto-end-act">
      <FormSelect
        id="auto-end-act"
        value={fields.act}
        onChange={(_event, act) => set({ ...fields, act: act as AutoEndFields['act'] })}
      >
        {Object.entries(ACTS).map(([act, label]) => (
          <FormSelectOption key={act} value={act} label={label} />
        ))}
      </FormSelect>
      {fields.act !== 'none' && (
        <>
          <InputGroup>
            <InputGroupItem>
              <TextInput
                id="auto-end-minutes"
                aria-label="Minutes"
                inputMode="numeric"
                value={fields.minutes}
                onChange={(_event, minutes) => set({ ...fields, minutes })}
                validated={bad ? 'error' : 'default'}
              />
            </InputGroupItem>
            <InputGroupText>minutes</InputGroupText>
          </InputGroup>
          <FormHelperText>
            <HelperText>
              <HelperTextItem variant={bad ? 'error' : 'default'} id="auto-end-help">
                {bad
                  ? `A whole number from 1 to ${MAX_MINUTES}.`
                  : fields.act === 'undo'
                    ? 'What was written in the replica is lost then, unless somebody commits it before.'
                    : 'It cannot be undone then. A replica that does not run is not committed.'}
              </HelperTextItem>
            </HelperText>
          </FormHelperText>
        </>
      )}
    </FormGroup>
  );
}

/** The countdown of a completed failover, or what is to come of one that is under way. */
export function AutoEndAlert(props: { failover: Failover; change?: () => void }) {
  const { autoEnd, state } = props.failover;
  const now = useNow();
  if (!autoEnd || (state.name !== 'completed' && state.name !== 'running')) return null;
  const done = autoEnd.act === 'undo' ? 'undone' : 'committed';
  const leftMs = autoEnd.at === null ? null : Date.parse(autoEnd.at) - now;
  const title = autoEnd.heldBack
    ? `It was to be ${done} by itself, and is not: ${autoEnd.heldBack}`
    : leftMs === null
      ? `It will be ${done} by itself ${formatDuration(autoEnd.afterMinutes * 60_000)} after the replica has booted`
      : leftMs > 0
        ? `It will be ${done} by itself in ${formatDuration(leftMs)}`
        : `It is being ${done} by itself`;
  return (
    <Alert
      variant={autoEnd.heldBack ? 'danger' : 'warning'}
      isInline
      id="failover-auto-end"
      title={title}
      actionLinks={
        props.change && (
          <AlertActionLink id="auto-end-change" onClick={props.change}>
            Change…
          </AlertActionLink>
        )
      }
    >
      {autoEnd.at !== null && (
        <span data-act={autoEnd.act} data-at={autoEnd.at} id="auto-end-at">
          At <When at={autoEnd.at} />, if nobody decides before.
        </span>
      )}
    </Alert>
  );
}

export function AutoEndDialog(props: { failover: Failover; close: () => void }) {
  const { failoverId, replicaName, autoEnd, state } = props.failover;
  const [fields, setFields] = useState(() => autoEndFields(autoEnd));
  const wanted: AutoEnd | null | undefined = autoEndOf(fields);
  return (
    <ConfirmDialog
      id="auto-end-dialog"
      title={`What becomes of the failover to ${replicaName}`}
      submit="Save"
      blocked={wanted === undefined}
      close={props.close}
      act={() => learn.failover(() => api.setAutoEnd(failoverId, wanted ?? null))}
    >
      <Form onSubmit={(event) => event.preventDefault()}>
        <AutoEndForm fields={fields} set={setFields} />
        {state.name === 'completed' && fields.act !== 'none' && <p>The time begins now.</p>}
      </Form>
    </ConfirmDialog>
  );
}
