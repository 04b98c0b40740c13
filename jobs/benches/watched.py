"""A command with all its processes under watch: their memory, their output, their end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

SAMPLE_S = 0.5
"""Between two looks at the memory of all processes."""


@dataclass(frozen=True)
class Watched:
    """A command that has ended well."""

    begin_s: float
    """When it was given; the clock is that of `time.monotonic`."""
    peak_mib: float
    """The most memory (PSS) that all its processes had together."""
    output: list[str]


def watch(what: str, command: list[str], environment: Mapping[str, str], scratch: Path, limit_s: float) -> Watched:
    """Runs a command. All processes that it has started end with it, however it goes.

    Raises RunError, which says `what` it was, when it fails or takes longer than `limit_s`.
    """
    from actors.cluster.orphan_reaper import MARK, Watch, kept_processes
    from hsee_ray.errors import RunError

    log, peak_mib = scratch / "log", 0.0
    with kept_processes(), log.open("w") as file:
        processes = Watch(f"{MARK}={os.environ[MARK]}")
        begin_s = time.monotonic()
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, **environment}, start_new_session=True
        )
        try:
            while process.poll() is None and time.monotonic() < begin_s + limit_s:
                peak_mib = max(peak_mib, pss_mib(processes.look()))
                time.sleep(SAMPLE_S)
            if process.poll() is None:
                raise RunError(f"{what}: no end within {limit_s:.0f} s")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    output = log.read_text(errors="replace").splitlines()
    if process.returncode != 0:
        raise RunError(f"{what}: exit code {process.returncode}: " + " | ".join(output[-5:]))
    return Watched(begin_s, peak_mib, output)


def pss_mib(pids: Iterable[int]) -> float:
    """Memory of these processes in MiB, pages that they share counted once."""
    total_kib = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has ended meanwhile
        total_kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total_kib / 1024


def own_pss_mib() -> float:
    """Memory of this process and of its local Ray in MiB."""
    from actors.cluster.orphan_reaper import MARK, marked_processes

    return pss_mib({os.getpid(), *marked_processes(f"{MARK}={os.environ[MARK]}")})
