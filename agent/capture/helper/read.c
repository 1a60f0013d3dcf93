// SPDX-License-Identifier: Apache-2.0
/*
 * read DEVICE: O_DIRECT reads, so that what the whole disk's page cache believes does not matter.
 * Requests on stdin: u64 offset, u64 length. Answers on stdout: i32 errno, u32 flags (1: all zero), u64 length of the
 * data that follows (none when it is all zero).
 */
#define _GNU_SOURCE
#include "helper.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_READ (64u << 20)

struct answer {
  int32_t error;
  uint32_t flags;
  uint64_t len;
};

static int read_request(void *to, size_t len) {
  char *p = to;
  while (len) {
    ssize_t n = read(0, p, len);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return 0;
    p += n;
    len -= (size_t)n;
  }
  return 1;
}

static int all_zero(const char *p, size_t len) {
  return len == 0 || (p[0] == 0 && memcmp(p, p + 1, len - 1) == 0);
}

int cmd_read(int argc, char **argv) {
  if (argc != 2) return 2;
  int fd = open(argv[1], O_RDONLY | O_DIRECT | O_CLOEXEC);
  struct answer hello = {.error = fd < 0 ? errno : 0};
  write_all(1, &hello, sizeof hello);
  if (fd < 0) return 1;
  char *buf = NULL;
  size_t have = 0;
  uint64_t req[2];
  while (read_request(req, sizeof req)) {
    uint64_t off = req[0], len = req[1], got = 0;
    struct answer a = {0};
    if (len > MAX_READ) a.error = EINVAL;
    if (!a.error && len > have) {
      free(buf);
      have = (len + 4095) & ~4095ull;
      if (posix_memalign((void **)&buf, 4096, have)) return 1;
    }
    while (!a.error && got < len) {
      ssize_t n = pread(fd, buf + got, len - got, (off_t)(off + got));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) a.error = errno;
      else if (n == 0) a.error = ENXIO; /* past the end: the disk is smaller than thought */
      else got += (uint64_t)n;
    }
    if (!a.error) {
      if (all_zero(buf, len)) a.flags = 1;
      else a.len = len;
    }
    write_all(1, &a, sizeof a);
    if (a.len) write_all(1, buf, a.len);
  }
  return 0;
}
