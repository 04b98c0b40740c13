"""Process-level facts and settings: the processor, usable cores, the job that it is, memory kept after freeing."""

from __future__ import annotations

import ctypes
import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray tells a job about itself."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NO_MEMORY = ("out of memory", "allocate memory", "failed to map segment", "can't start new thread")
"""What torch, the loader of libraries and Python say in errors of more general kinds."""
_MMAP_BYTES = 32 << 20
_TRIM_BYTES = 64 << 20


def cores(control_groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: those of the machine that it may run on, and no more than its container has."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(there, *_cpu_quotas(control_groups))))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Cores that control groups of this process, of either version, let it use; infinite at least."""
    yield math.inf
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            top = root / "cpu" if controllers else root
            own = top / group.lstrip("/")
            for directory in (own, *own.parents):
                if directory.is_relative_to(top):
                    yield _cpu_quota(directory)


def _cpu_quota(directory: Path) -> float:
    """Cores that one control group may use."""
    with suppress(OSError, ValueError):  # no such group, or no limit
        quota, period = (directory / "cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period)
    with suppress(OSError, ValueError):
        names = "cpu.cfs_quota_us", "cpu.cfs_period_us"
        of_v1, every = (int((directory / name).read_text(encoding="ascii")) for name in names)
        return of_v1 / every if of_v1 > 0 else math.inf
    return math.inf


def processor() -> str | None:
    """Name of the processor where Linux tells it, or None."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def submission_id() -> str | None:
    """Id under which this process was submitted to Ray as a job; None when it was not."""
    job = json.loads(os.environ.get(JOB_VARIABLE) or "{}")
    found: str | None = job.get("metadata", {}).get("job_submission_id")
    return found


def stop_wait_s() -> float:
    """Seconds between a job's SIGTERM and its SIGKILL, as its supervisor reads them."""
    return float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", 3))


def keep_freed_memory() -> None:
    """Has glibc keep up to 64 MiB of freed memory for the next step, in place of giving it back after each.

    glibc comes to these values by itself in a process that frees large blocks in a lucky order; where it does not, the
    pages of every activation are faulted in again in every step. With another libc nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def memory_shortage(error: BaseException) -> str | None:
    """One line with the remedy about an error that comes from too little memory; None for any other."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if not isinstance(error, MemoryError) and not any(text in said for text in _NO_MEMORY):
        return None
    return (
        f"too little memory ({said}); end other programs, raise the limit (the container's, or ulimit -v), or take "
        "smaller batches, images or networks"
    )
