/* SPDX-License-Identifier: Apache-2.0 */
/* The dirty map and the map of taken blocks: the words (or bytes) of both builds of the programs behind one face. */
#ifndef DIRTY_MAP_H
#define DIRTY_MAP_H
#include "attach.h"

/* Where the disk is in cfg->disk, or -1. */
int disk_at(u32 index);
/* Sets (or clears) the blocks that the extent touches. */
void mark_extent(u64 *map, int at, u64 offset, u64 len, int set);
/* What the programs knew no places of (`all_dirty`) becomes bits. */
void spread_all_dirty(int at);
/* Of both maps together. */
u64 dirty_bytes(int at);
/* The next run of blocks from `*block` on that are set in either map; 0: there is none. In blocks of 1 << block_shift. */
int next_dirty_run(int at, u64 *block, u64 *count);

static inline int block_test(u64 *map, u64 b) {
  if (cfg->byte_map) return __atomic_load_n((u8 *)map + b, __ATOMIC_SEQ_CST);
  return (__atomic_load_n(&map[b >> 6], __ATOMIC_SEQ_CST) >> (b & 63)) & 1;
}
static inline void block_set(u64 *map, u64 b) {
  if (cfg->byte_map) __atomic_store_n((u8 *)map + b, 1, __ATOMIC_SEQ_CST);
  else __atomic_fetch_or(&map[b >> 6], 1ull << (b & 63), __ATOMIC_SEQ_CST);
}
static inline void block_clear(u64 *map, u64 b) {
  if (cfg->byte_map) __atomic_store_n((u8 *)map + b, 0, __ATOMIC_SEQ_CST);
  else __atomic_fetch_and(&map[b >> 6], ~(1ull << (b & 63)), __ATOMIC_SEQ_CST);
}
/* Whole words that are zero are skipped: disks are large and mostly clean. */
static inline int word_empty(u64 *map, u64 b) {
  return cfg->byte_map ? __atomic_load_n(&map[b >> 3], __ATOMIC_RELAXED) == 0 : __atomic_load_n(&map[b >> 6], __ATOMIC_RELAXED) == 0;
}
static inline u64 blocks_per_word(void) { return cfg->byte_map ? 8 : 64; }

#endif
