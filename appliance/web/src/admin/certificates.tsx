import { Button, PageSection } from '@patternfly/react-core';
import { KeyIcon } from '@patternfly/react-icons/dist/esm/icons/key-icon';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import { Link } from 'react-router';
import type { Certificate } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { useLive } from '../api/use-live.ts';
import { usePolled } from '../parts/hooks.ts';
import { ErrorAlert, Loading, Nothing, PageHead, StateLabel, When } from '../parts/parts.tsx';
import type { Tone } from '../parts/tone.ts';

const STATES: Record<Certificate['state'], [string, Tone]> = {
  valid: ['Valid', 'good'],
  expired: ['Expired', 'attention'],
  revoked: ['Revoked', 'bad'],
  superseded: ['Superseded', 'neutral'],
};

export function CertificatesPage() {
  const { sources } = useLive();
  const { data, error } = usePolled(api.certificates, 10_000);
  return (
    <>
      <PageHead
        title="Certificates"
        actions={
          <Button
            variant="secondary"
            component={(more) => <a {...more} href="/api/ca.pem" download="understudy-ca.pem" />}
          >
            Download CA certificate
          </Button>
        }
      >
        <p>
          Each agent proves itself with a certificate of the appliance's own CA. They renew
          themselves; renew or revoke one by hand on its source server's page.
        </p>
      </PageHead>
      <PageSection hasBodyWrapper={false}>
        <ErrorAlert error={error} />
        {!data && !error && <Loading what="certificates" />}
        {data?.length === 0 && (
          <Nothing icon={KeyIcon} title="No certificate yet">
            The first one is issued when the agent of a source server enrols.
          </Nothing>
        )}
        {data && data.length > 0 && (
          <Table aria-label="Certificates" id="certificate-table" variant="compact">
            <Thead>
              <Tr>
                <Th>Source server</Th>
                <Th>State</Th>
                <Th>Issued</Th>
                <Th>Expires</Th>
                <Th>Serial</Th>
              </Tr>
            </Thead>
            <Tbody>
              {data.map((certificate) => {
                const [label, tone] = STATES[certificate.state];
                return (
                  <Tr key={certificate.serial} data-serial={certificate.serial}>
                    <Td dataLabel="Source server">
                      {sources.has(certificate.sourceId) ? (
                        <Link to={`/sources/${certificate.sourceId}`}>
                          {certificate.sourceName}
                        </Link>
                      ) : (
                        certificate.sourceName
                      )}
                    </Td>
                    <Td dataLabel="State">
                      <StateLabel tone={tone} state={certificate.state}>
                        {label}
                      </StateLabel>
                    </Td>
                    <Td dataLabel="Issued">
                      <When at={certificate.notBefore} />
                    </Td>
                    <Td dataLabel="Expires">
                      <When at={certificate.notAfter} />
                    </Td>
                    <Td dataLabel="Serial" className="und-fingerprint">
                      {certificate.serial}
                    </Td>
                  </Tr>
                );
              })}
            </Tbody>
          </Table>
        )}
      </PageSection>
    </>
  );
}
