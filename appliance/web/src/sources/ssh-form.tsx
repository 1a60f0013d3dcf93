import {
  FormFieldGroup,
  FormGroup,
  FormHelperText,
  Grid,
  GridItem,
  HelperText,
  HelperTextItem,
  Radio,
  TextArea,
  TextInput,
} from '@patternfly/react-core';
import type { SshTarget } from '../../../api/schema.ts';

/** What the person types of an SSH login; it lives in the page's memory only as long as the form is open. */
export interface SshFields {
  address: string;
  port: string;
  username: string;
  auth: 'password' | 'key';
  password: string;
  privateKey: string;
  passphrase: string;
}

export const emptySsh = (address = ''): SshFields => ({
  address,
  port: '22',
  username: 'root',
  auth: 'password',
  password: '',
  privateKey: '',
  passphrase: '',
});

/** The contract's patterns, so that the page refuses what the API would. */
const ADDRESS = /^[A-Za-z0-9.:_-]{1,253}$/;
const USERNAME = /^[A-Za-z_][A-Za-z0-9._-]{0,63}$/;

export interface SshProblems {
  address?: string;
  port?: string;
  username?: string;
  secret?: string;
}

export function sshProblems(fields: SshFields): SshProblems {
  const problems: SshProblems = {};
  if (!ADDRESS.test(fields.address)) problems.address = 'A host name or an IP address.';
  const port = Number(fields.port);
  if (!Number.isInteger(port) || port < 1 || port > 65535) problems.port = '1 to 65535.';
  if (!USERNAME.test(fields.username)) problems.username = 'A user of the source server.';
  if (fields.auth === 'password' && !fields.password) problems.secret = 'The password is missing.';
  if (fields.auth === 'key' && !/-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----/.test(fields.privateKey)) {
    problems.secret = 'A private key in PEM or OpenSSH form, from -----BEGIN … to … END-----.';
  }
  return problems;
}

export const sshReady = (fields: SshFields) => Object.keys(sshProblems(fields)).length === 0;

export function sshTarget(fields: SshFields, acceptHostKey?: string): SshTarget {
  return {
    address: fields.address,
    port: Number(fields.port),
    username: fields.username,
    ...(fields.password ? { password: fields.password } : {}),
    ...(fields.auth === 'key'
      ? {
          privateKey: fields.privateKey,
          ...(fields.passphrase ? { passphrase: fields.passphrase } : {}),
        }
      : {}),
    ...(acceptHostKey ? { acceptHostKey } : {}),
  };
}

function Hint(props: { problem?: string; touched: boolean; children?: string }) {
  const bad = props.problem && props.touched;
  const text = bad ? props.problem : props.children;
  if (!text) return null;
  return (
    <FormHelperText>
      <HelperText>
        <HelperTextItem variant={bad ? 'error' : 'default'}>{text}</HelperTextItem>
      </HelperText>
    </FormHelperText>
  );
}

export function SshForm(props: {
  fields: SshFields;
  set: (change: Partial<SshFields>) => void;
  lockAddress?: boolean;
}) {
  const { fields, set } = props;
  const problems = sshProblems(fields);
  return (
    <>
      <Grid hasGutter>
        <GridItem sm={9}>
          <FormGroup label="Address" fieldId="source-address" isRequired>
            <TextInput
              id="source-address"
              value={fields.address}
              onChange={(_event, address) => set({ address: address.trim() })}
              placeholder="server.example.org or 192.0.2.10"
              autoFocus={!props.lockAddress}
              isDisabled={props.lockAddress}
              spellCheck={false}
              autoCapitalize="none"
              validated={problems.address && fields.address ? 'error' : 'default'}
            />
            <Hint problem={problems.address} touched={fields.address !== ''}>
              As the appliance reaches it. It is used for the installation only: afterwards the
              agent calls the appliance.
            </Hint>
          </FormGroup>
        </GridItem>
        <GridItem sm={3}>
          <FormGroup label="SSH port" fieldId="source-port" isRequired>
            <TextInput
              id="source-port"
              inputMode="numeric"
              value={fields.port}
              onChange={(_event, port) => set({ port: port.trim() })}
              validated={problems.port ? 'error' : 'default'}
            />
            <Hint problem={problems.port} touched />
          </FormGroup>
        </GridItem>
      </Grid>
      <FormGroup label="User" fieldId="source-username" isRequired>
        <TextInput
          id="source-username"
          value={fields.username}
          onChange={(_event, username) => set({ username: username.trim() })}
          autoComplete="off"
          spellCheck={false}
          autoCapitalize="none"
          validated={problems.username && fields.username ? 'error' : 'default'}
        />
        <Hint problem={problems.username} touched={fields.username !== ''}>
          root, or a user who may use sudo.
        </Hint>
      </FormGroup>
      <FormGroup label="Log in with" role="radiogroup" isInline fieldId="source-auth">
        <Radio
          id="source-auth-password"
          name="source-auth"
          label="Password"
          isChecked={fields.auth === 'password'}
          onChange={() => set({ auth: 'password' })}
        />
        <Radio
          id="source-auth-key"
          name="source-auth"
          label="Private key"
          isChecked={fields.auth === 'key'}
          onChange={() => set({ auth: 'key' })}
        />
      </FormGroup>
      {fields.auth === 'password' ? (
        <FormGroup label="Password" fieldId="source-password" isRequired>
          <TextInput
            id="source-password"
            type="password"
            value={fields.password}
            onChange={(_event, password) => set({ password })}
            autoComplete="off"
          />
          <Hint touched={false}>
            Also given to sudo if it asks. It is forgotten after the installation.
          </Hint>
        </FormGroup>
      ) : (
        <FormFieldGroup>
          <FormGroup label="Private key" fieldId="source-key" isRequired>
            <TextArea
              id="source-key"
              value={fields.privateKey}
              onChange={(_event, privateKey) => set({ privateKey })}
              rows={6}
              resizeOrientation="vertical"
              className="und-mono"
              spellCheck={false}
              placeholder="-----BEGIN OPENSSH PRIVATE KEY-----"
              validated={problems.secret && fields.privateKey ? 'error' : 'default'}
            />
            <Hint problem={problems.secret} touched={fields.privateKey !== ''}>
              It is forgotten after the installation.
            </Hint>
          </FormGroup>
          <FormGroup label="Passphrase of the key" fieldId="source-passphrase">
            <TextInput
              id="source-passphrase"
              type="password"
              value={fields.passphrase}
              onChange={(_event, passphrase) => set({ passphrase })}
              autoComplete="off"
            />
          </FormGroup>
          <FormGroup label="Password for sudo" fieldId="source-sudo-password">
            <TextInput
              id="source-sudo-password"
              type="password"
              value={fields.password}
              onChange={(_event, password) => set({ password })}
              autoComplete="off"
            />
            <Hint touched={false}>Only if sudo asks for one.</Hint>
          </FormGroup>
        </FormFieldGroup>
      )}
    </>
  );
}
