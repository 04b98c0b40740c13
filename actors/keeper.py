"""Ends a local Ray when the run that started it is gone, however it went: also after SIGKILL, when nobody else can.

Ray's own daemons end with their parent, but its agents can go on looking for the dead head for minutes. The keeper is
a process of its own that waits on a pipe from the run; it ends exactly the processes that bear the run's mark in their
environment. Run as a script: `keeper.py NAME=value`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

MARK = "HSEE_RAY_LOCAL"
PATIENCE_S = 20.0
QUIET_S = 2.0
"""A process that is just being started bears no mark yet: so long none must be seen."""
ENDED_WELL = b"ended well"


@contextlib.contextmanager
def kept_processes() -> Iterator[None]:
    """Processes that are started in the block, and theirs, end with the block, or with this process."""
    value = uuid.uuid4().hex
    keeper = subprocess.Popen(
        [sys.executable, "-S", __file__, f"{MARK}={value}"], stdin=subprocess.PIPE, start_new_session=True
    )
    os.environ[MARK] = value
    try:
        yield
    finally:
        os.environ.pop(MARK, None)
        assert keeper.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # somebody has ended the keeper: nobody is left to tell
            keeper.stdin.write(ENDED_WELL)
            keeper.stdin.close()
        keeper.wait(timeout=2 * PATIENCE_S)


def marked_processes(mark: str) -> list[int]:
    """Living processes with `NAME=value` in the environment that they were started with."""
    found: list[int] = []
    if not Path("/proc").is_dir():
        return found  # not Linux: Ray's own watch has to do
    for entry in Path("/proc").iterdir():
        # A process can end while we look; one of another user is none of ours.
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def main(mark: str) -> None:
    # Returns when the run has closed the pipe, or has died: then its daemons may just be starting more.
    quiet_s = 0.0 if sys.stdin.buffer.read() == ENDED_WELL else QUIET_S
    last_seen = time.monotonic()
    deadline = last_seen + PATIENCE_S
    while time.monotonic() < deadline:
        alive = marked_processes(mark)
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
