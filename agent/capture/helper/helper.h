/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HELPER_H
#define HELPER_H
#include <stdint.h>

int cmd_run(int argc, char **argv);
int cmd_read(int argc, char **argv);
int cmd_freeze(int argc, char **argv);
int cmd_files(int argc, char **argv);
int cmd_save(int argc, char **argv);
int cmd_early(int argc, char **argv);
int cmd_witnesses(int argc, char **argv);
int cmd_area(int argc, char **argv);

uint64_t boot_ns(void);
/* Writes all of it; ends the process when the other side is gone. */
void write_all(int fd, const void *data, uint64_t len);

#endif
