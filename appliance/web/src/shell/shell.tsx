import {
  Alert,
  AlertActionCloseButton,
  AlertActionLink,
  AlertGroup,
  Button,
  Flex,
  FlexItem,
  Masthead,
  MastheadBrand,
  MastheadContent,
  MastheadLogo,
  MastheadMain,
  MastheadToggle,
  Nav,
  NavGroup,
  NavItem,
  NavList,
  Page,
  PageSidebar,
  PageSidebarBody,
  PageToggleButton,
  SkipToContent,
} from '@patternfly/react-core';
import { useEffect } from 'react';
import { Link, Outlet, useLocation } from 'react-router';
import { dismissNotice, retryNow } from '../api/live.ts';
import { useLive } from '../api/use-live.ts';
import { formatClock, formatRelative } from '../format.ts';
import { useNow } from '../parts/hooks.ts';
import { useSession, useUser } from '../session/session.tsx';
import { Guard } from './guard.tsx';

interface Place {
  to: string;
  label: string;
  id: string;
}

const WORK: Place[] = [
  { to: '/', label: 'Overview', id: 'nav-overview' },
  { to: '/sources', label: 'Source servers', id: 'nav-sources' },
  { to: '/jobs', label: 'Protection jobs', id: 'nav-jobs' },
  { to: '/groups', label: 'Groups', id: 'nav-groups' },
  { to: '/failovers', label: 'Failovers', id: 'nav-failovers' },
  { to: '/host', label: 'Target host', id: 'nav-host' },
];
const ADMINISTRATION: Place[] = [
  { to: '/certificates', label: 'Certificates', id: 'nav-certificates' },
  { to: '/users', label: 'Users', id: 'nav-users' },
  { to: '/audit', label: 'Audit log', id: 'nav-audit' },
  { to: '/settings', label: 'Settings', id: 'nav-settings' },
];

function Places(props: { places: Place[] }) {
  const { pathname } = useLocation();
  return props.places.map(({ to, label, id }) => {
    const active = to === '/' ? pathname === '/' : pathname.startsWith(to);
    return (
      <NavItem key={to} itemId={id} isActive={active}>
        <Link to={to} id={id} aria-current={active ? 'page' : undefined}>
          {label}
        </Link>
      </NavItem>
    );
  });
}

/** Says that what is shown is not live any more, and since when. */
function LinkBanner() {
  const { link } = useLive();
  const now = useNow();
  if (link.name !== 'lost') return null;
  return (
    <Alert
      id="connection-lost"
      variant="danger"
      isInline
      className="und-banner"
      title={`Connection lost: what you see is from ${formatClock(new Date(link.sinceMs))}, ${formatRelative(link.sinceMs, now)}`}
      actionLinks={
        <AlertActionLink onClick={retryNow} id="connection-retry">
          Try now
        </AlertActionLink>
      }
    >
      {link.reason} The page connects again by itself. Protection goes on without the page.
    </Alert>
  );
}

/** The page of an older version may misread a newer appliance. */
function UpgradeBanner() {
  const { upgraded } = useLive();
  if (!upgraded) return null;
  return (
    <Alert
      id="appliance-upgraded"
      variant="info"
      isInline
      className="und-banner"
      title="The appliance was upgraded: load the page of the new version"
      actionLinks={<AlertActionLink onClick={() => location.reload()}>Reload</AlertActionLink>}
    />
  );
}

/** They lie over the page, and so leave by themselves; what is wrong stays where it is wrong, and in the audit log. */
const NOTICE_MS = { info: 15_000, warning: 15_000, danger: 30_000 };

function Notices() {
  const { notices } = useLive();
  return (
    <AlertGroup isToast isLiveRegion aria-label="Notices">
      {notices.map(({ key, level, error }) => (
        <Alert
          key={key}
          variant={level}
          title={error.message}
          data-testid="notice"
          data-code={error.code}
          timeout={NOTICE_MS[level]}
          onTimeout={() => dismissNotice(key)}
          actionClose={<AlertActionCloseButton onClose={() => dismissNotice(key)} />}
        >
          {error.hint}
          <p className="und-code">{error.code}</p>
        </Alert>
      ))}
    </AlertGroup>
  );
}

export function Shell() {
  const { pathname } = useLocation();
  // A new page begins at its top, for eyes and for screen readers; a field that took the focus keeps it.
  useEffect(() => {
    const main = pathname ? document.getElementById('main') : null;
    main?.scrollTo(0, 0);
    if (document.activeElement === document.body) main?.focus({ preventScroll: true });
  }, [pathname]);
  const { leave } = useSession();
  const { user } = useUser();
  return (
    <Page
      isManagedSidebar
      mainContainerId="main"
      skipToContent={
        <SkipToContent
          href="#main"
          onClick={(event) => {
            // The address after # belongs to the router.
            event.preventDefault();
            document.getElementById('main')?.focus();
          }}
        >
          Skip to content
        </SkipToContent>
      }
      masthead={
        <Masthead>
          <MastheadMain>
            <MastheadToggle>
              <PageToggleButton isHamburgerButton id="nav-toggle" aria-label="Navigation" />
            </MastheadToggle>
            <MastheadBrand>
              <MastheadLogo component={(props) => <Link {...props} to="/" />}>
                <img src="./logo.svg" alt="" className="und-logo" />
                <span className="und-brand">Understudy</span>
              </MastheadLogo>
            </MastheadBrand>
          </MastheadMain>
          <MastheadContent>
            <Flex
              className="und-grow"
              justifyContent={{ default: 'justifyContentFlexEnd' }}
              alignItems={{ default: 'alignItemsCenter' }}
            >
              <FlexItem id="session-user">
                {user.username} <span className="und-quiet">({user.role})</span>
              </FlexItem>
              <FlexItem>
                <Button variant="secondary" size="sm" id="logout" onClick={() => void leave()}>
                  Log out
                </Button>
              </FlexItem>
            </Flex>
          </MastheadContent>
        </Masthead>
      }
      sidebar={
        <PageSidebar>
          <PageSidebarBody>
            <Nav aria-label="Pages">
              <NavList>
                <Places places={WORK} />
              </NavList>
              <NavGroup title="Administration">
                <Places places={ADMINISTRATION} />
              </NavGroup>
            </Nav>
          </PageSidebarBody>
        </PageSidebar>
      }
    >
      <LinkBanner />
      <UpgradeBanner />
      <Notices />
      <Guard key={pathname}>
        <Outlet />
      </Guard>
    </Page>
  );
}
