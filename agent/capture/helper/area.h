/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The save area: a file whose blocks are fixed, read and written past its file system, so that it can be used while that
 * is mounted read-only. What lies in it was saved at one shutdown and is good for the next start only.
 *
 * A head of 4 KiB, then the text that was saved. The head is written last, and changed first.
 */
#ifndef AREA_H
#define AREA_H
#include <stddef.h>
#include <stdint.h>

#define AREA_BLOCK 4096u
#define AREA_MAX_EXTENTS 256

enum area_state { AREA_EMPTY = 0, AREA_SAVED = 1, AREA_USED = 2 };

struct area {
  int fd;       /* of the block device, O_DIRECT */
  uint32_t dev; /* as cap_disk has it */
  uint64_t bytes;
  unsigned count;
  struct {
    uint64_t logical, physical, bytes;
  } extents[AREA_MAX_EXTENTS];
};

/* All of these: NULL, or why not. */
const char *area_open(struct area *area, const char *path);
const char *area_write(const struct area *area, uint64_t offset, const void *data, uint64_t len);
const char *area_read(const struct area *area, uint64_t offset, void *data, uint64_t len);
const char *area_flush(const struct area *area);
const char *area_set_head(const struct area *area, enum area_state state, const char *text, uint64_t len);
/* If something is saved there, it is not any more: it is not of the shutdown that comes next. */
const char *area_forget(const struct area *area);
/* The text that was saved, to be freed; only if nothing has used it yet. */
const char *area_load(const struct area *area, char **text, uint64_t *len);

/* Two independent hashes of 64 bits: tells what changed by accident, not what somebody made. */
struct hash {
  uint64_t a, b;
};
void hash_begin(struct hash *hash);
void hash_add(struct hash *hash, const void *data, uint64_t len);

/* /dev/NAME of a device number, from sysfs: early at boot there are no links in /dev. */
int device_path(unsigned major, unsigned minor, char *out, size_t size);

#endif
