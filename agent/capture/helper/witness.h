/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Witnesses: places of a disk by which it can be told, at the next start, that nobody has written to it since the shutdown
 * but those that are known: the initramfs's check and read-only mount of a file system, the boot loader.
 *
 *   same DISK OFFSET LENGTH NAME      must hold what it held (partition tables, LVM's description, the header of a swap area)
 *   ext4 DISK OFFSET LENGTH NAME      a file system: its superblock, but for what fsck -a writes into it
 *   xfs DISK OFFSET LENGTH NAME       a file system: its superblock and the end of its log, but for what a read-only mount writes
 *   touched DISK OFFSET LENGTH NAME   may have been written to by those who are not seen: counts as dirty
 *   refuse DISK 0 0 REASON            there is something on the disk that cannot be told
 *
 * Offsets and lengths are bytes of the whole disk.
 */
#ifndef WITNESS_H
#define WITNESS_H
#include "area.h"

#define WITNESS_STATE 2400 /* characters of what a witness says, at most */
#define WITNESS_NAME 200

struct witness {
  char kind[8], name[WITNESS_NAME];
  uint32_t disk;
  uint64_t offset, bytes;
};

/* 1: the line is a witness. */
int witness_parse(const char *line, struct witness *w);

/* Whether it can ever vouch for the disk, whatever is being written now; NULL, or why not. */
const char *witness_fitness(const struct witness *w, int fd);

/* Whether the disk is the one of which the state was taken, by what no start and no mount changes. */
int witness_knows(const struct witness *w, const char *then, int fd);

/* What it says now, as a word without blanks. NULL, or why it cannot vouch for the disk. `fd`: the disk, O_DIRECT. */
const char *witness_state(const struct witness *w, int fd, char state[WITNESS_STATE]);

struct dirty_places {
  struct {
    uint64_t offset, bytes;
  } of[3];
  unsigned count;
  uint64_t sectors; /* that may have been written there unseen */
};

/* Whether what it says now follows from what it said; then where, at most, was written to. NULL, or why not. */
const char *witness_follows(const struct witness *w, const char *then, const char *now, struct dirty_places *places);

#endif
