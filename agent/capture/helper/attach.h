/* SPDX-License-Identifier: Apache-2.0 */
/* The pinned capture: loading, pinning, adopting it, and its shared memory. One capture to a process. */
#ifndef ATTACH_H
#define ATTACH_H
#include "../bpf/layout.h"
#include <bpf/libbpf.h>
#include <stddef.h>

enum { M_RING, M_CONFIG, M_DISKS, M_DIRTY, M_TAKEN, M_INFLIGHT, M_STATS, M_PROGRAMS, M_COUNT };
enum { L_ISSUE, L_DONE, L_REQUEUE, L_COUNT };

struct disk {
  u32 index, dev;
  char path[256], sys[300];
  u64 bytes, seq;
  int gone;
};

/* Where lines of JSON go. */
extern int control_fd;
extern int map_fd[M_COUNT], stub_fd[L_COUNT], mark_fd;
extern const char *pin_dir;
extern struct cap_cfg *cfg;
extern u64 *dirty_map, *taken_map, map_words;
extern u64 *consumer;
/* What is to be captured, as the caller names it. */
extern struct disk disks[CAP_MAX_DISKS];
extern u32 disk_count;

__attribute__((format(printf, 1, 2))) void say(const char *format, ...);
/* As it goes between the quotes of a JSON text; valid until the next call. */
char *json_text(const char *s);
/* Says the error and ends the process; `before_failing` is called with the reason first. */
__attribute__((noreturn, format(printf, 3, 4))) void fail(const char *code, const char *disk, const char *format, ...);
extern void (*before_failing)(const char *reason);

/* The length without white space at the end, or -1. */
int read_text(const char *path, char *out, size_t size);
int exists(const char *dir, const char *name);
u64 read_number(const char *dir, const char *name, u64 otherwise);

/* Fills in what the kernel knows of the disk at d->path; fails if it cannot be captured. */
void resolve_disk(struct disk *d);
/* Logs and limits that loading needs. */
void prepare_loading(void);
/* Makes the folder of the pins, and takes its lock for the life of this process. */
void prepare_pin_dir(void);
void unpin_all(void);
/* Opens what is pinned. NULL, or why it cannot be used; "" when nothing is pinned. */
const char *open_pinned(const char *boot_id);
/* The same, if it is the capture of `disks` with such a ring; with the programs of this build. */
const char *try_adopt(u64 ring_bytes, const char *boot_id);
/* Loads, pins and attaches a capture of `disks`, whose first write is treated as `mode` says. */
void start_fresh(u64 ring_bytes, u64 timeout_ns, const char *boot_id, enum cap_mode mode);
/* Maps ring and dirty maps of the capture that is pinned. */
void map_memory(u64 ring_bytes);

void go_tracking(u32 reason);
/* Calls of the programs that the kernel skipped. */
u64 recursion_misses(void);

/* One after the other: the writes that are in the driver. Begins at {0}; `key` is the request's. 0 at the end. */
struct inflight_walk {
  u64 key;
  int begun;
};
int inflight_next(struct inflight_walk *walk, struct cap_inflight *entry);

u64 producer_pos(void);
/* The record at `pos` of the ring, the ring's own header of it, and where the next one begins. */
const struct cap_rec *ring_rec(u64 pos, u32 *header, u64 *next);
#define RING_BUSY (1u << 31)
#define RING_DISCARDED (1u << 30)

#endif
