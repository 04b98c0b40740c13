"""Probes of Ray itself for benchmarks: objects passed between actors, and a bare start. Loads no torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from hsee_ray.errors import RunError

Array = np.ndarray[Any, Any]
Use = Literal["map", "read"]
"""Work of a receiver: look at the first byte only, or read all of them."""
WAIT_S = 120.0


class Sender:
    """Hands out arrays that it has filled once: each result is a copy that Ray makes into its store."""

    def __init__(self) -> None:
        self.arrays: dict[int, Array] = {}

    def give(self, n_bytes: int) -> Array:
        if n_bytes not in self.arrays:
            self.arrays[n_bytes] = np.ones(n_bytes, np.uint8)
        return self.arrays[n_bytes]


class Receiver:
    """Takes arrays that it finds in shared memory."""

    def map(self, array: Array) -> int:
        return int(array[0])

    def read(self, array: Array) -> int:
        return read_all(array)


def read_all(array: Array) -> int:
    """Reads every byte of an array of whole 8-byte words; gives their sum as words."""
    return int(array.view(np.uint64).sum())


class Transfers:
    """A sender and a receiver, each in a process of its own."""

    def __init__(self) -> None:
        self.sender: ActorHandle[Any] = _actor(Sender)
        self.receiver: ActorHandle[Any] = _actor(Receiver)

    def seconds(self, n_bytes: int, count: int, in_flight: int, use: Use) -> float:
        """Seconds to pass so many objects on, with at most `in_flight` of them under way. Raises RunError."""
        under_way: list[ObjectRef[Any]] = []
        begin = time.perf_counter()
        for _ in range(count):
            if len(under_way) == in_flight:
                under_way = _all_but_one(under_way)
            given: ObjectRef[Any] = self.sender.give.remote(n_bytes)
            under_way.append(getattr(self.receiver, use).remote(given))
        while under_way:
            under_way = _all_but_one(under_way)
        return time.perf_counter() - begin


@contextmanager
def transfers() -> Iterator[Transfers]:
    """Two actors on a local Ray that ends with the block."""
    from actors.cluster.connection import (
        connected,  # here: the actors' processes load this module, and are to stay small
    )
    from hsee_ray.config.schema import ClusterConfig

    with connected(ClusterConfig(), [], lambda who, text: None):
        yield Transfers()


def start_and_end() -> None:
    """Starts a Ray with nothing of ours, says `ready`, and ends it."""
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    print("ready", flush=True)
    ray.shutdown()


def _actor(actor_class: type[Any]) -> ActorHandle[Any]:
    remote_class: Any = ray.remote(actor_class)
    handle: ActorHandle[Any] = remote_class.options(num_cpus=0).remote()
    return handle


def _all_but_one(under_way: list[ObjectRef[Any]]) -> list[ObjectRef[Any]]:
    """Waits for the first call to return; gives those that are left."""
    done, left = ray.wait(under_way, num_returns=1, timeout=WAIT_S)
    if not done:
        raise RunError(f"an object has not arrived within {WAIT_S:g} s")
    ray.get(done)
    return left
