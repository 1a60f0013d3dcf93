/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The few kernel types that the programs look into. Offsets are relocated at load time (CO-RE) to the running
 * kernel's BTF, so only names matter here, and building needs no BTF of the build machine.
 */
#ifndef CAP_KERNEL_H
#define CAP_KERNEL_H

typedef unsigned long long u64;
typedef long long s64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef u64 __u64;
typedef u32 __u32;
typedef u16 __u16;
typedef u8 __u8;
typedef s64 __s64;
typedef int __s32;
typedef short __s16;
typedef u16 __be16;
typedef u32 __be32;
typedef u32 __wsum;

enum { BPF_ANY = 0 };
enum { BPF_F_MMAPABLE = 1 << 10 };
enum { BPF_RB_NO_WAKEUP = 1, BPF_RB_FORCE_WAKEUP = 2 };
enum bpf_map_type {
  BPF_MAP_TYPE_HASH = 1,
  BPF_MAP_TYPE_ARRAY = 2,
  BPF_MAP_TYPE_PROG_ARRAY = 3,
  BPF_MAP_TYPE_PERCPU_ARRAY = 6,
  BPF_MAP_TYPE_RINGBUF = 27,
};

struct bpf_raw_tracepoint_args {
  __u64 args[0];
};

#define CORE __attribute__((preserve_access_index))

struct list_head {
  struct list_head *next, *prev;
} CORE;
struct page {
  struct list_head lru;
} CORE;
struct bio_vec {
  struct page *bv_page;
  unsigned int bv_len;
  unsigned int bv_offset;
} CORE;
/* The same as it is laid out in all kernels so far, to read it as a whole; known_bio_vec() proves it. */
struct plain_bio_vec {
  u64 page;
  u32 len, offset;
};
struct bvec_iter {
  u64 bi_sector;
  unsigned int bi_size, bi_idx, bi_bvec_done;
} __attribute__((packed)) CORE;
struct bio {
  struct bio *bi_next;
  struct bvec_iter bi_iter;
  struct bio_vec *bi_io_vec;
} CORE;
struct gendisk {
  int major, first_minor;
} CORE;
struct request_queue {
  struct gendisk *disk;
} CORE;
struct request;
struct blk_mq_tags {
  struct request **static_rqs;
  struct list_head page_list;
} CORE;
struct blk_mq_hw_ctx {
  struct blk_mq_tags *tags;
} CORE;
struct request {
  struct request_queue *q;
  struct blk_mq_hw_ctx *mq_hctx;
  unsigned int cmd_flags;
  unsigned int __data_len;
  u64 __sector;
  struct bio *bio;
} CORE;
/* Up to 5.16 the request itself knows its disk. */
struct request___old {
  struct gendisk *rq_disk;
} CORE;

#endif
