"""A request to stop that a run follows when it can leave a checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager


class GraceOver(Exception):
    """The running round did not end in time."""


class StopRequest:
    """Set by a signal handler, looked at by the run."""

    def __init__(self, most_grace_s: float = math.inf) -> None:
        """`most_grace_s`: whatever a run allows itself, whoever asks may not wait longer."""
        self.most_grace_s = most_grace_s
        self.signal_number: int | None = None
        self._listening = False
        self._grace_s = 0.0
        self._asked_at = 0.0

    @contextmanager
    def listening(self, grace_s: float) -> Iterator[None]:
        """In this block a request is followed at the end of the round, or after `grace_s`."""
        self._listening, self._grace_s = True, min(grace_s, self.most_grace_s)
        try:
            yield
        finally:
            self._listening = False

    def ask(self, signal_number: int) -> bool:
        """Asks the run to stop. False when nobody listens, or it was asked before: then it must end at once."""
        if not self._listening or self.signal_number is not None:
            return False
        self.signal_number, self._asked_at = signal_number, time.monotonic()
        return True

    @property
    def asked(self) -> bool:
        return self.signal_number is not None

    def left_s(self) -> float:
        """Seconds until `check` raises; without end before it has been asked."""
        if not (self._listening and self.asked):
            return math.inf
        return max(0.0, self._asked_at + self._grace_s - time.monotonic())

    def check(self) -> None:
        """Raises GraceOver when the run has been asked to stop and its time is over."""
        if self._listening and self.asked and time.monotonic() > self._asked_at + self._grace_s:
            raise GraceOver
