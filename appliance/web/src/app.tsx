import { Bullseye, Button, Spinner } from '@patternfly/react-core';
import { Link, Route, Routes } from 'react-router';
import { AuditPage } from './admin/audit.tsx';
import { CertificatesPage } from './admin/certificates.tsx';
import { SettingsPage } from './admin/settings.tsx';
import { UsersPage } from './admin/users.tsx';
import { FailoverPage } from './failovers/failover.tsx';
import { FailoversPage } from './failovers/failovers.tsx';
import { GroupEditPage } from './groups/edit.tsx';
import { GroupPage } from './groups/group.tsx';
import { GroupsPage } from './groups/groups.tsx';
import { GroupRunPage } from './groups/run.tsx';
import { HostPage } from './host/host.tsx';
import { JobPage } from './jobs/job.tsx';
import { JobsPage } from './jobs/jobs.tsx';
import { ProtectPage } from './jobs/protect.tsx';
import { MountPage } from './mounts/mount.tsx';
import { OverviewPage } from './overview/overview.tsx';
import { ErrorAlert, Nothing, PageHead } from './parts/parts.tsx';
import { FirstPassword, Login } from './session/login.tsx';
import { useSession } from './session/session.tsx';
import { Shell } from './shell/shell.tsx';
import { AddSourcePage } from './sources/add.tsx';
import { SourcePage } from './sources/source.tsx';
import { SourcesPage } from './sources/sources.tsx';

function NotThere() {
  return (
    <>
      <PageHead title="Not found" />
      <Nothing title="There is no such page" action={<Link to="/">Go to the overview</Link>}>
        The address may be of something that was removed.
      </Nothing>
    </>
  );
}

export function App() {
  const { session, ask } = useSession();
  switch (session.name) {
    case 'asking':
      return (
        <Bullseye className="und-loading">
          <Spinner aria-label="Loading" />
        </Bullseye>
      );
    case 'unreachable':
      return (
        <div className="und-alone">
          <ErrorAlert error={session.error} id="appliance-unreachable" />
          <Button onClick={ask} id="appliance-retry">
            Try again
          </Button>
        </div>
      );
    case 'out':
      return <Login ended={session.ended} />;
    case 'must-change-password':
      return <FirstPassword />;
    case 'in':
      return (
        <Routes>
          <Route element={<Shell />}>
            <Route index element={<OverviewPage />} />
            <Route path="sources" element={<SourcesPage />} />
            <Route path="sources/add" element={<AddSourcePage />} />
            <Route path="sources/:sourceId" element={<SourcePage />} />
            <Route path="sources/:sourceId/protect" element={<ProtectPage />} />
            <Route path="jobs" element={<JobsPage />} />
            <Route path="jobs/:jobId" element={<JobPage />} />
            <Route path="failovers" element={<FailoversPage />} />
            <Route path="failovers/:failoverId" element={<FailoverPage />} />
            <Route path="mounts/:mountId" element={<MountPage />} />
            <Route path="groups" element={<GroupsPage />} />
            <Route path="groups/new" element={<GroupEditPage />} />
            <Route path="groups/:groupId" element={<GroupPage />} />
            <Route path="groups/:groupId/edit" element={<GroupEditPage />} />
            <Route path="group-runs/:runId" element={<GroupRunPage />} />
            <Route path="host" element={<HostPage />} />
            <Route path="certificates" element={<CertificatesPage />} />
            <Route path="users" element={<UsersPage />} />
            <Route path="audit" element={<AuditPage />} />
            <Route path="settings" element={<SettingsPage />} />
            <Route path="*" element={<NotThere />} />
          </Route>
        </Routes>
      );
  }
}
