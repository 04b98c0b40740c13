"""A lock that processes on one file system wait for: one of them fetches or builds a data set, the others find it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hsee_ray.errors import DataError

PATIENCE_S = 3600.0


@contextmanager
def waiting_lock(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file at `path`; where none can be made, nothing can be written either, and nobody needs it.

    Raises DataError when another process has held it for an hour.
    """
    lock = FileLock(path, timeout=PATIENCE_S)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise DataError(
            f"{what} has been in the works in another process for an hour: end that, or remove {path}"
        ) from None
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()
