/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What the BPF programs and the helper share. Any change of a struct here is a change of CAP_LAYOUT. */
#ifndef CAP_LAYOUT_H
#define CAP_LAYOUT_H

#ifndef __bpf__
#include <stdint.h>
typedef uint64_t u64;
typedef uint32_t u32;
typedef uint16_t u16;
typedef uint8_t u8;
#endif

#define CAP_LAYOUT 2
#define CAP_MAGIC 0x5041434459545355ULL
#define CAP_MAX_DISKS 64
/* Slots of the ring: a reservation's size must be a constant, and a slot is only taken if it is filled. */
#define CAP_HUGE 65536
#define CAP_LARGE 16384
#define CAP_PIECE 4096
#define CAP_SMALL 512

enum cap_kind { CAP_WRITE = 1, CAP_ZERO = 2, CAP_MARK = 3, CAP_OPAQUE = 4, CAP_DONE = 5 };
enum cap_rec_flags { CAP_LAST = 1, CAP_DISCARD = 2 };
enum cap_mode { CAP_ORDERED = 0, CAP_TRACKING = 1 };
/* The order is known to client.ts. */
enum cap_reason {
  CAP_R_NONE = 0,
  CAP_R_OVERFLOW = 1,
  CAP_R_COPY = 2,
  CAP_R_NO_CONSUMER = 3,
  CAP_R_INFLIGHT = 4,
  CAP_R_TOO_LARGE = 5,
  CAP_R_MISSED = 6,
  CAP_R_REQUESTED = 7,
};
/* Slots of the program array behind the pinned stubs. */
enum cap_prog { CAP_P_ISSUE, CAP_P_COPY, CAP_P_RANGE, CAP_P_MARK, CAP_P_DONE, CAP_P_DONE_MARK, CAP_P_REQUEUE, CAP_P_COUNT };

/* Header of every record in the ring; a write's bytes follow it. */
struct cap_rec {
  u8 kind, flags;
  u16 disk;
  u32 len;
  u64 offset; /* bytes; for a mark: its id */
  u64 rq;     /* with boot_ns, names the request that the piece belongs to */
  u64 boot_ns;
  u64 drops; /* read after the reservation: order ends at the first record where it differs */
  u32 status, pad;
};

struct cap_disk {
  u32 index, dev;
  u64 first_block; /* in the dirty map, a multiple of 64 */
  u64 blocks;
};

/* A write between issue and completion, and the cursor of the programs that walk it. */
struct cap_inflight {
  u64 epoch, boot_ns;
  u64 offset;
  u32 len, pending;
  u32 disk;
  u8 captured, is_range, is_discard, finish;
  u64 bio, bv, va, pos;
  u32 idx, bv_done, left, bv_left, remaining, pad;
  u64 mark_pos, mark_end;
  u64 first_block, blocks;
};

struct cap_cfg {
  u64 magic;
  u32 layout, ready;
  u64 page0, va0; /* one known pair of struct page and linear address */
  u64 consumer_timeout_ns;
  u32 block_shift, byte_map; /* of the dirty map; byte_map: a byte per block (no atomic OR before 5.12) */
  u64 probe_pattern[2];
  u32 probe_armed, probe_ok;
  u8 capture_id[40], boot_id[40];
  u64 ring_bytes, build;
  u32 disk_count, pad0;
  struct cap_disk disk[CAP_MAX_DISKS];
  u64 disk_bytes[CAP_MAX_DISKS], disk_seq[CAP_MAX_DISKS];
  u8 pad1[64];

  u32 mode, reason;
  u64 since_boot_ns;
  u64 heartbeat_ns;
  u64 epoch;
  u64 drops;
  u64 next_mark;
  u64 order_pos, base_drops, prev_base_drops; /* order held: drops == base at or after order_pos, prev_base before */
  u8 pad3[64];

  u32 waiting, pad2; /* on a line of its own: it changes all the time, and every write reads what is above */
  u8 pad4[64];

  u64 copy_failures, untracked, requeues, late_marks;
  u64 disk_drops[CAP_MAX_DISKS], disk_failed[CAP_MAX_DISKS], disk_opaque[CAP_MAX_DISKS], disk_overlaps[CAP_MAX_DISKS];
  u32 all_dirty[CAP_MAX_DISKS], all_taken[CAP_MAX_DISKS];
  u64 misses_seen;
};

struct cap_stats {
  u64 writes, bytes;
};

#endif
