// SPDX-License-Identifier: Apache-2.0
/*
 * kernels-io raw DEVICE SEED COUNT | files FOLDER SEED COUNT: a reproducible mix of every way in which Linux writes to a
 * disk. The last line is a JSON object of how many of each kind the kernel took.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define MIB (1u << 20)
#define BUFFER (4 * MIB + 8192)

static uint64_t state;
static uint32_t next(uint32_t below) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return (uint32_t)(state >> 32) % below;
}

/* odd4: a buffer at an address that no sector size divides; oddSector: sectors that lie across page boundaries. */
enum { DIRECT, ODD4, ODD_SECTOR, VECTOR, BUFFERED, MAPPED, DISCARD, ZEROOUT, AT_ONCE, REFUSED, KINDS };
static const char *const names[KINDS] = {"direct",  "odd4",    "oddSector", "vector", "buffered",
                                         "mapped", "discard", "zeroout",   "atOnce", "refusedOdd"};
static int count[KINDS];

static void die(const char *what) {
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  exit(1);
}

static char *buffer, *other;
static void refill(char *p, size_t len) {
  for (size_t i = 0; i + 8 <= len; i += 8) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    memcpy(p + i, &state, 8);
  }
}

static int full(ssize_t n, size_t len, const char *what) {
  if (n == (ssize_t)len) return 1;
  if (n < 0 && (errno == EINVAL || errno == ENOSPC)) return 0;
  if (n >= 0) return 0;
  die(what);
  return 0;
}

/* Kernels before 6.0 want O_DIRECT buffers at sector addresses, and so do some drivers after it. */
static void odd_write(int fd, uint64_t at, size_t len) {
  refill(buffer, len + 1024);
  if (full(pwrite(fd, buffer + 4 * (1 + next(127)), len, (off_t)at), len, "odd write")) count[ODD4]++;
  else {
    count[REFUSED]++;
    if (full(pwrite(fd, buffer + 512 * (1 + next(7)), len, (off_t)at), len, "odd sector write")) count[ODD_SECTOR]++;
  }
}

static void vector_write(int fd, uint64_t at) {
  struct iovec v[7];
  size_t total = 0;
  int n = 2 + (int)next(6);
  for (int i = 0; i < n; i++) {
    v[i].iov_base = buffer + i * 65536 + 512 * next(8);
    v[i].iov_len = 512 * (1 + next(24));
    refill(v[i].iov_base, v[i].iov_len);
    total += v[i].iov_len;
  }
  if (full(pwritev(fd, v, n, (off_t)at), total, "vector write")) count[VECTOR]++;
}

struct job {
  int fd;
  uint64_t at;
  size_t len;
  char *from;
};
static void *one_job(void *p) {
  struct job *j = p;
  for (int i = 0; i < 4; i++)
    if (pwrite(j->fd, j->from, j->len, (off_t)j->at) != (ssize_t)j->len) die("write at once");
  return NULL;
}
/* Several under way together; the first two overlap, so that the capture has to read them again. */
static void at_once(int fd, uint64_t size) {
  pthread_t thread[4];
  struct job job[4];
  uint64_t base = (uint64_t)next((uint32_t)(size / 4096 - 256)) * 4096;
  for (int i = 0; i < 4; i++) {
    job[i] = (struct job){fd, base + (uint64_t)(i ? i - 1 : 0) * 65536, 65536, other + i * 65536};
    refill(job[i].from, job[i].len);
    if (pthread_create(&thread[i], NULL, one_job, &job[i])) die("thread");
  }
  for (int i = 0; i < 4; i++) pthread_join(thread[i], NULL);
  count[AT_ONCE]++;
}

static void raw(const char *path, int times) {
  int direct = open(path, O_RDWR | O_DIRECT | O_CLOEXEC), plain = open(path, O_RDWR | O_CLOEXEC);
  uint64_t size;
  if (direct < 0 || plain < 0 || ioctl(plain, BLKGETSIZE64, &size)) die(path);
  for (int i = 0; i < times; i++) {
    uint64_t sector = next((uint32_t)(size / 512 - 10240)), at = sector * 512;
    size_t len = 512 * (1 + next(160));
    uint64_t range[2] = {at & ~4095ull, 4096 * (1 + next(256))};
    switch (i < 9 ? (uint32_t)i : next(9)) { /* each kind once at least */
      case 0:
        refill(buffer, len);
        if (full(pwrite(direct, buffer, len, (off_t)at), len, "direct write")) count[DIRECT]++;
        break;
      case 1:
        len = MIB * (1 + next(4));
        refill(buffer, len);
        if (full(pwrite(direct, buffer, len, (off_t)at), len, "large write")) count[DIRECT]++;
        break;
      case 2:
      case 3: odd_write(direct, at, len); break;
      case 4: vector_write(direct, at); break;
      case 5:
        len = 1 + next(70000);
        refill(buffer, len + 8);
        if (pwrite(plain, buffer, len, (off_t)(at + next(512))) != (ssize_t)len || fdatasync(plain)) die("buffered write");
        count[BUFFERED]++;
        break;
      case 6:
        if (ioctl(plain, BLKDISCARD, range) == 0) count[DISCARD]++;
        else if (errno != EOPNOTSUPP) die("discard");
        break;
      case 7:
        if (ioctl(plain, BLKZEROOUT, range)) die("zeroout");
        count[ZEROOUT]++;
        break;
      case 8: at_once(direct, size); break;
    }
  }
  char *map = mmap(NULL, 256 * 1024, PROT_READ | PROT_WRITE, MAP_SHARED, plain, 4096 * 64);
  if (map == MAP_FAILED) die("mmap");
  refill(map + 5000, 100000);
  if (msync(map, 256 * 1024, MS_SYNC)) die("msync");
  count[MAPPED]++;
  if (fsync(plain)) die("fsync");
}

static void files(const char *folder, int times) {
  if (chdir(folder)) die(folder);
  for (int i = 0; i < times; i++) {
    char name[32], to[32];
    snprintf(name, sizeof name, "file-%u", next(24));
    snprintf(to, sizeof to, "file-%u", next(24));
    size_t len = 1 + next(i % 8 ? 120000 : 600000);
    uint32_t kind = i < 7 ? (uint32_t)i : next(9);
    if (kind == 6 || kind == 8) {
      if (kind == 6) unlink(name);
      else rename(name, to);
      continue;
    }
    int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | (kind < 3 ? O_DIRECT : 0) | (kind == 3 ? O_APPEND : 0), 0600);
    if (fd < 0) die(name);
    if (kind == 0) {
      len = (len + 4095) & ~4095ul;
      refill(buffer, len);
      if (full(pwrite(fd, buffer, len, 4096 * next(16)), len, "direct")) count[DIRECT]++;
    } else if (kind < 3) odd_write(fd, 4096 * next(16), (len + 4095) & ~4095ul);
    else if (kind == 5) {
      if (ftruncate(fd, 65536)) die("truncate");
      char *map = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      if (map == MAP_FAILED) die("mmap");
      refill(map, 30000);
      if (msync(map, 65536, MS_SYNC)) die("msync");
      munmap(map, 65536);
      count[MAPPED]++;
    } else {
      refill(buffer, len);
      if (full(write(fd, buffer, len), len, "buffered")) count[BUFFERED]++;
      if (kind == 7) fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 16384);
    }
    if (next(2) && fsync(fd)) die("fsync");
    close(fd);
  }
  sync();
}

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  state = 0x9e3779b97f4a7c15ull * (strtoull(argv[3], NULL, 10) + 1);
  if (posix_memalign((void **)&buffer, 4096, BUFFER) || posix_memalign((void **)&other, 4096, 4 * 65536)) return 1;
  if (!strcmp(argv[1], "raw")) raw(argv[2], atoi(argv[4]));
  else if (!strcmp(argv[1], "files")) files(argv[2], atoi(argv[4]));
  else return 2;
  for (int i = 0; i < KINDS; i++) printf("%s\"%s\":%d", i ? "," : "{", names[i], count[i]);
  printf("}\n");
  return 0;
}
