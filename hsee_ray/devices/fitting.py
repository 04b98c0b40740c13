"""Measures training steps on a device and fits the profile that explains them best.

The steps are those of a run: `Client.train` and `Server.train` on synthetic images, with everything that belongs to
them (augmentation, codec, optimiser), one torch thread each.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from scipy.optimize import nnls

from hsee_ray.config.fleet import ClientSpec
from hsee_ray.config.schema import Config
from hsee_ray.devices.cost import CostTable
from hsee_ray.devices.counter import OpCounts
from hsee_ray.errors import RunError
from hsee_ray.method.setup import Setup, build_client, build_server, mapped_client_data, prepare_run
from hsee_ray.process import keep_freed_memory

BATCHES = 2
"""Of a client in a measurement."""
LEAST_S_PER_GFLOP = 1e-6
"""No core does a PFLOP/s: below it, arithmetic has explained nothing."""


@dataclass(frozen=True)
class Timed:
    """One kind of step: what it needs, and how long it took."""

    name: str
    work: OpCounts
    seconds: float
    """The median over repetitions."""


@dataclass(frozen=True)
class Fit:
    """Figures of a device profile, and how well they explain what was measured."""

    compute_gflops: float
    memory_gib_s: float | None
    """None where the memory's bandwidth explains nothing."""
    operator_us: float
    fitted_s: tuple[float, ...]
    """In the order of the measurements."""
    errors: tuple[float, ...]
    """fitted / measured - 1, of each."""

    @property
    def median_error(self) -> float:
        return median(map(abs, self.errors))


def time_steps(configs: Sequence[Config], repetitions: int) -> list[Timed]:
    """Times a step of both sides for every cut and batch size of configurations of synthetic images.

    All alternate, so that a disturbance affects each of them; the first repetition is a warm-up. Seconds are those of
    this process on its core: a process beside it that wants the core too does not count. Raises ConfigError as
    `prepare_run` does.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    steps = [step for config in configs for step in _steps(config)]
    for repetition in range(repetitions + 1):
        for step in steps:
            step.repeat(repetition + 1)
    return [timed for step in steps for timed in step.timed()]


class _Step:
    """A client and its server, who train the same two batches again and again."""

    def __init__(self, setup: Setup, spec: ClientSpec, costs: CostTable) -> None:
        cpu = torch.device("cpu")
        model = setup.config.model
        self.where = f"{model.name} of width {model.width}, cut {spec.cut_name}, batch {spec.batch_size}"
        self.spec = spec
        self.client = build_client(setup, spec.client_id, mapped_client_data(setup, spec.client_id), cpu)
        self.server = build_server(setup, [spec.client_id], cpu) if spec.has_server else None
        self.work = {"client": costs.client(spec.cut, spec.batch_size, inner_exits=spec.inner_exits).train}
        if spec.has_server:
            self.work["server"] = costs.server(spec.cut, spec.batch_size).train
        self.seconds: dict[str, list[float]] = {side: [] for side in self.work}

    def repeat(self, round_number: int) -> None:
        begin = time.process_time()
        packet, _ = self.client.train(round_number, 0, BATCHES)
        self.seconds["client"].append((time.process_time() - begin) / BATCHES)
        if self.server is not None:
            begin = time.process_time()
            self.server.train(self.spec.client_id, round_number, packet)
            self.seconds["server"].append((time.process_time() - begin) / BATCHES)

    def timed(self) -> list[Timed]:
        return [
            Timed(f"{side}, {self.where}", work, median(self.seconds[side][1:])) for side, work in self.work.items()
        ]


def _steps(config: Config) -> list[_Step]:
    """One for each cut and batch size."""
    setup = prepare_run(config)
    costs = CostTable(config, setup.files.image_shape, setup.n_classes)
    specs = {(spec.cut, spec.batch_size): spec for spec in setup.fleet.clients}.values()
    return [_Step(setup, spec, costs) for spec in specs]


def combined(runs: Sequence[Sequence[Timed]]) -> list[Timed]:
    """Means over processes that measured the same steps side by side."""
    return [
        Timed(of_all[0].name, of_all[0].work, sum(each.seconds for each in of_all) / len(of_all))
        for of_all in zip(*runs, strict=True)
    ]


def fit(timed: Sequence[Timed]) -> Fit:
    """Non-negative least squares over relative errors, of the formula of `hsee_ray.devices.profiles.seconds`.

    A profile must have arithmetic in it, and in a small network that grows as the other terms do: where it explains
    nothing beside both of them, operators are left out, then memory, then both.
    """
    work = [(2e-9 * t.work.multiply_adds, t.work.traffic_bytes / 2**30, 1e-6 * t.work.operators) for t in timed]
    needs, measured = np.array(work), np.array([t.seconds for t in timed])
    for terms in ([0, 1, 2], [0, 1], [0, 2], [0]):
        figures = np.zeros(3)
        figures[terms], _ = nnls(needs[:, terms] / measured[:, None], np.ones(len(timed)))
        per_gflop, per_gib, operator_us = figures
        if per_gflop >= LEAST_S_PER_GFLOP:
            break
    fitted = needs @ figures
    return Fit(
        compute_gflops=float(1 / per_gflop),
        memory_gib_s=float(1 / per_gib) if per_gib > 0 else None,
        operator_us=float(operator_us),
        fitted_s=tuple(map(float, fitted)),
        errors=tuple(map(float, fitted / measured - 1)),
    )


def link(seconds_by_bytes: Mapping[int, float]) -> tuple[float, float]:
    """Latency in s, and bytes per second, of messages of two sizes that took so long.

    Raises RunError when the larger one was as quick.
    """
    (small, small_s), (large, large_s) = sorted(seconds_by_bytes.items())
    if large_s <= small_s:
        raise RunError("a large message was as quick as a small one: measure again on a quieter machine")
    bytes_s = (large - small) / (large_s - small_s)
    return max(0.0, small_s - small / bytes_s), bytes_s
