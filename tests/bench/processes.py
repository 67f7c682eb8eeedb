"""What processes use: CPU time with a resolution of nanoseconds, and resident memory.

The ticks of /proc/PID/stat are 10 ms, too coarse for runs of two seconds. The kernel's CPU-time clock of a process
(clock_getcpuclockid(3)) counts the scheduler's own nanoseconds, over all its threads, those that have ended included.
"""

import ctypes
import os
import time

_LIBC = ctypes.CDLL(None)
_TICK = 1.0 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid):
    """The CPU time of one process since it began, user and system. ProcessLookupError when it is gone."""
    clock = ctypes.c_int()
    error = _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise ProcessLookupError(error, os.strerror(error), pid)
    try:
        return time.clock_gettime(clock.value)
    except OSError as gone:
        raise ProcessLookupError(gone.errno, gone.strerror, pid) from gone


def tree_cpu_seconds(root):
    """The CPU time of a process, of its children, and of the children that it has waited for (these in ticks).

    That is all there is of PostgreSQL: each of its processes is a child of the postmaster.
    """
    total = cpu_seconds(root) + _reaped_seconds(root)
    for child in children(root):
        try:
            total += cpu_seconds(child)
        except ProcessLookupError:
            pass  # It ended since we listed it; the next reading has it among the reaped.
    return total


def machine_cpu_seconds():
    """The CPU time that all processors together have spent on anything but idling and waiting."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) * _TICK


def resident_bytes(pid):
    """The resident memory of a process."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def children(parent):
    """The processes whose parent this one is."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if int(_stat(name)[1]) == parent:
                    found.append(int(name))
            except (FileNotFoundError, ProcessLookupError):
                pass  # It ended since we listed it.
    return found


def _reaped_seconds(pid):
    fields = _stat(pid)
    return (int(fields[13]) + int(fields[14])) * _TICK


def _stat(pid):
    """The fields of /proc/PID/stat from the state on: 0 is the state, 1 the parent, 13 and 14 the reaped children's time."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()
