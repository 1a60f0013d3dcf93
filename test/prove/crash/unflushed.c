/*
 * A disk that loses what was not flushed, for one program: preloaded, it writes down what every change of a file or a
 * directory below UNFLUSHED_TRACK (prefixes, joined by ':') replaces, in UNFLUSHED_LOG, before the change is made, and
 * each sync that has returned. After the program was killed, rollback.ts takes back changes that no sync followed.
 * Changes go through to the files at once, so that reading needs nothing. Only libc's calls are seen: no io_uring, no mmap.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_FDS 65536

enum type { DATA = 1, SYNC, CREATE, RENAME, UNLINK, MKDIR, RMDIR, SYNC_DIR };

/* As rollback.ts reads it; two paths and the data follow. */
struct record {
  uint32_t type;
  uint32_t path_bytes;
  uint32_t path2_bytes;
  uint32_t data_bytes;
  uint64_t inode;
  uint64_t offset; /* of the change; of a sync: where the log stood when it began */
  uint64_t length;
  uint64_t old_size;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *track;
static char saved_dir[4096];
static int log_fd = -1;
static unsigned saved_count;
static char tracked[MAX_FDS];

#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static void die(const char *what) {
  dprintf(2, "unflushed: %s: %s\n", what, strerror(errno));
  _exit(99);
}

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("UNFLUSHED_LOG");
  track = getenv("UNFLUSHED_TRACK");
  if (!path || !track) return;
  REAL(open64);
  log_fd = real(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (log_fd < 0) die("the log");
  snprintf(saved_dir, sizeof saved_dir, "%s.saved", path);
  mkdir(saved_dir, 0700);
}

static int is_tracked(const char *path) {
  if (log_fd < 0 || !path || path[0] != '/') return 0;
  for (const char *at = track; *at;) {
    size_t length = strcspn(at, ":");
    if (length && strncmp(path, at, length) == 0) return 1;
    at += length;
    if (*at) at++;
  }
  return 0;
}

static void note(struct record *record, const char *path, const char *path2, const void *data) {
  record->path_bytes = path ? strlen(path) : 0;
  record->path2_bytes = path2 ? strlen(path2) : 0;
  struct iovec parts[] = {
    {record, sizeof *record},
    {(void *)path, record->path_bytes},
    {(void *)path2, record->path2_bytes},
    {(void *)data, record->data_bytes},
  };
  REAL(writev);
  size_t all = sizeof *record + record->path_bytes + record->path2_bytes + record->data_bytes;
  if (real(log_fd, parts, 4) != (ssize_t)all) die("writing the log");
}

static uint64_t log_end(void) { return lseek(log_fd, 0, SEEK_END); }

/* A descriptor's number may have become another file's without a close that we saw. */
static int file_of(int fd, struct stat *file) {
  return fd >= 0 && fd < MAX_FDS && tracked[fd] && fstat(fd, file) == 0 && S_ISREG(file->st_mode);
}

static void note_data(int fd, const struct stat *file, uint64_t offset, uint64_t length) {
  struct record record = {.type = DATA, .inode = file->st_ino, .offset = offset, .length = length,
                          .old_size = file->st_size};
  uint64_t end = offset + length < record.old_size ? offset + length : record.old_size;
  size_t bytes = end > offset ? end - offset : 0;
  char *old = NULL;
  if (bytes) {
    old = malloc(bytes);
    if (!old) die("memory");
    /* Past the page cache only whole blocks can be read. */
    int from = fd;
    if (fcntl(fd, F_GETFL) & O_DIRECT) {
      char link[64];
      snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
      REAL(open64);
      from = real(link, O_RDONLY | O_CLOEXEC);
      if (from < 0) die("what a write replaces");
    }
    for (size_t done = 0; done < bytes;) {
      ssize_t step = pread(from, old + done, bytes - done, offset + done);
      if (step <= 0) die("reading what a write replaces");
      done += step;
    }
    if (from != fd) {
      REAL(close);
      real(from);
    }
    while (bytes && old[bytes - 1] == 0) bytes--;
  }
  record.data_bytes = bytes;
  note(&record, NULL, NULL, old);
  free(old);
}

static int open_tracked(int (*real)(const char *, int, ...), const char *path, int flags, mode_t mode) {
  if (!is_tracked(path)) {
    int fd = real(path, flags, mode);
    if (fd >= 0 && fd < MAX_FDS) tracked[fd] = 0;
    return fd;
  }
  pthread_mutex_lock(&lock);
  if ((flags & O_CREAT) && access(path, F_OK) != 0) {
    struct record record = {.type = CREATE};
    note(&record, path, NULL, NULL);
  }
  int ours = flags & ~O_TRUNC;
  /* What a write replaces is read through the same descriptor. */
  if ((flags & O_ACCMODE) == O_WRONLY) ours = (ours & ~O_ACCMODE) | O_RDWR;
  int fd = real(path, ours, mode);
  int error = errno;
  if (fd >= MAX_FDS) die("too many files");
  if (fd >= 0) {
    tracked[fd] = 1;
    struct stat file;
    if ((flags & O_TRUNC) && file_of(fd, &file) && file.st_size > 0) {
      note_data(fd, &file, 0, file.st_size);
      REAL(ftruncate);
      if (real(fd, 0) != 0) die("truncating");
    }
  }
  pthread_mutex_unlock(&lock);
  errno = error;
  return fd;
}

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    va_list more; \
    va_start(more, flags); \
    mode_t mode = va_arg(more, mode_t); \
    va_end(more); \
    return open_tracked(real, path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

/* The change itself is made under the lock too: the log has them in the order in which they happened. */
#define CHANGE(type, name, signature, call, from, bytes) \
  type name signature { \
    REAL(name); \
    pthread_mutex_lock(&lock); \
    struct stat file; \
    if (log_fd >= 0 && file_of(fd, &file)) note_data(fd, &file, from, bytes); \
    type result = real call; \
    int error = errno; \
    pthread_mutex_unlock(&lock); \
    errno = error; \
    return result; \
  }

static size_t sum(const struct iovec *parts, int count) {
  size_t bytes = 0;
  for (int at = 0; at < count; at++) bytes += parts[at].iov_len;
  return bytes;
}

/* Not for descriptors of other files: a write to a pipe may block, and the lock is everybody's. */
#define WRITE(type, name, signature, call, from, bytes) \
  static type tracked_##name signature; \
  type name signature { \
    REAL(name); \
    if (fd < 0 || fd >= MAX_FDS || !tracked[fd]) return real call; \
    return tracked_##name call; \
  } \
  static type tracked_##name signature { \
    REAL(name); \
    struct stat file; \
    if (!file_of(fd, &file)) return real call; \
    pthread_mutex_lock(&lock); \
    if (fstat(fd, &file) != 0) die("a file"); \
    note_data(fd, &file, from, bytes); \
    type result = real call; \
    int error = errno; \
    pthread_mutex_unlock(&lock); \
    errno = error; \
    return result; \
  }
WRITE(ssize_t, write, (int fd, const void *data, size_t length), (fd, data, length), lseek(fd, 0, SEEK_CUR), length)
WRITE(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count), lseek(fd, 0, SEEK_CUR), sum(parts, count))
WRITE(ssize_t, pwrite, (int fd, const void *data, size_t length, off_t at), (fd, data, length, at), at, length)
WRITE(ssize_t, pwrite64, (int fd, const void *data, size_t length, off64_t at), (fd, data, length, at), at, length)
WRITE(ssize_t, pwritev, (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at), at, sum(parts, count))
WRITE(ssize_t, pwritev64, (int fd, const struct iovec *parts, int count, off64_t at), (fd, parts, count, at), at, sum(parts, count))
CHANGE(int, fallocate, (int fd, int mode, off_t at, off_t length), (fd, mode, at, length), at, length)
CHANGE(int, fallocate64, (int fd, int mode, off64_t at, off64_t length), (fd, mode, at, length), at, length)
CHANGE(int, ftruncate, (int fd, off_t size), (fd, size), size, file.st_size > size ? file.st_size - size : 0)
CHANGE(int, ftruncate64, (int fd, off64_t size), (fd, size), size, file.st_size > size ? file.st_size - size : 0)

static int synced(int fd, int (*real)(int)) {
  if (log_fd < 0 || fd < 0 || fd >= MAX_FDS || !tracked[fd]) return real(fd);
  pthread_mutex_lock(&lock);
  struct record record = {.type = SYNC, .offset = log_end()};
  pthread_mutex_unlock(&lock);
  struct stat file;
  int result = real(fd);
  if (result != 0 || fstat(fd, &file) != 0) return result;
  record.inode = file.st_ino;
  char link[64], path[4096] = "";
  if (S_ISDIR(file.st_mode)) {
    record.type = SYNC_DIR;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, path, sizeof path - 1) < 0) die("a directory's name");
  }
  pthread_mutex_lock(&lock);
  note(&record, path, NULL, NULL);
  pthread_mutex_unlock(&lock);
  return 0;
}
int fsync(int fd) { REAL(fsync); return synced(fd, real); }
int fdatasync(int fd) { REAL(fdatasync); return synced(fd, real); }

/* Keeps the file by another name; empty if there is none. */
static const char *save(const char *path, char *name, size_t size) {
  snprintf(name, size, "%s/%d-%u", saved_dir, getpid(), saved_count++);
  if (link(path, name) != 0) name[0] = 0;
  return name;
}

int rename(const char *from, const char *to) {
  REAL(rename);
  if (!is_tracked(to)) return real(from, to);
  pthread_mutex_lock(&lock);
  char name[4200];
  struct record record = {.type = RENAME};
  save(to, name, sizeof name);
  record.data_bytes = strlen(name);
  note(&record, from, to, name);
  int result = real(from, to);
  if (result != 0) die("a rename");
  pthread_mutex_unlock(&lock);
  return result;
}

int unlink(const char *path) {
  REAL(unlink);
  if (!is_tracked(path) || access(path, F_OK) != 0) return real(path);
  pthread_mutex_lock(&lock);
  char name[4200];
  struct record record = {.type = UNLINK};
  save(path, name, sizeof name);
  record.data_bytes = strlen(name);
  note(&record, path, NULL, name);
  int result = real(path);
  if (result != 0) die("an unlink");
  pthread_mutex_unlock(&lock);
  return result;
}

int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  if (!is_tracked(path) || access(path, F_OK) == 0) return real(path, mode);
  pthread_mutex_lock(&lock);
  struct record record = {.type = MKDIR};
  note(&record, path, NULL, NULL);
  int result = real(path, mode);
  int error = errno;
  pthread_mutex_unlock(&lock);
  errno = error;
  return result;
}

int rmdir(const char *path) {
  REAL(rmdir);
  if (!is_tracked(path) || access(path, F_OK) != 0) return real(path);
  pthread_mutex_lock(&lock);
  struct record record = {.type = RMDIR};
  note(&record, path, NULL, NULL);
  int result = real(path);
  int error = errno;
  pthread_mutex_unlock(&lock);
  errno = error;
  return result;
}
