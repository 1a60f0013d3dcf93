import {
  Alert,
  Button,
  Card,
  CardBody,
  CardTitle,
  ClipboardCopy,
  DescriptionList,
  FileUpload,
  Form,
  FormGroup,
  FormHelperText,
  Grid,
  GridItem,
  HelperText,
  HelperTextItem,
  PageSection,
  TextInput,
} from '@patternfly/react-core';
import { useState } from 'react';
import { api } from '../api/client.ts';
import { ConfirmDialog } from '../parts/confirm.tsx';
import { useAction, usePolled } from '../parts/hooks.ts';
import { ErrorAlert, Fact, Loading, PageHead, When } from '../parts/parts.tsx';
import { PASSWORD_MIN, PasswordFields } from '../session/login.tsx';
import { useUser } from '../session/session.tsx';

function About() {
  const { data, error } = usePolled(api.system, null);
  return (
    <Card isFullHeight>
      <CardTitle component="h2">This appliance</CardTitle>
      <CardBody>
        <ErrorAlert error={error} />
        {!data && !error && <Loading what="the appliance" />}
        {data && (
          <DescriptionList isHorizontal isCompact>
            <Fact term="Version" id="system-version">
              {data.version}
            </Fact>
            <Fact term="Running since">
              <When at={data.startedAt} />
            </Fact>
            <Fact term="Identity">
              <span className="und-fingerprint">{data.applianceId}</span>
            </Fact>
            <Fact term="Agents connect to">port {data.agentPort}</Fact>
            <Fact term="Journal at">
              <span className="und-mono">{data.journal.path}</span>
            </Fact>
            <Fact term="CA fingerprint (SHA-256)">
              <ClipboardCopy
                isReadOnly
                isCode
                hoverTip="Copy"
                clickTip="Copied"
                variant="inline-compact"
                id="ca-fingerprint"
              >
                {data.caFingerprintSha256}
              </ClipboardCopy>
              <div className="und-quiet">
                Compare it with the appliance's console, then let your browser trust{' '}
                <a href="/api/ca.pem" download="understudy-ca.pem">
                  the CA certificate
                </a>
                .
              </div>
            </Fact>
            <Fact term="API">
              <a href="/api/openapi.json">OpenAPI description</a>
            </Fact>
          </DescriptionList>
        )}
      </CardBody>
    </Card>
  );
}

function Password() {
  const [changed, setChanged] = useState(false);
  return (
    <Card isFullHeight>
      <CardTitle component="h2">Your password</CardTitle>
      <CardBody className="und-stack">
        {changed && (
          <Alert
            variant="success"
            isInline
            title="Your password is changed."
            id="password-changed"
          />
        )}
        <PasswordFields submit="Change password" changed={() => setChanged(true)} />
      </CardBody>
    </Card>
  );
}

/** Hands the browser a file to save. */
function save(blob: Blob, name: string): void {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function Backup() {
  const [passphrase, setPassphrase] = useState('');
  const [done, setDone] = useState<string>();
  const backup = useAction(async () => {
    const blob = await api.backup(passphrase);
    const name = `understudy-config-${new Date().toISOString().slice(0, 19).replace(/[:T]/g, '-')}.backup`;
    save(blob, name);
    setPassphrase('');
    setDone(name);
  });
  const short = passphrase !== '' && passphrase.length < PASSWORD_MIN;
  return (
    <Card isFullHeight>
      <CardTitle component="h2">Back up the configuration</CardTitle>
      <CardBody className="und-stack">
        <p className="und-quiet">
          The CA, users, sources and jobs, encrypted with a passphrase. Replica disks and journal
          are not in it.
        </p>
        {done && (
          <Alert variant="success" isInline title={`Saved as ${done}.`} id="backup-done">
            Keep it and its passphrase away from this host.
          </Alert>
        )}
        <ErrorAlert error={backup.error} id="backup-error" />
        <Form
          onSubmit={(event) => {
            event.preventDefault();
            if (passphrase.length >= PASSWORD_MIN) void backup.run();
          }}
        >
          <FormGroup label="Passphrase" fieldId="backup-passphrase" isRequired>
            <TextInput
              id="backup-passphrase"
              type="password"
              value={passphrase}
              onChange={(_event, value) => setPassphrase(value)}
              autoComplete="new-password"
              validated={short ? 'error' : 'default'}
            />
            <FormHelperText>
              <HelperText>
                <HelperTextItem variant={short ? 'error' : 'default'}>
                  At least {PASSWORD_MIN} characters. Without it the backup cannot be read.
                </HelperTextItem>
              </HelperText>
            </FormHelperText>
          </FormGroup>
          <Button
            id="backup-submit"
            type="submit"
            variant="secondary"
            className="und-start"
            isDisabled={passphrase.length < PASSWORD_MIN || backup.busy}
            isLoading={backup.busy}
          >
            Back up
          </Button>
        </Form>
      </CardBody>
    </Card>
  );
}

async function base64Of(file: File): Promise<string> {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let binary = '';
  // In slices: a call cannot have millions of arguments.
  for (let i = 0; i < bytes.length; i += 32768) {
    binary += String.fromCharCode(...bytes.subarray(i, i + 32768));
  }
  return btoa(binary);
}

function Restore() {
  const [passphrase, setPassphrase] = useState('');
  const [file, setFile] = useState<File>();
  const [asking, setAsking] = useState(false);
  const [done, setDone] = useState(false);
  return (
    <Card isFullHeight>
      <CardTitle component="h2">Restore a configuration</CardTitle>
      <CardBody className="und-stack">
        <p className="und-quiet">
          Replaces everything configured here by what the backup holds; the service then restarts
          itself. A job goes on where its journal ends; where the journal and its source do not
          match, the disks are compared first (difference mirror).
        </p>
        {done && (
          <Alert
            variant="success"
            isInline
            id="restore-done"
            title="Restored. The service restarts; log in again in a moment."
          />
        )}
        <Form onSubmit={(event) => event.preventDefault()}>
          <FormGroup label="Backup file" fieldId="restore-file" isRequired>
            <FileUpload
              id="restore-file"
              filename={file?.name}
              filenamePlaceholder="Choose a file"
              browseButtonText="Choose"
              hideDefaultPreview
              onFileInputChange={(_event, chosen) => setFile(chosen)}
              onClearClick={() => setFile(undefined)}
            />
          </FormGroup>
          <FormGroup label="Its passphrase" fieldId="restore-passphrase" isRequired>
            <TextInput
              id="restore-passphrase"
              type="password"
              value={passphrase}
              onChange={(_event, value) => setPassphrase(value)}
              autoComplete="off"
            />
          </FormGroup>
          <Button
            id="restore-submit"
            variant="danger"
            className="und-start"
            isDisabled={!file || !passphrase}
            onClick={() => setAsking(true)}
          >
            Restore…
          </Button>
        </Form>
        {asking && file && (
          <ConfirmDialog
            title="Restore this configuration?"
            submit="Restore"
            danger
            typed="restore"
            typedLabel="Confirm"
            close={() => setAsking(false)}
            act={async () => {
              await api.restore(passphrase, await base64Of(file));
              setPassphrase('');
              setDone(true);
            }}
          >
            <p>
              Users, sources, jobs and the CA of this appliance are replaced by those of{' '}
              <strong>{file.name}</strong>.
            </p>
          </ConfirmDialog>
        )}
      </CardBody>
    </Card>
  );
}

export function SettingsPage() {
  const { isAdmin } = useUser();
  return (
    <>
      <PageHead title="Settings" />
      <PageSection hasBodyWrapper={false}>
        <Grid hasGutter>
          <GridItem lg={6}>
            <About />
          </GridItem>
          <GridItem lg={6}>
            <Password />
          </GridItem>
          {isAdmin && (
            <>
              <GridItem lg={6}>
                <Backup />
              </GridItem>
              <GridItem lg={6}>
                <Restore />
              </GridItem>
            </>
          )}
        </Grid>
      </PageSection>
    </>
  );
}
