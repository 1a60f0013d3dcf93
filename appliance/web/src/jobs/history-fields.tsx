/** How much history a job keeps, as a person chooses it. */
import {
  FormGroup,
  FormHelperText,
  HelperText,
  HelperTextItem,
  InputGroup,
  InputGroupItem,
  InputGroupText,
  TextInput,
} from '@patternfly/react-core';

export interface HistoryFields {
  /** Empty: as long as it fits. */
  historyHours: string;
  /** Empty: an equal share of the journal disk. */
  historyGib: string;
}

export const historyFields = (
  hours: number | null | undefined,
  bytes: number | null | undefined,
): HistoryFields => ({
  historyHours: hours === null ? '' : String(hours ?? 24),
  historyGib: bytes ? String(Math.round((bytes / 2 ** 30) * 100) / 100) : '',
});

/** Both limits, or undefined where a field is not what it should be. */
export function historyLimits(
  fields: HistoryFields,
): { historyHours: number | null; historyBytes: number | null } | undefined {
  const hours = fields.historyHours.trim() === '' ? null : Number(fields.historyHours);
  const gib = fields.historyGib.trim() === '' ? null : Number(fields.historyGib.replace(',', '.'));
  if (hours !== null && !(Number.isInteger(hours) && hours >= 1 && hours <= 8784)) return undefined;
  if (gib !== null && !(gib >= 1 && gib < 2 ** 20)) return undefined;
  return { historyHours: hours, historyBytes: gib === null ? null : Math.round(gib * 2 ** 30) };
}

/** How much history the journal keeps: both limits hold at once. */
export function HistoryForm(props: {
  fields: HistoryFields;
  set: (change: Partial<HistoryFields>) => void;
}) {
  const { fields, set } = props;
  const badHours = historyLimits({ ...fields, historyGib: '' }) === undefined;
  const badGib = historyLimits({ ...fields, historyHours: '' }) === undefined;
  const help = (id: string, bad: boolean, wrong: string, right: string) => (
    <FormHelperText>
      <HelperText id={id}>
        <HelperTextItem variant={bad ? 'error' : 'default'}>{bad ? wrong : right}</HelperTextItem>
      </HelperText>
    </FormHelperText>
  );
  return (
    <>
      <FormGroup label="History: time" fieldId="history-hours">
        <InputGroup>
          <InputGroupItem>
            <TextInput
              id="history-hours"
              inputMode="numeric"
              value={fields.historyHours}
              onChange={(_event, historyHours) => set({ historyHours })}
              validated={badHours ? 'error' : 'default'}
            />
          </InputGroupItem>
          <InputGroupText>hours</InputGroupText>
        </InputGroup>
        {help(
          'history-hours-help',
          badHours,
          'Whole hours from 1 to 8784, or nothing.',
          'How far back any second can be recovered. Empty: as long as it fits.',
        )}
      </FormGroup>
      <FormGroup label="History: size" fieldId="history-gib">
        <InputGroup>
          <InputGroupItem>
            <TextInput
              id="history-gib"
              inputMode="decimal"
              value={fields.historyGib}
              onChange={(_event, historyGib) => set({ historyGib })}
              validated={badGib ? 'error' : 'default'}
            />
          </InputGroupItem>
          <InputGroupText>GiB</InputGroupText>
        </InputGroup>
        {help(
          'history-gib-help',
          badGib,
          'At least 1 GiB, or nothing.',
          'What it may take of the journal disk. Empty: an equal share. The oldest history leaves first.',
        )}
      </FormGroup>
    </>
  );
}
