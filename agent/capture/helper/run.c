// SPDX-License-Identifier: Apache-2.0
/*
 * run: loads or adopts the pinned capture, pumps the ring to stdout, and answers commands.
 *   stdout: batches (struct batch, its records, their data)       stdin: "ID COMMAND ARGS" lines
 *   fd 3:   one JSON object per line: answers {"id":..}, events {"event":..}, or {"error":CODE,..} before it ends
 * The end of stdin ends the helper; the pinned capture goes on.
 */
#define _GNU_SOURCE
#include "helper.h"
#include "attach.h"
#include "dirty-map.h"
#include <bpf/bpf.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <unistd.h>

#define BATCH_BYTES (2u << 20)
#define PIPE_BYTES (1 << 20)
#define GATHER_BYTES (1u << 20)
#define GATHER_US 100000
#define GATHER_STEP_US 8000
#define BATCH_SPAN_NS 500000000ull
#define MAX_PIECES 8192
#define RECORD_BYTES (1u << 20)
#define FOLD_BYTES 4096u
#define FOLD_BLOCKS 1024u /* more than a batch has whole ones of */
#define BARRIER_LIMIT_NS (120ull * 1000000000ull)

struct text {
  char *p;
  size_t len, room;
};
static void add(struct text *t, const char *format, ...) {
  if (t->room - t->len < 128) t->p = realloc(t->p, t->room = t->room * 2 + 4096);
  if (!t->p) exit(1);
  va_list args;
  va_start(args, format);
  t->len += (size_t)vsnprintf(t->p + t->len, t->room - t->len, format, args);
  va_end(args);
}

/* take: dirty blocks go to the taken map, set there before they are cleared here, so that a kill forgets none. */
static void say_extents(u64 id, int at, int take, u64 max_bytes, u64 from_bytes) {
  struct cap_disk *d = &cfg->disk[at];
  struct text t = {0};
  u64 step = blocks_per_word(), from = 0, run = 0, total = 0, size = 1ull << cfg->block_shift;
  spread_all_dirty(at);
  add(&t, "{\"id\":%llu,\"extents\":[", (unsigned long long)id);
  int first = 1;
  for (u64 b = from_bytes / size;; b++) {
    u64 g = d->first_block + b;
    int set = 0;
    if (b < d->blocks && total < max_bytes) {
      if (!run && b % step == 0 && word_empty(dirty_map, g) && (take || word_empty(taken_map, g))) {
        b += step - 1;
        if (b >= d->blocks) b = d->blocks - 1;
        continue;
      }
      set = block_test(dirty_map, g);
      if (set && take) {
        block_set(taken_map, g);
        block_clear(dirty_map, g);
      }
      if (!take) set = set || block_test(taken_map, g);
    }
    if (set) {
      if (!run) from = b;
      run++;
      total += size;
      continue;
    }
    if (run) {
      u64 off = from * size, len = run * size;
      if (off + len > cfg->disk_bytes[at]) len = cfg->disk_bytes[at] - off;
      add(&t, "%s[%llu,%llu]", first ? "" : ",", (unsigned long long)off, (unsigned long long)len);
      first = 0;
      run = 0;
    }
    if (b >= d->blocks || total >= max_bytes) break;
  }
  add(&t, "]}");
  say("%s", t.p);
  free(t.p);
}

/* ---- pump ---- */

struct batch {
  u32 magic, records;
  u64 start, end;
  u64 data_bytes;
  u32 lost, gap;
};
struct wire {
  u8 kind, flags;
  u16 disk;
  u32 len;
  u64 offset, boot_ns, mark, pos;
};
#define BATCH_MAGIC 0x31424355u

struct item {
  const struct cap_rec *rec;
  u64 pos;
  int next; /* piece of the same record */
};
struct record {
  struct wire w;
  int first, last, next; /* pieces; next record of the same open request */
};
struct open_request {
  u64 rq, boot_ns;
  int first, last; /* records */
};
struct flying {
  u64 rq, boot_ns, offset, len;
  u32 disk;
};

static struct item items[MAX_PIECES];
static struct record records[MAX_PIECES];
static struct wire wires[MAX_PIECES + 2 * FOLD_BLOCKS];
static struct open_request open_list[4096];
static struct flying *flying;
static u32 flying_count, flying_room;
static u64 gap_told;
static u64 read_pos, handed_pos; /* handed: what the other side may have seen already */
static volatile int pumping, pump_gone, hurry;
static volatile u64 wall_offset_ns; /* added to boot_ns it is the wall clock, as last told */
static volatile u32 late_overlap_marks;

static int order_lost(const struct cap_rec *r, u64 pos) {
  u64 base = pos >= __atomic_load_n(&cfg->order_pos, __ATOMIC_ACQUIRE) ? cfg->base_drops : cfg->prev_base_drops;
  return r->drops != base;
}

static void flying_remove(u64 rq, u64 boot) {
  for (u32 i = 0; i < flying_count; i++)
    if (flying[i].rq == rq && flying[i].boot_ns <= boot) flying[i--] = flying[--flying_count];
}

static void flying_add(u32 disk, u64 rq, u64 boot, u64 offset, u64 len) {
  /* The rest of a request that was given away in two batches. */
  for (u32 i = 0; i < flying_count; i++) {
    struct flying *f = &flying[i];
    if (f->rq != rq || f->boot_ns != boot) continue;
    u64 end = f->offset + f->len > offset + len ? f->offset + f->len : offset + len;
    if (offset < f->offset) f->offset = offset;
    f->len = end - f->offset;
    return;
  }
  flying_remove(rq, boot); /* the same request issued again: its completion was not seen */
  if (flying_count == flying_room) {
    flying_room = flying_room * 2 + 256;
    flying = realloc(flying, flying_room * sizeof *flying);
    if (!flying) exit(1);
  }
  flying[flying_count++] = (struct flying){rq, boot, offset, len, disk};
}

/* Two writes of one block under way at once: which one landed last is the drive's business. Read it again. */
static void check_overlap(u32 disk, u64 rq, u64 boot, u64 offset, u64 len) {
  int hit = 0;
  for (u32 i = 0; i < flying_count; i++) {
    struct flying *f = &flying[i];
    if (f->disk != disk || f->rq == rq || f->offset >= offset + len || offset >= f->offset + f->len) continue;
    hit = 1;
  }
  if (hit) {
    int at = disk_at(disk);
    if (at >= 0) mark_extent(dirty_map, at, offset, len, 1);
    __atomic_fetch_add(&cfg->disk_overlaps[disk & (CAP_MAX_DISKS - 1)], 1, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&late_overlap_marks, 1, __ATOMIC_SEQ_CST);
  }
  flying_add(disk, rq, boot, offset, len);
}

static void mark_sector_block(u32 disk, u64 offset) {
  int at = disk_at(disk);
  if (at >= 0) mark_extent(dirty_map, at, offset, 1, 1);
  __atomic_fetch_add(&late_overlap_marks, 1, __ATOMIC_SEQ_CST);
}

static int find_open(u32 count, u64 rq, u64 boot) {
  for (u32 i = 0; i < count; i++)
    if (open_list[i].rq == rq && open_list[i].boot_ns == boot) return (int)i;
  return -1;
}

static void write_vector(struct iovec *v, int n) {
  while (n) {
    ssize_t done = writev(1, v, n > 1024 ? 1024 : n);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0 && errno == EAGAIN) {
      struct pollfd w = {.fd = 1, .events = POLLOUT};
      poll(&w, 1, -1);
      continue;
    }
    if (done < 0) _exit(3);
    while (n && (size_t)done >= v->iov_len) {
      done -= (ssize_t)v->iov_len;
      v++;
      n--;
    }
    if (n) {
      v->iov_base = (char *)v->iov_base + done;
      v->iov_len -= (size_t)done;
    }
  }
}

/* `pos` is where the request's last piece is: the position that order is about. */
static void emit(int *out_last, int *out_first, int r, u64 pos) {
  records[r].next = -1;
  records[r].w.pos = pos;
  if (*out_last >= 0) records[*out_last].next = r;
  else *out_first = r;
  *out_last = r;
}

/* Of a request that goes on in the next batch: among the others by its position, which must rise. */
static void emit_in_place(int *out_last, int *out_first, int r, u64 pos) {
  int before = -1;
  for (int k = *out_first; k >= 0 && records[k].w.pos <= pos; k = records[k].next) before = k;
  if (before == *out_last) {
    emit(out_last, out_first, r, pos);
    return;
  }
  records[r].w.pos = pos;
  records[r].next = before < 0 ? *out_first : records[before].next;
  if (before < 0) *out_first = r;
  else records[before].next = r;
}

/* An open request that is cut (overflow in its middle): whole sectors only, the torn one is read again. */
static void square_off(int r, int from_start) {
  struct record *x = &records[r];
  if (from_start && x->w.offset % 512) {
    mark_sector_block(x->w.disk, x->w.offset);
    x->w.len = 0;
  } else if (x->w.len % 512) {
    mark_sector_block(x->w.disk, x->w.offset + x->w.len);
    x->w.len -= x->w.len % 512;
  }
}

static struct iovec vec[MAX_PIECES + 2 + 2 * FOLD_BLOCKS];
static int ordered[MAX_PIECES];
static u32 keep_at[MAX_PIECES], keep_used;
static u8 keep[2 * MAX_PIECES + FOLD_BLOCKS];

/* Blocks that a write further on in the batch writes anew; a place is taken if it is of this batch. */
static struct {
  u64 batch, block;
  u32 disk;
} folded[4 * FOLD_BLOCKS];
static u64 fold_batch;
static u32 fold_count;

/* Whether the block is there; if not, it is from now on. */
static int is_folded(u32 disk, u64 block) {
  u64 h = (block * 0x9e3779b97f4a7c15ull) ^ disk;
  for (u32 i = (u32)(h >> 32);; i++) {
    u32 at = i % (sizeof folded / sizeof *folded);
    if (folded[at].batch != fold_batch) {
      if (fold_count < FOLD_BLOCKS) {
        folded[at].block = block;
        folded[at].disk = disk;
        folded[at].batch = fold_batch;
        fold_count++;
      }
      return 0;
    }
    if (folded[at].block == block && folded[at].disk == disk) return 1;
  }
}

/*
 * What of a write survives the batch: all but whole blocks that a later write of the same batch has, as with the end of
 * a database's log, which is written with each commit. A batch is in the stream as a whole or not at all, so nobody can
 * be set back to what is left out. Called from the last write to the first: one flag for each block that the write
 * touches.
 */
static void fold(const struct wire *w, u8 *survives) {
  u64 end = w->offset + w->len;
  for (u64 b = w->offset / FOLD_BYTES; b * FOLD_BYTES < end; b++) {
    int whole = b * FOLD_BYTES >= w->offset && (b + 1) * FOLD_BYTES <= end;
    *survives++ = !(whole && is_folded(w->disk, b));
  }
}

/*
 * Sends the ring's [read_pos, end) as one batch. The pieces of a request, interleaved with those of other CPUs, become
 * one record (at most 1 MiB), put where its last piece is: it reached the driver only after that.
 */
static void send_batch(int count, u64 end, int lost, int gap) {
  u32 open = 0;
  int record_count = 0, out_first = -1, out_last = -1;
  for (int i = 0; i < count; i++) {
    const struct cap_rec *r = items[i].rec;
    items[i].next = -1;
    if (r->kind == CAP_DONE) {
      flying_remove(r->rq, r->boot_ns);
      continue;
    }
    int o = r->kind == CAP_WRITE ? find_open(open, r->rq, r->boot_ns) : -1;
    int cur = o >= 0 ? open_list[o].last : -1;
    struct record *c = cur >= 0 ? &records[cur] : NULL;
    if (c && c->w.offset + c->w.len == r->offset && (c->w.len + r->len <= RECORD_BYTES || c->w.len % 512)) {
      items[c->last].next = i;
      c->last = i;
      c->w.len += r->len;
    } else {
      int n = record_count++;
      records[n] = (struct record){
          .w = {.kind = r->kind, .flags = r->flags & CAP_DISCARD, .disk = r->disk, .len = r->len, .offset = r->offset, .boot_ns = r->boot_ns},
          .first = i, .last = i, .next = -1};
      if (r->kind == CAP_MARK) records[n].w.mark = r->offset, records[n].w.offset = 0;
      if (r->kind == CAP_WRITE) {
        if (o < 0) {
          if (open == sizeof open_list / sizeof *open_list) exit(4);
          o = (int)open++;
          open_list[o] = (struct open_request){r->rq, r->boot_ns, n, n};
        } else {
          records[open_list[o].last].next = n;
          open_list[o].last = n;
        }
      } else {
        if (r->kind == CAP_ZERO) check_overlap(r->disk, r->rq, r->boot_ns, r->offset, r->len);
        emit(&out_last, &out_first, n, items[i].pos);
      }
    }
    if (r->kind == CAP_WRITE && r->flags & CAP_LAST) {
      u64 from = records[open_list[o].first].w.offset, to = r->offset + r->len;
      square_off(open_list[o].first, 1);
      for (int k = open_list[o].first, next; k >= 0; k = next) {
        next = records[k].next;
        emit(&out_last, &out_first, k, items[i].pos);
      }
      check_overlap(r->disk, r->rq, r->boot_ns, from, to - from);
      open_list[o] = open_list[--open];
    }
  }
  for (u32 o = 0; o < open; o++) {
    struct record *head = &records[open_list[o].first], *tail = &records[open_list[o].last];
    check_overlap(head->w.disk, open_list[o].rq, open_list[o].boot_ns, head->w.offset, tail->w.offset + tail->w.len - head->w.offset);
    square_off(open_list[o].first, 1);
    for (int k = open_list[o].first, next; k >= 0; k = next) {
      next = records[k].next;
      square_off(k, 0);
      emit_in_place(&out_last, &out_first, k, items[records[k].last].pos);
    }
  }

  struct batch b = {.magic = BATCH_MAGIC, .start = read_pos, .end = end, .lost = (u32)lost, .gap = (u32)gap};
  int m = 0;
  for (int k = out_first; k >= 0; k = records[k].next)
    if (records[k].w.len || records[k].w.kind != CAP_WRITE) ordered[m++] = k;
  fold_batch++;
  fold_count = 0;
  keep_used = 0;
  for (int o = m - 1; o >= 0; o--) {
    struct record *x = &records[ordered[o]];
    if (x->w.kind != CAP_WRITE) continue;
    keep_at[o] = keep_used;
    keep_used += (u32)((x->w.offset + x->w.len - 1) / FOLD_BYTES - x->w.offset / FOLD_BYTES) + 1;
    fold(&x->w, &keep[keep_at[o]]);
  }
  int v = 2;
  for (int o = 0; o < m; o++) {
    struct record *x = &records[ordered[o]];
    if (x->w.kind != CAP_WRITE) {
      wires[b.records++] = x->w;
      continue;
    }
    u64 at = x->w.offset, last = at + x->w.len;
    struct wire *run = NULL;
    for (int i = x->first; i >= 0 && at < last; i = items[i].next) {
      const char *data = (const char *)(items[i].rec + 1);
      u64 piece_end = at + items[i].rec->len < last ? at + items[i].rec->len : last;
      while (at < piece_end) {
        u64 block_end = (at / FOLD_BYTES + 1) * FOLD_BYTES;
        u64 n = (block_end < piece_end ? block_end : piece_end) - at;
        if (!keep[keep_at[o] + (u32)(at / FOLD_BYTES - x->w.offset / FOLD_BYTES)]) run = NULL;
        else {
          if (!run) {
            run = &wires[b.records++];
            *run = x->w;
            run->offset = at;
            run->len = 0;
          }
          struct iovec *l = &vec[v - 1];
          if (v > 2 && (const char *)l->iov_base + l->iov_len == data) l->iov_len += n;
          else vec[v++] = (struct iovec){(void *)(uintptr_t)data, n};
          run->len += (u32)n;
          b.data_bytes += n;
        }
        at += n;
        data += n;
      }
    }
  }
  vec[0] = (struct iovec){&b, sizeof b};
  vec[1] = (struct iovec){wires, b.records * sizeof *wires};
  write_vector(vec, v);
}

static u64 wall_second(u64 boot) { return (boot + wall_offset_ns) / 1000000000ull; }

/* 1: something was sent, 0: nothing there, -1: only the beginning of requests that are still being copied. */
static int pump_once(int force) {
  u64 pos = read_pos, prod = producer_pos(), cut = pos, p = pos, bytes = 0;
  int n = 0, cut_n = 0, lost = 0, full = 0;
  u32 open = 0;
  u64 first_boot = 0;
  while (p < prod) {
    u32 header;
    u64 next;
    const struct cap_rec *r = ring_rec(p, &header, &next);
    if (header & RING_BUSY) break;
    if (!(header & RING_DISCARDED)) {
      int l = order_lost(r, p);
      if (n == 0) lost = l;
      u64 resumed = __atomic_load_n(&cfg->order_pos, __ATOMIC_ACQUIRE);
      if (l != lost || n == MAX_PIECES || bytes >= BATCH_BYTES || (pos < resumed && p >= resumed)) {
        full = 1;
        break;
      }
      /* Nor a long time, nor the end of a second: the end of a batch is a moment that the source can be recovered to. */
      if (r->kind != CAP_DONE) {
        if (!first_boot) first_boot = r->boot_ns;
        if (n && !open && (r->boot_ns > first_boot + BATCH_SPAN_NS || wall_second(r->boot_ns) > wall_second(first_boot))) break;
      }
      items[n].rec = r;
      items[n++].pos = p;
      bytes += next - p;
      if (r->kind == CAP_WRITE) {
        int o = find_open(open, r->rq, r->boot_ns);
        if (r->flags & CAP_LAST) {
          if (o >= 0) open_list[o] = open_list[--open];
        } else if (o < 0) {
          if (open < sizeof open_list / sizeof *open_list) open_list[open++] = (struct open_request){r->rq, r->boot_ns, 0, 0};
        }
      }
    }
    p = next;
    if (!open) cut = p, cut_n = n;
    /* A mark ends its batch where it can: the reader of the stream can then begin again right behind it. */
    if (!open && !(header & RING_DISCARDED) && r->kind == CAP_MARK) break;
  }
  if (p == pos) return 0;
  if (cut == pos) {
    if (!full && !force) return -1;
    cut = p;
    cut_n = n;
  }
  __atomic_store_n(&handed_pos, cut, __ATOMIC_SEQ_CST);
  /* Said in the stream itself, so that one who reads it late cannot take the two sides of a gap for one order. */
  u64 resumed = __atomic_load_n(&cfg->order_pos, __ATOMIC_ACQUIRE);
  int gap = !lost && resumed && pos >= resumed && gap_told != resumed;
  if (gap) gap_told = resumed;
  send_batch(cut_n, cut, lost, gap);
  read_pos = cut;
  return 1;
}

/* Let a frame's worth come together: small batches cost more than a tenth of a second of lag is worth. */
static void gather(void) {
  for (u32 us = 0; us < GATHER_US && !hurry && producer_pos() - read_pos < GATHER_BYTES; us += GATHER_STEP_US) usleep(GATHER_STEP_US);
  hurry = 0;
}

static void *pump(void *unused) {
  (void)unused;
  int ep = epoll_create1(EPOLL_CLOEXEC);
  /* By edge: the ring counts as readable for as long as anything in it is not acknowledged, not only unread. */
  struct epoll_event ev = {.events = EPOLLIN | EPOLLET};
  epoll_ctl(ep, EPOLL_CTL_ADD, map_fd[M_RING], &ev);
  int stuck = 0;
  while (pumping) {
    int r = pump_once(stuck > 50);
    if (r > 0) {
      stuck = 0;
      gather();
      continue;
    }
    if (r < 0 || producer_pos() != read_pos) { /* a record is being filled */
      stuck = r < 0 ? stuck + 1 : stuck;
      usleep(500);
      continue;
    }
    __atomic_store_n(&cfg->waiting, 1, __ATOMIC_SEQ_CST);
    if (producer_pos() != read_pos) continue;
    epoll_wait(ep, &ev, 1, 200);
  }
  pump_gone = 1;
  return NULL;
}

/* Writes whose record an earlier helper gave away and that were still under way when it ended. */
static void recover_flying(void) {
  struct inflight_walk walk = {0};
  for (struct cap_inflight e; inflight_next(&walk, &e);)
    if (e.captured) flying_add(e.disk, walk.key, e.boot_ns, e.offset, e.len);
  u64 first_ns = 0;
  for (u64 p = read_pos, prod = producer_pos(), n; p < prod; p = n) {
    u32 header;
    const struct cap_rec *r = ring_rec(p, &header, &n);
    if (header & RING_BUSY) break;
    if (header & RING_DISCARDED) continue;
    if (!first_ns && r->kind != CAP_DONE) first_ns = r->boot_ns;
    if (r->kind == CAP_DONE && (!first_ns || r->boot_ns < first_ns)) flying_add(r->disk, r->rq, r->boot_ns, r->offset, r->len);
  }
}

/* ---- commands ---- */

static const char *const reasons[] = {"none", "overflow", "copy-failed", "no-consumer", "inflight-table-full", "request-too-large", "missed-event", "requested"};

static const char *mode_json(void) {
  static char t[200];
  u32 reason = cfg->reason < sizeof reasons / sizeof *reasons ? cfg->reason : 0;
  if (__atomic_load_n(&cfg->mode, __ATOMIC_SEQ_CST) == CAP_ORDERED) snprintf(t, sizeof t, "{\"mode\":\"ordered\"}");
  else
    snprintf(t, sizeof t, "{\"mode\":\"tracking\",\"reason\":\"%s\",\"sinceBootNs\":\"%llu\"}", reasons[reason], (unsigned long long)cfg->since_boot_ns);
  return t;
}

/*
 * Entries of the in-flight table whose request ended without `done`: the kernel skipped the call (recursion), or the
 * deletion failed (a bucket's lock that was not had in time). Each would keep every barrier waiting. The disk itself says
 * that no write is under way: seen twice, a second apart, of an entry that is older than that. They stay in the table,
 * because a deletion could hit the slot's next request; by then boot_ns is another, and they are no ghosts any more.
 */
#define GHOST_AGE_NS (2ull * 1000000000ull)
#define GHOST_CONFIRM_NS 1000000000ull
#define GHOST_LOOK_NS 10000000ull
static struct ghost {
  u64 key, boot_ns, seen_ns;
  int sure;
} ghosts[1024];
static u32 ghost_count;

static struct ghost *find_ghost(u64 key, u64 boot) {
  for (u32 i = 0; i < ghost_count; i++)
    if (ghosts[i].key == key && ghosts[i].boot_ns == boot) return &ghosts[i];
  return NULL;
}

/* Writes that are older than the epoch and under way; with ~0 all of them are counted. */
static u32 inflight_count(u64 older_than_epoch) {
  struct inflight_walk walk = {0};
  u32 n = 0;
  for (struct cap_inflight e; inflight_next(&walk, &e);) {
    if (e.epoch >= older_than_epoch) continue;
    struct ghost *g = find_ghost(walk.key, e.boot_ns);
    if (g && g->sure) continue;
    n++;
    if (older_than_epoch != ~0ull) break;
  }
  return n;
}

static void per_disk(struct text *t, const char *name, const u64 *values) {
  add(t, ",\"%s\":{", name);
  for (u32 i = 0; i < cfg->disk_count; i++)
    add(t, "%s\"%u\":%llu", i ? "," : "", cfg->disk[i].index, (unsigned long long)values[cfg->disk[i].index & (CAP_MAX_DISKS - 1)]);
  add(t, "}");
}

/* Without what it maps of the ring and the dirty maps. */
static u64 own_rss_bytes(void) {
  char t[4096];
  u64 kib = 0;
  if (read_text("/proc/self/status", t, sizeof t) < 0) return 0;
  const char *const names[] = {"RssAnon:", "VmExe:"};
  for (int i = 0; i < 2; i++) {
    const char *at = strstr(t, names[i]);
    if (at) kib += strtoull(at + strlen(names[i]), NULL, 10);
  }
  return kib * 1024;
}

static u64 own_cpu_ms(void) {
  struct rusage r;
  getrusage(RUSAGE_SELF, &r);
  return (u64)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1000 + (u64)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1000;
}

/*
 * Counting the dirty map of a large disk each second would be most of what an idle helper does. The count is kept when
 * nothing can have changed it: order held for so long that every write of before has landed, no mark at a completion or
 * by the pump, and no command that changes the maps.
 */
#define UNSETTLED_NS (300ull * 1000000000ull)
static u64 unsettled_ns, counted_late, counted[CAP_MAX_DISKS];
static u32 counted_overlaps;

static void count_dirty(u64 now) {
  u64 late = __atomic_load_n(&cfg->late_marks, __ATOMIC_SEQ_CST);
  u32 overlaps = late_overlap_marks;
  if (now - unsettled_ns > UNSETTLED_NS && late == counted_late && overlaps == counted_overlaps) return;
  /* The counter rises before the marks are there: counted again for a while. */
  if (late != counted_late || overlaps != counted_overlaps) unsettled_ns = now;
  counted_late = late;
  counted_overlaps = overlaps;
  for (u32 i = 0; i < cfg->disk_count; i++) counted[cfg->disk[i].index & (CAP_MAX_DISKS - 1)] = dirty_bytes((int)i);
}

/*
 * Both clocks at one moment: recovery points are told by the wall clock, and on a server whose processors are busy a
 * process may rest for seconds between one reading and the next. The closest of some readings counts.
 */
#define CLOCKS_APART_NS 100000ull
static void both_clocks(u64 *boot, u64 *wall) {
  u64 closest = ~0ull;
  for (int i = 0; i < 8 && closest > CLOCKS_APART_NS; i++) {
    struct timespec t;
    u64 before = boot_ns();
    clock_gettime(CLOCK_REALTIME, &t);
    u64 apart = boot_ns() - before;
    if (apart >= closest) continue;
    closest = apart;
    *boot = before;
    *wall = (u64)t.tv_sec * 1000000000ull + (u64)t.tv_nsec;
  }
}

static void say_status(u64 id) {
  u64 now = 0, wall = 0;
  both_clocks(&now, &wall);
  wall_offset_ns = wall - now;
  u64 prod = producer_pos(), cons = *consumer;
  const char *mode = mode_json();
  int cpus = libbpf_num_possible_cpus();
  struct cap_stats all[cpus], sum = {0};
  u32 zero = 0;
  if (bpf_map_lookup_elem(map_fd[M_STATS], &zero, all) == 0)
    for (int i = 0; i < cpus; i++) sum.writes += all[i].writes, sum.bytes += all[i].bytes;
  struct text t = {0};
  add(&t, "{\"id\":%llu,\"bootNs\":\"%llu\",\"wallNs\":\"%llu\",\"producerPos\":\"%llu\",\"consumerPos\":\"%llu\"", (unsigned long long)id,
      (unsigned long long)now, (unsigned long long)wall, (unsigned long long)prod, (unsigned long long)cons);
  add(&t, ",\"mode\":%s", mode);
  add(&t, ",\"ringBytes\":%llu,\"backlogBytes\":%llu,\"writes\":%llu", (unsigned long long)cfg->ring_bytes,
      (unsigned long long)(prod - cons), (unsigned long long)sum.writes);
  add(&t, ",\"writtenBytes\":%llu,\"copyFailures\":%llu,\"requeues\":%llu", (unsigned long long)sum.bytes,
      (unsigned long long)cfg->copy_failures, (unsigned long long)cfg->requeues);
  add(&t, ",\"recursionMisses\":%llu,\"inFlight\":%u", (unsigned long long)(recursion_misses() + cfg->untracked), inflight_count(~0ull));
  add(&t, ",\"cpuMs\":%llu,\"rssBytes\":%llu", (unsigned long long)own_cpu_ms(), (unsigned long long)own_rss_bytes());
  per_disk(&t, "drops", cfg->disk_drops);
  per_disk(&t, "failedWrites", cfg->disk_failed);
  per_disk(&t, "opaqueCommands", cfg->disk_opaque);
  per_disk(&t, "overlaps", cfg->disk_overlaps);
  count_dirty(now);
  per_disk(&t, "dirtyBytes", counted);
  add(&t, "}");
  say("%s", t.p);
  free(t.p);
}

static struct waiting_barrier {
  u64 id, pos, epoch, since;
  int resume;
} barriers[64];
static int barrier_count;

/*
 * Whoever put a record before `pos` into the ring had entered the in-flight table before that, with an epoch older
 * than the new one: when none of those is left, all of them have landed.
 */
static void start_barrier(u64 id, int resume) {
  if (barrier_count == 64) {
    say("{\"id\":%llu,\"failed\":\"too many barriers at once\"}", (unsigned long long)id);
    return;
  }
  u64 pos = producer_pos();
  u64 epoch = __atomic_add_fetch(&cfg->epoch, 1, __ATOMIC_SEQ_CST);
  barriers[barrier_count++] = (struct waiting_barrier){id, pos, epoch, boot_ns(), resume};
}

/* "READS WRITES" that the driver has; -1 if the disk does not count them. */
static long writes_in_driver(const struct disk *d) {
  char path[600], t[64];
  long reads, writes;
  if (!read_number(d->sys, "queue/iostats", 0)) return -1;
  snprintf(path, sizeof path, "%s/inflight", d->sys);
  if (read_text(path, t, sizeof t) <= 0 || sscanf(t, "%ld %ld", &reads, &writes) != 2) return -1;
  return writes;
}

static void look_for_ghosts(void) {
  static u64 looked_ns;
  u64 now = boot_ns(), idle = 0;
  if (now - looked_ns < GHOST_LOOK_NS) return;
  looked_ns = now;
  for (u32 i = 0; i < disk_count; i++)
    if (!disks[i].gone && writes_in_driver(&disks[i]) == 0) idle |= 1ull << (disks[i].index & (CAP_MAX_DISKS - 1));
  if (!idle) return;
  /* Forget those whose slot was used again since. */
  for (u32 i = 0; i < ghost_count; i++) {
    struct cap_inflight e;
    if (bpf_map_lookup_elem(map_fd[M_INFLIGHT], &ghosts[i].key, &e) || e.boot_ns != ghosts[i].boot_ns) ghosts[i--] = ghosts[--ghost_count];
  }
  struct inflight_walk walk = {0};
  for (struct cap_inflight e; inflight_next(&walk, &e);) {
    if (!(idle >> (e.disk & (CAP_MAX_DISKS - 1)) & 1) || now - e.boot_ns < GHOST_AGE_NS || e.boot_ns > now) continue;
    struct ghost *g = find_ghost(walk.key, e.boot_ns);
    if (!g && ghost_count < sizeof ghosts / sizeof *ghosts) ghosts[ghost_count++] = (struct ghost){walk.key, e.boot_ns, now, 0};
    if (!g || g->sure || now - g->seen_ns < GHOST_CONFIRM_NS) continue;
    /* How it ended nobody saw. A range may be of several pieces, of which the entry does not know. */
    int at = disk_at(e.disk);
    if (at >= 0) mark_extent(dirty_map, at, e.is_range ? 0 : e.offset, e.is_range ? cfg->disk_bytes[at] : e.len, 1);
    __atomic_fetch_add(&late_overlap_marks, 1, __ATOMIC_SEQ_CST);
    g->sure = 1;
  }
}

static void check_barriers(void) {
  for (int i = 0; i < barrier_count; i++) {
    struct waiting_barrier *b = &barriers[i];
    if (inflight_count(b->epoch)) {
      if (boot_ns() - b->since > GHOST_AGE_NS) look_for_ghosts();
      if (boot_ns() - b->since < BARRIER_LIMIT_NS) continue;
      if (b->resume) { /* writes that saw tracking mode are still to be marked: not ordered yet */
        go_tracking(CAP_R_REQUESTED);
        __atomic_store_n(&cfg->order_pos, producer_pos(), __ATOMIC_SEQ_CST);
      }
      say("{\"id\":%llu,\"failed\":\"writes did not complete\"}", (unsigned long long)b->id);
    } else {
      u64 pos = b->pos;
      if (b->resume) {
        pos = producer_pos();
        __atomic_store_n(&cfg->order_pos, pos, __ATOMIC_SEQ_CST);
      }
      say("{\"id\":%llu,\"pos\":\"%llu\"}", (unsigned long long)b->id, (unsigned long long)pos);
    }
    barriers[i--] = barriers[--barrier_count];
  }
}

static void resume_ordered(u64 id) {
  if (cfg->mode == CAP_ORDERED) {
    /* Being switched on already: this one waits as well. */
    if (cfg->order_pos == ~0ull) start_barrier(id, 1);
    else say("{\"id\":%llu,\"pos\":\"%llu\"}", (unsigned long long)id, (unsigned long long)cfg->order_pos);
    return;
  }
  if (cfg->order_pos != ~0ull) cfg->prev_base_drops = cfg->base_drops;
  __atomic_store_n(&cfg->order_pos, ~0ull, __ATOMIC_SEQ_CST);
  cfg->base_drops = __atomic_load_n(&cfg->drops, __ATOMIC_SEQ_CST);
  cfg->heartbeat_ns = boot_ns();
  __atomic_store_n(&cfg->mode, CAP_ORDERED, __ATOMIC_SEQ_CST);
  /* Writes that still saw tracking mode are in the in-flight table: behind the barrier all of them are marked. */
  start_barrier(id, 1);
}

static void put_mark(u64 id) {
  u64 mark = __atomic_fetch_add(&cfg->next_mark, 1, __ATOMIC_SEQ_CST);
  u64 args[12] = {mark};
  LIBBPF_OPTS(bpf_test_run_opts, opts, .ctx_in = args, .ctx_size_in = sizeof args);
  int error = bpf_prog_test_run_opts(mark_fd, &opts);
  if (error || !opts.retval) say("{\"id\":%llu,\"failed\":\"%s\"}", (unsigned long long)id, error ? strerror(-error) : "the ring is full");
  else say("{\"id\":%llu,\"mark\":\"%llu\"}", (unsigned long long)id, (unsigned long long)mark);
}

static int pump_started;
static pthread_t pump_thread;

static void release(u64 pos) {
  u64 have = *consumer;
  if (pos <= have) return;
  if (pos > producer_pos()) return;
  if (pump_started && pos > __atomic_load_n(&handed_pos, __ATOMIC_SEQ_CST)) return; /* nothing can be durable that was never handed out */
  if (!pump_started) read_pos = pos;
  __atomic_store_n(consumer, pos, __ATOMIC_RELEASE);
}

static void extents_command(u64 id, char *args, int set) {
  char *s = args;
  int at = disk_at((u32)strtoul(s, &s, 10));
  if (at < 0) {
    say("{\"id\":%llu,\"failed\":\"no such disk\"}", (unsigned long long)id);
    return;
  }
  while (*s) {
    u64 off = strtoull(s, &s, 10);
    if (*s != ':') break;
    u64 len = strtoull(s + 1, &s, 10);
    mark_extent(set ? dirty_map : taken_map, at, off, len, set);
    if (*s == ',') s++;
  }
  say("{\"id\":%llu}", (unsigned long long)id);
}

static void command(char *line) {
  char *s = line;
  u64 id = strtoull(s, &s, 10);
  while (*s == ' ') s++;
  char *name = s;
  while (*s && *s != ' ') s++;
  if (*s) *s++ = 0;
  if (strcmp(name, "release") && strcmp(name, "status")) unsettled_ns = boot_ns();
  if (!strcmp(name, "go")) {
    if (!pump_started) {
      pump_started = pumping = 1;
      recover_flying();
      pthread_create(&pump_thread, NULL, pump, NULL);
    }
    say("{\"id\":%llu}", (unsigned long long)id);
  } else if (!strcmp(name, "release")) release(strtoull(s, NULL, 10));
  else if (!strcmp(name, "status")) say_status(id);
  else if (!strcmp(name, "barrier")) start_barrier(id, 0);
  else if (!strcmp(name, "resume")) resume_ordered(id);
  else if (!strcmp(name, "mark")) put_mark(id);
  else if (!strcmp(name, "tracking")) {
    go_tracking(CAP_R_REQUESTED);
    say("{\"id\":%llu}", (unsigned long long)id);
  } else if (!strcmp(name, "dirty") || !strcmp(name, "take")) {
    int at = disk_at((u32)strtoul(s, &s, 10));
    u64 max = strtoull(s, &s, 10), from = strtoull(s, NULL, 10);
    if (at < 0) say("{\"id\":%llu,\"failed\":\"no such disk\"}", (unsigned long long)id);
    else say_extents(id, at, name[0] == 't', max ? max : ~0ull, from);
  } else if (!strcmp(name, "clear")) extents_command(id, s, 0);
  else if (!strcmp(name, "markdirty")) extents_command(id, s, 1);
  else if (!strcmp(name, "stop")) {
    if (*s == '1') {
      for (u32 i = 0; i < cfg->disk_count; i++) bpf_map_delete_elem(map_fd[M_DISKS], &cfg->disk[i].dev);
      unpin_all();
    }
    say("{\"id\":%llu}", (unsigned long long)id);
    _exit(0);
  } else say("{\"id\":%llu,\"failed\":\"unknown command\"}", (unsigned long long)id);
  /* Whoever asks may wait for what is in the ring by now. */
  if (strcmp(name, "release")) hurry = 1;
}

static u64 last_beat, last_late, last_opaque[CAP_MAX_DISKS];
static u32 last_mode, last_overlap;

static void watch(void) {
  u64 now = boot_ns();
  u32 mode = __atomic_load_n(&cfg->mode, __ATOMIC_SEQ_CST);
  if (mode != CAP_ORDERED) unsettled_ns = now;
  if (mode != last_mode) {
    last_mode = mode;
    say("{\"event\":\"mode\",\"mode\":%s}", mode_json());
  }
  if (cfg->late_marks != last_late || late_overlap_marks != last_overlap) {
    last_late = cfg->late_marks;
    last_overlap = late_overlap_marks;
    say("{\"event\":\"dirty-marked\"}");
  }
  for (u32 i = 0; i < cfg->disk_count; i++) {
    u32 k = cfg->disk[i].index & (CAP_MAX_DISKS - 1);
    if (cfg->disk_opaque[k] == last_opaque[k]) continue;
    last_opaque[k] = cfg->disk_opaque[k];
    say("{\"event\":\"opaque-command\",\"disk\":%u}", k);
  }
  if (now - last_beat < 1000000000ull) return;
  last_beat = now;
  __atomic_store_n(&cfg->heartbeat_ns, now, __ATOMIC_SEQ_CST);
  u64 misses = recursion_misses() + cfg->untracked;
  if (misses != cfg->misses_seen) {
    /* Which write was missed nobody knows; in the dirty map, so that a helper that dies now cannot forget it. */
    for (u32 i = 0; i < cfg->disk_count; i++)
      __atomic_store_n(&cfg->all_dirty[cfg->disk[i].index & (CAP_MAX_DISKS - 1)], 1, __ATOMIC_SEQ_CST);
    cfg->misses_seen = misses;
    go_tracking(CAP_R_MISSED);
    say("{\"event\":\"missed-events\",\"recursionMisses\":%llu}", (unsigned long long)misses);
  }
  for (u32 i = 0; i < disk_count; i++) {
    struct disk *d = &disks[i];
    if (d->gone) continue;
    u64 bytes = read_number(d->sys, "size", ~0ull);
    if (bytes == ~0ull || read_number(d->sys, "diskseq", 0) != d->seq) {
      d->gone = 1;
      say("{\"event\":\"disk-gone\",\"disk\":%u}", d->index);
    } else if (bytes * 512 != d->bytes) {
      say("{\"event\":\"disk-resized\",\"disk\":%u,\"oldSizeBytes\":%llu,\"newSizeBytes\":%llu}", d->index, (unsigned long long)d->bytes,
          (unsigned long long)(bytes * 512));
      d->bytes = bytes * 512;
    }
  }
}

static void serve(void) {
  static char in[1 << 20];
  size_t have = 0;
  fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
  for (;;) {
    struct pollfd p = {.fd = 0, .events = POLLIN};
    poll(&p, 1, barrier_count ? 1 : 100);
    if (p.revents) {
      ssize_t n = read(0, in + have, sizeof in - 1 - have);
      if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) _exit(0);
      if (n > 0) have += (size_t)n;
      char *line = in, *end;
      while ((end = memchr(line, '\n', have - (size_t)(line - in)))) {
        *end = 0;
        command(line);
        line = end + 1;
      }
      have -= (size_t)(line - in);
      memmove(in, line, have);
      if (have == sizeof in - 1) _exit(4);
    }
    check_barriers();
    watch();
  }
}

int cmd_run(int argc, char **argv) {
  u64 ring_bytes = 0, timeout_ms = 180000;
  for (int i = 1; i + 1 < argc; i += 2) {
    const char *v = argv[i + 1];
    if (!strcmp(argv[i], "--pin")) pin_dir = v;
    else if (!strcmp(argv[i], "--ring")) ring_bytes = strtoull(v, NULL, 10);
    else if (!strcmp(argv[i], "--timeout-ms")) timeout_ms = strtoull(v, NULL, 10);
    else if (!strcmp(argv[i], "--disk") && disk_count < CAP_MAX_DISKS) {
      char *colon;
      struct disk *d = &disks[disk_count++];
      d->index = (u32)strtoul(v, &colon, 10);
      if (*colon != ':' || d->index >= CAP_MAX_DISKS) return 2;
      snprintf(d->path, sizeof d->path, "%s", colon + 1);
    }
  }
  if (!pin_dir || !disk_count || ring_bytes < 65536 || ring_bytes > (1ull << 31)) return 2;
  u64 size = 65536;
  while (size < ring_bytes) size *= 2;
  signal(SIGPIPE, SIG_IGN);
  fcntl(1, F_SETPIPE_SZ, PIPE_BYTES); /* fewer and larger reads; no harm where it is not a pipe, or not allowed */
  prepare_loading();

  char boot_id[64] = "";
  read_text("/proc/sys/kernel/random/boot_id", boot_id, sizeof boot_id);
  for (u32 i = 0; i < disk_count; i++) resolve_disk(&disks[i]);
  prepare_pin_dir();
  const char *why_not = try_adopt(size, boot_id);
  if (why_not) {
    if (*why_not) {
      unpin_all();
      prepare_pin_dir();
    }
    start_fresh(size, timeout_ms * 1000000ull, boot_id, CAP_ORDERED);
  }
  cfg->consumer_timeout_ns = timeout_ms * 1000000ull;
  __atomic_store_n(&cfg->heartbeat_ns, boot_ns(), __ATOMIC_SEQ_CST);
  map_memory(size);
  read_pos = *consumer;
  if (!why_not) {
    /* What was taken and never acknowledged is dirty again. */
    for (u64 i = 0; i < map_words; i++)
      if (taken_map[i]) {
        __atomic_fetch_or(&dirty_map[i], taken_map[i], __ATOMIC_SEQ_CST);
        taken_map[i] = 0;
      }
    if (cfg->order_pos == ~0ull) { /* ended in the middle of resumeOrdered */
      go_tracking(CAP_R_REQUESTED);
      cfg->order_pos = producer_pos();
    }
    last_late = cfg->late_marks;
    if (read_pos > cfg->order_pos) gap_told = cfg->order_pos;
  }
  for (u32 i = 0; i < CAP_MAX_DISKS; i++) last_opaque[i] = cfg->disk_opaque[i];
  last_mode = cfg->mode;
  unsettled_ns = boot_ns();
  struct text t = {0};
  add(&t, "{\"started\":true,\"adopted\":%s,\"notAdoptedBecause\":\"%s\"", why_not ? "false" : "true", why_not ? json_text(why_not) : "");
  add(&t, ",\"bootId\":\"%s\",\"captureId\":\"%s\"", cfg->boot_id, cfg->capture_id);
  add(&t, ",\"dirtyBlockBytes\":%u", 1u << cfg->block_shift);
  add(&t, ",\"consumerPos\":\"%llu\",\"mode\":%s,\"sizes\":{", (unsigned long long)read_pos, mode_json());
  for (u32 i = 0; i < disk_count; i++) add(&t, "%s\"%u\":%llu", i ? "," : "", disks[i].index, (unsigned long long)disks[i].bytes);
  add(&t, "}}");
  say("%s", t.p);
  free(t.p);
  serve();
  return 0;
}
