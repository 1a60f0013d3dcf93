// SPDX-License-Identifier: Apache-2.0
/* understudy-capture: what the agent cannot do from Node. One static program, no file beside it. */
#define _GNU_SOURCE
#include "helper.h"
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

uint64_t boot_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_BOOTTIME, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

void write_all(int fd, const void *data, uint64_t len) {
  const char *p = data;
  while (len) {
    ssize_t n = write(fd, p, len);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      struct pollfd w = {.fd = fd, .events = POLLOUT};
      poll(&w, 1, -1);
      continue;
    }
    if (n <= 0) _exit(3);
    p += n;
    len -= (uint64_t)n;
  }
}

int main(int argc, char **argv) {
  const char *cmd = argc > 1 ? argv[1] : "";
  if (!strcmp(cmd, "run")) return cmd_run(argc - 1, argv + 1);
  if (!strcmp(cmd, "read")) return cmd_read(argc - 1, argv + 1);
  if (!strcmp(cmd, "freeze")) return cmd_freeze(argc - 1, argv + 1);
  if (!strcmp(cmd, "files")) return cmd_files(argc - 1, argv + 1);
  if (!strcmp(cmd, "save")) return cmd_save(argc - 1, argv + 1);
  if (!strcmp(cmd, "early")) return cmd_early(argc - 1, argv + 1);
  if (!strcmp(cmd, "witnesses")) return cmd_witnesses(argc - 1, argv + 1);
  if (!strcmp(cmd, "area")) return cmd_area(argc - 1, argv + 1);
  fprintf(stderr,
          "usage: understudy-capture run --pin DIR --ring BYTES --timeout-ms N --disk INDEX:PATH...\n"
          "       understudy-capture read DEVICE\n"
          "       understudy-capture freeze MOUNT... --timeout-ms N\n"
          "       understudy-capture files\n"
          "       understudy-capture save --pin DIR --run DIR --area FILE [HOW]\n"
          "       understudy-capture early --pin DIR --run DIR --area FILE [--log FILE]\n"
          "       understudy-capture witnesses --run DIR --disk INDEX:PATH...\n"
          "       understudy-capture area FILE\n");
  return 2;
}
