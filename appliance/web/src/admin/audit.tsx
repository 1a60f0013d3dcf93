import {
  Button,
  PageSection,
  SearchInput,
  Toolbar,
  ToolbarContent,
  ToolbarItem,
} from '@patternfly/react-core';
import { LockIcon } from '@patternfly/react-icons/dist/esm/icons/lock-icon';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import { useState } from 'react';
import type { AuditEntry } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { usePolled } from '../parts/hooks.ts';
import { ErrorAlert, Loading, Nothing, PageHead, StateLabel, When } from '../parts/parts.tsx';
import type { Tone } from '../parts/tone.ts';

import { useUser } from '../session/session.tsx';

const OUTCOMES: Record<AuditEntry['outcome'], [string, Tone]> = {
  ok: ['Done', 'good'],
  refused: ['Refused', 'attention'],
  failed: ['Failed', 'bad'],
};
const PAGE = 200;
const keyOf = (entry: AuditEntry) =>
  `${entry.at} ${entry.who} ${entry.act} ${entry.object} ${entry.detail}`;

export function AuditPage() {
  const { mayOperate } = useUser();
  if (mayOperate) return <AuditLog />;
  return (
    <>
      <PageHead title="Audit log" />
      <Nothing icon={LockIcon} title="Viewers do not see the audit log">
        Ask an admin for the role operator if you need it.
      </Nothing>
    </>
  );
}

function AuditLog() {
  const [limit, setLimit] = useState(PAGE);
  const [filter, setFilter] = useState('');
  const { data, error, reload } = usePolled(() => api.audit(limit), 5000);
  const wanted = filter.trim().toLowerCase();
  const shown = data?.filter((entry) =>
    `${entry.who} ${entry.act} ${entry.object} ${entry.detail} ${entry.outcome}`
      .toLowerCase()
      .includes(wanted),
  );
  return (
    <>
      <PageHead title="Audit log">
        <p>Who did what to what, and how it ended, newest first.</p>
      </PageHead>
      <PageSection hasBodyWrapper={false}>
        <ErrorAlert error={error} />
        <Toolbar>
          <ToolbarContent>
            <ToolbarItem>
              <SearchInput
                aria-label="Filter"
                placeholder="Filter by who, act or object"
                value={filter}
                onChange={(_event, value) => setFilter(value)}
                onClear={() => setFilter('')}
                searchInputId="audit-filter"
              />
            </ToolbarItem>
          </ToolbarContent>
        </Toolbar>
        {!data && !error && <Loading what="the audit log" />}
        {shown?.length === 0 && (
          <Nothing title={wanted ? 'No entry matches' : 'The audit log is empty'} small>
            {wanted ? 'Try another word.' : 'Every act on this page and in the API appears here.'}
          </Nothing>
        )}
        {shown && shown.length > 0 && (
          <Table aria-label="Audit log" id="audit-table" variant="compact">
            <Thead>
              <Tr>
                <Th width={20}>Time</Th>
                <Th>Who</Th>
                <Th>Act</Th>
                <Th>Object</Th>
                <Th>Outcome</Th>
                <Th width={30}>Detail</Th>
              </Tr>
            </Thead>
            <Tbody>
              {shown.map((entry) => {
                const [label, tone] = OUTCOMES[entry.outcome];
                return (
                  <Tr key={keyOf(entry)}>
                    <Td dataLabel="Time">
                      <When at={entry.at} />
                    </Td>
                    <Td dataLabel="Who">{entry.who}</Td>
                    <Td dataLabel="Act">{entry.act}</Td>
                    <Td dataLabel="Object" modifier="breakWord">
                      {entry.object || '–'}
                    </Td>
                    <Td dataLabel="Outcome">
                      <StateLabel tone={tone} state={entry.outcome}>
                        {label}
                      </StateLabel>
                    </Td>
                    <Td dataLabel="Detail" modifier="breakWord">
                      {entry.detail}
                    </Td>
                  </Tr>
                );
              })}
            </Tbody>
          </Table>
        )}
        {data && data.length >= limit && (
          <Button
            variant="secondary"
            className="und-gap"
            onClick={() => {
              setLimit(limit + 5 * PAGE);
              setTimeout(reload);
            }}
          >
            Show older entries
          </Button>
        )}
      </PageSection>
    </>
  );
}
