// SPDX-License-Identifier: Apache-2.0
/* See area.h. */
#define _GNU_SOURCE
#include "area.h"
#include "helper.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define AREA_MAGIC 0x59525241434e5500ull
#define AREA_VERSION 1
#define STEP (1u << 20)

struct head {
  uint64_t magic;
  uint32_t version, state;
  uint64_t text_bytes;
  struct hash text, head; /* `head`: over what is before it */
};

void hash_begin(struct hash *hash) { *hash = (struct hash){0x9e3779b97f4a7c15ull, 0xc2b2ae3d27d4eb4full}; }

void hash_add(struct hash *hash, const void *data, uint64_t len) {
  const unsigned char *p = data;
  for (; len; len -= len < 8 ? len : 8, p += 8) {
    uint64_t word = 0;
    memcpy(&word, p, len < 8 ? len : 8);
    word ^= len < 8 ? len << 56 : 0;
    hash->a = (hash->a ^ word) * 0x100000001b3ull;
    hash->a ^= hash->a >> 29;
    hash->b = (hash->b + word) * 0xff51afd7ed558ccdull;
    hash->b ^= hash->b >> 33;
  }
}

static const char *because(const char *what, int error) {
  static char text[300];
  snprintf(text, sizeof text, "%s: %s", what, strerror(error));
  return text;
}

int device_path(unsigned maj, unsigned min, char *out, size_t size) {
  char sys[64], line[300];
  snprintf(sys, sizeof sys, "/sys/dev/block/%u:%u/uevent", maj, min);
  FILE *f = fopen(sys, "re");
  if (!f) return -1;
  int found = -1;
  while (found && fgets(line, sizeof line, f)) {
    char name[256];
    if (sscanf(line, "DEVNAME=%255s", name) == 1) {
      snprintf(out, size, "/dev/%s", name);
      found = 0;
    }
  }
  fclose(f);
  struct stat st;
  if (found || stat(out, &st) || !S_ISBLK(st.st_mode) || st.st_rdev != makedev(maj, min)) return -1;
  return 0;
}

/* Places that are no places: not written yet, compressed, inside the inode, shared with another file. */
#define UNFIT                                                                                                      \
  (FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_ENCODED | FIEMAP_EXTENT_DATA_ENCRYPTED |         \
   FIEMAP_EXTENT_NOT_ALIGNED | FIEMAP_EXTENT_DATA_INLINE | FIEMAP_EXTENT_DATA_TAIL | FIEMAP_EXTENT_UNWRITTEN |     \
   FIEMAP_EXTENT_SHARED)

static const char *find_extents(struct area *area, int file) {
  struct fsxattr attr;
  if (ioctl(file, FS_IOC_FSGETXATTR, &attr) == 0 && (attr.fsx_xflags & FS_XFLAG_REALTIME)) return "the save area is on a realtime device";
  struct fiemap *map = calloc(1, sizeof *map + AREA_MAX_EXTENTS * sizeof(struct fiemap_extent));
  if (!map) return "no memory";
  map->fm_length = FIEMAP_MAX_OFFSET;
  map->fm_extent_count = AREA_MAX_EXTENTS;
  const char *why = NULL;
  if (ioctl(file, FS_IOC_FIEMAP, map)) why = because("finding the places of the save area", errno);
  uint64_t end = 0;
  for (unsigned i = 0; !why && i < map->fm_mapped_extents && end < area->bytes; i++) {
    const struct fiemap_extent *e = &map->fm_extents[i];
    if (e->fe_flags & UNFIT) why = "the save area has no fixed blocks on its file system";
    else if (e->fe_logical != end || (e->fe_physical | e->fe_length | end) % AREA_BLOCK) why = "the save area's blocks have holes or no whole 4 KiB";
    area->extents[area->count].logical = end;
    area->extents[area->count].physical = e->fe_physical;
    area->extents[area->count++].bytes = e->fe_length;
    end += e->fe_length;
  }
  if (!why && end < area->bytes) why = "the save area is in too many pieces";
  free(map);
  return why;
}

const char *area_open(struct area *area, const char *path) {
  *area = (struct area){.fd = -1};
  int file = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (file < 0) return because("the save area cannot be opened", errno);
  struct stat st;
  const char *why = NULL;
  if (fstat(file, &st) || !S_ISREG(st.st_mode) || st.st_size < 2 * (off_t)AREA_BLOCK) why = "the save area is no such file";
  char device[300];
  if (!why) {
    area->dev = major(st.st_dev) << 20 | minor(st.st_dev);
    area->bytes = (uint64_t)st.st_size / AREA_BLOCK * AREA_BLOCK;
    /* btrfs and overlays have numbers of their own, behind which there is no device. */
    if (device_path(major(st.st_dev), minor(st.st_dev), device, sizeof device)) why = "the save area's file system has no block device of its own";
  }
  if (!why) why = find_extents(area, file);
  close(file);
  if (!why && (area->fd = open(device, O_RDWR | O_DIRECT | O_CLOEXEC)) < 0) why = because("opening the save area's device", errno);
  return why;
}

static const char *transfer(const struct area *area, uint64_t offset, char *data, uint64_t len, int is_write) {
  char *step = NULL;
  if (offset % AREA_BLOCK || len % AREA_BLOCK || offset + len > area->bytes) return "a place that the save area does not have";
  if (posix_memalign((void **)&step, AREA_BLOCK, STEP)) return "no memory";
  const char *why = NULL;
  for (unsigned i = 0; i < area->count && len && !why;) {
    uint64_t end = area->extents[i].logical + area->extents[i].bytes;
    if (offset >= end) {
      i++;
      continue;
    }
    uint64_t n = end - offset < len ? end - offset : len;
    if (n > STEP) n = STEP;
    off_t at = (off_t)(area->extents[i].physical + offset - area->extents[i].logical);
    if (is_write) memcpy(step, data, n);
    ssize_t done = is_write ? pwrite(area->fd, step, n, at) : pread(area->fd, step, n, at);
    if (done < 0 && errno == EINTR) continue;
    if (done != (ssize_t)n) why = because(is_write ? "writing the save area" : "reading the save area", done < 0 ? errno : EIO);
    else if (!is_write) memcpy(data, step, n);
    data += n;
    offset += n;
    len -= n;
  }
  free(step);
  return why;
}

const char *area_write(const struct area *area, uint64_t offset, const void *data, uint64_t len) {
  return transfer(area, offset, (char *)(uintptr_t)data, len, 1);
}
const char *area_read(const struct area *area, uint64_t offset, void *data, uint64_t len) { return transfer(area, offset, data, len, 0); }
const char *area_flush(const struct area *area) { return fsync(area->fd) ? because("flushing the save area", errno) : NULL; }

static struct hash hash_of(const void *data, uint64_t len) {
  struct hash hash;
  hash_begin(&hash);
  hash_add(&hash, data, len);
  return hash;
}

static int same_hash(struct hash x, struct hash y) { return x.a == y.a && x.b == y.b; }

const char *area_set_head(const struct area *area, enum area_state state, const char *text, uint64_t len) {
  char block[AREA_BLOCK] = {0};
  struct head *head = (struct head *)block;
  head->magic = AREA_MAGIC;
  head->version = AREA_VERSION;
  head->state = state;
  head->text_bytes = len;
  head->text = hash_of(text, len);
  head->head = hash_of(head, offsetof(struct head, head));
  const char *why = area_write(area, 0, block, sizeof block);
  return why ? why : area_flush(area);
}

const char *area_forget(const struct area *area) {
  char block[AREA_BLOCK];
  const char *why = area_read(area, 0, block, sizeof block);
  const struct head *head = (const struct head *)block;
  if (why || head->magic != AREA_MAGIC || head->state != AREA_SAVED) return why;
  return area_set_head(area, AREA_EMPTY, "", 0);
}

const char *area_load(const struct area *area, char **text, uint64_t *len) {
  char block[AREA_BLOCK];
  const char *why = area_read(area, 0, block, sizeof block);
  if (why) return why;
  const struct head *head = (const struct head *)block;
  if (head->magic != AREA_MAGIC || !same_hash(head->head, hash_of(head, offsetof(struct head, head))))
    return "nothing was saved when the server was shut down";
  if (head->version != AREA_VERSION) return "what was saved is of another version of the agent";
  if (head->state != AREA_SAVED) return "the server was not shut down in an orderly way";
  *len = head->text_bytes;
  uint64_t whole = (*len + AREA_BLOCK - 1) / AREA_BLOCK * AREA_BLOCK;
  if (*len > area->bytes - AREA_BLOCK) return "what was saved is damaged";
  *text = malloc(whole + 1);
  if (!*text) return "no memory";
  why = area_read(area, AREA_BLOCK, *text, whole);
  if (!why && !same_hash(head->text, hash_of(*text, *len))) why = "what was saved is damaged";
  (*text)[*len] = 0;
  if (why) free(*text);
  return why;
}

/*
 * area FILE: whether the file can be one; 1 and why not on stderr. Called by a running system: what was saved for its start
 * has been used, or never will be.
 */
int cmd_area(int argc, char **argv) {
  struct area area;
  if (argc != 2) return 2;
  const char *why = area_open(&area, argv[1]);
  if (!why) why = area_forget(&area);
  if (why) fprintf(stderr, "%s\n", why);
  return why != NULL;
}
