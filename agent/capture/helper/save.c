// SPDX-License-Identifier: Apache-2.0
/*
 * save --pin DIR --run DIR --area FILE [HOW]: called by systemd-shutdown when everything has ended and every file system
 * is unmounted or read-only. Ends the capture and saves what it knows for `early` of the next start: which blocks were
 * written since the last acknowledgement, whose stream that is, and what the witnesses say.
 *
 * Whatever keeps it from that is said on stderr, and costs a difference mirror after the restart; the shutdown goes on.
 */
#define _GNU_SOURCE
#include "area.h"
#include "dirty-map.h"
#include "helper.h"
#include "witness.h"
#include <bpf/bpf.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define MAX_NOTE_BYTES (8u << 20)

__attribute__((noreturn, format(printf, 1, 2))) static void give_up(const char *format, ...) {
  va_list args;
  va_start(args, format);
  fprintf(stderr, "understudy: the restart is not carried over: ");
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
  exit(1);
}

static char *text;
static size_t text_len, text_room;

static void put_bytes(const void *data, size_t len) {
  if (text_len + len > text_room) {
    text_room = (text_len + len) * 2 + 65536;
    text = realloc(text, text_room);
    if (!text) give_up("no memory");
  }
  memcpy(text + text_len, data, len);
  text_len += len;
}

__attribute__((format(printf, 1, 2))) static void put(const char *format, ...) {
  char line[WITNESS_STATE + 600];
  va_list args;
  va_start(args, format);
  int n = vsnprintf(line, sizeof line, format, args);
  va_end(args);
  if (n < 0 || (size_t)n >= sizeof line) give_up("a line is too long");
  put_bytes(line, (size_t)n);
}

/* Whether the device lies on a disk that is captured: the disk, a partition of it, or whatever is built of those. */
static int is_on_protected(u32 maj, u32 min, int depth) {
  char sys[64], path[400], dev[32];
  for (u32 i = 0; i < cfg->disk_count; i++)
    if (cfg->disk[i].dev == (maj << 20 | min)) return 1;
  snprintf(sys, sizeof sys, "/sys/dev/block/%u:%u", maj, min);
  if (depth == 8) return 1;
  if (exists(sys, "partition")) {
    snprintf(path, sizeof path, "%s/../dev", sys);
    return read_text(path, dev, sizeof dev) <= 0 || sscanf(dev, "%u:%u", &maj, &min) != 2 || is_on_protected(maj, min, depth + 1);
  }
  snprintf(path, sizeof path, "%s/slaves", sys);
  DIR *dir = opendir(path);
  int found = 0;
  for (struct dirent *e; dir && !found && (e = readdir(dir));) {
    if (e->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "%s/slaves/%s/dev", sys, e->d_name);
    found = read_text(path, dev, sizeof dev) <= 0 || sscanf(dev, "%u:%u", &maj, &min) != 2 || is_on_protected(maj, min, depth + 1);
  }
  if (dir) closedir(dir);
  return found;
}

/* What can still be written to would change behind what is saved here. */
static void need_read_only(u32 area_dev) {
  FILE *f = fopen("/proc/self/mountinfo", "re");
  if (!f) give_up("/proc/self/mountinfo cannot be read");
  static char line[16384];
  while (fgets(line, sizeof line, f)) {
    char *tail = strstr(line, " - "), type[64], source[4096], options[8192];
    struct stat st;
    if (!tail || sscanf(tail + 3, "%63s %4095s %8191s", type, source, options) != 3) continue;
    u32 maj, min;
    if (strncmp(options, "rw", 2) || sscanf(line, "%*s %*s %u:%u", &maj, &min) != 2) continue;
    /* btrfs has a number of its own, behind which there is no device. */
    if (!maj && !stat(source, &st) && S_ISBLK(st.st_mode)) maj = major(st.st_rdev), min = minor(st.st_rdev);
    if (!maj) continue;
    if ((maj << 20 | min) == area_dev || is_on_protected(maj, min, 0)) give_up("%s is still mounted for writing", source);
  }
  fclose(f);
}

/* ---- what is dirty ---- */

static void mark_all(int at) { mark_extent(dirty_map, at, 0, cfg->disk_bytes[at], 1); }

static void mark_in_flight(void) {
  struct inflight_walk walk = {0};
  for (struct cap_inflight e; inflight_next(&walk, &e);) {
    int at = disk_at(e.disk);
    if (at < 0) continue;
    /* A range may be of several pieces, of which the entry does not know. */
    if (e.is_range) mark_all(at);
    else mark_extent(dirty_map, at, e.offset, e.len, 1);
  }
}

/* What was captured and is not acknowledged. */
static void mark_ring(void) {
  for (u64 p = *consumer, end = producer_pos(), next; p < end; p = next) {
    u32 header;
    const struct cap_rec *r = ring_rec(p, &header, &next);
    if (header & RING_BUSY) give_up("a write is still being captured");
    if (header & RING_DISCARDED) continue;
    int at = disk_at(r->disk);
    if (at < 0) continue;
    if (r->kind == CAP_WRITE || r->kind == CAP_ZERO) mark_extent(dirty_map, at, r->offset, r->len, 1);
    else if (r->kind == CAP_OPAQUE) mark_all(at);
  }
}

static void mark_what_is_not_known(void) {
  int missed = recursion_misses() + cfg->untracked != cfg->misses_seen;
  for (u32 i = 0; i < cfg->disk_count; i++) {
    u32 k = cfg->disk[i].index & (CAP_MAX_DISKS - 1);
    if (missed || cfg->all_taken[k]) mark_all((int)i);
    spread_all_dirty((int)i);
  }
}

/* Runs that are closer to each other than `gap` become one. 0: they do not fit. */
static int put_runs(u64 gap, size_t most) {
  for (u32 i = 0; i < cfg->disk_count; i++) {
    u64 size = 1ull << cfg->block_shift, from = 0, end = 0, block = 0, count;
    for (;;) {
      int found = next_dirty_run((int)i, &block, &count);
      if (end && (!found || block * size > end + gap)) {
        if (end > cfg->disk_bytes[i]) end = cfg->disk_bytes[i];
        put("run %u %llu %llu\n", cfg->disk[i].index, (unsigned long long)from, (unsigned long long)(end - from));
        end = 0;
      }
      if (text_len > most) return 0;
      if (!found) break;
      if (!end) from = block * size;
      end = (block + count) * size;
      block += count;
    }
  }
  return 1;
}

/* ---- disks, witnesses, notes ---- */

static int disk_fds[CAP_MAX_DISKS];

static void put_disks(void) {
  for (u32 i = 0; i < cfg->disk_count; i++) {
    char path[300];
    u32 dev = cfg->disk[i].dev;
    if (device_path(dev >> 20, dev & 0xfffff, path, sizeof path)) give_up("disk %u is gone", cfg->disk[i].index);
    disk_fds[i] = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (disk_fds[i] < 0) give_up("%s cannot be opened", path);
    put("disk %u %llu %s\n", cfg->disk[i].index, (unsigned long long)cfg->disk_bytes[i], path);
  }
}

static struct witness *listed;
static u32 listed_count;

/* Whether the list knows of what begins there. */
static int is_listed(u32 disk, u64 offset) {
  for (u32 i = 0; i < listed_count; i++)
    if (listed[i].disk == disk && (listed[i].offset == offset || !strcmp(listed[i].kind, "refuse"))) return 1;
  return 0;
}

/* What is built on the device: LVM's plain volumes are in the list, anything else writes when nobody sees it. */
static const char *what_holds(const char *sys) {
  char path[400], uuid[200];
  static char why[300];
  snprintf(path, sizeof path, "%s/holders", sys);
  DIR *dir = opendir(path);
  const char *found = NULL;
  for (struct dirent *e; dir && !found && (e = readdir(dir));) {
    if (e->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "%s/holders/%s/dm/uuid", sys, e->d_name);
    if (read_text(path, uuid, sizeof uuid) == 68 && !strncmp(uuid, "LVM-", 4)) continue;
    snprintf(why, sizeof why, "%s is built on it", e->d_name);
    found = why;
  }
  if (dir) closedir(dir);
  return found;
}

/* The list may be older than what lies on the disk by now: each partition of now must be in it. */
static const char *why_stale(int at) {
  char sys[64], path[400];
  u32 dev = cfg->disk[at].dev;
  snprintf(sys, sizeof sys, "/sys/dev/block/%u:%u", dev >> 20, dev & 0xfffff);
  const char *why = what_holds(sys);
  DIR *dir = opendir(sys);
  for (struct dirent *e; dir && !why && (e = readdir(dir));) {
    snprintf(path, sizeof path, "%s/%s", sys, e->d_name);
    if (!exists(path, "partition")) continue;
    if (!is_listed(cfg->disk[at].index, read_number(path, "start", 0) * 512)) why = "it was partitioned since it was looked at";
    if (!why) why = what_holds(path);
  }
  if (dir) closedir(dir);
  return why;
}

static void put_witnesses(const char *run_dir) {
  char path[600], line[1024];
  int vouched[CAP_MAX_DISKS] = {0};
  snprintf(path, sizeof path, "%s/witnesses", run_dir);
  FILE *f = fopen(path, "re");
  if (!f) give_up("what is on the disks was not looked at");
  while (fgets(line, sizeof line, f)) {
    line[strcspn(line, "\n")] = 0;
    struct witness w;
    char state[WITNESS_STATE];
    if (!witness_parse(line, &w)) continue;
    int at = disk_at(w.disk);
    if (at < 0) continue;
    listed = realloc(listed, (listed_count + 1) * sizeof *listed);
    if (!listed) give_up("no memory");
    listed[listed_count++] = w;
    const char *why = witness_state(&w, disk_fds[at], state);
    if (why) put("witness - refuse %u 0 0 %s%s%s\n", w.disk, strcmp(w.kind, "refuse") ? w.name : "", strcmp(w.kind, "refuse") ? ": " : "", why);
    else put("witness %s %s %u %llu %llu %s\n", state, w.kind, w.disk, (unsigned long long)w.offset, (unsigned long long)w.bytes, w.name);
    vouched[at] |= !strcmp(w.kind, "ext4") || !strcmp(w.kind, "xfs");
  }
  fclose(f);
  for (u32 i = 0; i < cfg->disk_count; i++) {
    const char *why = why_stale((int)i);
    if (why) put("witness - refuse %u 0 0 %s\n", cfg->disk[i].index, why);
    if (!vouched[i]) put("witness - refuse %u 0 0 no file system on it can tell whether it was written to in between\n", cfg->disk[i].index);
  }
}

/* What the agent knows of its stream beside the capture: it would be gone with this kernel's tmpfs. */
static void put_notes(const char *run_dir) {
  DIR *dir = opendir(run_dir);
  if (!dir) give_up("%s is gone", run_dir);
  for (struct dirent *e; (e = readdir(dir));) {
    size_t len = strlen(e->d_name);
    if (len < 6 || strcmp(e->d_name + len - 5, ".json") || strpbrk(e->d_name, " \n")) continue;
    if (strncmp(e->d_name, "stream-", 7) && strncmp(e->d_name, "swap-", 5) && strncmp(e->d_name, "excluded-", 9)) continue;
    int fd = openat(dirfd(dir), e->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode)) give_up("%s cannot be read", e->d_name);
    if (st.st_size > (off_t)MAX_NOTE_BYTES) give_up("%s is too large", e->d_name);
    char *data = malloc((size_t)st.st_size + 1);
    if (!data || read(fd, data, (size_t)st.st_size) != st.st_size) give_up("%s cannot be read", e->d_name);
    close(fd);
    put("note %s %llu\n", e->d_name, (unsigned long long)st.st_size);
    put_bytes(data, (size_t)st.st_size);
    put("\n");
    free(data);
  }
  closedir(dir);
}

/* ---- the area ---- */

static void need(const char *why) {
  if (why) give_up("%s", why);
}

/* Through whatever lies below its file system, these writes make the area's blocks dirty: the ones that follow are not seen. */
static void blank(const struct area *area) {
  static const char zeroes[1 << 20];
  for (u64 at = 0; at < area->bytes; at += sizeof zeroes)
    need(area_write(area, at, zeroes, area->bytes - at < sizeof zeroes ? area->bytes - at : sizeof zeroes));
  need(area_flush(area));
}

static void store(const struct area *area) {
  u64 whole = (text_len + AREA_BLOCK - 1) / AREA_BLOCK * AREA_BLOCK;
  static const char zeroes[AREA_BLOCK];
  u64 len = text_len;
  put_bytes(zeroes, whole - text_len);
  need(area_write(area, AREA_BLOCK, text, whole));
  need(area_flush(area));
  need(area_set_head(area, AREA_SAVED, text, len));
  char *again;
  u64 again_len;
  need(area_load(area, &again, &again_len));
  if (again_len != len || memcmp(again, text, len)) give_up("what was saved could not be read back");
}

int cmd_save(int argc, char **argv) {
  const char *run_dir = NULL, *area_path = NULL, *how = "";
  int i = 1;
  for (; i + 1 < argc && !strncmp(argv[i], "--", 2); i += 2) {
    if (!strcmp(argv[i], "--pin")) pin_dir = argv[i + 1];
    else if (!strcmp(argv[i], "--run")) run_dir = argv[i + 1];
    else if (!strcmp(argv[i], "--area")) area_path = argv[i + 1];
    else return 2;
  }
  if (i < argc) how = argv[i++];
  if (!pin_dir || !run_dir || !area_path || i != argc) return 2;
  control_fd = 2;
  struct area area;
  need(area_open(&area, area_path));
  /* What an earlier shutdown saved is good for the start that followed it, whether that has used it or not. */
  need(area_forget(&area));
  /* A server that is not protected any more. */
  if (access(pin_dir, F_OK)) return 0;
  if (!strcmp(how, "kexec")) give_up("kexec is not carried over");
  prepare_loading();
  prepare_pin_dir();
  char boot_id[64] = "";
  read_text("/proc/sys/kernel/random/boot_id", boot_id, sizeof boot_id);
  const char *why = open_pinned(boot_id);
  if (why) give_up("%s", *why ? why : "nothing is captured");
  map_memory(cfg->ring_bytes);
  need_read_only(area.dev);

  /* Into the dirty map, not the ring, from here on. */
  go_tracking(CAP_R_REQUESTED);
  blank(&area);
  put("boot %s\ncapture %s\nreleased %llu\nring %llu\ntimeout %llu\n", cfg->boot_id, cfg->capture_id, (unsigned long long)*consumer,
      (unsigned long long)cfg->ring_bytes, (unsigned long long)cfg->consumer_timeout_ns);
  put_disks();
  put_witnesses(run_dir);
  put_notes(run_dir);

  for (u32 k = 0; k < cfg->disk_count; k++) bpf_map_delete_elem(map_fd[M_DISKS], &cfg->disk[k].dev);
  unpin_all();
  mark_in_flight();
  mark_ring();
  mark_what_is_not_known();
  size_t before = text_len;
  for (u64 gap = 0;; gap = gap ? gap * 4 : 65536) {
    text_len = before;
    if (put_runs(gap, area.bytes - 2 * AREA_BLOCK)) break;
    if (gap > 1ull << 50) give_up("the save area is too small");
  }
  put("end\n");
  store(&area);
  fprintf(stderr, "understudy: the restart is carried over (%llu bytes saved)\n", (unsigned long long)text_len);
  return 0;
}
