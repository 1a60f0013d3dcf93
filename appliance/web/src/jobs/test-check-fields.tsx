/** What a test failover has to show beside a boot, as fields of the job's settings. */
import {
  FormGroup,
  FormHelperText,
  HelperText,
  HelperTextItem,
  InputGroup,
  InputGroupItem,
  InputGroupText,
  TextArea,
  TextInput,
} from '@patternfly/react-core';
import { type TestCheckFields, testChecksOf } from './test-checks.ts';

function Help(props: { id: string; problem: string | null; children: string }) {
  return (
    <FormHelperText>
      <HelperText>
        <HelperTextItem variant={props.problem ? 'error' : 'default'} id={props.id}>
          {props.problem ?? props.children}
        </HelperTextItem>
      </HelperText>
    </FormHelperText>
  );
}

export function TestChecksForm(props: {
  fields: TestCheckFields;
  set: (change: Partial<TestCheckFields>) => void;
}) {
  const { fields, set } = props;
  const checks = testChecksOf(fields);
  const problem = (field: keyof TestCheckFields): string | null =>
    !checks.ok && checks.field === field ? checks.problem : null;
  const validated = (field: keyof TestCheckFields) => (problem(field) ? 'error' : 'default');
  return (
    <>
      <FormGroup label="TCP ports that a test checks" fieldId="test-ports">
        <TextInput
          id="test-ports"
          value={fields.ports}
          spellCheck={false}
          placeholder="22, 5432"
          validated={validated('ports')}
          onChange={(_event, ports) => set({ ports })}
        />
        <Help id="test-ports-help" problem={problem('ports')}>
          A process in the replica has to listen on each. It is seen inside the guest, by its QEMU
          guest agent; a firewall is not part of it.
        </Help>
      </FormGroup>
      <FormGroup label="Script that a test runs in the replica" fieldId="test-script">
        <TextArea
          id="test-script"
          className="und-mono"
          rows={5}
          resizeOrientation="vertical"
          spellCheck={false}
          value={fields.script}
          placeholder={'#!/bin/sh\nsystemctl is-active postgresql'}
          validated={validated('script')}
          onChange={(_event, script) => set({ script })}
        />
        <Help id="test-script-help" problem={problem('script')}>
          Run as root by the guest's QEMU guest agent; exit status 0 passes. What it prints is kept.
          Everybody who may see this job can read both: no passwords.
        </Help>
      </FormGroup>
      {fields.script.trim() !== '' && (
        <FormGroup label="Time limit of the script" fieldId="test-script-seconds">
          <InputGroup>
            <InputGroupItem>
              <TextInput
                id="test-script-seconds"
                inputMode="numeric"
                value={fields.seconds}
                validated={validated('seconds')}
                onChange={(_event, seconds) => set({ seconds })}
              />
            </InputGroupItem>
            <InputGroupText>s</InputGroupText>
          </InputGroup>
          <Help id="test-script-seconds-help" problem={problem('seconds')}>
            A script that takes longer does not pass.
          </Help>
        </FormGroup>
      )}
    </>
  );
}
