"""Ends a local Ray when the run that started it is gone, however it went: also after SIGKILL, when nobody else can.

Ray's own daemons end with their parent, but its agents can go on looking for the dead head for minutes. The reaper is
a process of its own that waits on a pipe from the run; it ends exactly the processes that the run has started, which it
knows by a mark in their environment. Run as a script: `orphan_reaper.py NAME=value`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "HSEE_RAY_LOCAL"
PATIENCE_S = 20.0
QUIET_S = 2.0
"""A process that is just being started bears no mark yet: so long none must be seen."""
WATCH_S = 1.0
ENDED_WELL = b"ended well"


@contextlib.contextmanager
def kept_processes() -> Iterator[Callable[[], None]]:
    """Processes that are started in the block, and theirs, end with the block, or with this process.

    Gives what ends them at once, and returns when they are gone.
    """
    value = uuid.uuid4().hex
    reaper = subprocess.Popen(
        [sys.executable, "-S", __file__, f"{MARK}={value}"], stdin=subprocess.PIPE, start_new_session=True
    )
    assert reaper.stdin is not None
    pipe = reaper.stdin

    def end() -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody has ended the reaper: nobody is left to tell
            pipe.write(ENDED_WELL)
            pipe.close()
        reaper.wait(timeout=2 * PATIENCE_S)

    os.environ[MARK] = value
    try:
        yield end
    finally:
        os.environ.pop(MARK, None)
        end()


@dataclass(frozen=True)
class Process:
    """One line of the process table; a number is given again one day, the pair with its start is not."""

    pid: int
    start: int
    parent: int
    marked: bool


def process_table(mark: str) -> list[Process]:
    """Living processes, and whether they were started with `NAME=value` in their environment."""
    table: list[Process] = []
    if not Path("/proc").is_dir():
        return table  # not Linux: Ray's own watch has to do
    for entry in Path("/proc").iterdir():
        # A process can end while we look; one of another user is none of ours.
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                marked = mark.encode() in (entry / "environ").read_bytes().split(b"\0")
                if fields[0] != "Z":
                    table.append(Process(int(entry.name), int(fields[19]), int(fields[1]), marked))
    return table


def marked_processes(mark: str) -> list[int]:
    """Numbers of the living processes that bear a mark."""
    return [process.pid for process in process_table(mark) if process.marked]


class Watch:
    """Processes of a run: those that bear its mark, have once borne it, or were started by one of them.

    Ray's agents write their title over their environment, so a mark that was there can be gone later.
    """

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.known: set[tuple[int, int]] = set()

    def look(self) -> list[int]:
        """Numbers of those who live now."""
        table = process_table(self.mark)
        mine = {process.pid for process in table if process.marked or (process.pid, process.start) in self.known}
        grown = True
        while grown:
            children = {process.pid for process in table if process.parent in mine} - mine
            mine |= children
            grown = bool(children)
        self.known |= {(process.pid, process.start) for process in table if process.pid in mine}
        return sorted(mine - {os.getpid()})


def main(mark: str) -> None:
    watch = Watch(mark)
    while not select.select([sys.stdin], [], [], WATCH_S)[0]:
        watch.look()
    # The run has closed the pipe, or has died: then its daemons may just be starting more.
    quiet_s = 0.0 if sys.stdin.buffer.read() == ENDED_WELL else QUIET_S
    last_seen = time.monotonic()
    deadline = last_seen + PATIENCE_S
    while time.monotonic() < deadline:
        alive = watch.look()
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if alive:
            last_seen = time.monotonic()
        elif time.monotonic() >= last_seen + quiet_s:
            return
        time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1])
