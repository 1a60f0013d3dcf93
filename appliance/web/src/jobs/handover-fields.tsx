import {
  Checkbox,
  Form,
  FormGroup,
  FormHelperText,
  FormSelect,
  FormSelectOption,
  HelperText,
  HelperTextItem,
  Radio,
  TextArea,
} from '@patternfly/react-core';
import { UNIT_NAME_PATTERN } from '../../../../protocol/unit-names.ts';
import type { FailoverRequest, Inventory } from '../../../api/schema.ts';

const MAX_UNITS = 64;
const GOOD_UNIT = new RegExp(UNIT_NAME_PATTERN, 'u');

export interface HandoverFields {
  kind: FailoverRequest['kind'];
  /** One unit a line. */
  units: string;
  powerOff: boolean;
}

/** The units as they are sent, or what is wrong with them. */
export function unitsOf(
  text: string,
): { ok: true; units: string[] } | { ok: false; problem: string } {
  const units = text.split(/\s+/).filter((unit) => unit !== '');
  const bad = units.find((unit) => !GOOD_UNIT.test(unit));
  if (bad !== undefined) {
    return {
      ok: false,
      problem: `${bad} is no unit: the name needs its ending, as in ${bad}.service`,
    };
  }
  if (units.length > MAX_UNITS) return { ok: false, problem: `At most ${MAX_UNITS} units.` };
  return { ok: true, units };
}

/** Units, one a line: typed, or added from the services that run on the source server. */
export function UnitsField(props: {
  id: string;
  label: string;
  value: string;
  set: (units: string) => void;
  /** Empty: nothing is known of them. */
  services: NonNullable<Inventory['services']>;
}) {
  const { id, label, value, set } = props;
  const units = unitsOf(value);
  const chosen = value.split(/\s+/);
  const left = props.services.filter(({ unit }) => !chosen.includes(unit));
  return (
    <FormGroup label={label} fieldId={id}>
      {props.services.length > 0 && (
        <FormSelect
          id={`${id}-add`}
          aria-label={`Add to: ${label}`}
          value=""
          isDisabled={left.length === 0}
          onChange={(_event, unit) => set([value.trimEnd(), unit].filter(Boolean).join('\n'))}
        >
          <FormSelectOption
            value=""
            isPlaceholder
            label={left.length > 0 ? 'Add a service that runs there…' : 'All that run are chosen'}
          />
          {left.map(({ unit, description }) => (
            <FormSelectOption
              key={unit}
              value={unit}
              label={description ? `${unit}: ${description}` : unit}
            />
          ))}
        </FormSelect>
      )}
      <TextArea
        id={id}
        value={value}
        onChange={(_event, changed) => set(changed)}
        rows={3}
        spellCheck={false}
        placeholder="postgresql.service"
        validated={units.ok ? 'default' : 'error'}
      />
      <FormHelperText>
        <HelperText>
          <HelperTextItem variant={units.ok ? 'default' : 'error'}>
            {units.ok
              ? 'systemd units, in this order. A service that is not stopped may still write after the last moment that is kept.'
              : units.problem}
          </HelperTextItem>
        </HelperText>
      </FormHelperText>
    </FormGroup>
  );
}

/** What happens to the source server: nothing, or an orderly hand-over. */
export function HandoverForm(props: {
  fields: HandoverFields;
  set: (change: Partial<HandoverFields>) => void;
  services: NonNullable<Inventory['services']>;
}) {
  const { fields, set } = props;
  return (
    <Form className="und-confirm-form">
      <FormGroup label="The source server" role="radiogroup" fieldId="failover-kind">
        <Radio
          id="failover-unplanned"
          name="failover-kind"
          label="Leave it as it is"
          description="Unplanned: for a server that is broken or cannot be reached. What has not arrived is lost."
          isChecked={fields.kind === 'unplanned'}
          onChange={() => set({ kind: 'unplanned' })}
        />
        <Radio
          id="failover-planned"
          name="failover-kind"
          label="Hand it over in order"
          description="Planned: services are stopped, everything that was written is waited for, and the server is powered off. Nothing is lost."
          isChecked={fields.kind === 'planned'}
          onChange={() => set({ kind: 'planned' })}
        />
      </FormGroup>
      {fields.kind === 'planned' && (
        <>
          <UnitsField
            id="failover-units"
            label="Services to stop first"
            value={fields.units}
            set={(units) => set({ units })}
            services={props.services}
          />
          <Checkbox
            id="failover-power-off"
            label="Power the source server off"
            description="If not, it stays on and its agent becomes passive: two servers with the same name and addresses may run."
            isChecked={fields.powerOff}
            onChange={(_event, powerOff) => set({ powerOff })}
          />
        </>
      )}
    </Form>
  );
}
