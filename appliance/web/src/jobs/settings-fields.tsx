import {
  Checkbox,
  FormGroup,
  FormHelperText,
  HelperText,
  HelperTextItem,
  InputGroup,
  InputGroupItem,
  InputGroupText,
  Radio,
  TextInput,
} from '@patternfly/react-core';
import type { Compression } from '../../../api/schema.ts';

const LEVELS: [Compression, string, string][] = [
  ['none', 'None', 'For a fast local network or data that does not compress.'],
  ['fast', 'Fast', 'Little work for the source server; right for most.'],
  ['balanced', 'Balanced', 'For links of about 1 Gbit/s and below.'],
  ['best', 'Best', 'For narrow links; costs the source server CPU time.'],
];

export const compressionLabel = (level: Compression) =>
  LEVELS.find(([value]) => value === level)![1];

export interface TransferFields {
  compression: Compression;
  limited: boolean;
  limitMib: string;
}

/** The contract's least limit is 64 KiB/s. */
const LIMIT_MIN_MIB = 65536 / 2 ** 20;

export function limitBytesPerSec(fields: TransferFields): number | null | undefined {
  if (!fields.limited) return null;
  const mib = Number(fields.limitMib.replace(',', '.'));
  if (!Number.isFinite(mib) || mib < LIMIT_MIN_MIB) return undefined;
  return Math.round(mib * 2 ** 20);
}

export const transferFields = (
  compression: Compression,
  bytesPerSec: number | null,
): TransferFields => ({
  compression,
  limited: bytesPerSec !== null,
  limitMib: bytesPerSec === null ? '50' : String(Math.round((bytesPerSec / 2 ** 20) * 100) / 100),
});

/** Compression and bandwidth: the two settings that can be changed at any time. */
export function TransferForm(props: {
  fields: TransferFields;
  set: (change: Partial<TransferFields>) => void;
}) {
  const { fields, set } = props;
  const bad = limitBytesPerSec(fields) === undefined;
  return (
    <>
      <FormGroup label="Compression" role="radiogroup" fieldId="compression">
        {LEVELS.map(([level, label, description]) => (
          <Radio
            key={level}
            id={`compression-${level}`}
            name="compression"
            label={label}
            description={description}
            isChecked={fields.compression === level}
            onChange={() => set({ compression: level })}
          />
        ))}
      </FormGroup>
      <FormGroup label="Bandwidth" fieldId="bandwidth-limited">
        <Checkbox
          id="bandwidth-limited"
          label="Limit what the agent may send"
          isChecked={fields.limited}
          onChange={(_event, limited) => set({ limited })}
        />
      </FormGroup>
      {fields.limited && (
        <FormGroup label="Limit" fieldId="bandwidth-limit-mib" isRequired>
          <InputGroup>
            <InputGroupItem>
              <TextInput
                id="bandwidth-limit-mib"
                inputMode="decimal"
                value={fields.limitMib}
                onChange={(_event, limitMib) => set({ limitMib })}
                validated={bad ? 'error' : 'default'}
              />
            </InputGroupItem>
            <InputGroupText>MiB/s</InputGroupText>
          </InputGroup>
          <FormHelperText>
            <HelperText>
              <HelperTextItem variant={bad ? 'error' : 'default'}>
                {bad
                  ? 'A number of at least 0.0625 (64 KiB/s).'
                  : 'Below the rate at which the server writes, the lag grows without end.'}
              </HelperTextItem>
            </HelperText>
          </FormHelperText>
        </FormGroup>
      )}
    </>
  );
}
