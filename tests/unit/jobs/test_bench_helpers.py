"""Processes that the benchmarks hold beside Ray. They import this file: it loads nothing heavy."""

from __future__ import annotations

import time

import pytest

from hsee_ray.errors import RunError
from jobs.benches.throughput.helpers import Helper, call_all, helpers


class Counter:
    """What a helper holds in these tests."""

    def __init__(self, start: int) -> None:
        self.count = start

    def add(self, number: int) -> int:
        self.count += number
        return self.count

    def fail(self) -> None:
        raise KeyError("no such thing")

    def sleep(self) -> None:
        time.sleep(60)

    def leave(self) -> None:
        raise SystemExit


def test_helpers_answer_and_end() -> None:
    with helpers(30, Counter, [(1,), (2,)]) as workers:
        assert call_all(workers, 30, "add", 10) == [11, 12]
        assert call_all(workers, 30, "add", 10) == [21, 22]
        workers[0].submit("fail")
        with pytest.raises(RunError, match="a helper process failed: KeyError: 'no such thing'"):
            workers[0].result(30)
        assert call_all(workers[:1], 30, "add", 1) == [22]
        workers[0].submit("leave")
        with pytest.raises(RunError, match="has died"):
            workers[0].result(30)
        workers[1].submit("sleep")
        with pytest.raises(RunError, match="does not answer within 0 s"):
            workers[1].result(0.1)
    assert not any(worker.process.is_alive() for worker in workers)


def test_a_helper_that_cannot_begin_says_why() -> None:
    with (
        pytest.raises(RunError, match=r"TypeError: .*missing 1 required positional argument"),
        helpers(30, Counter, [()]),
    ):
        pytest.fail("it has not begun")


def test_a_helper_ends_whatever_it_does() -> None:
    worker = Helper(Counter, 0)
    worker.result(30)
    worker.submit("sleep")
    worker.end()
    assert worker.process.exitcode is not None
