import {
  Button,
  Form,
  FormGroup,
  FormHelperText,
  HelperText,
  HelperTextItem,
  PageSection,
  Radio,
  TextInput,
} from '@patternfly/react-core';
import { LockIcon } from '@patternfly/react-icons/dist/esm/icons/lock-icon';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import { useState } from 'react';
import type { Role } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { ConfirmDialog } from '../parts/confirm.tsx';
import { usePolled } from '../parts/hooks.ts';
import { ErrorAlert, Loading, Nothing, PageHead, When } from '../parts/parts.tsx';
import { PASSWORD_MIN } from '../session/login.tsx';
import { useUser } from '../session/session.tsx';

const ROLES: [Role, string, string][] = [
  ['admin', 'Admin', 'Everything, users and backups included.'],
  ['operator', 'Operator', 'Sources, protection and failover.'],
  ['viewer', 'Viewer', 'Sees everything, changes nothing.'],
];
const USERNAME = /^[a-z][a-z0-9._-]{0,31}$/;

function AddDialog(props: { close: () => void; added: () => void }) {
  const [username, setUsername] = useState('');
  const [password, setPassword] = useState('');
  const [role, setRole] = useState<Role>('operator');
  const nameBad = username !== '' && !USERNAME.test(username);
  return (
    <ConfirmDialog
      id="user-dialog"
      title="Add a user"
      submit="Add user"
      blocked={!USERNAME.test(username) || password.length < PASSWORD_MIN}
      close={props.close}
      act={async () => {
        await api.addUser({ username, password, role });
        props.added();
      }}
    >
      <Form onSubmit={(event) => event.preventDefault()}>
        <FormGroup label="Username" fieldId="user-name" isRequired>
          <TextInput
            id="user-name"
            value={username}
            onChange={(_event, value) => setUsername(value)}
            autoComplete="off"
            validated={nameBad ? 'error' : 'default'}
          />
          <FormHelperText>
            <HelperText>
              <HelperTextItem variant={nameBad ? 'error' : 'default'}>
                Small letters, digits, dot, underscore and hyphen; begins with a letter.
              </HelperTextItem>
            </HelperText>
          </FormHelperText>
        </FormGroup>
        <FormGroup label="First password" fieldId="user-password" isRequired>
          <TextInput
            id="user-password"
            type="password"
            value={password}
            onChange={(_event, value) => setPassword(value)}
            autoComplete="new-password"
          />
          <FormHelperText>
            <HelperText>
              <HelperTextItem>At least {PASSWORD_MIN} characters.</HelperTextItem>
            </HelperText>
          </FormHelperText>
        </FormGroup>
        <FormGroup label="Role" role="radiogroup" fieldId="user-role">
          {ROLES.map(([value, label, description]) => (
            <Radio
              key={value}
              id={`user-role-${value}`}
              name="user-role"
              label={label}
              description={description}
              isChecked={role === value}
              onChange={() => setRole(value)}
            />
          ))}
        </FormGroup>
      </Form>
    </ConfirmDialog>
  );
}

export function UsersPage() {
  const { user: me, isAdmin } = useUser();
  return isAdmin ? (
    <UserList me={me.username} />
  ) : (
    <>
      <PageHead title="Users" />
      <Nothing icon={LockIcon} title="Only admins see the users">
        You are logged in as {me.username}. Ask an admin for the role if you need it.
      </Nothing>
    </>
  );
}

function UserList(props: { me: string }) {
  const { data, error, reload } = usePolled(api.users, 10_000);
  const [adding, setAdding] = useState(false);
  const [removing, setRemoving] = useState<string>();
  return (
    <>
      <PageHead
        title="Users"
        actions={
          <Button variant="primary" id="add-user" onClick={() => setAdding(true)}>
            Add user
          </Button>
        }
      />
      <PageSection hasBodyWrapper={false}>
        <ErrorAlert error={error} />
        {!data && !error && <Loading what="users" />}
        {data && (
          <Table aria-label="Users" id="user-table" variant="compact">
            <Thead>
              <Tr>
                <Th>Username</Th>
                <Th>Role</Th>
                <Th>Created</Th>
                <Th screenReaderText="Actions" />
              </Tr>
            </Thead>
            <Tbody>
              {data.map((one) => (
                <Tr key={one.username} id={`user-row-${one.username}`}>
                  <Td dataLabel="Username">
                    {one.username}
                    {one.username === props.me && <span className="und-quiet"> (you)</span>}
                    {one.mustChangePassword && (
                      <div className="und-quiet">has not set a password of their own yet</div>
                    )}
                  </Td>
                  <Td dataLabel="Role">{ROLES.find(([role]) => role === one.role)?.[1]}</Td>
                  <Td dataLabel="Created">
                    <When at={one.createdAt} />
                  </Td>
                  <Td className="und-row-actions">
                    {one.username !== props.me && (
                      <Button
                        variant="link"
                        isDanger
                        size="sm"
                        id={`user-remove-${one.username}`}
                        onClick={() => setRemoving(one.username)}
                      >
                        Remove
                      </Button>
                    )}
                  </Td>
                </Tr>
              ))}
            </Tbody>
          </Table>
        )}
      </PageSection>
      {adding && <AddDialog close={() => setAdding(false)} added={reload} />}
      {removing && (
        <ConfirmDialog
          title={`Remove the user ${removing}?`}
          submit="Remove user"
          danger
          close={() => setRemoving(undefined)}
          act={async () => {
            await api.removeUser(removing);
            reload();
          }}
        >
          <p>Their sessions end at once. The audit log keeps what they did.</p>
        </ConfirmDialog>
      )}
    </>
  );
}
