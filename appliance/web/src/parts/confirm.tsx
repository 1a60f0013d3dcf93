import {
  Button,
  Form,
  FormGroup,
  FormHelperText,
  HelperText,
  HelperTextItem,
  Modal,
  ModalBody,
  ModalFooter,
  ModalHeader,
  TextInput,
} from '@patternfly/react-core';
import { type ReactNode, useState } from 'react';
import { useAction } from './hooks.ts';
import { ErrorAlert } from './parts.tsx';

/**
 * Asks before something that cannot simply be taken back. With `typed`, its button stays off until exactly that was
 * typed. `act` gets what was typed; its error is shown here and the dialog stays open.
 */
export function ConfirmDialog(props: {
  title: string;
  children: ReactNode;
  submit: string;
  danger?: boolean;
  typed?: string;
  typedLabel?: string;
  blocked?: boolean;
  id?: string;
  wide?: boolean;
  act: (typed: string) => Promise<unknown>;
  close: () => void;
}) {
  const [typed, setTyped] = useState('');
  const action = useAction(async () => {
    await props.act(typed);
    props.close();
  });
  const ready = !props.blocked && (props.typed === undefined || typed === props.typed);
  return (
    <Modal
      isOpen
      id={props.id ?? 'confirm-dialog'}
      variant={props.wide ? 'medium' : 'small'}
      onClose={() => !action.busy && props.close()}
      aria-labelledby="confirm-title"
      elementToFocus={props.typed === undefined ? '#confirm-cancel' : '#confirm-input'}
    >
      <ModalHeader
        title={props.title}
        labelId="confirm-title"
        titleIconVariant={props.danger ? 'warning' : undefined}
      />
      <ModalBody>
        {props.children}
        <ErrorAlert error={action.error} id="confirm-error" />
        {props.typed !== undefined && (
          <Form
            className="und-confirm-form"
            onSubmit={(event) => {
              event.preventDefault();
              if (ready) void action.run();
            }}
          >
            <FormGroup
              label={props.typedLabel ?? 'Type the name to confirm'}
              fieldId="confirm-input"
            >
              <TextInput
                id="confirm-input"
                value={typed}
                onChange={(_event, value) => setTyped(value)}
                autoComplete="off"
                spellCheck={false}
                validated={ready && typed ? 'success' : 'default'}
              />
              <FormHelperText>
                <HelperText>
                  <HelperTextItem>
                    Type <code className="und-typed">{props.typed}</code> exactly.
                  </HelperTextItem>
                </HelperText>
              </FormHelperText>
            </FormGroup>
          </Form>
        )}
      </ModalBody>
      <ModalFooter>
        <Button
          id="confirm-submit"
          variant={props.danger ? 'danger' : 'primary'}
          isDisabled={!ready || action.busy}
          isLoading={action.busy}
          onClick={() => void action.run()}
        >
          {props.submit}
        </Button>
        <Button id="confirm-cancel" variant="link" isDisabled={action.busy} onClick={props.close}>
          Cancel
        </Button>
      </ModalFooter>
    </Modal>
  );
}
