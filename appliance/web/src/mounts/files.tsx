/** The files of a recovery point that is open: its file systems, one folder at a time, downloads. */
import {
  Alert,
  Breadcrumb,
  BreadcrumbItem,
  Button,
  Card,
  CardBody,
  CardTitle,
  Flex,
} from '@patternfly/react-core';
import { FileIcon } from '@patternfly/react-icons/dist/esm/icons/file-icon';
import { FolderIcon } from '@patternfly/react-icons/dist/esm/icons/folder-icon';
import { LinkIcon } from '@patternfly/react-icons/dist/esm/icons/link-icon';
import { QuestionCircleIcon } from '@patternfly/react-icons/dist/esm/icons/question-circle-icon';
import { Table, Tbody, Td, Th, Thead, Tr } from '@patternfly/react-table';
import { useEffect, useState } from 'react';
import type { ApiError, FileEntry, FileListing, GuestVolume } from '../../../api/schema.ts';
import { api, asApiError } from '../api/client.ts';
import { formatAbsolute, formatBytes } from '../format.ts';
import { ErrorAlert, Loading } from '../parts/parts.tsx';
import { crumbsOf, KIND_WORDS, modeInWords } from './words.ts';

const PAGE_ENTRIES = 500;
const ICONS: Record<FileEntry['kind'], typeof FileIcon> = {
  file: FileIcon,
  folder: FolderIcon,
  link: LinkIcon,
  special: QuestionCircleIcon,
  unreadable: QuestionCircleIcon,
};

interface Place {
  volume: string;
  path: string;
  from: number;
}

const nameOf = ({ volumeId, mountPoint, label }: GuestVolume): string =>
  [volumeId, mountPoint ?? label].filter(Boolean).join(' · ');

export function FilesPart(props: { mountId: string; volumes: GuestVolume[]; mayRead: boolean }) {
  const { mountId, volumes, mayRead } = props;
  const root =
    volumes.find(({ mountPoint }) => mountPoint === '/') ?? volumes.find((v) => v.browsable);
  const [place, setPlace] = useState<Place | null>(
    root?.browsable && mayRead ? { volume: root.volumeId, path: '/', from: 0 } : null,
  );
  return (
    <>
      <Card>
        <CardTitle component="h2">File systems</CardTitle>
        <CardBody>
          <Table variant="compact" aria-label="File systems" borders={false} id="volume-table">
            <Thead>
              <Tr>
                <Th width={30}>On the source</Th>
                <Th width={25}>Holds</Th>
                <Th width={15}>Size</Th>
                <Th width={30}>Mounted there at</Th>
              </Tr>
            </Thead>
            <Tbody>
              {volumes.map((volume) => (
                <Tr
                  key={volume.volumeId}
                  data-testid="volume"
                  data-volume={volume.volumeId}
                  data-browsable={volume.browsable}
                >
                  <Td dataLabel="On the source">
                    {volume.browsable && mayRead ? (
                      <Button
                        variant="link"
                        isInline
                        onClick={() => setPlace({ volume: volume.volumeId, path: '/', from: 0 })}
                      >
                        {volume.volumeId}
                      </Button>
                    ) : (
                      volume.volumeId
                    )}
                  </Td>
                  <Td dataLabel="Holds">
                    {volume.content}
                    {volume.label && <span className="und-quiet"> {volume.label}</span>}
                    {volume.note && <div className="und-quiet">{volume.note}</div>}
                  </Td>
                  <Td dataLabel="Size">{formatBytes(volume.sizeBytes)}</Td>
                  <Td dataLabel="Mounted there at">
                    <span className="und-mono">{volume.mountPoint ?? '–'}</span>
                  </Td>
                </Tr>
              ))}
            </Tbody>
          </Table>
        </CardBody>
      </Card>
      {!mayRead && (
        <Alert
          variant="info"
          isInline
          title="Only operators may look at files."
          id="mount-viewer"
        />
      )}
      {place && (
        <FolderCard
          mountId={mountId}
          place={place}
          title={nameOf(volumes.find(({ volumeId }) => volumeId === place.volume) ?? volumes[0]!)}
          go={setPlace}
        />
      )}
    </>
  );
}

function FolderCard(props: {
  mountId: string;
  place: Place;
  title: string;
  go: (place: Place) => void;
}) {
  const { mountId, place, go } = props;
  const { volume, path, from } = place;
  const [listing, setListing] = useState<FileListing>();
  const [error, setError] = useState<ApiError>();
  useEffect(() => {
    let current = true;
    setListing(undefined);
    setError(undefined);
    api.files(mountId, volume, path, from, PAGE_ENTRIES).then(
      (found) => current && setListing(found),
      (thrown) => current && setError(asApiError(thrown)),
    );
    return () => {
      current = false;
    };
  }, [mountId, volume, path, from]);
  const crumbs = crumbsOf(listing?.path ?? path);
  const to = (target: string) => go({ volume, path: target, from: 0 });
  return (
    <Card id="folder" data-path={listing?.path}>
      <CardTitle component="h2">
        <Breadcrumb aria-label="Folder">
          <BreadcrumbItem>
            <Button variant="link" isInline id="folder-root" onClick={() => to('/')}>
              {props.title}
            </Button>
          </BreadcrumbItem>
          {crumbs.map((crumb, index) => (
            <BreadcrumbItem key={crumb.path} isActive={index === crumbs.length - 1}>
              {index === crumbs.length - 1 ? (
                crumb.name
              ) : (
                <Button variant="link" isInline onClick={() => to(crumb.path)}>
                  {crumb.name}
                </Button>
              )}
            </BreadcrumbItem>
          ))}
        </Breadcrumb>
      </CardTitle>
      <CardBody className="und-stack">
        <ErrorAlert error={error} id="folder-error" />
        {!listing && !error && <Loading what="the folder" />}
        {listing && listing.entries.length === 0 && (
          <p className="und-quiet" id="folder-empty">
            It is empty.
          </p>
        )}
        {listing && listing.entries.length > 0 && (
          <a href={api.folderUrl(mountId, volume, listing.path)} download id="folder-download">
            Download this folder (tar)
          </a>
        )}
        {listing && listing.entries.length > 0 && (
          <Table variant="compact" aria-label="Folder" borders={false} id="folder-table">
            <Thead>
              <Tr>
                <Th width={45}>Name</Th>
                <Th width={15}>Size</Th>
                <Th width={20}>Changed</Th>
                <Th width={20}>Rights, owner</Th>
              </Tr>
            </Thead>
            <Tbody>
              {listing.entries.map((entry) => (
                <EntryRow
                  key={entry.path}
                  entry={entry}
                  url={api.fileUrl(mountId, volume, entry.path)}
                  enter={() => to(entry.path)}
                />
              ))}
            </Tbody>
          </Table>
        )}
        {listing && (listing.total > PAGE_ENTRIES || listing.truncated) && (
          <Flex gap={{ default: 'gapSm' }} alignItems={{ default: 'alignItemsCenter' }}>
            <Button
              variant="secondary"
              id="folder-earlier"
              isDisabled={from === 0}
              onClick={() => go({ ...place, from: Math.max(0, from - PAGE_ENTRIES) })}
            >
              Earlier
            </Button>
            <Button
              variant="secondary"
              id="folder-later"
              isDisabled={from + PAGE_ENTRIES >= listing.total}
              onClick={() => go({ ...place, from: from + PAGE_ENTRIES })}
            >
              Later
            </Button>
            <span className="und-quiet" id="folder-range">
              {from + 1} to {from + listing.entries.length} of {listing.total}
              {listing.truncated && '; the folder has more, which are not listed'}
            </span>
          </Flex>
        )}
      </CardBody>
    </Card>
  );
}

function EntryRow(props: { entry: FileEntry; url: string; enter: () => void }) {
  const { entry } = props;
  const Icon = ICONS[entry.kind];
  const name = () => {
    switch (entry.kind) {
      case 'folder':
        return (
          <Button variant="link" isInline onClick={props.enter}>
            {entry.name}
          </Button>
        );
      case 'file':
        return (
          <a href={props.url} download>
            {entry.name}
          </a>
        );
      case 'link':
        // What it leads to is found out by going there: a folder is opened, anything else is refused with the reason.
        return (
          <>
            <Button variant="link" isInline onClick={props.enter}>
              {entry.name}
            </Button>
            <span className="und-quiet und-mono"> → {entry.target}</span>{' '}
            <a href={props.url} download>
              Download
            </a>
          </>
        );
      default:
        return (
          <>
            {entry.name} <span className="und-quiet">{KIND_WORDS[entry.kind]}</span>
          </>
        );
    }
  };
  return (
    <Tr data-testid="file" data-kind={entry.kind} data-path={entry.path}>
      <Td dataLabel="Name">
        <Icon role="img" aria-label={KIND_WORDS[entry.kind]} /> {name()}
      </Td>
      <Td dataLabel="Size">{entry.sizeBytes === null ? '' : formatBytes(entry.sizeBytes)}</Td>
      <Td dataLabel="Changed">
        {entry.modifiedAt ? formatAbsolute(new Date(entry.modifiedAt)) : 'unknown'}
      </Td>
      <Td dataLabel="Rights, owner">
        <span className="und-mono">{modeInWords(entry.mode)}</span>{' '}
        <span className="und-quiet">
          {entry.uid}:{entry.gid}
        </span>
      </Td>
    </Tr>
  );
}
