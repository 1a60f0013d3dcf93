/** One recovery point that is open for reading. */
import {
  Alert,
  Button,
  Card,
  CardBody,
  CardTitle,
  DescriptionList,
  List,
  ListItem,
  PageSection,
} from '@patternfly/react-core';
import { Link, useParams } from 'react-router';
import { api } from '../api/client.ts';
import { learn } from '../api/live.ts';
import { useLive } from '../api/use-live.ts';
import { Step } from '../failovers/failover.tsx';
import { useAction } from '../parts/hooks.ts';
import { ErrorAlert, Fact, Loading, Nothing, PageHead, StateLabel, When } from '../parts/parts.tsx';
import { useUser } from '../session/session.tsx';
import { FilesPart } from './files.tsx';
import { NbdPart } from './nbd.tsx';
import { describeMount } from './words.ts';

export function MountPage() {
  const { mountId = '' } = useParams();
  const { mounts, jobs, synced } = useLive();
  const { mayOperate } = useUser();
  const ending = useAction(async () => learn.failover(() => api.endMount(mountId)));
  const found = mounts.get(mountId);
  if (!found?.mount) {
    if (!synced) return <Loading what="the recovery point" />;
    return (
      <>
        <PageHead title="Recovery point" />
        <Nothing
          title="There is no such open recovery point"
          action={<Link to="/jobs">Go to the protection jobs</Link>}
        >
          The address may be of another appliance.
        </Nothing>
      </>
    );
  }
  const { state, point, mount, jobId } = found;
  const job = jobs.get(jobId);
  const words = describeMount(found);
  const isOpen = state.name === 'completed';
  return (
    <div id="mount" data-mount-id={mountId} data-state={state.name}>
      <PageHead
        title={`${mount.purpose === 'files' ? 'Files' : 'Disks'} of ${job?.sourceName ?? found.replicaName}`}
        crumbs={[
          ['Protection jobs', '/jobs'],
          [job?.sourceName ?? found.replicaName, `/jobs/${jobId}`],
        ]}
        beside={
          <StateLabel tone={words.tone} state={state.name} id="mount-state">
            {words.label}
          </StateLabel>
        }
        actions={
          mayOperate &&
          (isOpen || state.name === 'running') && (
            <Button
              variant="secondary"
              id="mount-end"
              isDisabled={ending.busy}
              onClick={() => void ending.run()}
            >
              Close it
            </Button>
          )
        }
      >
        {words.reason}
      </PageHead>
      <PageSection hasBodyWrapper={false} className="und-stack">
        <ErrorAlert error={ending.error} id="mount-end-error" />
        {'error' in state && <ErrorAlert error={state.error} id="mount-error" />}
        {found.notes.length > 0 && (
          <Alert variant="warning" isInline title="To know" id="mount-notes">
            <List isPlain>
              {found.notes.map((note) => (
                <ListItem key={note}>{note}</ListItem>
              ))}
            </List>
          </Alert>
        )}
        <DescriptionList isHorizontal isCompact>
          <Fact term="Recovery point">
            <When at={point.sourceTime} absent="not known yet" id="mount-point" />
          </Fact>
          {isOpen && (
            <Fact term="Closed by itself">
              <When at={mount.endsAt} absent="not known yet" id="mount-ends" />
            </Fact>
          )}
        </DescriptionList>
        {isOpen && mount.purpose === 'files' && (
          <FilesPart mountId={mountId} volumes={mount.volumes} mayRead={mayOperate} />
        )}
        {isOpen && mount.purpose === 'nbd' && (
          <NbdPart mountId={mountId} exports={mount.exports} mayRead={mayOperate} />
        )}
        {!isOpen && (
          <Card>
            <CardTitle component="h2">Steps</CardTitle>
            <CardBody>
              <ol className="und-steps">
                {found.steps.map((step) => (
                  <Step key={step.name} step={step} />
                ))}
              </ol>
            </CardBody>
          </Card>
        )}
      </PageSection>
    </div>
  );
}
