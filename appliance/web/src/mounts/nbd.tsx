/** A recovery point that is exported to a backup tool: where it is, and how to copy it. */
import {
  Button,
  Card,
  CardBody,
  CardTitle,
  ClipboardCopy,
  ClipboardCopyVariant,
} from '@patternfly/react-core';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import type { NbdExport } from '../../../api/schema.ts';
import { api } from '../api/client.ts';
import { formatBytes } from '../format.ts';
import { copyCommand, nbdUri } from './words.ts';

export function NbdPart(props: { mountId: string; exports: NbdExport[]; mayRead: boolean }) {
  const { mountId, exports, mayRead } = props;
  // The name under which the reader reaches the appliance is the likeliest to work for a tool beside it.
  const host = location.hostname;
  return (
    <Card id="nbd">
      <CardTitle component="h2">Export over NBD</CardTitle>
      <CardBody className="und-stack">
        <p>
          Read-only, with TLS. A client is let in with the certificate of this export, and with no
          other.
        </p>
        {mayRead && (
          <Button
            variant="secondary"
            component="a"
            className="und-start"
            id="nbd-credentials"
            href={api.nbdCredentialsUrl(mountId)}
            download
          >
            Download the client’s certificate
          </Button>
        )}
        <ClipboardCopy isReadOnly hoverTip="Copy" clickTip="Copied">
          tar -xf understudy-nbd.tar
        </ClipboardCopy>
        <Table variant="compact" aria-label="Exports" borders={false} id="nbd-table">
          <Thead>
            <Tr>
              <Th width={10}>Disk</Th>
              <Th width={10}>Size</Th>
              <Th width={80}>Copy it</Th>
            </Tr>
          </Thead>
          <Tbody>
            {exports.map(({ disk, name, port, sizeBytes, addresses }) => (
              <Tr key={name} data-testid="nbd-export" data-port={port} data-name={name}>
                <Td dataLabel="Disk">{disk}</Td>
                <Td dataLabel="Size">{formatBytes(sizeBytes)}</Td>
                <Td dataLabel="Copy it" className="und-stack">
                  <ClipboardCopy
                    isReadOnly
                    isCode
                    hoverTip="Copy"
                    clickTip="Copied"
                    variant={ClipboardCopyVariant.expansion}
                  >
                    {copyCommand(host, port, name)}
                  </ClipboardCopy>
                  <ClipboardCopy isReadOnly hoverTip="Copy" clickTip="Copied">
                    {nbdUri(host, port, name)}
                  </ClipboardCopy>
                  <span className="und-quiet">
                    The certificate is for {[...addresses, 'localhost'].join(', ')}.
                  </span>
                </Td>
              </Tr>
            ))}
          </Tbody>
        </Table>
      </CardBody>
    </Card>
  );
}
