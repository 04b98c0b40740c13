"""Exit codes of the jobs: errors become one line on stderr, never a traceback."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


def exit_code(job: Callable[[], int]) -> int:
    """Exit code: the job's own; 1 for a failed run, 2 for bad input, 128 + the signal for a stopped run."""
    with _lasting_output():
        return _outcome(job)


def _outcome(job: Callable[[], int]) -> int:
    from hsee_ray.errors import Interrupted, RunError, UserError
    from hsee_ray.process import memory_shortage

    try:
        return job()
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return 128 + interrupted.signal_number
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        # A full disk, a directory that may not be written: the message names it.
        line = memory_shortage(error) or (str(error) or type(error).__name__ if isinstance(error, OSError) else None)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


class _Output:
    """A stream whose reader may go away: from then on, what is written is dropped, and the job goes on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except (OSError, ValueError):  # a pipe or a terminal that is closed
            self._drop()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._drop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self) -> None:
        nowhere = _nowhere()
        with suppress(OSError, ValueError):  # what is still buffered is written at the interpreter's end
            os.dup2(nowhere.fileno(), self._stream.fileno())
        self._stream = nowhere


def _nowhere() -> Any:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


@contextmanager
def _lasting_output() -> Iterator[None]:
    """Output that no reader who leaves can end the job by; a stream that was closed before the start is none."""
    before, hook_before = (sys.stdout, sys.stderr), threading.excepthook
    sys.stdout, sys.stderr = (_Output(stream or _nowhere()) for stream in before)
    threading.excepthook = _end_of_thread
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
        threading.excepthook = hook_before


def _end_of_thread(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer hands its error, such as a full disk, to whoever writes next; it is told once."""
    if not type(failed.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(failed)
