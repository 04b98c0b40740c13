"""Processes of our own that hold one object each and call its methods when they are told to; no Ray."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

from hsee_ray.errors import RunError

NICENESS = 15
"""That of Ray's workers: whatever else this machine does takes as much from one side of a comparison as the other."""
END_S = 10.0


class Helper:
    """A process, started at once, in which `build(*args)` makes the object that is called."""

    def __init__(self, build: Callable[..., Any], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, build, args), daemon=True)
        self.process.start()
        theirs.close()

    def submit(self, method: str, *args: Any) -> None:
        """Calls a method; `result` gives what it returns."""
        try:
            self.pipe.send((method, args))
        except OSError as error:
            raise RunError(f"a helper process has ended before {method} ({error})") from None

    def result(self, timeout_s: float) -> Any:
        """Result of the oldest call that is not answered yet; of the first `result` of all, None. Raises RunError."""
        try:
            if not self.pipe.poll(timeout_s):
                raise RunError(f"a helper process does not answer within {timeout_s:.0f} s")
            failure, value = self.pipe.recv()
        except (EOFError, OSError):
            raise RunError("a helper process has died; was the machine out of memory?") from None
        if failure is not None:
            raise RunError(f"a helper process failed: {failure}")
        return value

    def end(self) -> None:
        """Ends the process, whatever it is doing."""
        self.pipe.close()
        self.process.terminate()
        self.process.join(END_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(END_S)


@contextmanager
def helpers(timeout_s: float, build: Callable[..., Any], each: Sequence[tuple[Any, ...]]) -> Iterator[list[Helper]]:
    """One helper for every tuple of arguments, ready to be called; all are ended with the block."""
    started: list[Helper] = []
    try:
        for args in each:
            started.append(Helper(build, *args))
        for helper in started:
            helper.result(timeout_s)
        yield started
    finally:
        for helper in started:
            helper.end()


def call_all(workers: Sequence[Helper], timeout_s: float, method: str, *args: Any) -> list[Any]:
    """Results of the same call in all helpers at once."""
    for worker in workers:
        worker.submit(method, *args)
    return [worker.result(timeout_s) for worker in workers]


def _end_with_parent() -> None:
    """Nobody waits for a round when the parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _serve(pipe: Connection, build: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Answers calls until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its helpers itself
    Thread(target=_end_with_parent, daemon=True).start()
    os.nice(max(0, NICENESS - os.nice(0)))
    served: Any = None
    method: str | None = None
    try:
        while True:
            try:
                if method is None:
                    served, value = build(*args), None
                else:
                    value = getattr(served, method)(*args)
                pipe.send((None, value))
            except Exception as error:
                traceback.print_exc()
                pipe.send((f"{type(error).__name__}: {error}", None))
            method, args = pipe.recv()
    except (EOFError, OSError):
        return  # the parent has gone, or does not want to know any more
