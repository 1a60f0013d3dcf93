// SPDX-License-Identifier: Apache-2.0
/* Loads, pins and adopts the capture; see attach.h. */
#define _GNU_SOURCE
#include "attach.h"
#include "helper.h"
#include "objects.h"
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <unistd.h>

#define BPF_FS 0xcafe4a11

static const char *const map_names[M_COUNT] = {"ring", "config", "disks", "dirty", "taken", "inflight", "stats", "programs"};
static const char *const stub_names[L_COUNT] = {"stub_issue", "stub_done", "stub_requeue"};
static const char *const prog_names[CAP_P_COUNT] = {"issue", "copy", "range", "mark", "done", "done_mark", "requeue"};

int control_fd = 3;
int map_fd[M_COUNT], stub_fd[L_COUNT], mark_fd = -1;
const char *pin_dir;
struct cap_cfg *cfg;
u64 *dirty_map, *taken_map, map_words;
u64 *consumer;
static u64 ring_mask;
static volatile u64 *producer;
static const char *ring_data;
void (*before_failing)(const char *reason);
static pthread_mutex_t control_lock = PTHREAD_MUTEX_INITIALIZER;

struct disk disks[CAP_MAX_DISKS];
u32 disk_count;

/* ---- control channel ---- */

void say(const char *format, ...) {
  char *line = NULL;
  va_list args;
  va_start(args, format);
  int n = vasprintf(&line, format, args);
  va_end(args);
  if (n < 0) _exit(1);
  pthread_mutex_lock(&control_lock);
  write_all(control_fd, line, (u64)n);
  write_all(control_fd, "\n", 1);
  pthread_mutex_unlock(&control_lock);
  free(line);
}

char *json_text(const char *s) {
  static char out[9000];
  size_t o = 0;
  for (; *s && o < sizeof out - 8; s++) {
    if (*s == '"' || *s == '\\') out[o++] = '\\', out[o++] = *s;
    else if (*s == '\n') out[o++] = '\\', out[o++] = 'n';
    else if ((unsigned char)*s >= 32) out[o++] = *s;
  }
  out[o] = 0;
  return out;
}

void fail(const char *code, const char *disk, const char *format, ...) {
  char reason[4096];
  va_list args;
  va_start(args, format);
  vsnprintf(reason, sizeof reason, format, args);
  va_end(args);
  if (before_failing) before_failing(reason);
  char *d = strdup(json_text(disk ? disk : ""));
  say("{\"error\":\"%s\",\"disk\":\"%s\",\"reason\":\"%s\"}", code, d, json_text(reason));
  exit(1);
}

/* ---- small files ---- */

int read_text(const char *path, char *out, size_t size) {
  FILE *f = fopen(path, "re");
  if (!f) return -1;
  size_t n = fread(out, 1, size - 1, f);
  fclose(f);
  while (n && isspace((unsigned char)out[n - 1])) n--;
  out[n] = 0;
  return (int)n;
}

int exists(const char *dir, const char *name) {
  char p[600];
  snprintf(p, sizeof p, "%s/%s", dir, name);
  return access(p, F_OK) == 0;
}

u64 read_number(const char *dir, const char *name, u64 otherwise) {
  char p[600], t[64];
  snprintf(p, sizeof p, "%s/%s", dir, name);
  return read_text(p, t, sizeof t) > 0 ? strtoull(t, NULL, 10) : otherwise;
}

void resolve_disk(struct disk *d) {
  struct stat st;
  if (stat(d->path, &st)) fail("UND_CAPTURE_DISK_NOT_FOUND", d->path, "%s", strerror(errno));
  if (!S_ISBLK(st.st_mode)) fail("UND_CAPTURE_DISK_NOT_FOUND", d->path, "it is not a block device");
  d->dev = (u32)(major(st.st_rdev) << 20 | minor(st.st_rdev));
  snprintf(d->sys, sizeof d->sys, "/sys/dev/block/%u:%u", major(st.st_rdev), minor(st.st_rdev));
  if (exists(d->sys, "partition")) fail("UND_CAPTURE_DISK_PARTITION", d->path, "it is a partition");
  if (exists(d->sys, "dm")) fail("UND_CAPTURE_DISK_STACKED", d->path, "it is a device-mapper device");
  if (exists(d->sys, "md")) fail("UND_CAPTURE_DISK_STACKED", d->path, "it is a software RAID");
  if (!exists(d->sys, "mq"))
    fail("UND_CAPTURE_DISK_BIO_BASED", d->path, "its driver takes no requests (bio-based: ram, zram, pmem, multipath head)");
  char zoned[64];
  char p[600];
  snprintf(p, sizeof p, "%s/queue/zoned", d->sys);
  if (read_text(p, zoned, sizeof zoned) > 0 && strcmp(zoned, "none")) fail("UND_CAPTURE_DISK_ZONED", d->path, "%s", zoned);
  d->bytes = read_number(d->sys, "size", 0) * 512;
  d->seq = read_number(d->sys, "diskseq", 0);
  if (!d->bytes) fail("UND_CAPTURE_DISK_NOT_FOUND", d->path, "its size is zero");
}

/* Requests that the disks can have under way at once, to size the in-flight table. */
static u32 inflight_entries(void) {
  u64 n = 1024;
  for (u32 i = 0; i < disk_count; i++) {
    char mq[600];
    u64 queues = 0;
    snprintf(mq, sizeof mq, "%s/mq", disks[i].sys);
    DIR *dir = opendir(mq);
    for (struct dirent *e; dir && (e = readdir(dir));) queues += isdigit((unsigned char)e->d_name[0]) != 0;
    if (dir) closedir(dir);
    char queue[600];
    snprintf(queue, sizeof queue, "%s/queue", disks[i].sys);
    n += 2 * queues * read_number(queue, "nr_requests", 256);
  }
  return n > 262144 ? 262144 : (u32)n;
}

int inflight_next(struct inflight_walk *walk, struct cap_inflight *entry) {
  u64 next;
  while (bpf_map_get_next_key(map_fd[M_INFLIGHT], walk->begun ? &walk->key : NULL, &next) == 0) {
    walk->key = next;
    walk->begun = 1;
    if (bpf_map_lookup_elem(map_fd[M_INFLIGHT], &next, entry) == 0) return 1;
  }
  return 0;
}

/* ---- load, pin, adopt ---- */

static char load_log[16384];
static size_t load_log_len;

static int on_libbpf_print(enum libbpf_print_level level, const char *format, va_list args) {
  if (level == LIBBPF_DEBUG) return 0;
  char *line = NULL;
  int n = vasprintf(&line, format, args);
  if (n < 0) return 0;
  /* The verifier says at its end what it minds. */
  size_t len = (size_t)n, most = sizeof load_log - 1;
  const char *from = line;
  if (len > most) from += len - most, len = most;
  size_t keep = load_log_len + len > most ? most - len : load_log_len;
  memmove(load_log, load_log + load_log_len - keep, keep);
  memcpy(load_log + keep, from, len);
  load_log_len = keep;
  free(line);
  load_log_len += len;
  return 0;
}

void prepare_loading(void) {
  libbpf_set_print(on_libbpf_print);
  struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
  setrlimit(RLIMIT_MEMLOCK, &all); /* before 5.11 maps are charged to it */
}

static u64 fnv(const void *data, size_t len) {
  u64 h = 0xcbf29ce484222325ull;
  for (size_t i = 0; i < len; i++) h = (h ^ ((const u8 *)data)[i]) * 0x100000001b3ull;
  return h;
}

static const char *pin_path(const char *name) {
  static char p[4][600];
  static int k;
  k = (k + 1) % 4;
  snprintf(p[k], sizeof p[k], "%s/%s", pin_dir, name);
  return p[k];
}

void prepare_pin_dir(void) {
  struct statfs fs;
  const char *root = "/sys/fs/bpf";
  if (!strncmp(pin_dir, root, strlen(root)) && statfs(root, &fs) == 0 && (u32)fs.f_type != BPF_FS &&
      mount("bpf", root, "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RELATIME, "mode=700"))
    fail(errno == EPERM ? "UND_CAPTURE_NO_PERMISSION" : "UND_CAPTURE_PIN_DIR", NULL, "mounting %s: %s", root, strerror(errno));
  char part[600];
  snprintf(part, sizeof part, "%s", pin_dir);
  for (char *s = part + 1;; s++) {
    if (*s != '/' && *s) continue;
    char keep = *s;
    *s = 0;
    if (mkdir(part, 0700) && errno != EEXIST) fail("UND_CAPTURE_PIN_DIR", NULL, "creating %s: %s", part, strerror(errno));
    *s = keep;
    if (!keep) break;
  }
  if (statfs(pin_dir, &fs) || (u32)fs.f_type != BPF_FS) {
    rmdir(pin_dir);
    fail("UND_CAPTURE_PIN_DIR", NULL, "%s is not on a bpf file system", pin_dir);
  }
  int fd = open(pin_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  /* The helper of an agent that has just been killed may take a moment to end. */
  int locked = -1;
  for (int i = 0; fd >= 0 && locked && i < 30; i++)
    if ((locked = flock(fd, LOCK_EX | LOCK_NB))) usleep(100000);
  if (locked) fail("UND_CAPTURE_BUSY", NULL, "%s", pin_dir);
}

/* Links first: nothing is captured by half of a capture. */
void unpin_all(void) {
  char name[64];
  for (int i = 0; i < L_COUNT; i++) {
    snprintf(name, sizeof name, "link_%s", stub_names[i]);
    unlink(pin_path(name));
  }
  for (int i = 0; i < L_COUNT; i++) unlink(pin_path(stub_names[i]));
  unlink(pin_path("put_mark"));
  for (int i = 0; i < M_COUNT; i++) unlink(pin_path(map_names[i]));
  rmdir(pin_dir);
}

/* Of btf_trace_block_rq_issue: (data, rq), or before 5.11 (data, q, rq). */
static u32 issue_has_queue(void) {
  struct btf *btf = btf__load_vmlinux_btf();
  if (!btf) fail("UND_CAPTURE_NO_BTF", NULL, "/sys/kernel/btf/vmlinux cannot be read: %s", strerror(errno));
  int id = btf__find_by_name_kind(btf, "btf_trace_block_rq_issue", BTF_KIND_TYPEDEF);
  const struct btf_type *t = id > 0 ? btf__type_by_id(btf, (u32)id) : NULL;
  if (t) t = btf__type_by_id(btf, t->type);
  if (t && btf_is_ptr(t)) t = btf__type_by_id(btf, t->type);
  if (!t || !btf_is_func_proto(t)) fail("UND_CAPTURE_LOAD", NULL, "the kernel has no block_rq_issue tracepoint");
  u32 n = btf_vlen(t);
  btf__free(btf);
  return n > 2;
}

static struct bpf_object *try_load(const unsigned char *bytes, size_t len, u32 rq_is_second, u64 ring_bytes, u32 entries,
                                   int reuse) {
  load_log_len = 0;
  LIBBPF_OPTS(bpf_object_open_opts, opts, .object_name = "understudy");
  struct bpf_object *o = bpf_object__open_mem(bytes, len, &opts);
  if (!o) return NULL;
  struct bpf_map *m, *rodata = bpf_object__find_map_by_name(o, ".rodata");
  size_t size;
  u32 *value = rodata ? (u32 *)bpf_map__initial_value(rodata, &size) : NULL;
  if (!value) return NULL;
  *value = rq_is_second;
  for (int i = 0; i < M_COUNT; i++) {
    m = bpf_object__find_map_by_name(o, map_names[i]);
    if (!m) return NULL;
    if (reuse) {
      if (bpf_map__reuse_fd(m, map_fd[i])) return NULL;
    } else if (i == M_RING) bpf_map__set_max_entries(m, (u32)ring_bytes);
    else if (i == M_DIRTY || i == M_TAKEN) bpf_map__set_max_entries(m, (u32)map_words);
    else if (i == M_INFLIGHT) bpf_map__set_max_entries(m, entries);
  }
  struct bpf_program *p;
  bpf_object__for_each_program(p, o) bpf_program__set_type(p, BPF_PROG_TYPE_RAW_TRACEPOINT);
  if (bpf_object__load(o)) {
    int error = errno;
    bpf_object__close(o);
    errno = error;
    return NULL;
  }
  return o;
}

static int prog_fd_of(struct bpf_object *o, const char *name) {
  struct bpf_program *p = bpf_object__find_program_by_name(o, name);
  return p ? bpf_program__fd(p) : -1;
}

static void fail_load(int error) {
  struct utsname u;
  uname(&u);
  char lockdown[128] = "";
  read_text("/sys/kernel/security/lockdown", lockdown, sizeof lockdown);
  int maj = 0, min = 0;
  sscanf(u.release, "%d.%d", &maj, &min);
  const char *tail = load_log + (load_log_len > 1500 ? load_log_len - 1500 : 0);
  load_log[load_log_len] = 0;
  if (strstr(lockdown, "[confidentiality]")) fail("UND_CAPTURE_LOCKDOWN", NULL, "kernel lockdown: %s", lockdown);
  if (maj < 5 || (maj == 5 && min < 10)) fail("UND_CAPTURE_KERNEL_TOO_OLD", NULL, "%s", u.release);
  if (error == EPERM || error == EACCES) {
    if (geteuid() != 0 || error == EPERM) fail("UND_CAPTURE_NO_PERMISSION", NULL, "%s; %s", strerror(error), tail);
  }
  fail("UND_CAPTURE_LOAD", NULL, "kernel %s: %s; %s", u.release, strerror(error), tail);
}

static void put_programs(struct bpf_object *o) {
  for (u32 i = 0; i < CAP_P_COUNT; i++) {
    int fd = prog_fd_of(o, prog_names[i]);
    if (fd < 0 || bpf_map_update_elem(map_fd[M_PROGRAMS], &i, &fd, BPF_ANY)) fail_load(errno);
  }
}

static void *map_or_fail(int fd, size_t len, int prot, off_t off) {
  void *p = mmap(NULL, len, prot, MAP_SHARED, fd, off);
  if (p == MAP_FAILED) fail("UND_CAPTURE_LOAD", NULL, "mapping the capture's memory: %s", strerror(errno));
  return p;
}

void map_memory(u64 ring_bytes) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  consumer = map_or_fail(map_fd[M_RING], page, PROT_READ | PROT_WRITE, 0);
  char *p = map_or_fail(map_fd[M_RING], page + 2 * ring_bytes, PROT_READ, (off_t)page);
  producer = (volatile u64 *)p;
  ring_data = p + page;
  ring_mask = ring_bytes - 1;
  dirty_map = map_or_fail(map_fd[M_DIRTY], map_words * 8, PROT_READ | PROT_WRITE, 0);
  taken_map = map_or_fail(map_fd[M_TAKEN], map_words * 8, PROT_READ | PROT_WRITE, 0);
}

static void map_config(void) { cfg = map_or_fail(map_fd[M_CONFIG], sizeof *cfg, PROT_READ | PROT_WRITE, 0); }

static u64 config_build(int legacy) {
  return legacy ? fnv(capture_bytemap_bpf_o, capture_bytemap_bpf_o_len) : fnv(capture_bpf_o, capture_bpf_o_len);
}

const char *open_pinned(const char *boot_id) {
  int found = 0, missing = 0;
  for (int i = 0; i < M_COUNT; i++) (map_fd[i] = bpf_obj_get(pin_path(map_names[i]))) < 0 ? missing++ : found++;
  for (int i = 0; i < L_COUNT; i++) {
    char name[64];
    snprintf(name, sizeof name, "link_%s", stub_names[i]);
    (stub_fd[i] = bpf_obj_get(pin_path(stub_names[i]))) < 0 ? missing++ : found++;
    int link = bpf_obj_get(pin_path(name));
    link < 0 ? missing++ : found++;
    if (link >= 0) close(link);
  }
  (mark_fd = bpf_obj_get(pin_path("put_mark"))) < 0 ? missing++ : found++;
  if (!found) return "";
  if (missing) return "an earlier start was interrupted";
  struct bpf_map_info info = {};
  u32 len = sizeof info;
  if (bpf_obj_get_info_by_fd(map_fd[M_CONFIG], &info, &len) || info.value_size != sizeof *cfg) return "it has another layout";
  map_config();
  if (cfg->magic != CAP_MAGIC || cfg->layout != CAP_LAYOUT) return "it has another layout";
  if (!cfg->ready) return "an earlier start was interrupted";
  if (strcmp((char *)cfg->boot_id, boot_id)) return "it is of another boot";
  bpf_obj_get_info_by_fd(map_fd[M_DIRTY], &info, &len);
  map_words = info.max_entries;
  return NULL;
}

const char *try_adopt(u64 ring_bytes, const char *boot_id) {
  static char why[400];
  const char *unusable = open_pinned(boot_id);
  if (unusable) return unusable;
  if (cfg->ring_bytes != ring_bytes) return "the ring's size changed";
  if (cfg->disk_count != disk_count) return "the set of disks changed";
  for (u32 i = 0; i < disk_count; i++) {
    struct disk *d = &disks[i];
    int at = -1;
    for (u32 k = 0; k < disk_count; k++)
      if (cfg->disk[k].index == d->index) at = (int)k;
    if (at < 0 || cfg->disk[at].dev != d->dev || cfg->disk_seq[at] != d->seq) return "the set of disks changed";
    if (cfg->disk_bytes[at] != d->bytes) {
      snprintf(why, sizeof why, "disk %u (%s) changed its size", d->index, d->path);
      return why;
    }
  }
  if (cfg->build != config_build((int)cfg->byte_map)) {
    /* A newer helper: new programs behind the old stubs, the same maps. */
    struct bpf_object *o = cfg->byte_map ? try_load(capture_bytemap_bpf_o, capture_bytemap_bpf_o_len, issue_has_queue(), 0, 0, 1)
                                         : try_load(capture_bpf_o, capture_bpf_o_len, issue_has_queue(), 0, 0, 1);
    if (!o) return "the new programs do not fit it";
    int fd = prog_fd_of(o, "put_mark");
    unlink(pin_path("put_mark"));
    if (fd < 0 || bpf_obj_pin(fd, pin_path("put_mark"))) return "the new programs could not be pinned";
    put_programs(o);
    mark_fd = fd;
    cfg->build = config_build((int)cfg->byte_map);
  }
  return NULL;
}

static void calibrate(struct disk *d) {
  char *page = NULL;
  if (posix_memalign((void **)&page, 4096, 4096)) exit(1);
  int fd = open(d->path, O_RDONLY | O_DIRECT | O_CLOEXEC), random = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
  if (fd < 0 || random < 0) fail("UND_CAPTURE_CALIBRATION", d->path, "opening it: %s", strerror(errno));
  if (read(random, cfg->probe_pattern, sizeof cfg->probe_pattern) < 0) exit(1);
  close(random);
  __atomic_store_n(&cfg->probe_armed, 1, __ATOMIC_SEQ_CST);
  for (int i = 0; i < 50 && !__atomic_load_n(&cfg->probe_ok, __ATOMIC_SEQ_CST); i++) {
    memcpy(page, cfg->probe_pattern, sizeof cfg->probe_pattern);
    if (pread(fd, page, 4096, 0) < 0) fail("UND_CAPTURE_CALIBRATION", d->path, "reading it: %s", strerror(errno));
    memset(page, 0, 4096);
  }
  __atomic_store_n(&cfg->probe_armed, 0, __ATOMIC_SEQ_CST);
  close(fd);
  free(page);
  if (!cfg->probe_ok)
    fail("UND_CAPTURE_CALIBRATION", d->path, "pair %llx/%llx", (unsigned long long)cfg->page0, (unsigned long long)cfg->va0);
}

void start_fresh(u64 ring_bytes, u64 timeout_ns, const char *boot_id, enum cap_mode mode) {
  struct utsname u;
  uname(&u);
  int maj = 0, min = 0;
  sscanf(u.release, "%d.%d", &maj, &min);
  if (maj < 5 || (maj == 5 && min < 10)) fail("UND_CAPTURE_KERNEL_TOO_OLD", NULL, "%s", u.release);
  if (access("/sys/kernel/btf/vmlinux", R_OK)) {
    if (geteuid()) fail("UND_CAPTURE_NO_PERMISSION", NULL, "not root");
    fail("UND_CAPTURE_NO_BTF", NULL, "kernel %s has no /sys/kernel/btf/vmlinux", u.release);
  }
  u32 second = issue_has_queue(), entries = inflight_entries();
  struct bpf_object *o = NULL;
  /* Atomic OR came with 5.12; distributions carry it back, so ask the kernel rather than its number. */
  for (int legacy = getenv("UNDERSTUDY_CAPTURE_BYTE_MAP") != NULL; legacy < 2 && !o; legacy++) {
    u32 shift = legacy ? 16 : 12;
    u64 next = 0;
    struct cap_disk table[CAP_MAX_DISKS] = {};
    for (u32 i = 0; i < disk_count; i++) {
      u64 blocks = (disks[i].bytes + (1ull << shift) - 1) >> shift;
      table[i] = (struct cap_disk){.index = disks[i].index, .dev = disks[i].dev, .first_block = next, .blocks = blocks};
      next += (blocks + 63) & ~63ull;
    }
    map_words = legacy ? next / 8 : next / 64;
    o = legacy ? try_load(capture_bytemap_bpf_o, capture_bytemap_bpf_o_len, second, ring_bytes, entries, 0)
               : try_load(capture_bpf_o, capture_bpf_o_len, second, ring_bytes, entries, 0);
    if (!o) {
      if (errno == EPERM || legacy) fail_load(errno);
      continue;
    }
    for (int i = 0; i < M_COUNT; i++) map_fd[i] = bpf_map__fd(bpf_object__find_map_by_name(o, map_names[i]));
    map_config();
    cfg->magic = CAP_MAGIC;
    cfg->layout = CAP_LAYOUT;
    cfg->block_shift = shift;
    cfg->byte_map = (u32)legacy;
    cfg->build = config_build(legacy);
    memcpy(cfg->disk, table, sizeof table);
  }
  cfg->consumer_timeout_ns = timeout_ns;
  cfg->heartbeat_ns = boot_ns();
  cfg->ring_bytes = ring_bytes;
  cfg->epoch = 1;
  cfg->next_mark = 1;
  cfg->disk_count = disk_count;
  snprintf((char *)cfg->boot_id, sizeof cfg->boot_id, "%s", boot_id);
  char id[64];
  if (read_text("/proc/sys/kernel/random/uuid", id, sizeof id) < 0) exit(1);
  snprintf((char *)cfg->capture_id, sizeof cfg->capture_id, "%s", id);
  put_programs(o);
  mark_fd = prog_fd_of(o, "put_mark");

  struct bpf_link *links[L_COUNT];
  for (int i = 0; i < L_COUNT; i++) {
    struct bpf_program *p = bpf_object__find_program_by_name(o, stub_names[i]);
    stub_fd[i] = bpf_program__fd(p);
    links[i] = bpf_program__attach(p);
    if (!links[i]) fail_load(errno);
  }
  calibrate(&disks[0]);
  int bad = 0;
  for (int i = 0; i < M_COUNT; i++) bad |= bpf_obj_pin(map_fd[i], pin_path(map_names[i]));
  for (int i = 0; i < L_COUNT; i++) bad |= bpf_obj_pin(stub_fd[i], pin_path(stub_names[i]));
  bad |= bpf_obj_pin(mark_fd, pin_path("put_mark"));
  for (int i = 0; i < L_COUNT; i++) {
    char name[64];
    snprintf(name, sizeof name, "link_%s", stub_names[i]);
    bad |= bpf_link__pin(links[i], pin_path(name));
  }
  if (bad) {
    int error = errno;
    unpin_all();
    fail("UND_CAPTURE_PIN_DIR", NULL, "pinning in %s: %s", pin_dir, strerror(error));
  }
  if (mode == CAP_TRACKING) go_tracking(CAP_R_REQUESTED);
  /* From here every write of the disks is seen. */
  for (u32 i = 0; i < disk_count; i++) {
    cfg->disk_bytes[i] = disks[i].bytes;
    cfg->disk_seq[i] = disks[i].seq;
    if (bpf_map_update_elem(map_fd[M_DISKS], &cfg->disk[i].dev, &cfg->disk[i], BPF_ANY)) fail_load(errno);
  }
  __atomic_store_n(&cfg->ready, 1, __ATOMIC_SEQ_CST);
}

/* ---- its state ---- */

u64 producer_pos(void) { return __atomic_load_n(producer, __ATOMIC_ACQUIRE); }

const struct cap_rec *ring_rec(u64 pos, u32 *header, u64 *next) {
  const char *p = ring_data + (pos & ring_mask);
  *header = __atomic_load_n((const u32 *)p, __ATOMIC_ACQUIRE);
  u32 len = *header & 0x3fffffff;
  *next = pos + ((len + 8 + 7) & ~7u);
  return (const struct cap_rec *)(p + 8);
}

void go_tracking(u32 reason) {
  if (cfg->mode == CAP_ORDERED) {
    cfg->reason = reason;
    cfg->since_boot_ns = boot_ns();
  }
  /* The drop comes first: a record that still sees the old count was reserved before it. */
  __atomic_fetch_add(&cfg->drops, 1, __ATOMIC_SEQ_CST);
  __atomic_store_n(&cfg->mode, CAP_TRACKING, __ATOMIC_SEQ_CST);
}

u64 recursion_misses(void) {
  u64 n = 0;
  for (int i = 0; i < L_COUNT; i++) {
    struct bpf_prog_info info = {};
    u32 len = sizeof info;
    if (bpf_obj_get_info_by_fd(stub_fd[i], &info, &len) == 0) n += info.recursion_misses;
  }
  return n;
}
