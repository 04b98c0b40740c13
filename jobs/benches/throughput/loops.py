"""The steps of a run without Ray and without transport, as helper processes do them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch

from hsee_ray.config.fleet import ModelId
from hsee_ray.method.client import Client
from hsee_ray.method.schedule import round_batches
from hsee_ray.method.server import Server
from hsee_ray.method.setup import Setup, build_client, build_server, mapped_client_data
from hsee_ray.models.state import Arrays, ModelState, UnitState, named_tensors
from hsee_ray.models.weights import digest_lines
from hsee_ray.process import keep_freed_memory
from hsee_ray.reference import Reference


@dataclass(frozen=True)
class RoundTimes:
    """Seconds of one process's round: in all with aggregation, and in the steps of both sides."""

    round_s: float
    client_s: float
    server_s: float


class WholeLoop:
    """All clients and servers of a run in one process, one step after the other: `hsee_ray.reference`."""

    def __init__(self, setup: Setup, threads: int) -> None:
        self.reference = Reference(setup)
        torch.set_num_threads(threads)
        keep_freed_memory()

    def round(self, round_number: int) -> RoundTimes:
        client_s, server_s = Stopwatch(), Stopwatch()
        with (
            patch.object(Client, "train", client_s.timing(Client.train)),
            patch.object(Server, "train", server_s.timing(Server.train)),
        ):
            begin = time.perf_counter()
            self.reference.run_round(round_number)
            round_s = time.perf_counter() - begin
        return RoundTimes(round_s, client_s.total_s, server_s.total_s)

    def digest(self) -> str:
        return self.reference.digest()

    def files(self) -> dict[str, Arrays]:
        """Final tensors by file stem."""
        return self.reference.files()


class Share:
    """Some clients of Averaging with their servers in one process of one thread; their states go in and out."""

    def __init__(self, setup: Setup, numbers: Sequence[int]) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        cpu = torch.device("cpu")
        self.setup = setup
        self.clients = {n: build_client(setup, n, mapped_client_data(setup, n), cpu) for n in numbers}
        self.servers = {n: build_server(setup, [n], cpu) for n in numbers}

    def round(self, round_number: int) -> None:
        """Every client's steps, each followed by its server's step on the features as they are."""
        for number, client in self.clients.items():
            batches = round_batches(
                self.setup.config.training, self.setup.local_samples[number], client.spec.batch_size
            )
            for step in range(len(batches)):
                packet, _ = client.train(round_number, step, step + 1)
                self.servers[number].train(number, round_number, packet)

    def states(self) -> dict[ModelId, ModelState]:
        return {model: side.model.state() for model, side in self._sides().items()}

    def load(self, averages: Mapping[ModelId, Mapping[str, UnitState]]) -> None:
        """Takes the averages of the models that are here, by unit."""
        for model, side in self._sides().items():
            side.model.load(averages.get(model, {}))

    def digest_lines(self) -> list[str]:
        lines: list[str] = []
        for number, client in self.clients.items():
            lines += digest_lines(client.spec.client_file, named_tensors(client.model.state()))
            lines += digest_lines(client.spec.server_file, self.servers[number].tensors())
        return lines

    def _sides(self) -> dict[ModelId, Client | Server]:
        clients = {ModelId("client", number): client for number, client in self.clients.items()}
        return {**clients, **{ModelId("server", number): server for number, server in self.servers.items()}}


class Stopwatch:
    """Adds up the seconds that calls take."""

    def __init__(self) -> None:
        self.total_s = 0.0

    def timing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args)
            finally:
                self.total_s += time.perf_counter() - begin

        return timed
