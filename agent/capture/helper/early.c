// SPDX-License-Identifier: Apache-2.0
/*
 * early --pin DIR --run DIR --area FILE [--log FILE]: called by systemd before anything of the system is writable. Attaches the capture
 * again, in tracking mode, with the blocks that `save` saved as dirty, and writes RUN/carried.json for the agent:
 *   {"captureId":..,"saved":{"captureId":..,"bootId":..,"releasedPos":..},"disks":{"0":null,"1":"why it must be compared"}}
 *   {"reason":"why nothing is carried over"}
 * What was saved is used once: that is written before anything is believed.
 */
#define _GNU_SOURCE
#include "area.h"
#include "dirty-map.h"
#include "helper.h"
#include "witness.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static const char *run_dir;
static int attached;

static void tell(const char *json) {
  char path[600], temporary[620];
  snprintf(path, sizeof path, "%s/carried.json", run_dir);
  snprintf(temporary, sizeof temporary, "%s.new", path);
  int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) exit(1);
  write_all(fd, json, strlen(json));
  close(fd);
  if (rename(temporary, path)) exit(1);
}

static void tell_reason(const char *reason) {
  char json[9200];
  if (attached) unpin_all();
  snprintf(json, sizeof json, "{\"reason\":\"%s\"}\n", json_text(reason));
  tell(json);
  fprintf(stderr, "understudy: the restart is not carried over: %s\n", reason);
}

__attribute__((noreturn, format(printf, 1, 2))) static void give_up(const char *format, ...) {
  char reason[4096];
  va_list args;
  va_start(args, format);
  vsnprintf(reason, sizeof reason, format, args);
  va_end(args);
  tell_reason(reason);
  exit(0);
}

static void need(const char *why) {
  if (why) give_up("%s", why);
}

/* ---- what was saved ---- */

static char saved_boot[64], saved_capture[64];
static unsigned long long saved_released, saved_ring, saved_timeout;
static struct {
  struct witness w;
  const char *then;
} *witnesses;
static u32 witness_count;
static char *refused[CAP_MAX_DISKS]; /* by place in `disks` */
static char saved_path[CAP_MAX_DISKS][256];
static int disk_fds[CAP_MAX_DISKS];

__attribute__((format(printf, 2, 3))) static void refuse(int at, const char *format, ...) {
  if (refused[at]) return;
  va_list args;
  va_start(args, format);
  if (vasprintf(&refused[at], format, args) < 0) exit(1);
  va_end(args);
}

static void restore_note(const char *name, const char *data, u64 len) {
  char path[600];
  if (strchr(name, '/') || name[0] == '.') give_up("what was saved is damaged");
  snprintf(path, sizeof path, "%s/%s", run_dir, name);
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) give_up("%s cannot be written: %s", path, strerror(errno));
  write_all(fd, data, len);
  close(fd);
}

static void damaged(void) { give_up("what was saved is damaged"); }

/* The text that is still to be read, by lines. */
static char *rest, *rest_end;

static char *next_line(void) {
  char *line = rest, *end = rest < rest_end ? memchr(rest, '\n', (size_t)(rest_end - rest)) : NULL;
  if (!end) damaged();
  *end = 0;
  rest = end + 1;
  return line;
}

static void add_witness(char *line) {
  char *named = strchr(line, ' ');
  struct witness w;
  if (!named || !witness_parse(named + 1, &w)) damaged();
  *named = 0;
  witnesses = realloc(witnesses, (witness_count + 1) * sizeof *witnesses);
  if (!witnesses) exit(1);
  witnesses[witness_count].w = w;
  witnesses[witness_count++].then = line;
}

static void add_disk(unsigned index, u64 bytes, const char *path) {
  if (disk_count == CAP_MAX_DISKS) damaged();
  disks[disk_count].index = index;
  disks[disk_count].bytes = bytes;
  snprintf(saved_path[disk_count++], sizeof saved_path[0], "%s", path);
}

/* What the capture is to be of, and what its disks are to look like. */
static void read_what_to_attach(void) {
  for (;;) {
    char path[256], *from = rest, *line = next_line();
    unsigned index;
    unsigned long long bytes;
    if (!strncmp(line, "witness ", 8)) add_witness(line + 8);
    else if (sscanf(line, "disk %u %llu %255s", &index, &bytes, path) == 3) add_disk(index, bytes, path);
    else if (sscanf(line, "boot %63s", saved_boot) != 1 && sscanf(line, "capture %63s", saved_capture) != 1 &&
             sscanf(line, "released %llu", &saved_released) != 1 && sscanf(line, "ring %llu", &saved_ring) != 1 &&
             sscanf(line, "timeout %llu", &saved_timeout) != 1) {
      rest[-1] = '\n';
      rest = from;
      break;
    }
  }
  if (!disk_count || !saved_ring || !*saved_boot || !*saved_capture) damaged();
}

/* What had changed, and what the agent knew of its stream. */
static void read_what_was_known(void) {
  for (;;) {
    char name[256], *line = next_line();
    unsigned index;
    unsigned long long from, bytes;
    if (sscanf(line, "run %u %llu %llu", &index, &from, &bytes) == 3) {
      int at = disk_at(index);
      if (at < 0) damaged();
      mark_extent(dirty_map, at, from, bytes, 1);
    } else if (sscanf(line, "note %255s %llu", name, &bytes) == 2 && bytes < (u64)(rest_end - rest)) {
      restore_note(name, rest, bytes);
      rest += bytes + 1;
    } else if (!strcmp(line, "end")) return;
    else damaged();
  }
}

/* ---- which disk is which ---- */

/* Whether the disk is this one: something on it says so, and nothing says otherwise. */
static int is_this(u32 at, int fd) {
  int known = 0;
  for (u32 k = 0; k < witness_count; k++) {
    const struct witness *w = &witnesses[k].w;
    if (w->disk != disks[at].index || !strcmp(w->kind, "refuse") || !strcmp(w->kind, "touched")) continue;
    if (!witness_knows(w, witnesses[k].then, fd)) return 0;
    known = 1;
  }
  return known;
}

static int is_taken(const char *path) {
  for (u32 i = 0; i < disk_count; i++)
    if (!strcmp(disks[i].path, path)) return 1;
  return 0;
}

/* The device, if it is a whole disk of that size and none of those that were found. */
static int open_if_fits(const char *path, u64 bytes) {
  char sys[300];
  struct stat st;
  if (is_taken(path) || stat(path, &st) || !S_ISBLK(st.st_mode)) return -1;
  snprintf(sys, sizeof sys, "/sys/dev/block/%u:%u", major(st.st_rdev), minor(st.st_rdev));
  if (exists(sys, "partition") || read_number(sys, "size", 0) * 512 != bytes) return -1;
  return open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
}

static void take(u32 at, const char *path, int fd) {
  snprintf(disks[at].path, sizeof disks[at].path, "%s", path);
  disk_fds[at] = fd;
}

/* Calls `look` for each disk of the size that is not taken, until it says that it is found. */
static void each_of_size(u32 at, int (*look)(u32 at, const char *path, int fd)) {
  DIR *dir = opendir("/sys/block");
  int found = 0;
  for (struct dirent *e; dir && !found && (e = readdir(dir));) {
    char path[300];
    if (e->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "/dev/%s", e->d_name);
    for (char *s = path + 5; *s; s++)
      if (*s == '!') *s = '/';
    int fd = open_if_fits(path, disks[at].bytes);
    if (fd < 0) continue;
    found = look(at, path, fd);
    if (!found) close(fd);
  }
  if (dir) closedir(dir);
}

static int take_if_this(u32 at, const char *path, int fd) {
  int found = is_this(at, fd);
  if (found) take(at, path, fd);
  return found;
}

static char only_path[300];
static int only_count;
static int note_only(u32 at, const char *path, int fd) {
  (void)at, (void)fd;
  snprintf(only_path, sizeof only_path, "%s", path);
  only_count++;
  return 0;
}

/*
 * Kernels number disks as they find them. Those that their witnesses recognise come first, at the name of before if they
 * are there. One that was changed is the disk of that name, or the only one of that size that is left: it is compared, but
 * the capture has to have it.
 */
static void find_disks(void) {
  for (u32 at = 0; at < disk_count; at++) {
    int fd = open_if_fits(saved_path[at], disks[at].bytes);
    if (fd >= 0 && !take_if_this(at, saved_path[at], fd)) close(fd);
  }
  for (u32 at = 0; at < disk_count; at++)
    if (!*disks[at].path) each_of_size(at, take_if_this);
  for (u32 at = 0; at < disk_count; at++) {
    if (*disks[at].path) continue;
    int fd = open_if_fits(saved_path[at], disks[at].bytes);
    const char *path = saved_path[at];
    if (fd < 0) {
      only_count = 0;
      each_of_size(at, note_only);
      path = only_path;
      if (only_count == 1) fd = open_if_fits(path, disks[at].bytes);
    }
    if (fd < 0) give_up("disk %s is not there yet, or has another size", saved_path[at]);
    take(at, path, fd);
  }
}

/* Sectors that were written to a disk since the kernel found it; discards count as too many. */
static u64 written_sectors(const struct disk *d) {
  char path[400], line[600];
  unsigned long long v[17] = {0};
  snprintf(path, sizeof path, "%s/stat", d->sys);
  if (!read_number(d->sys, "queue/iostats", 0) || read_text(path, line, sizeof line) <= 0) return ~0ull;
  char *s = line;
  for (unsigned i = 0; i < sizeof v / sizeof *v; i++) v[i] = strtoull(s, &s, 10);
  return v[13] ? ~0ull : v[6];
}

/*
 * Each disk once more, now that every write is seen: what was written before that is what the initramfs writes, or the
 * disk is compared.
 */
static void vouch(int at) {
  u64 allowed = AREA_BLOCK / 512;
  for (u32 k = 0; k < witness_count && !refused[at]; k++) {
    const struct witness *w = &witnesses[k].w;
    if (w->disk != disks[at].index) continue;
    char now[WITNESS_STATE];
    struct dirty_places places;
    int named = strcmp(w->kind, "refuse") != 0;
    const char *why = witness_state(w, disk_fds[at], now);
    if (!why) why = witness_follows(w, witnesses[k].then, now, &places);
    if (why) {
      refuse(at, "%s%s%s", named ? w->name : "", named ? ": " : "", why);
      break;
    }
    allowed += places.sectors;
    for (unsigned p = 0; p < places.count; p++) mark_extent(dirty_map, disk_at(disks[at].index), places.of[p].offset, places.of[p].bytes, 1);
  }
  /* Last: a write that was under way when the capture was attached is in the counter now. */
  u64 written = written_sectors(&disks[at]);
  if (!refused[at] && written > allowed)
    refuse(at, "%llu sectors were written before the capture was attached, more than a clean start writes", (unsigned long long)written);
}

int cmd_early(int argc, char **argv) {
  const char *area_path = NULL, *log_path = NULL;
  int i = 1;
  for (; i + 1 < argc; i += 2) {
    if (!strcmp(argv[i], "--pin")) pin_dir = argv[i + 1];
    else if (!strcmp(argv[i], "--run")) run_dir = argv[i + 1];
    else if (!strcmp(argv[i], "--area")) area_path = argv[i + 1];
    else if (!strcmp(argv[i], "--log")) log_path = argv[i + 1];
    else return 2;
  }
  if (!pin_dir || !run_dir || !area_path || i != argc) return 2;
  int log = log_path ? open(log_path, O_WRONLY | O_CLOEXEC) : -1;
  if (log >= 0) dup2(log, 2);
  control_fd = 2;
  if (mkdir(run_dir, 0700) && errno != EEXIST) return 1;
  prepare_loading();
  char boot_id[64] = "";
  read_text("/proc/sys/kernel/random/boot_id", boot_id, sizeof boot_id);
  /* Called by hand while the machine runs: what is captured goes on, and what was told stays. */
  if (!open_pinned(boot_id)) return 0;
  before_failing = tell_reason;
  struct area area;
  char *text;
  u64 len;
  need(area_open(&area, area_path));
  need(area_load(&area, &text, &len));
  /* Whatever happens from here on, the next start does not believe it again. */
  need(area_set_head(&area, AREA_USED, text, len));

  rest = text;
  rest_end = text + len;
  read_what_to_attach();
  find_disks();
  for (u32 k = 0; k < disk_count; k++) resolve_disk(&disks[k]);
  prepare_pin_dir();
  unpin_all();
  prepare_pin_dir();
  start_fresh(saved_ring, saved_timeout, boot_id, CAP_TRACKING);
  attached = 1;
  map_memory(saved_ring);
  for (u32 k = 0; k < disk_count; k++) vouch((int)k);
  read_what_was_known();

  char *json = NULL;
  size_t size;
  FILE *out = open_memstream(&json, &size);
  if (!out) give_up("no memory");
  fprintf(out, "{\"captureId\":\"%s\",", cfg->capture_id);
  fprintf(out, "\"saved\":{\"captureId\":\"%s\",\"bootId\":\"%s\",\"releasedPos\":%llu},\"disks\":{", saved_capture, saved_boot, saved_released);
  for (u32 k = 0; k < disk_count; k++) {
    fprintf(out, "%s\"%u\":", k ? "," : "", disks[k].index);
    if (refused[k]) fprintf(out, "\"%s\"", json_text(refused[k]));
    else fprintf(out, "null");
    if (refused[k]) fprintf(stderr, "understudy: %s has to be compared: %s\n", disks[k].path, refused[k]);
  }
  fprintf(out, "}}\n");
  fclose(out);
  tell(json);
  fprintf(stderr, "understudy: the restart is carried over\n");
  return 0;
}
