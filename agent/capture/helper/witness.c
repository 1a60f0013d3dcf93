// SPDX-License-Identifier: Apache-2.0
/*
 * See witness.h. Layouts: Documentation/filesystems/ext4 of the kernel (super.rst, journal.rst), and XFS Algorithms & Data
 * Structures (superblocks; the journaling log). What a clean start writes was measured: docs/early-boot.md.
 */
#define _GNU_SOURCE
#include "helper.h"
#include "witness.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define READ_STEP (1u << 20)
/* A log that is read whole twice, at the shutdown and at the start. */
#define MAX_LOG_BYTES (256ull << 20)

int witness_parse(const char *line, struct witness *w) {
  unsigned long long offset, bytes;
  unsigned disk;
  int at = 0;
  *w = (struct witness){0};
  if (sscanf(line, "%7s %u %llu %llu %n", w->kind, &disk, &offset, &bytes, &at) < 4 || !at) return 0;
  const char *const kinds[] = {"same", "ext4", "xfs", "touched", "refuse"};
  int known = 0;
  for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++) known |= !strcmp(w->kind, kinds[i]);
  if (!known) return 0;
  w->disk = disk;
  w->offset = offset;
  w->bytes = bytes;
  snprintf(w->name, sizeof w->name, "%s", line + at);
  return 1;
}

/* Reads [offset, offset + len) of a disk into `out`, whatever their alignment. */
static const char *read_disk(int fd, uint64_t offset, void *out, uint64_t len) {
  char *step = NULL, *to = out;
  if (posix_memalign((void **)&step, 4096, READ_STEP)) return "no memory";
  const char *why = NULL;
  while (len && !why) {
    uint64_t from = offset / 4096 * 4096, skip = offset - from;
    ssize_t got = pread(fd, step, READ_STEP, (off_t)from);
    if (got < 0 && errno == EINTR) continue;
    if (got <= (ssize_t)skip) {
      why = "a place of the disk cannot be read";
      break;
    }
    uint64_t n = (uint64_t)got - skip < len ? (uint64_t)got - skip : len;
    memcpy(to, step + skip, n);
    to += n;
    offset += n;
    len -= n;
  }
  free(step);
  return why;
}

static uint32_t le16(const unsigned char *p) { return (uint32_t)(p[0] | p[1] << 8); }
static uint32_t le32(const unsigned char *p) { return le16(p) | le16(p + 2) << 16; }
static uint32_t be16(const unsigned char *p) { return (uint32_t)(p[0] << 8 | p[1]); }
static uint32_t be32(const unsigned char *p) { return be16(p) << 16 | be16(p + 2); }
static uint64_t be64(const unsigned char *p) { return (uint64_t)be32(p) << 32 | be32(p + 4); }

static void to_hex(const unsigned char *data, unsigned len, char *out) {
  for (unsigned i = 0; i < len; i++) sprintf(out + 2 * i, "%02x", data[i]);
}

static int from_hex(const char *text, unsigned char *data, unsigned len) {
  for (unsigned i = 0; i < len; i++) {
    unsigned byte;
    if (sscanf(text + 2 * i, "%2x", &byte) != 1) return -1;
    data[i] = (unsigned char)byte;
  }
  return 0;
}

/* ---- same ---- */

static const char *same_state(const struct witness *w, int fd, char *state) {
  char *step = malloc(READ_STEP);
  if (!step) return "no memory";
  struct hash hash;
  const char *why = NULL;
  hash_begin(&hash);
  for (uint64_t at = 0; at < w->bytes && !why; at += READ_STEP) {
    uint64_t n = w->bytes - at < READ_STEP ? w->bytes - at : READ_STEP;
    why = read_disk(fd, w->offset + at, step, n);
    if (!why) hash_add(&hash, step, n);
  }
  free(step);
  snprintf(state, WITNESS_STATE, "%016llx%016llx", (unsigned long long)hash.a, (unsigned long long)hash.b);
  return why;
}

/* ---- ext4 ---- */

#define EXT4_SB 1024u
enum { EXT4_COMPAT_JOURNAL = 4 };
enum { EXT4_INCOMPAT_RECOVER = 4, EXT4_INCOMPAT_JOURNAL_DEV = 8, EXT4_INCOMPAT_EXTENTS = 0x40, EXT4_INCOMPAT_MMP = 0x100 };

static uint64_t ext4_block_bytes(const unsigned char *sb) { return 1024ull << le32(sb + 0x18); }

/* The first block of the journal, by the copy of its inode's places in the superblock; 0: not told there. */
static uint64_t ext4_journal_block(const unsigned char *sb) {
  if (sb[0xfd] != 1 || le32(sb + 0xe0) != 8) return 0;
  const unsigned char *blocks = sb + 0x10c;
  if (!(le32(sb + 0x60) & EXT4_INCOMPAT_EXTENTS)) return le32(blocks);
  if (le16(blocks) != 0xf30a || le16(blocks + 2) < 1 || le16(blocks + 6) != 0) return 0;
  const unsigned char *extent = blocks + 12;
  if (le32(extent) != 0) return 0;
  return (uint64_t)le16(extent + 6) << 32 | le32(extent + 8);
}

static const char *ext4_fitness(const struct witness *w, int fd, unsigned char *sb) {
  if (w->bytes < 65536) return "its file system is too small";
  const char *why = read_disk(fd, w->offset + 1024, sb, EXT4_SB);
  if (why) return why;
  uint32_t compat = le32(sb + 0x5c), incompat = le32(sb + 0x60);
  if (le16(sb + 0x38) != 0xef53) return "its ext4 file system is not there";
  if (le32(sb + 0x18) > 6) return "its ext4 file system is not known";
  if (incompat & EXT4_INCOMPAT_MMP) return "its file system guards itself against several hosts (mmp)";
  if (incompat & EXT4_INCOMPAT_JOURNAL_DEV) return "it is the journal of another file system";
  if (compat & EXT4_COMPAT_JOURNAL) {
    uint64_t journal = ext4_journal_block(sb);
    if (!journal || (journal + 1) * ext4_block_bytes(sb) > w->bytes) return "where its file system's journal lies cannot be told";
  }
  return NULL;
}

static const char *ext4_state(const struct witness *w, int fd, char *state) {
  unsigned char sb[EXT4_SB];
  const char *why = ext4_fitness(w, fd, sb);
  if (why) return why;
  if (le16(sb + 0x3a) != 1 || (le32(sb + 0x60) & EXT4_INCOMPAT_RECOVER)) return "its file system was not left clean";
  to_hex(sb, sizeof sb, state);
  return NULL;
}

static const char *ext4_follows(const struct witness *w, const char *then, const char *now, struct dirty_places *places) {
  unsigned char a[EXT4_SB], b[EXT4_SB];
  if (from_hex(then, a, sizeof a) || from_hex(now, b, sizeof b)) return "what was saved of its file system is damaged";
  int written = memcmp(a, b, sizeof a);
  /* What `fsck -a` of a clean file system writes: the time, kilobytes written, the time's high byte, the checksum. */
  const struct {
    unsigned at, len;
  } own[] = {{0x30, 4}, {0x178, 8}, {0x274, 1}, {0x3fc, 4}};
  for (unsigned i = 0; i < sizeof own / sizeof *own; i++) memcpy(a + own[i].at, b + own[i].at, own[i].len);
  if (memcmp(a, b, sizeof a)) return "its file system was mounted, checked or changed in between";
  uint64_t block = ext4_block_bytes(b), journal = le32(b + 0x5c) & EXT4_COMPAT_JOURNAL ? ext4_journal_block(b) : 0;
  places->of[places->count].offset = w->offset;
  places->of[places->count++].bytes = block < 4096 ? 4096 : block;
  if (journal) {
    places->of[places->count].offset = w->offset + journal * block;
    places->of[places->count++].bytes = block < 4096 ? 4096 : block;
  }
  /* Superblock and the journal's, each written as a page at most. */
  if (written) places->sectors += 16;
  return NULL;
}

/* ---- XFS ---- */

#define XFS_SB 512u
/* The mount clears at most so much of the log beyond its head (8 buffers of 256 KiB), whatever was there. */
#define XFS_CLEARED_SECTORS 4096u

static const char *xfs_log_of(const struct witness *w, const unsigned char *sb, uint64_t *offset, uint64_t *bytes) {
  if (memcmp(sb, "XFSB", 4)) return "its XFS file system is not there";
  if ((be16(sb + 100) & 15) != 5) return "its XFS file system is of an old format";
  uint64_t start = be64(sb + 48), block = be32(sb + 4);
  if (!start) return "its XFS file system has its log on another device";
  unsigned shift = sb[124];
  if (shift > 32 || block < 512 || block > 65536) return "its XFS file system is not known";
  uint64_t group = start >> shift, in_group = start & ((1ull << shift) - 1);
  *offset = (group * be32(sb + 84) + in_group) * block;
  *bytes = be32(sb + 96) * block;
  if (*offset + *bytes > w->bytes) return "its XFS file system's log lies outside of it";
  if (*bytes > MAX_LOG_BYTES) return "its XFS file system's log is too large to be looked through";
  return NULL;
}

#define XFS_MAX_GROUPS 4096u

/*
 * The heads of the allocation groups (free space, inodes, free list; the superblock's copies). A repair writes them, and
 * neither log nor superblock; a start does not.
 */
static const char *xfs_groups(const struct witness *w, int fd, const unsigned char *sb, struct hash *hash) {
  uint64_t bytes = (uint64_t)be32(sb + 84) * be32(sb + 4);
  uint32_t groups = be32(sb + 88), sector = be16(sb + 102);
  unsigned char heads[4 * 4096];
  if (groups > XFS_MAX_GROUPS) return "its XFS file system has too many allocation groups to be looked through";
  if (sector < 512 || sector > 4096 || !groups || groups * bytes > w->bytes + bytes) return "its XFS file system is not known";
  hash_begin(hash);
  for (uint32_t group = 0; group < groups; group++) {
    uint32_t skip = group ? 0 : sector; /* the superblock itself */
    const char *why = read_disk(fd, w->offset + group * bytes + skip, heads, 4 * sector - skip);
    if (why) return why;
    hash_add(hash, heads, 4 * sector - skip);
  }
  return NULL;
}

/*
 * The three newest records of a clean log; the last is the one that an unmount writes. Sequence numbers (cycle, block) of a
 * log only rise, and a record names its own place, so whoever has used the log since has left higher ones.
 */
static const char *xfs_log_end(const struct witness *w, int fd, uint64_t log, uint64_t bytes, uint64_t newest[3]) {
  unsigned char *data = malloc(bytes);
  if (!data) return "no memory";
  const char *why = read_disk(fd, w->offset + log, data, bytes);
  const unsigned char *end = NULL;
  newest[0] = newest[1] = newest[2] = 0;
  for (uint64_t at = 0; !why && at + 512 <= bytes; at += 512) {
    const unsigned char *record = data + at;
    if (be32(record) != 0xfeedbabe) continue;
    uint64_t lsn = be64(record + 16);
    if ((lsn & 0xffffffff) != at / 512 || lsn >> 32 != be32(record + 4) || lsn <= newest[2]) continue;
    /* What the mount writes over what is behind the head looks like records without anything in them. */
    if (be32(record + 40) == 0) continue;
    newest[2] = lsn;
    for (int i = 2; i > 0 && newest[i] > newest[i - 1]; i--) lsn = newest[i], newest[i] = newest[i - 1], newest[i - 1] = lsn;
    if (newest[0] == be64(record + 16)) end = record;
  }
  if (!why && !end) why = "its XFS file system's log cannot be read";
  if (!why) {
    uint32_t size = be32(end + 8) & 2 ? be32(end + 320) : 0, headers = size > 32768 ? (size + 32767) / 32768 : 1;
    const unsigned char *operation = data + ((uint64_t)(end - data) + headers * 512ull) % bytes;
    /* One operation, of the kind that an unmount writes. */
    if (be32(end + 40) != 1 || !(operation[9] & 0x20)) why = "its file system was not left clean";
  }
  free(data);
  return why;
}

static const char *xfs_fitness(const struct witness *w, int fd, unsigned char *sb, uint64_t *log, uint64_t *bytes) {
  const char *why = read_disk(fd, w->offset, sb, XFS_SB);
  if (!why) why = xfs_log_of(w, sb, log, bytes);
  if (!why && be32(sb + 88) > XFS_MAX_GROUPS) why = "its XFS file system has too many allocation groups to be looked through";
  return why;
}

/* The superblock, the newest records, the hash of the groups' heads. */
#define XFS_STATE (2 * XFS_SB + 3 * 16 + 32)

static const char *xfs_state(const struct witness *w, int fd, char *state) {
  unsigned char sb[XFS_SB];
  uint64_t log, bytes, newest[3];
  struct hash groups;
  const char *why = xfs_fitness(w, fd, sb, &log, &bytes);
  if (!why) why = xfs_log_end(w, fd, log, bytes, newest);
  if (!why) why = xfs_groups(w, fd, sb, &groups);
  if (why) return why;
  to_hex(sb, sizeof sb, state);
  snprintf(state + 2 * sizeof sb, WITNESS_STATE - 2 * sizeof sb, "%016llx%016llx%016llx%016llx%016llx", (unsigned long long)newest[0],
           (unsigned long long)newest[1], (unsigned long long)newest[2], (unsigned long long)groups.a, (unsigned long long)groups.b);
  return NULL;
}

static const char *xfs_follows(const struct witness *w, const char *then, const char *now, struct dirty_places *places) {
  unsigned char a[XFS_SB], b[XFS_SB];
  uint64_t log, bytes;
  if (strlen(then) != XFS_STATE || strlen(now) != XFS_STATE || from_hex(then, a, sizeof a) || from_hex(now, b, sizeof b))
    return "what was saved of its file system is damaged";
  /*
   * A read-only mount adds two records: of the superblock, and as an unmount. Whoever mounts for writing, or unmounts, adds
   * more.
   */
  const char *ends = now + 2 * XFS_SB, *end = then + 2 * XFS_SB;
  if (strncmp(end, ends, 16) && strncmp(end, ends + 2 * 16, 16)) return "its file system was mounted in between";
  if (strcmp(end + 3 * 16, ends + 3 * 16)) return "its file system was repaired or changed in between";
  int written = memcmp(a, b, sizeof a);
  memcpy(a + 224, b + 224, 4); /* the checksum */
  memcpy(a + 240, b + 240, 8); /* and the place in the log at which the superblock was written */
  if (memcmp(a, b, sizeof a)) return "its file system was mounted, checked or changed in between";
  const char *why = xfs_log_of(w, b, &log, &bytes);
  if (why) return why;
  places->of[places->count].offset = w->offset;
  places->of[places->count++].bytes = 4096;
  places->of[places->count].offset = w->offset + log;
  places->of[places->count++].bytes = bytes;
  /* A mount that clears the log writes the superblock as well. */
  if (written) places->sectors += XFS_CLEARED_SECTORS + 16;
  return NULL;
}

/* ---- all of them ---- */

const char *witness_fitness(const struct witness *w, int fd) {
  unsigned char sb[EXT4_SB];
  uint64_t log, bytes;
  if (!strcmp(w->kind, "ext4")) return ext4_fitness(w, fd, sb);
  if (!strcmp(w->kind, "xfs")) return xfs_fitness(w, fd, sb, &log, &bytes);
  return strcmp(w->kind, "refuse") ? NULL : w->name;
}

int witness_knows(const struct witness *w, const char *then, int fd) {
  unsigned char now[EXT4_SB], saved[EXT4_SB];
  char state[WITNESS_STATE];
  int is_ext4 = !strcmp(w->kind, "ext4"), is_xfs = !strcmp(w->kind, "xfs");
  if (!strcmp(w->kind, "same")) return !same_state(w, fd, state) && !strcmp(state, then);
  if (!is_ext4 && !is_xfs) return 1;
  unsigned len = is_ext4 ? EXT4_SB : XFS_SB, uuid = is_ext4 ? 0x68 : 32;
  if (strlen(then) < 2 * len || from_hex(then, saved, len)) return 0;
  if (read_disk(fd, w->offset + (is_ext4 ? 1024 : 0), now, len)) return 0;
  return !memcmp(now + uuid, saved + uuid, 16) && (is_ext4 ? le16(now + 0x38) == 0xef53 : !memcmp(now, "XFSB", 4));
}

const char *witness_state(const struct witness *w, int fd, char state[WITNESS_STATE]) {
  snprintf(state, WITNESS_STATE, "-");
  if (!strcmp(w->kind, "same")) return same_state(w, fd, state);
  if (!strcmp(w->kind, "ext4")) return ext4_state(w, fd, state);
  if (!strcmp(w->kind, "xfs")) return xfs_state(w, fd, state);
  if (!strcmp(w->kind, "refuse")) return w->name;
  return NULL;
}

const char *witness_follows(const struct witness *w, const char *then, const char *now, struct dirty_places *places) {
  *places = (struct dirty_places){0};
  if (!strcmp(w->kind, "ext4")) return ext4_follows(w, then, now, places);
  if (!strcmp(w->kind, "xfs")) return xfs_follows(w, then, now, places);
  if (!strcmp(w->kind, "touched")) {
    places->of[places->count].offset = w->offset;
    places->of[places->count++].bytes = w->bytes;
    return NULL;
  }
  return strcmp(then, now) ? "it was changed in between" : NULL;
}

/* witnesses --run DIR --disk INDEX:PATH...: a line "INDEX REASON" for each that can never vouch for its disk. */
int cmd_witnesses(int argc, char **argv) {
  char path[600], line[1024];
  int fds[64];
  memset(fds, -1, sizeof fds);
  *path = 0;
  for (int i = 1; i + 1 < argc; i += 2) {
    char *device;
    if (!strcmp(argv[i], "--run")) snprintf(path, sizeof path, "%s/witnesses", argv[i + 1]);
    else if (!strcmp(argv[i], "--disk")) {
      unsigned long index = strtoul(argv[i + 1], &device, 10);
      if (*device != ':' || index >= 64) return 2;
      fds[index] = open(device + 1, O_RDONLY | O_DIRECT | O_CLOEXEC);
    } else return 2;
  }
  FILE *f = *path ? fopen(path, "re") : NULL;
  if (!f) return 2;
  while (fgets(line, sizeof line, f)) {
    struct witness w;
    line[strcspn(line, "\n")] = 0;
    if (!witness_parse(line, &w) || w.disk >= 64) continue;
    const char *why = fds[w.disk] < 0 ? "it cannot be opened" : witness_fitness(&w, fds[w.disk]);
    if (!why) continue;
    if (!strcmp(w.kind, "refuse")) printf("%u %s\n", w.disk, why);
    else printf("%u %s: %s\n", w.disk, w.name, why);
  }
  fclose(f);
  return 0;
}
