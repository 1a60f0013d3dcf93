"""Writers for test/integration/quiesce.test.ts: disk B gets a number only once disk A has it, durably. FIRST SECOND WORKERS ROUNDS FROM"""
import mmap
import os
import struct
import sys
import threading

first, second = sys.argv[1:3]
workers, rounds, start = map(int, sys.argv[3:6])


def work(slot):
    fds = [os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC) for path in (first, second)]
    page = mmap.mmap(-1, 4096)
    for number in range(start, start + rounds):
        page[0:8] = struct.pack("<Q", number)
        for fd in fds:
            os.pwrite(fd, page, slot * 4096)


threads = [threading.Thread(target=work, args=(slot,)) for slot in range(workers)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
