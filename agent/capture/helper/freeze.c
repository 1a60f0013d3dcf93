// SPDX-License-Identifier: Apache-2.0
/*
 * freeze MOUNT... --timeout-ms N: holds file systems still until "thaw" or end of file on stdin, or the timeout.
 * stdout: "frozen BOOT_NS", then "thawed asked|timeout|closed"; or "failed ERRNO MOUNT".
 * Nothing here may touch a file once the first file system is frozen: memory is locked and the program is static.
 * Two processes, so that the kill of either one still ends in a thaw.
 */
#define _GNU_SOURCE
#include "helper.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_MOUNTS 256

static int fds[MAX_MOUNTS], count;
static volatile sig_atomic_t asked_to_end;

static void on_signal(int n) {
  (void)n;
  asked_to_end = 1;
}

static void thaw(int from) {
  for (int i = from - 1; i >= 0; i--) ioctl(fds[i], FITHAW, 0);
}

static void say(const char *text) { (void)!write(1, text, strlen(text)); }

static int hold(char **names, int timeout_ms) {
  char line[512];
  for (int i = 0; i < count; i++) {
    if (ioctl(fds[i], FIFREEZE, 0) == 0) continue;
    int error = errno;
    thaw(i);
    snprintf(line, sizeof line, "failed %d %s\n", error, names[i]);
    say(line);
    return 1;
  }
  uint64_t start = boot_ns(), end = start + (uint64_t)timeout_ms * 1000000ull;
  snprintf(line, sizeof line, "frozen %llu\n", (unsigned long long)start);
  say(line);
  const char *why = "timeout";
  while (!asked_to_end) {
    uint64_t now = boot_ns();
    if (now >= end) break;
    struct pollfd in = {.fd = 0, .events = POLLIN};
    int n = poll(&in, 1, (int)((end - now) / 1000000) + 1);
    if (n <= 0) continue;
    ssize_t got = read(0, line, sizeof line);
    why = got > 0 ? "asked" : "closed";
    break;
  }
  thaw(count);
  snprintf(line, sizeof line, "thawed %s\n", why);
  say(line);
  return 0;
}

int cmd_freeze(int argc, char **argv) {
  int timeout_ms = 0;
  char *names[MAX_MOUNTS];
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--timeout-ms") && i + 1 < argc) timeout_ms = atoi(argv[++i]);
    else if (count < MAX_MOUNTS) names[count++] = argv[i];
  }
  if (!count || timeout_ms <= 0) return 2;
  for (int i = 0; i < count; i++) {
    fds[i] = open(names[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fds[i] < 0) {
      printf("failed %d %s\n", errno, names[i]);
      return 1;
    }
  }
  FILE *oom = fopen("/proc/self/oom_score_adj", "w");
  if (oom) {
    fputs("-1000", oom);
    fclose(oom);
  }
  signal(SIGPIPE, SIG_IGN);
  signal(SIGTERM, on_signal);
  signal(SIGINT, on_signal);
  signal(SIGHUP, on_signal);
  pid_t child = fork();
  if (child < 0) return 1;
  if (mlockall(MCL_CURRENT | MCL_FUTURE)) {
    if (child == 0) printf("failed %d mlockall\n", errno);
    return 1;
  }
  if (child == 0) _exit(hold(names, timeout_ms));
  close(1);
  int status;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR)
    if (asked_to_end) kill(child, SIGTERM);
  if (!WIFEXITED(status)) {
    thaw(count); /* of one that is not frozen: EINVAL, no harm */
    return 1;
  }
  return WEXITSTATUS(status);
}
