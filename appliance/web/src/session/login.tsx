import {
  Alert,
  Button,
  Form,
  FormGroup,
  FormHelperText,
  HelperText,
  HelperTextItem,
  LoginPage,
  TextInput,
} from '@patternfly/react-core';
import { type FormEvent, useState } from 'react';
import { api } from '../api/client.ts';
import { useAction, useTitle } from '../parts/hooks.ts';
import { ErrorAlert } from '../parts/parts.tsx';
import { useSession } from './session.tsx';

/** The schema's least length of a password. */
export const PASSWORD_MIN = 10;

const brand = { brandImgSrc: './logo.svg', brandImgAlt: 'Understudy' };
const about =
  'Understudy keeps a replica of each source server on this host, up to the second, and starts it when the source is gone.';

export function Login(props: { ended: boolean }) {
  useTitle('Log in');
  const { enter } = useSession();
  const [username, setUsername] = useState('');
  const [password, setPassword] = useState('');
  const login = useAction(async () => enter(await api.login(username, password)));
  const submit = (event: FormEvent) => {
    event.preventDefault();
    void login.run();
  };
  return (
    <LoginPage {...brand} loginTitle="Log in to Understudy" textContent={about}>
      <Form onSubmit={submit} id="login-form">
        {props.ended && !login.error && (
          <Alert
            variant="info"
            isInline
            title="Your session has ended. Log in again to go on."
            id="session-ended"
          />
        )}
        <ErrorAlert error={login.error} id="login-error" />
        <FormGroup label="Username" fieldId="login-username" isRequired>
          <TextInput
            id="login-username"
            name="username"
            value={username}
            onChange={(_event, value) => setUsername(value)}
            autoComplete="username"
            autoCapitalize="none"
            spellCheck={false}
            autoFocus
            isRequired
          />
        </FormGroup>
        <FormGroup label="Password" fieldId="login-password" isRequired>
          <TextInput
            id="login-password"
            name="password"
            type="password"
            value={password}
            onChange={(_event, value) => setPassword(value)}
            autoComplete="current-password"
            isRequired
          />
          <FormHelperText>
            <HelperText>
              <HelperTextItem>
                At the first login: user <strong>admin</strong> with the one-time password of the
                appliance's console.
              </HelperTextItem>
            </HelperText>
          </FormHelperText>
        </FormGroup>
        <Button
          id="login-submit"
          type="submit"
          variant="primary"
          isBlock
          isDisabled={!username || !password || login.busy}
          isLoading={login.busy}
        >
          Log in
        </Button>
      </Form>
    </LoginPage>
  );
}

/** Fields and checks of a password change; used at first login and in the settings. */
export function PasswordFields(props: {
  current?: string;
  changed: () => void;
  submit: string;
  block?: boolean;
}) {
  const { enter } = useSession();
  const [current, setCurrent] = useState(props.current ?? '');
  const [next, setNext] = useState('');
  const [again, setAgain] = useState('');
  const change = useAction(async () => {
    const user = await api.changePassword(current, next);
    setCurrent('');
    setNext('');
    setAgain('');
    props.changed();
    enter(user);
  });
  const tooShort = next.length > 0 && next.length < PASSWORD_MIN;
  const differs = again.length > 0 && again !== next;
  const same = next.length > 0 && next === current;
  const ready = current && next.length >= PASSWORD_MIN && again === next && !same;
  const hint = (bad: boolean, text: string) => (
    <FormHelperText>
      <HelperText>
        <HelperTextItem variant={bad ? 'error' : 'default'}>{text}</HelperTextItem>
      </HelperText>
    </FormHelperText>
  );
  return (
    <Form
      id="password-form"
      onSubmit={(event) => {
        event.preventDefault();
        if (ready) void change.run();
      }}
    >
      <ErrorAlert error={change.error} id="password-error" />
      <FormGroup label="Present password" fieldId="password-current" isRequired>
        <TextInput
          id="password-current"
          type="password"
          value={current}
          onChange={(_event, value) => setCurrent(value)}
          autoComplete="current-password"
          isRequired
        />
      </FormGroup>
      <FormGroup label="New password" fieldId="password-next" isRequired>
        <TextInput
          id="password-next"
          type="password"
          value={next}
          onChange={(_event, value) => setNext(value)}
          autoComplete="new-password"
          validated={tooShort || same ? 'error' : 'default'}
          isRequired
        />
        {hint(
          tooShort || same,
          same
            ? 'The new password has to differ from the present one.'
            : `At least ${PASSWORD_MIN} characters.`,
        )}
      </FormGroup>
      <FormGroup label="New password, again" fieldId="password-again" isRequired>
        <TextInput
          id="password-again"
          type="password"
          value={again}
          onChange={(_event, value) => setAgain(value)}
          autoComplete="new-password"
          validated={differs ? 'error' : 'default'}
          isRequired
        />
        {differs && hint(true, 'The two are not the same.')}
      </FormGroup>
      <Button
        id="password-submit"
        type="submit"
        variant="primary"
        isBlock={props.block}
        className="und-start"
        isDisabled={!ready || change.busy}
        isLoading={change.busy}
      >
        {props.submit}
      </Button>
    </Form>
  );
}

export function FirstPassword() {
  useTitle('Set a password');
  const { leave } = useSession();
  return (
    <LoginPage
      {...brand}
      loginTitle="Set a password of your own"
      loginSubtitle="The password that you logged in with was for one use only."
      textContent={about}
    >
      <PasswordFields submit="Set password" changed={() => undefined} block />
      <Button variant="link" onClick={() => void leave()} id="password-cancel" className="und-gap">
        Log out
      </Button>
    </LoginPage>
  );
}
