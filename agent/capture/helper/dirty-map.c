// SPDX-License-Identifier: Apache-2.0
/* See dirty-map.h. */
#include "dirty-map.h"

int disk_at(u32 index) {
  for (u32 i = 0; i < cfg->disk_count; i++)
    if (cfg->disk[i].index == index) return (int)i;
  return -1;
}

void mark_extent(u64 *map, int at, u64 offset, u64 len, int set) {
  struct cap_disk *d = &cfg->disk[at];
  u32 s = cfg->block_shift;
  if (!len) return;
  for (u64 b = offset >> s, last = (offset + len - 1) >> s; b <= last && b < d->blocks; b++)
    (set ? block_set : block_clear)(map, d->first_block + b);
}

void spread_all_dirty(int at) {
  u32 i = cfg->disk[at].index & (CAP_MAX_DISKS - 1);
  if (!__atomic_exchange_n(&cfg->all_dirty[i], 0, __ATOMIC_SEQ_CST)) return;
  mark_extent(dirty_map, at, 0, cfg->disk_bytes[at], 1);
}

u64 dirty_bytes(int at) {
  struct cap_disk *d = &cfg->disk[at];
  u64 n = 0, step = blocks_per_word();
  if (cfg->all_dirty[d->index & (CAP_MAX_DISKS - 1)]) return cfg->disk_bytes[at];
  for (u64 b = 0; b < d->blocks; b += step) {
    u64 g = d->first_block + b;
    if (word_empty(dirty_map, g) && word_empty(taken_map, g)) continue;
    if (!cfg->byte_map) n += (u64)__builtin_popcountll(dirty_map[g >> 6] | taken_map[g >> 6]);
    else
      for (u64 k = 0; k < step; k++) n += block_test(dirty_map, g + k) || block_test(taken_map, g + k);
  }
  u64 bytes = n << cfg->block_shift;
  return bytes > cfg->disk_bytes[at] ? cfg->disk_bytes[at] : bytes;
}

int next_dirty_run(int at, u64 *block, u64 *count) {
  struct cap_disk *d = &cfg->disk[at];
  u64 step = blocks_per_word(), from = 0, run = 0;
  for (u64 b = *block; b < d->blocks; b++) {
    u64 g = d->first_block + b;
    if (!run && b % step == 0 && word_empty(dirty_map, g) && word_empty(taken_map, g)) {
      b += step - 1;
      continue;
    }
    if (block_test(dirty_map, g) || block_test(taken_map, g)) {
      if (!run++) from = b;
    } else if (run) break;
  }
  *block = from;
  *count = run;
  return run > 0;
}
