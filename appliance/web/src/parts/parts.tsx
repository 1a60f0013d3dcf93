/** Small parts that all pages share. */
import {
  Alert,
  Breadcrumb,
  BreadcrumbItem,
  Bullseye,
  Content,
  DescriptionListDescription,
  DescriptionListGroup,
  DescriptionListTerm,
  EmptyState,
  EmptyStateActions,
  EmptyStateBody,
  EmptyStateFooter,
  Flex,
  FlexItem,
  Label,
  PageSection,
  Progress,
  Spinner,
  Title,
} from '@patternfly/react-core';
import type { ComponentType, ReactNode } from 'react';
import { Link } from 'react-router';
import type { ApiError } from '../../../api/schema.ts';
import { formatAbsolute, formatBytes, formatRelative, percentOf } from '../format.ts';
import { useNow, useTitle } from './hooks.ts';
import type { Tone } from './tone.ts';

/** An error with its code, what happened and what to do. */
export function ErrorAlert(props: {
  error: ApiError | undefined;
  title?: string;
  id?: string;
  level?: 'danger' | 'warning';
}) {
  const { error } = props;
  if (!error) return null;
  return (
    <Alert
      variant={props.level ?? 'danger'}
      isInline
      title={props.title ?? error.message}
      id={props.id}
      data-testid="error-alert"
      data-code={error.code}
      className="und-error"
    >
      {props.title && <p>{error.message}</p>}
      {error.hint && <p>{error.hint}</p>}
      <p className="und-code">
        {error.code}
        {error.field && ` · ${error.field}`}
      </p>
    </Alert>
  );
}

/** A moment, absolute and relative: `2026-08-01 14:03:22 (12 s ago)`. The tooltip has it in UTC. */
export function When(props: { at: string | null | undefined; id?: string; absent?: string }) {
  const now = useNow();
  if (!props.at) return <span id={props.id}>{props.absent ?? 'never'}</span>;
  const at = new Date(props.at);
  return (
    <time dateTime={props.at} title={`${at.toISOString()} (UTC)`} id={props.id}>
      {formatAbsolute(at)}{' '}
      <span className="und-quiet und-nowrap">({formatRelative(at.getTime(), now)})</span>
    </time>
  );
}

/** The age only, with the absolute time in the tooltip: for tables. */
export function Ago(props: { at: string | null | undefined; absent?: string }) {
  const now = useNow();
  if (!props.at) return <>{props.absent ?? 'never'}</>;
  const at = new Date(props.at);
  return (
    <time dateTime={props.at} title={`${formatAbsolute(at)} (${at.toISOString()} UTC)`}>
      {formatRelative(at.getTime(), now)}
    </time>
  );
}

const TONES = {
  good: { status: 'success' },
  busy: { status: 'info' },
  attention: { status: 'warning' },
  bad: { status: 'danger' },
  neutral: { color: 'grey' },
} as const;

/** A state as a person reads it; `data-state` is for programs. */
export function StateLabel(props: { tone: Tone; state: string; id?: string; children: ReactNode }) {
  return (
    <Label
      {...TONES[props.tone]}
      id={props.id}
      data-state={props.state}
      data-testid="state"
      className="und-state"
    >
      {props.children}
    </Label>
  );
}

export function Fact(props: { term: ReactNode; children: ReactNode; id?: string }) {
  return (
    <DescriptionListGroup>
      <DescriptionListTerm>{props.term}</DescriptionListTerm>
      <DescriptionListDescription id={props.id}>{props.children}</DescriptionListDescription>
    </DescriptionListGroup>
  );
}

/** How much of something is used; warns from 85 %, alarms from 95 %. Without a label it stands in a table. */
export function Usage(props: {
  label?: string;
  usedBytes: number;
  totalBytes: number;
  id?: string;
}) {
  const percent = percentOf(props.usedBytes, props.totalBytes);
  const free = Math.max(0, props.totalBytes - props.usedBytes);
  const told = `${formatBytes(free)} free of ${formatBytes(props.totalBytes)}`;
  return (
    <>
      {!props.label && <div>{told}</div>}
      <Progress
        id={props.id}
        title={props.label}
        value={Math.round(percent)}
        size="sm"
        measureLocation={props.label ? 'top' : 'none'}
        variant={percent >= 95 ? 'danger' : percent >= 85 ? 'warning' : undefined}
        label={told}
        aria-label={props.label ?? told}
      />
    </>
  );
}

export function PageHead(props: {
  title: string;
  crumbs?: [label: string, to: string][];
  beside?: ReactNode;
  actions?: ReactNode;
  children?: ReactNode;
}) {
  useTitle(props.title);
  return (
    <PageSection hasBodyWrapper={false} className="und-head">
      {props.crumbs && (
        <Breadcrumb className="und-crumbs">
          {props.crumbs.map(([label, to]) => (
            <BreadcrumbItem
              key={to}
              render={({ className }) => (
                <Link className={className} to={to}>
                  {label}
                </Link>
              )}
            />
          ))}
          <BreadcrumbItem isActive>{props.title}</BreadcrumbItem>
        </Breadcrumb>
      )}
      <Flex
        justifyContent={{ default: 'justifyContentSpaceBetween' }}
        alignItems={{ default: 'alignItemsCenter' }}
      >
        <FlexItem>
          <Flex alignItems={{ default: 'alignItemsCenter' }} gap={{ default: 'gapMd' }}>
            <Title headingLevel="h1" id="page-title">
              {props.title}
            </Title>
            {props.beside}
          </Flex>
        </FlexItem>
        {props.actions && <FlexItem>{props.actions}</FlexItem>}
      </Flex>
      {props.children && <Content className="und-lead">{props.children}</Content>}
    </PageSection>
  );
}

/** Nothing here yet: what this is, and the next thing to do. */
export function Nothing(props: {
  icon?: ComponentType;
  title: string;
  children: ReactNode;
  action?: ReactNode;
  id?: string;
  small?: boolean;
}) {
  return (
    <EmptyState
      icon={props.icon}
      titleText={props.title}
      headingLevel="h2"
      variant={props.small ? 'xs' : 'lg'}
      id={props.id}
    >
      <EmptyStateBody>{props.children}</EmptyStateBody>
      {props.action && (
        <EmptyStateFooter>
          <EmptyStateActions>{props.action}</EmptyStateActions>
        </EmptyStateFooter>
      )}
    </EmptyState>
  );
}

export function Loading(props: { what: string }) {
  return (
    <Bullseye className="und-loading">
      <Spinner size="lg" aria-label={`Loading ${props.what}`} />
    </Bullseye>
  );
}
