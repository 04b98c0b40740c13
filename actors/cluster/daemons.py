"""The daemons of a run's own Ray: without any of them the run is over, and says so at once.

Ray itself goes on for up to a minute, and then aborts the process from C++, past every clean-up of Python's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import NoReturn

WATCH_S = 0.2
LAST_WORDS_S = 20.0
"""For what is still to be written, to a URI too; Ray's own abort comes later."""


class DaemonWatch:
    """Ends this process, with one line and exit code 1, when one of the daemons ends in the block."""

    def __init__(self, daemons: dict[str, subprocess.Popen[bytes]], end_processes: Callable[[], None]) -> None:
        """`end_processes` ends what else the process has started, and waits until it is gone."""
        self.last_words: Callable[[str], str] = lambda reason: f"{reason}; start the command again"
        """Makes the line of the reason, and leaves what a reader must find."""
        self._daemons = daemons
        self._end_processes = end_processes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="daemon-watch", daemon=True)

    def __enter__(self) -> DaemonWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()  # for good where it ends the process
        if kind is not None:
            self._look()  # an error of the block may be the first sign of a death

    def _watch(self) -> None:
        while not self._over.wait(WATCH_S):
            self._look()

    def _look(self) -> None:
        for name, process in self._daemons.items():
            code = process.poll()
            if code is not None:
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                hint = ", as the system sends it when memory is short" if how == "SIGKILL" else ""
                self._end(f"{name}, a daemon of the local Ray, has died ({how}{hint})")

    def _end(self, reason: str) -> NoReturn:
        try:
            speaker = threading.Thread(target=self._speak, args=(reason,), daemon=True)
            speaker.start()
            speaker.join(LAST_WORDS_S)
            self._end_processes()
        finally:
            os._exit(1)

    def _speak(self, reason: str) -> None:
        line = self.last_words(reason)
        with suppress(OSError, ValueError):  # nobody reads it any more
            print(f"error: {line}", file=sys.stderr, flush=True)
            if sys.__stdout__ is not None and sys.__stdout__.isatty():
                print("\x1b[?25h", end="", file=sys.__stdout__, flush=True)  # the cursor, which a live bar hides
