// SPDX-License-Identifier: Apache-2.0
/*
 * freeze MOUNT... --timeout-ms N: holds file systems still until "thaw" or end of file on stdin, or the timeout, which
 * counts from the first freeze on.
 * stdout: "skipped ERRNO MOUNT" for one whose type can't be frozen (it is synced instead), "frozen BOOT_NS BEGUN_NS",
 * then "thawed asked|timeout|closed BOOT_NS"; or "failed ERRNO MOUNT".
 * Nothing here may touch a file once the first file system is frozen: memory is locked and the program is static.
 * Two processes, so that the kill of either one still ends in a thaw; outside of the agent's control group, so that a
 * kill of that whole group does as well. Freezing waits for the flush of what is dirty and cannot be interrupted: if
 * the holder hangs in it when time is up, the watcher thaws those that are frozen already.
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
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_MOUNTS 256
#define LATE_MS 250

static int fds[MAX_MOUNTS], count;
static volatile int *frozen; /* how many the holder has frozen; of both processes */
static volatile sig_atomic_t asked_to_end, late_now;

static void on_signal(int n) {
  (void)n;
  asked_to_end = 1;
}

static void on_alarm(int n) {
  (void)n;
  late_now = 1;
}

static void thaw(int from) {
  for (int i = from - 1; i >= 0; i--) ioctl(fds[i], FITHAW, 0);
}

static void say(const char *text) { (void)!write(1, text, strlen(text)); }

static int hold(char **names, uint64_t start, uint64_t end) {
  char line[512];
  int skipped[MAX_MOUNTS] = {0};
  for (int i = 0; i < count; i++) {
    int error = ioctl(fds[i], FIFREEZE, 0) == 0 ? 0 : errno;
    if (error == EOPNOTSUPP) {
      skipped[i] = error;
      syncfs(fds[i]);
      error = 0;
    } else if (!error && boot_ns() >= end) {
      error = ETIMEDOUT;
      i++;
    }
    if (!error) {
      *frozen = i + 1;
      continue;
    }
    thaw(i);
    snprintf(line, sizeof line, "failed %d %s\n", error, names[error == ETIMEDOUT ? i - 1 : i]);
    say(line);
    return 1;
  }
  for (int i = 0; i < count; i++) {
    if (!skipped[i]) continue;
    snprintf(line, sizeof line, "skipped %d %s\n", skipped[i], names[i]);
    say(line);
  }
  snprintf(line, sizeof line, "frozen %llu %llu\n", (unsigned long long)boot_ns(), (unsigned long long)start);
  say(line);
  const char *why = asked_to_end ? "closed" : "timeout";
  while (!asked_to_end) {
    uint64_t now = boot_ns();
    if (now >= end) break;
    struct pollfd in = {.fd = 0, .events = POLLIN};
    int n = poll(&in, 1, (int)((end - now) / 1000000) + 1);
    if (n <= 0) continue;
    ssize_t got = read(0, line, sizeof line);
    why = got > 0 && boot_ns() < end ? "asked" : "closed";
    break;
  }
  thaw(count);
  snprintf(line, sizeof line, "thawed %s %llu\n", why, (unsigned long long)boot_ns());
  say(line);
  return 0;
}

/* What ends the agent's whole control group at once must not end its thaw. Best effort: there may be no such tree. */
static void leave_cgroup(void) {
  static const char *const roots[] = {"/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs",
                                      "/sys/fs/cgroup/systemd/cgroup.procs"};
  for (unsigned i = 0; i < sizeof roots / sizeof *roots; i++) {
    int fd = open(roots[i], O_WRONLY | O_CLOEXEC);
    if (fd < 0) continue;
    (void)!write(fd, "0", 1);
    close(fd);
  }
}

int cmd_freeze(int argc, char **argv) {
  int timeout_ms = 0;
  char *names[MAX_MOUNTS];
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--timeout-ms") && i + 1 < argc) timeout_ms = atoi(argv[++i]);
    else if (count < MAX_MOUNTS) names[count++] = argv[i];
    else {
      printf("failed %d %s\n", E2BIG, argv[i]);
      return 1;
    }
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
  frozen = mmap(NULL, sizeof *frozen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (frozen == MAP_FAILED) return 1;
  leave_cgroup();
  /* What is dirty is flushed while writes still go on: the flush of the freeze itself is then short. */
  for (int i = 0; i < count; i++) syncfs(fds[i]);
  pid_t child = fork();
  if (child < 0) return 1;
  if (mlockall(MCL_CURRENT | MCL_FUTURE)) {
    if (child == 0) printf("failed %d mlockall\n", errno);
    return 1;
  }
  uint64_t start = boot_ns(), end = start + (uint64_t)timeout_ms * 1000000ull;
  if (child == 0) _exit(hold(names, start, end));
  close(1);
  /* The holder is the first to know the time; when it has not ended this long after, it hangs. */
  struct sigaction alarmed = {.sa_handler = on_alarm};
  sigaction(SIGALRM, &alarmed, NULL);
  uint64_t late_ms = (uint64_t)timeout_ms + LATE_MS;
  struct itimerval late = {.it_value = {(time_t)(late_ms / 1000), (suseconds_t)(late_ms % 1000 * 1000)}};
  setitimer(ITIMER_REAL, &late, NULL);
  int status;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    if (asked_to_end) kill(child, SIGTERM);
    /* Those first: a thaw of the one that is being frozen waits for that. */
    if (late_now) thaw(*frozen), thaw(count), late_now = 0;
  }
  if (!WIFEXITED(status)) {
    thaw(count); /* of one that is not frozen: EINVAL, no harm */
    return 1;
  }
  return WEXITSTATUS(status);
}
