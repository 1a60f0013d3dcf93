import type { PrepareDisk } from '../types.ts';
import { openReader, window } from './bytes.ts';
import { type GuestPartition, partitionName } from './devices.ts';
import { readPartitions } from './partitions.ts';
import { identify } from './superblock.ts';

/** The partitions of all disks with what is in them. Reads only the given devices. */
export function findPartitions(disks: readonly PrepareDisk[]): GuestPartition[] {
  const found: GuestPartition[] = [];
  for (const [disk, { devicePath, sourceName }] of disks.entries()) {
    const reader = openReader(devicePath);
    try {
      for (const partition of readPartitions(reader)) {
        found.push({
          sourceName: partitionName(sourceName, partition.number),
          disk,
          partition,
          content: identify(window(reader, partition.startBytes, partition.sizeBytes)),
        });
      }
    } finally {
      reader.close();
    }
  }
  return found;
}
