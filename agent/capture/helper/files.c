// SPDX-License-Identifier: Apache-2.0
/*
 * files: where the data of regular files lies on the device of their file system, whether a file is still where it was,
 * and what of a file system is free. Node has none of these calls.
 *
 * Requests on stdin, each a verb and its fields, every one of them ended by NUL:
 *   map MOUNT PATH      the file and its extents
 *   stat MOUNT PATH     the file
 *   find MOUNT HANDLE   whether the inode of an earlier answer is still in the file system, under whatever name
 *   free MOUNT          the free extents (file systems that know GETFSMAP)
 * Answers on stdout, lines of numbers:
 *   "file MAJOR MINOR LINKS HANDLE COUNT", then COUNT times "LOGICAL PHYSICAL LENGTH FLAGS" (bytes; flags of FIEMAP)
 *   "alive MAJOR MINOR" | "gone MAJOR MINOR" | "free MAJOR MINOR COUNT", then COUNT times "PHYSICAL LENGTH" | "no ERRNO"
 * PATH is relative to MOUNT and is resolved without leaving that mount and without symbolic links: a bind mount would
 * show a file of another place under this name.
 */
#define _GNU_SOURCE
#include "helper.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/fsmap.h>
#include <linux/openat2.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define BATCH 512
#define MAX_EXTENTS 1000000
#define MAX_FIELD 8192

struct list {
  struct fiemap_extent *of;
  uint64_t count, room;
};

static int add(struct list *list, struct fiemap_extent extent) {
  if (list->count == MAX_EXTENTS) return E2BIG;
  if (list->count == list->room) {
    list->room = list->room ? list->room * 2 : BATCH;
    void *more = realloc(list->of, list->room * sizeof *list->of);
    if (!more) return ENOMEM;
    list->of = more;
  }
  list->of[list->count++] = extent;
  return 0;
}

/* 1: a field; 0: end of input. */
static int field(char *to) {
  for (size_t at = 0; at < MAX_FIELD; at++) {
    int c = getchar();
    if (c == EOF) return 0;
    to[at] = (char)c;
    if (!c) return 1;
  }
  return 0;
}

union handle {
  struct file_handle head;
  unsigned char raw[sizeof(struct file_handle) + MAX_HANDLE_SZ];
};

static void say_no(int error) { printf("no %d\n", error); }

/* The handle names inode and generation: a file of a later life of the inode has another one. */
static int handle_of(int fd, char *hex) {
  union handle handle = {.head.handle_bytes = MAX_HANDLE_SZ};
  const unsigned char *bytes = handle.raw + sizeof handle.head;
  int mount_id;
  if (name_to_handle_at(fd, "", &handle.head, &mount_id, AT_EMPTY_PATH)) return errno;
  hex += sprintf(hex, "%x:", (unsigned)handle.head.handle_type);
  for (unsigned at = 0; at < handle.head.handle_bytes; at++)
    hex += sprintf(hex, "%02x", bytes[at]);
  return 0;
}

static int extents_of(int fd, struct list *list) {
  struct fsxattr attr;
  /* On XFS such a file lies on another device than the one that is thought of. */
  if (ioctl(fd, FS_IOC_FSGETXATTR, &attr) == 0 && (attr.fsx_xflags & FS_XFLAG_REALTIME)) return EXDEV;
  struct fiemap *map = calloc(1, sizeof *map + BATCH * sizeof(struct fiemap_extent));
  if (!map) return ENOMEM;
  int error = 0, last = 0;
  uint64_t start = 0;
  while (!error && !last) {
    memset(map, 0, sizeof *map);
    map->fm_start = start;
    map->fm_length = FIEMAP_MAX_OFFSET - start;
    map->fm_flags = FIEMAP_FLAG_SYNC;
    map->fm_extent_count = BATCH;
    if (ioctl(fd, FS_IOC_FIEMAP, map)) error = errno;
    if (!error && !map->fm_mapped_extents) break;
    for (unsigned at = 0; !error && at < map->fm_mapped_extents; at++) {
      struct fiemap_extent *extent = &map->fm_extents[at];
      start = extent->fe_logical + extent->fe_length;
      last = (extent->fe_flags & FIEMAP_EXTENT_LAST) != 0;
      error = add(list, *extent);
    }
  }
  free(map);
  return error;
}

static void map_file(int mount, const char *path, int with_extents) {
  struct open_how how = {
      .flags = O_PATH | O_CLOEXEC | O_NOFOLLOW,
      .resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
  };
  int name = (int)syscall(SYS_openat2, mount, path, &how, sizeof how);
  if (name < 0) return say_no(errno);
  struct stat st;
  struct list list = {0};
  char hex[2 * MAX_HANDLE_SZ + 16], again[64];
  int fd = -1, error = 0;
  if (fstat(name, &st)) error = errno;
  else if (!S_ISREG(st.st_mode)) error = EINVAL;
  else error = handle_of(name, hex);
  if (!error && with_extents) {
    /* By its O_PATH: between the look at its type and the open it can't become a device or a FIFO. */
    snprintf(again, sizeof again, "/proc/self/fd/%d", name);
    fd = open(again, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    error = fd < 0 ? errno : extents_of(fd, &list);
  }
  if (error) {
    say_no(error);
  } else {
    printf("file %u %u %llu %s %llu\n", major(st.st_dev), minor(st.st_dev), (unsigned long long)st.st_nlink, hex,
           (unsigned long long)list.count);
    for (uint64_t at = 0; at < list.count; at++)
      printf("%llu %llu %llu %u\n", (unsigned long long)list.of[at].fe_logical,
             (unsigned long long)list.of[at].fe_physical, (unsigned long long)list.of[at].fe_length,
             list.of[at].fe_flags);
  }
  free(list.of);
  if (fd >= 0) close(fd);
  close(name);
}

static void find_inode(int mount, const char *hex) {
  union handle handle = {0};
  unsigned char *bytes = handle.raw + sizeof handle.head;
  char *end;
  handle.head.handle_type = (int)strtoul(hex, &end, 16);
  if (*end != ':') return say_no(EINVAL);
  unsigned at = 0, byte;
  for (hex = end + 1; at < MAX_HANDLE_SZ && sscanf(hex, "%2x", &byte) == 1; hex += 2)
    bytes[at++] = (unsigned char)byte;
  handle.head.handle_bytes = at;
  struct stat fs, st = {0};
  if (fstat(mount, &fs)) return say_no(errno);
  int fd = open_by_handle_at(mount, &handle.head, O_PATH | O_CLOEXEC);
  if ((fd < 0 && errno != ESTALE) || (fd >= 0 && fstat(fd, &st))) say_no(errno);
  /* Without a link it is still open somewhere, but no name can be given to it again. */
  else printf("%s %u %u\n", fd >= 0 && st.st_nlink ? "alive" : "gone", major(fs.st_dev), minor(fs.st_dev));
  if (fd >= 0) close(fd);
}

static void free_extents(int mount) {
  struct stat st;
  if (fstat(mount, &st)) return say_no(errno);
  unsigned low = minor(st.st_dev) & 0xff, high = minor(st.st_dev) & ~0xffu;
  unsigned device = low | (major(st.st_dev) << 8) | (high << 12); /* as the kernel writes it into a record */
  struct fsmap_head *head = calloc(1, fsmap_sizeof(BATCH));
  struct list list = {0};
  int error = head ? 0 : ENOMEM, last = 0;
  if (head) {
    head->fmh_count = BATCH;
    memset(&head->fmh_keys[1], 0xff, offsetof(struct fsmap, fmr_length));
  }
  while (!error && !last) {
    if (ioctl(mount, FS_IOC_GETFSMAP, head)) error = errno;
    if (!error && !(head->fmh_oflags & FMH_OF_DEV_T)) error = EOPNOTSUPP;
    if (!error && !head->fmh_entries) break;
    for (unsigned at = 0; !error && at < head->fmh_entries; at++) {
      struct fsmap *rec = &head->fmh_recs[at];
      last = (rec->fmr_flags & FMR_OF_LAST) != 0;
      if (!(rec->fmr_flags & FMR_OF_SPECIAL_OWNER) || rec->fmr_owner != FMR_OWN_FREE) continue;
      /* A log or realtime device of its own has addresses of its own. */
      if (rec->fmr_device != device) continue;
      error = add(&list, (struct fiemap_extent){.fe_physical = rec->fmr_physical, .fe_length = rec->fmr_length});
    }
    if (!error && !last) fsmap_advance(head);
  }
  if (error) {
    say_no(error);
  } else {
    printf("free %u %u %llu\n", major(st.st_dev), minor(st.st_dev), (unsigned long long)list.count);
    for (uint64_t at = 0; at < list.count; at++)
      printf("%llu %llu\n", (unsigned long long)list.of[at].fe_physical, (unsigned long long)list.of[at].fe_length);
  }
  free(list.of);
  free(head);
}

int cmd_files(int argc, char **argv) {
  (void)argv;
  if (argc != 1) return 2;
  static char verb[MAX_FIELD], mount_point[MAX_FIELD], what[MAX_FIELD];
  while (field(verb) && field(mount_point)) {
    int is_free = !strcmp(verb, "free");
    if (!is_free && !field(what)) break;
    /* Opened for each request: one that stays open would keep an administrator from unmounting it. */
    int mount = open(mount_point, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (mount < 0) say_no(errno);
    else if (is_free) free_extents(mount);
    else if (!strcmp(verb, "map")) map_file(mount, what, 1);
    else if (!strcmp(verb, "stat")) map_file(mount, what, 0);
    else if (!strcmp(verb, "find")) find_inode(mount, what);
    else return 2;
    if (mount >= 0) close(mount);
    fflush(stdout);
  }
  return 0;
}
