import {
  Checkbox,
  Form,
  FormGroup,
  FormHelperText,
  HelperText,
  HelperTextItem,
  Radio,
  TextArea,
} from '@patternfly/react-core';
import { UNIT_NAME_PATTERN } from '../../../../protocol/unit-names.ts';
import type { FailoverRequest } from '../../../api/schema.ts';

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

/** What happens to the source server: nothing, or an orderly hand-over. */
export function HandoverForm(props: {
  fields: HandoverFields;
  set: (change: Partial<HandoverFields>) => void;
}) {
  const { fields, set } = props;
  const units = unitsOf(fields.units);
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
          <FormGroup label="Services to stop first" fieldId="failover-units">
            <TextArea
              id="failover-units"
              value={fields.units}
              onChange={(_event, units) => set({ units })}
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
