// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Copies every write of the protected disks into a ring, at the moment the block layer hands the request to the
 * driver (block_rq_issue). If write B waits for write A, A's record is reserved before A reaches the driver, so every
 * prefix of the ring is closed under happens-before: that is why issue order is enough.
 *
 * No bpf_loop and no callbacks: the cursor of a walk lives in the in-flight entry and programs tail-call themselves,
 * so the same code loads from 5.10 on. With -DCAP_BYTE_MAP it does without atomic OR (before 5.12).
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "layout.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * Steps per program; with 32 tail calls a request may have 2048 pieces (8 MiB of scattered pages) and mark 4.7 GiB (a
 * discard has up to 4 GiB). The first few pieces are copied without a tail call and without looking the request up: that
 * is all of a small write.
 */
#define COPY_STEPS 64
#define INLINE_STEPS 2
#define RANGE_STEPS 64
#define MARK_STEPS 640

#define OP_READ 0
#define OP_WRITE 1
#define OP_DISCARD 3
#define OP_SECURE_ERASE 5
#define OP_WRITE_ZEROES 9

/* Set by the helper: before 5.11 the tracepoints of issue and requeue have the queue as their first argument. */
const volatile u32 rq_is_second = 0;

struct {
  __uint(type, BPF_MAP_TYPE_RINGBUF);
  __uint(max_entries, 1 << 20);
} ring SEC(".maps");
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 1);
  __type(key, u32);
  __type(value, struct cap_cfg);
} config SEC(".maps");
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, CAP_MAX_DISKS);
  __type(key, u32);
  __type(value, struct cap_disk);
} disks SEC(".maps");
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 1);
  __type(key, u32);
  __type(value, u64);
} dirty SEC(".maps");
/* Only the helper uses it: blocks that are being re-read and not yet acknowledged. */
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 1);
  __type(key, u32);
  __type(value, u64);
} taken SEC(".maps");
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 4096);
  __type(key, u64);
  __type(value, struct cap_inflight);
} inflight SEC(".maps");
struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, 1);
  __type(key, u32);
  __type(value, struct cap_stats);
} stats SEC(".maps");
struct {
  __uint(type, BPF_MAP_TYPE_PROG_ARRAY);
  __uint(max_entries, CAP_P_COUNT);
  __type(key, u32);
  __type(value, u32);
} programs SEC(".maps");

#define SLOT(name, bytes) \
  struct name {           \
    struct cap_rec h;     \
    u8 d[bytes];          \
  }
SLOT(huge_slot, CAP_HUGE);
SLOT(large_slot, CAP_LARGE);
SLOT(page_slot, CAP_PIECE);
SLOT(small_slot, CAP_SMALL);

#define ADD(field, n) __sync_fetch_and_add(&(field), (n))
#define LOAD(field) (*(volatile typeof(field) *)&(field))
#define STORE(field, v) (*(volatile typeof(field) *)&(field) = (v))

/*
 * A helper call costs more than the bytes that it reads: the beginning of a struct comes with one call, and the fields
 * that lie in it (as all do so far; known when the program is loaded) are taken from there. A read that fails fills with
 * zeroes.
 */
#define REQUEST_NEAR 64
#define BIO_NEAR 128
#define READ_NEAR(near, p) bpf_probe_read_kernel(near, sizeof near, p)
#define FIELD(near, p, field)                                                                      \
  ({                                                                                               \
    u64 at_ = bpf_core_field_offset((p)->field);                                                   \
    typeof((p)->field) v_;                                                                         \
    if (at_ + sizeof v_ <= sizeof near) v_ = *(volatile typeof(v_) *)((char *)(near) + at_);       \
    else v_ = BPF_CORE_READ(p, field);                                                             \
    v_;                                                                                            \
  })

static __always_inline struct cap_cfg *get_config(void) {
  u32 zero = 0;
  return bpf_map_lookup_elem(&config, &zero);
}

static __always_inline struct request *issued_request(struct bpf_raw_tracepoint_args *ctx) {
  u64 rq;
  if (rq_is_second) {
    rq = ctx->args[1];
    asm volatile("" : "+r"(rq)); /* keeps the compiler from one load at a computed offset */
  } else {
    rq = ctx->args[0];
    asm volatile("" : "+r"(rq));
  }
  return (struct request *)rq;
}

static __always_inline u64 page_address(struct cap_cfg *c, u64 page) {
  u64 size = bpf_core_type_size(struct page), page0 = c->page0;
  if (page >= page0) {
    u64 d = page - page0;
    return c->va0 + (size == 64 ? d << 6 : d / size * 4096);
  } else {
    u64 d = page0 - page;
    return c->va0 - (size == 64 ? d << 6 : d / size * 4096);
  }
}

/* The drop is visible before the write reaches the driver, hence to every record that depends on it. */
static __always_inline void lose_order(struct cap_cfg *c, u32 disk, u32 reason, u64 now) {
  if (LOAD(c->mode) == CAP_ORDERED) {
    STORE(c->reason, reason);
    STORE(c->since_boot_ns, now);
  }
  ADD(c->drops, 1);
  ADD(c->disk_drops[disk & (CAP_MAX_DISKS - 1)], 1);
  STORE(c->mode, CAP_TRACKING);
}

static __always_inline u64 wake_flags(struct cap_cfg *c) {
  if (LOAD(c->waiting)) {
    STORE(c->waiting, 0);
    return BPF_RB_FORCE_WAKEUP;
  }
  return BPF_RB_NO_WAKEUP;
}

static __always_inline void fill(struct cap_rec *h, struct cap_cfg *c, u8 kind, u8 flags, u32 disk, u64 offset,
                                 u32 len, u64 rq, u64 boot_ns, u32 status) {
  h->kind = kind;
  h->flags = flags;
  h->disk = disk;
  h->len = len;
  h->offset = offset;
  h->rq = rq;
  h->boot_ns = boot_ns;
  h->drops = LOAD(c->drops);
  h->status = status;
  h->pad = 0;
}

static __always_inline int put_small(struct cap_cfg *c, u8 kind, u8 flags, u32 disk, u64 offset, u32 len, u64 rq,
                                     u64 boot_ns, u32 status) {
  struct cap_rec *h = bpf_ringbuf_reserve(&ring, sizeof *h, 0);
  if (!h) return 0;
  fill(h, c, kind, flags, disk, offset, len, rq, boot_ns, status);
  bpf_ringbuf_submit(h, wake_flags(c));
  return 1;
}

/* What could not even be walked: the whole disk is dirty. */
static __always_inline void give_up(struct cap_cfg *c, u32 disk, u32 reason, u64 now) {
  STORE(c->all_dirty[disk & (CAP_MAX_DISKS - 1)], 1);
  lose_order(c, disk, reason, now);
}

static __always_inline void open_bio(struct cap_inflight *e) {
  struct bio *b = (struct bio *)e->bio;
  u64 near[BIO_NEAR / 8];
  READ_NEAR(near, b);
  e->pos = FIELD(near, b, bi_iter.bi_sector) << 9;
  e->left = FIELD(near, b, bi_iter.bi_size);
  e->idx = FIELD(near, b, bi_iter.bi_idx);
  e->bv_done = FIELD(near, b, bi_iter.bi_bvec_done);
  e->bv = (u64)FIELD(near, b, bi_io_vec);
  e->bv_left = 0;
}

static __always_inline void mark_bio(struct cap_inflight *e) {
  struct bio *b = (struct bio *)e->bio;
  e->mark_pos = BPF_CORE_READ(b, bi_iter.bi_sector) << 9;
  e->mark_end = e->mark_pos + BPF_CORE_READ(b, bi_iter.bi_size);
}

static __always_inline void mark_start(struct cap_inflight *e, u64 first_bio) {
  if (e->is_range) {
    e->bio = first_bio;
    if (first_bio) mark_bio(e);
    else e->mark_pos = e->mark_end = 0;
  } else {
    e->bio = 0;
    e->mark_pos = e->offset;
    e->mark_end = e->offset + e->len;
  }
}

/* One word of the dirty map per call. 1: all is marked. */
static __always_inline int mark_step(struct cap_cfg *c, struct cap_inflight *e) {
  u64 pos = e->mark_pos, end = e->mark_end;
  if (pos >= end) {
    struct bio *b = (struct bio *)e->bio;
    if (!b) return 1;
    e->bio = (u64)BPF_CORE_READ(b, bi_next);
    if (!e->bio) return 1;
    mark_bio(e);
    return 0;
  }
  u32 shift = c->block_shift & 31;
  u64 block = pos >> shift;
  if (block >= e->blocks) { /* beyond the size at start: the disk grew, which the helper reports */
    e->mark_pos = end;
    return 0;
  }
  u64 bit = e->first_block + block;
#ifdef CAP_BYTE_MAP
  u32 key = bit >> 3;
  u64 *w = bpf_map_lookup_elem(&dirty, &key);
  if (!(bit & 7) && block + 8 <= e->blocks && ((end - 1) >> shift) - block >= 7) {
    if (w) *(volatile u64 *)w = 0x0101010101010101ULL;
    e->mark_pos = (block + 8) << shift;
  } else {
    if (w) ((volatile u8 *)w)[bit & 7] = 1;
    e->mark_pos = (block + 1) << shift;
  }
#else
  u32 key = bit >> 6;
  u64 *w = bpf_map_lookup_elem(&dirty, &key);
  u64 last = (end - 1) >> shift, lo = block & 63, hi = (last >> 6) == (block >> 6) ? last & 63 : 63;
  if (w) __sync_fetch_and_or(w, (~0ULL << lo) & (~0ULL >> (63 - hi)));
  e->mark_pos = ((block | 63) + 1) << shift;
#endif
  return 0;
}

/* The one or two words of a small write, without a tail call. No loop: up to 6.1 the kernel minds how it is laid out. */
static __always_inline int mark_inline(struct cap_cfg *c, struct cap_inflight *e) {
  return mark_step(c, e) || mark_step(c, e) || mark_step(c, e);
}

/* Constant at load time. */
static __always_inline int known_bio_vec(void) {
  struct bio_vec *v = 0;
  return bpf_core_type_size(struct bio_vec) == sizeof(struct plain_bio_vec) && bpf_core_field_offset(v->bv_page) == 0 &&
         bpf_core_field_offset(v->bv_len) == 8 && bpf_core_field_offset(v->bv_offset) == 12;
}

/* Copies `n` bytes into a slot of the given type. Evaluates to 0, or minus the reason. */
#define PUT_DATA(type, n)                                                              \
  ({                                                                                   \
    long failed_ = -CAP_R_OVERFLOW;                                                    \
    struct type *s_ = bpf_ringbuf_reserve(&ring, sizeof *s_, 0);                       \
    if (s_) {                                                                          \
      fill(&s_->h, c, CAP_WRITE, flags, e->disk, e->pos, (n), rq, e->boot_ns, 0);      \
      /* Kernels up to 6.1 forget the bound of what was on the stack meanwhile. */     \
      u32 n_ = (n);                                                                    \
      asm volatile("" : "+r"(n_));                                                     \
      if (n_ > sizeof s_->d) n_ = sizeof s_->d;                                        \
      failed_ = bpf_probe_read_kernel(s_->d, n_, (void *)e->va) ? -CAP_R_COPY : 0;     \
      if (failed_) bpf_ringbuf_discard(s_, BPF_RB_NO_WAKEUP);                          \
      else bpf_ringbuf_submit(s_, flags ? wake_flags(c) : BPF_RB_NO_WAKEUP);           \
    }                                                                                  \
    failed_;                                                                           \
  })

/* One piece per call. 0: more to do, 1: the request is complete in the ring, otherwise minus the reason. */
static __always_inline int copy_step(struct cap_cfg *c, struct cap_inflight *e, u64 rq) {
  if (!e->left) {
    struct bio *b = (struct bio *)e->bio;
    if (!b) return -CAP_R_COPY;
    e->bio = (u64)BPF_CORE_READ(b, bi_next);
    if (!e->bio) return -CAP_R_COPY;
    open_bio(e);
  }
  if (!e->bv_left) {
    struct plain_bio_vec v = {};
    if (!known_bio_vec() || bpf_probe_read_kernel(&v, sizeof v, (void *)(e->bv + (u64)e->idx * sizeof v))) return -CAP_R_COPY;
    if (!v.page || v.len < e->bv_done) return -CAP_R_COPY;
    e->va = page_address(c, v.page) + v.offset + e->bv_done;
    e->bv_left = v.len - e->bv_done;
    e->idx++;
    e->bv_done = 0;
    if (!e->bv_left) return 0;
  }
  u32 n = e->bv_left, left = e->left, remaining = e->remaining;
  if (n > left) n = left;
  u8 flags;
  long failed;
  if (n <= CAP_SMALL) {
    flags = n >= remaining ? CAP_LAST : 0;
    failed = PUT_DATA(small_slot, n);
  } else if (n >= CAP_HUGE) {
    n = CAP_HUGE;
    flags = n >= remaining ? CAP_LAST : 0;
    failed = PUT_DATA(huge_slot, CAP_HUGE);
  } else if (n >= CAP_LARGE) {
    n = CAP_LARGE;
    flags = n >= remaining ? CAP_LAST : 0;
    failed = PUT_DATA(large_slot, CAP_LARGE);
  } else {
    if (n > CAP_PIECE) n = CAP_PIECE;
    flags = n >= remaining ? CAP_LAST : 0;
    failed = PUT_DATA(page_slot, n);
  }
  if (failed) {
    if (failed == -CAP_R_COPY) ADD(c->copy_failures, 1);
    return failed;
  }
  e->pos += n;
  e->va += n;
  e->left = left - n;
  e->bv_left -= n;
  e->remaining = remaining - n;
  return n >= remaining;
}

/*
 * vmemmap and the direct map are both linear, so one pair of struct page and its address gives them all, without
 * kallsyms. Any request knows one: its tags' first page holds static_rqs[0] at its start.
 */
static __always_inline void calibrate(struct cap_cfg *c, struct request *rq) {
  struct blk_mq_tags *t = BPF_CORE_READ(rq, mq_hctx, tags);
  if (!t) return;
  u64 first = (u64)BPF_CORE_READ(t, page_list.next);
  if (!first || first == (u64)t + bpf_core_field_offset(t->page_list)) return;
  struct request **list = BPF_CORE_READ(t, static_rqs), *r0 = 0;
  bpf_probe_read_kernel(&r0, sizeof r0, list);
  if (!r0 || (u64)r0 & 4095) return;
  struct page *none = 0;
  c->va0 = (u64)r0;
  c->page0 = first - bpf_core_field_offset(none->lru);
}

/* The helper reads a disk into a page that holds a pattern: finding it proves the calibration. */
static __always_inline void probe(struct cap_cfg *c, struct request *rq) {
  if (!c->page0) calibrate(c, rq);
  if (!c->page0) return;
  struct bio *b = BPF_CORE_READ(rq, bio);
  if (!b) return;
  u32 idx = BPF_CORE_READ(b, bi_iter.bi_idx);
  struct bio_vec *v = (struct bio_vec *)((u64)BPF_CORE_READ(b, bi_io_vec) + (u64)idx * 16);
  u64 seen[2] = {};
  u64 va = page_address(c, (u64)BPF_CORE_READ(v, bv_page)) + BPF_CORE_READ(v, bv_offset);
  if (bpf_probe_read_kernel(seen, sizeof seen, (void *)va)) return;
  if (seen[0] == c->probe_pattern[0] && seen[1] == c->probe_pattern[1]) STORE(c->probe_ok, 1);
}

SEC("raw_tp")
int issue(struct bpf_raw_tracepoint_args *ctx) {
  struct cap_cfg *c = get_config();
  if (!c) return 0;
  struct request *rq = issued_request(ctx);
  u64 near[REQUEST_NEAR / 8];
  READ_NEAR(near, rq);
  u32 op = FIELD(near, rq, cmd_flags) & 0xff;
  if (op == OP_READ) {
    if (LOAD(c->probe_armed)) probe(c, rq);
    return 0;
  }
  if (!(op & 1)) return 0; /* odd operations carry data to the disk */

  struct gendisk *gd;
  struct request___old *old = (struct request___old *)rq;
  if (bpf_core_field_exists(old->rq_disk)) gd = BPF_CORE_READ(old, rq_disk);
  else {
    struct request_queue *q = FIELD(near, rq, q);
    gd = BPF_CORE_READ(q, disk);
  }
  if (!gd) return 0;
  u64 number[1];
  READ_NEAR(number, gd);
  u32 dev = (u32)FIELD(number, gd, major) << 20 | (u32)FIELD(number, gd, first_minor);
  struct cap_disk *d = bpf_map_lookup_elem(&disks, &dev);
  if (!d) return 0;

  u64 now = bpf_ktime_get_boot_ns(), key = (u64)rq;
  u32 disk = d->index & (CAP_MAX_DISKS - 1);
  struct cap_inflight fresh = {};
  fresh.epoch = LOAD(c->epoch);
  fresh.boot_ns = now;
  fresh.offset = FIELD(near, rq, __sector) << 9;
  fresh.len = fresh.pending = fresh.remaining = FIELD(near, rq, __data_len);
  fresh.disk = disk;
  fresh.first_block = d->first_block;
  fresh.blocks = d->blocks;
  fresh.is_discard = op == OP_DISCARD || op == OP_SECURE_ERASE;
  fresh.is_range = fresh.is_discard || op == OP_WRITE_ZEROES;
  fresh.bio = (u64)FIELD(near, rq, bio);

  u32 zero = 0;
  struct cap_stats *st = bpf_map_lookup_elem(&stats, &zero);
  if (st) {
    st->writes++;
    st->bytes += fresh.len;
  }

  if (op != OP_WRITE && !fresh.is_range) {
    ADD(c->disk_opaque[disk], 1);
    /* Without a record in the ring only the dirty map can tell it to whoever reads the ring next. */
    if (!put_small(c, CAP_OPAQUE, CAP_LAST, disk, 0, 0, key, now, op)) give_up(c, disk, CAP_R_OVERFLOW, now);
    return 0;
  }
  if (!fresh.bio) return 0;

  /*
   * In the table before anything else: what a barrier or a mode switch does not find there has yet to read the mode.
   * `captured` is said beforehand: nobody acts on it before the request completes, and it is put right below.
   */
  fresh.captured = LOAD(c->mode) == CAP_ORDERED;
  if (bpf_map_update_elem(&inflight, &key, &fresh, BPF_ANY)) {
    ADD(c->untracked, 1);
    give_up(c, disk, CAP_R_INFLIGHT, now);
    return 0;
  }
  u32 mode = LOAD(c->mode);
  u64 beat = LOAD(c->heartbeat_ns);
  if (mode == CAP_ORDERED && now > beat && now - beat > c->consumer_timeout_ns) {
    lose_order(c, disk, CAP_R_NO_CONSUMER, now);
    mode = CAP_TRACKING;
  }
  int r = 0;
  if (mode == CAP_ORDERED && !fresh.is_range) {
    open_bio(&fresh);
    for (u32 i = 0; i < INLINE_STEPS && fresh.captured; i++) {
      r = copy_step(c, &fresh, key);
      if (r) break;
    }
    if (r > 0) return 0;
  } else if (mode != CAP_ORDERED && !fresh.is_range && !fresh.captured) {
    mark_start(&fresh, 0);
    if (mark_inline(c, &fresh)) {
      ADD(c->disk_drops[disk], 1);
      return 0;
    }
  }
  struct cap_inflight *e = bpf_map_lookup_elem(&inflight, &key);
  if (!e) {
    give_up(c, disk, CAP_R_INFLIGHT, now);
    return 0;
  }
  if (mode == CAP_ORDERED && r == 0) {
    /* Order may have been switched on since it was said. */
    e->captured = fresh.captured = 1;
    if (fresh.is_range) {
      bpf_tail_call(ctx, &programs, CAP_P_RANGE);
    } else {
      *e = fresh;
      bpf_tail_call(ctx, &programs, CAP_P_COPY);
    }
    r = -CAP_R_TOO_LARGE;
  }
  e->captured = 0;
  if (mode == CAP_ORDERED) lose_order(c, disk, -r, now);
  else ADD(c->disk_drops[disk], 1);
  mark_start(e, e->is_range ? (u64)BPF_CORE_READ(rq, bio) : 0);
  bpf_tail_call(ctx, &programs, CAP_P_MARK);
  give_up(c, disk, CAP_R_TOO_LARGE, now);
  return 0;
}

SEC("raw_tp")
int copy(struct bpf_raw_tracepoint_args *ctx) {
  struct cap_cfg *c = get_config();
  u64 rq = (u64)issued_request(ctx);
  struct cap_inflight *e = bpf_map_lookup_elem(&inflight, &rq);
  if (!c || !e) return 0;
  int r = 0;
  for (u32 i = 0; i < COPY_STEPS; i++) {
    r = copy_step(c, e, rq);
    if (r) break;
  }
  if (r > 0) return 0;
  if (r == 0) {
    bpf_tail_call(ctx, &programs, CAP_P_COPY);
    r = -CAP_R_TOO_LARGE;
  }
  e->captured = 0;
  lose_order(c, e->disk, -r, e->boot_ns);
  mark_start(e, 0);
  bpf_tail_call(ctx, &programs, CAP_P_MARK);
  give_up(c, e->disk, CAP_R_TOO_LARGE, e->boot_ns);
  return 0;
}

/* Discards and write-zeroes: a request may be merged of bios that are not adjacent. */
SEC("raw_tp")
int range(struct bpf_raw_tracepoint_args *ctx) {
  struct cap_cfg *c = get_config();
  struct request *rq = issued_request(ctx);
  u64 key = (u64)rq;
  struct cap_inflight *e = bpf_map_lookup_elem(&inflight, &key);
  if (!c || !e) return 0;
  int r = 0;
  for (u32 i = 0; i < RANGE_STEPS; i++) {
    struct bio *b = (struct bio *)e->bio;
    if (!b) return 0;
    u64 next = (u64)BPF_CORE_READ(b, bi_next);
    u8 flags = (next ? 0 : CAP_LAST) | (e->is_discard ? CAP_DISCARD : 0);
    if (!put_small(c, CAP_ZERO, flags, e->disk, BPF_CORE_READ(b, bi_iter.bi_sector) << 9,
                   BPF_CORE_READ(b, bi_iter.bi_size), key, e->boot_ns, 0)) {
      r = -CAP_R_OVERFLOW;
      break;
    }
    e->bio = next;
    if (!next) return 0;
  }
  if (r == 0) {
    bpf_tail_call(ctx, &programs, CAP_P_RANGE);
    r = -CAP_R_TOO_LARGE;
  }
  e->captured = 0;
  lose_order(c, e->disk, -r, e->boot_ns);
  mark_start(e, (u64)BPF_CORE_READ(rq, bio));
  bpf_tail_call(ctx, &programs, CAP_P_MARK);
  give_up(c, e->disk, CAP_R_TOO_LARGE, e->boot_ns);
  return 0;
}

SEC("raw_tp")
int mark(struct bpf_raw_tracepoint_args *ctx) {
  struct cap_cfg *c = get_config();
  u64 rq = (u64)issued_request(ctx);
  struct cap_inflight *e = bpf_map_lookup_elem(&inflight, &rq);
  if (!c || !e) return 0;
  for (u32 i = 0; i < MARK_STEPS; i++)
    if (mark_step(c, e)) return 0;
  bpf_tail_call(ctx, &programs, CAP_P_MARK);
  give_up(c, e->disk, CAP_R_TOO_LARGE, e->boot_ns);
  return 0;
}

SEC("raw_tp")
int done(struct bpf_raw_tracepoint_args *ctx) {
  struct request *rq = (struct request *)ctx->args[0];
  u64 key = (u64)rq;
  struct cap_inflight *e = bpf_map_lookup_elem(&inflight, &key);
  if (!e) return 0;
  struct cap_cfg *c = get_config();
  if (!c) return 0;
  u32 error = ctx->args[1], bytes = ctx->args[2];
  u32 disk = e->disk & (CAP_MAX_DISKS - 1);
  u8 full = bytes >= e->pending;
  if (!full) e->pending -= bytes;
  if (error) ADD(c->disk_failed[disk], 1);
  if (e->captured && full) put_small(c, CAP_DONE, CAP_LAST, disk, e->offset, e->len, key, e->boot_ns, error);
  if (error || !e->captured) {
    /* The outcome is not what issue order says, or only now certain: the blocks are read again. */
    if (error) ADD(c->late_marks, 1);
    e->finish = full;
    mark_start(e, e->is_range ? (u64)BPF_CORE_READ(rq, bio) : 0);
    if (!mark_inline(c, e)) {
      bpf_tail_call(ctx, &programs, CAP_P_DONE_MARK);
      give_up(c, disk, CAP_R_TOO_LARGE, e->boot_ns);
    }
  }
  if (full) bpf_map_delete_elem(&inflight, &key);
  return 0;
}

SEC("raw_tp")
int done_mark(struct bpf_raw_tracepoint_args *ctx) {
  u64 rq = ctx->args[0];
  struct cap_cfg *c = get_config();
  struct cap_inflight *e = bpf_map_lookup_elem(&inflight, &rq);
  if (!c || !e) return 0;
  for (u32 i = 0; i < MARK_STEPS; i++) {
    if (mark_step(c, e)) {
      if (e->finish) bpf_map_delete_elem(&inflight, &rq);
      return 0;
    }
  }
  bpf_tail_call(ctx, &programs, CAP_P_DONE_MARK);
  give_up(c, e->disk, CAP_R_TOO_LARGE, e->boot_ns);
  bpf_map_delete_elem(&inflight, &rq);
  return 0;
}

/* It will be issued, and captured, again: until then it is no write in flight. */
SEC("raw_tp")
int requeue(struct bpf_raw_tracepoint_args *ctx) {
  u64 rq = (u64)issued_request(ctx);
  struct cap_inflight *e = bpf_map_lookup_elem(&inflight, &rq);
  if (!e) return 0;
  struct cap_cfg *c = get_config();
  if (!c) return 0;
  ADD(c->requeues, 1);
  if (e->captured) put_small(c, CAP_DONE, CAP_LAST, e->disk, e->offset, e->len, rq, e->boot_ns, 0);
  bpf_map_delete_elem(&inflight, &rq);
  return 0;
}

/* Run by the helper (BPF_PROG_TEST_RUN) with the mark's id; 1 if the mark is in the ring. */
SEC("raw_tp")
int put_mark(struct bpf_raw_tracepoint_args *ctx) {
  struct cap_cfg *c = get_config();
  if (!c) return 0;
  return put_small(c, CAP_MARK, CAP_LAST, 0, ctx->args[0], 0, 0, bpf_ktime_get_boot_ns(), 0);
}

/* The links of raw tracepoints cannot be given a new program: these stubs stay, what they call can be replaced. */
SEC("raw_tp/block_rq_issue")
int stub_issue(struct bpf_raw_tracepoint_args *ctx) {
  bpf_tail_call(ctx, &programs, CAP_P_ISSUE);
  return 0;
}
SEC("raw_tp/block_rq_complete")
int stub_done(struct bpf_raw_tracepoint_args *ctx) {
  bpf_tail_call(ctx, &programs, CAP_P_DONE);
  return 0;
}
SEC("raw_tp/block_rq_requeue")
int stub_requeue(struct bpf_raw_tracepoint_args *ctx) {
  bpf_tail_call(ctx, &programs, CAP_P_REQUEUE);
  return 0;
}
