import {
  Button,
  Checkbox,
  FormGroup,
  FormHelperText,
  FormSelect,
  FormSelectOption,
  HelperText,
  HelperTextItem,
  InputGroup,
  InputGroupItem,
  InputGroupText,
  Radio,
  TextArea,
  TextInput,
} from '@patternfly/react-core';
import {
  DEFAULT_EXCLUSIONS,
  EXCLUSION_PATTERN,
  MAX_EXCLUSION_CHARS,
  MAX_EXCLUSIONS,
} from '../../../../protocol/exclusions.ts';
import type { Compression } from '../../../api/schema.ts';
import { formatBytes } from '../format.ts';

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
  /** Of the ring in the source's memory, in MiB; `auto`: by its memory's size. */
  ring: string;
  /** One pattern a line. */
  exclusions: string;
  carryRestarts: boolean;
}

export const defaultExclusions = DEFAULT_EXCLUSIONS.join('\n');

const GOOD_PATTERN = new RegExp(EXCLUSION_PATTERN, 'u');

/** The patterns as they are sent, or the first line that is none. */
export function exclusionsOf(
  text: string,
): { ok: true; patterns: string[] } | { ok: false; problem: string } {
  const patterns = text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '');
  const bad = patterns.find(
    (line) => !GOOD_PATTERN.test(line) || line.length > MAX_EXCLUSION_CHARS,
  );
  if (bad !== undefined) {
    return { ok: false, problem: `${bad} is not an absolute path, or stands for everything.` };
  }
  if (patterns.length > MAX_EXCLUSIONS) {
    return { ok: false, problem: `At most ${MAX_EXCLUSIONS} lines.` };
  }
  return { ok: true, patterns };
}

/** The contract's bounds are 16 MiB and 1 GiB, and the agent makes a power of two of it anyway. */
const RINGS_MIB = [16, 32, 64, 128, 256, 512, 1024];

/** What can be chosen, and what was set by other means. */
const ringsMib = (ring: string): number[] =>
  [...new Set([...RINGS_MIB, ring === 'auto' ? 16 : Number(ring)])].sort((a, b) => a - b);

export const ringBytes = (fields: TransferFields): number | null =>
  fields.ring === 'auto' ? null : Number(fields.ring) * 2 ** 20;

export const ringLabel = (bytes: number | null | undefined): string =>
  bytes ? formatBytes(bytes) : 'by the memory of the source server';

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
  ring: number | null | undefined,
  exclusions: readonly string[],
  carryRestarts: boolean | undefined,
): TransferFields => ({
  compression,
  limited: bytesPerSec !== null,
  ring: ring ? String(ring / 2 ** 20) : 'auto',
  limitMib: bytesPerSec === null ? '50' : String(Math.round((bytesPerSec / 2 ** 20) * 100) / 100),
  exclusions: exclusions.join('\n'),
  carryRestarts: carryRestarts ?? false,
});

/** Compression, bandwidth, buffer, exclusions and planned restarts: the settings that can be changed at any time. */
export function TransferForm(props: {
  fields: TransferFields;
  set: (change: Partial<TransferFields>) => void;
}) {
  const { fields, set } = props;
  const bad = limitBytesPerSec(fields) === undefined;
  const excluded = exclusionsOf(fields.exclusions);
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
      <FormGroup label="Buffer on the source server" fieldId="ring-size">
        <FormSelect
          id="ring-size"
          value={fields.ring}
          onChange={(_event, ring) => set({ ring })}
          aria-label="Buffer on the source server"
        >
          <FormSelectOption value="auto" label="By the memory of the server" />
          {ringsMib(fields.ring).map((mib) => (
            <FormSelectOption key={mib} value={String(mib)} label={formatBytes(mib * 2 ** 20)} />
          ))}
        </FormSelect>
        <FormHelperText>
          <HelperText>
            <HelperTextItem>
              Memory that holds writes until they are safe here, at most an eighth of the server's.
              When it overflows, no recovery points are made until the disks are whole again.
              Changing it on a running job compares the disks anew.
            </HelperTextItem>
          </HelperText>
        </FormHelperText>
      </FormGroup>
      <FormGroup label="Files that are not mirrored" fieldId="exclusions">
        <TextArea
          id="exclusions"
          className="und-mono"
          rows={8}
          resizeOrientation="vertical"
          spellCheck={false}
          value={fields.exclusions}
          onChange={(_event, exclusions) => set({ exclusions })}
          validated={excluded.ok ? 'default' : 'error'}
        />
        <FormHelperText>
          <HelperText>
            <HelperTextItem variant={excluded.ok ? 'default' : 'error'} id="exclusions-help">
              {excluded.ok
                ? 'One path a line; * and ? stand for a part of a name, ** for any folders. The files will be there with zeroes or old content; a new one below these paths is replicated as any other.'
                : excluded.problem}
            </HelperTextItem>
          </HelperText>
        </FormHelperText>
        {fields.exclusions !== defaultExclusions && (
          <Button
            id="exclusions-default"
            variant="link"
            isInline
            onClick={() => set({ exclusions: defaultExclusions })}
          >
            Put back the default list
          </Button>
        )}
      </FormGroup>
      <FormGroup fieldId="carry-restarts">
        <Checkbox
          id="carry-restarts"
          label="Planned restarts without comparing"
          description="When the source server is shut down or restarted in an orderly way, what changed is remembered: replication goes on afterwards by sending only that, instead of comparing the disks, which are verified in the background. A crash or a power cut still compares them. The server gets a hook, a small unit and a file of 16 MiB on its root file system for that."
          isChecked={fields.carryRestarts}
          onChange={(_event, carryRestarts) => set({ carryRestarts })}
        />
      </FormGroup>
    </>
  );
}
