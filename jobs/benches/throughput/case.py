"""One strategy at one width: rounds of a run over Ray, and after each one the same round without Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np

from actors.run.driver import run
from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import ModelId
from hsee_ray.config.schema import Config
from hsee_ray.devices.cost import CostTable
from hsee_ray.errors import RunError
from hsee_ray.method.aggregation import average_copies, plan_aggregation
from hsee_ray.method.reports import RoundReport
from hsee_ray.method.setup import Setup, prepare_run
from hsee_ray.models.state import Arrays, UnitState
from hsee_ray.models.weights import read_model, weights_sha256
from hsee_ray.process import cores
from hsee_ray.rundir.run import MODELS_DIR, Run
from hsee_ray.training.listener import Listener
from jobs.benches.common import NEVER, Result, Spread, tell
from jobs.benches.throughput.helpers import Helper, call_all, helpers
from jobs.benches.throughput.loops import RoundTimes, Share, WholeLoop

WAIT_S = 3600.0
"""For a helper's round."""
CUTS = {"sensor": "layer1", "hub": "layer2", "gateway": "layer3"}


@dataclass(frozen=True)
class Case:
    width: int
    strategy: str
    clients: int
    """In each of the three tiers."""
    batch_size: int
    batches: int
    """Of each client in a round."""
    rounds: int
    overrides: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """In a round."""
        return len(CUTS) * self.clients * self.batches * self.batch_size

    def config(self, cache: Path, rounds: int) -> Config:
        """The run of this case; its last round evaluates, on a handful of images."""
        return load_config(
            {
                "model": {"name": "resnet18", "stem": "cifar", "width": self.width},
                "data": {
                    "name": "synthetic",
                    "cache": str(cache),
                    "train_samples": self.samples,
                    "test_samples": 8,
                    "image_size": 32,
                    "channels": 3,
                    "classes": 10,
                    "augment": True,
                    "calibration_fraction": 0.0,
                },
                "tiers": [{"name": name, "clients": self.clients, "cut": cut} for name, cut in CUTS.items()],
                "training": {"strategy": self.strategy, "rounds": rounds, "batch_size": self.batch_size},
                "evaluation": {"every": NEVER},
                "checkpoint": {"every": NEVER},
            },
            self.overrides,
        )


class Best(Protocol):
    """The best that the cores could do: rounds of the same steps, and the digests that they end in."""

    name: str

    def round(self, round_number: int) -> dict[str, float]:
        """Trains a round; gives seconds by name, `<name>_s` among them."""

    def digests(self) -> list[str]: ...


class RoundClock:
    """Times rounds of a run from their first stage until they evaluate or are over."""

    def __init__(self) -> None:
        self.round_number = 0
        self.begin = 0.0
        self.end: float | None = None

    def entered(self, round_number: int, stage: str) -> None:
        now = time.perf_counter()
        if round_number != self.round_number:
            self.round_number, self.begin, self.end = round_number, now, None
        if stage == "evaluate":
            self.end = now

    def round_s(self) -> float:
        """Seconds of the round that is just over, without its evaluation."""
        return (self.end or time.perf_counter()) - self.begin


def run_case(case: Case) -> Result:
    """Rounds of all three, the weights compared."""
    with TemporaryDirectory() as directory, ExitStack() as stack:
        place = Path(directory)
        config = case.config(place / "cache", case.rounds)
        # A last round that evaluates is one more than those that are timed: the loops never come to it.
        setup = prepare_run(case.config(place / "cache", case.rounds + 1))
        (plain,) = stack.enter_context(helpers(WAIT_S, WholeLoop, [(setup, cores())]))
        best = stack.enter_context(_limit(setup) if case.strategy == "averaging" else _bound(setup))
        clock = RoundClock()
        rounds: list[dict[str, Any]] = []

        def finished_round(report: RoundReport, cost: object) -> None:
            ours = {"round": report.round_number, "ours_s": clock.round_s(), "ours_train_s": report.train_s}
            rounds.append({**ours, **_others(plain, best, report.round_number)})
            tell(_progress(rounds[-1], best.name, case.samples))

        listener = Listener(
            entered=clock.entered, finished_round=finished_round, happened=lambda event: tell(f"  {event}")
        )
        finished = run(config, place / "run", listener)
        weights, errors = _compare(finished, place / "run" / MODELS_DIR, plain, best)
    where = f"width {case.width}, {case.strategy}"
    return {
        **asdict(case),
        "samples_per_round": case.samples,
        "best": best.name,
        "measured": rounds,
        "weights": weights,
        "errors": [f"{where}: {error}" for error in errors],
    }


def _others(plain: Helper, best: Best, round_number: int) -> dict[str, float]:
    """Seconds of the same round without Ray; which of them comes first changes from round to round."""

    def plainly() -> dict[str, float]:
        (times,) = call_all([plain], WAIT_S, "round", round_number)
        return {"plain_s": times.round_s}

    def at_best() -> dict[str, float]:
        return best.round(round_number)

    order = (plainly, at_best) if round_number % 2 else (at_best, plainly)
    return {name: seconds for one in order for name, seconds in one().items()}


def _progress(measured: Mapping[str, Any], best: str, samples: int) -> str:
    speeds = ", ".join(f"{name} {samples / measured[f'{name}_s']:.1f}" for name in ("ours", "plain", best))
    return f"  round {measured['round']}: samples/s: {speeds}"


@contextmanager
def _limit(setup: Setup) -> Iterator[Best]:
    """One single-threaded process per core with its share of the clients."""
    shares = balanced(_costs(setup), cores())
    with helpers(WAIT_S, Share, [(setup, share) for share in shares]) as workers:
        yield Limit(setup, workers)


class Limit:
    """Averaging in processes of one thread: a round is over when the last share is done. Averages are not timed."""

    name = "limit"

    def __init__(self, setup: Setup, workers: Sequence[Helper]) -> None:
        self.setup = setup
        self.workers = workers

    def round(self, round_number: int) -> dict[str, float]:
        begin = time.perf_counter()
        call_all(self.workers, WAIT_S, "round", round_number)
        limit_s = time.perf_counter() - begin
        states = {model: state for of in call_all(self.workers, WAIT_S, "states") for model, state in of.items()}
        call_all(self.workers, WAIT_S, "load", averages(self.setup, states))
        return {"limit_s": limit_s}

    def digests(self) -> list[str]:
        return [weights_sha256(line for of in call_all(self.workers, WAIT_S, "digest_lines") for line in of)]


@contextmanager
def _bound(setup: Setup) -> Iterator[Best]:
    """One single-threaded process per core, each with all clients and the shared server."""
    with helpers(WAIT_S, WholeLoop, [(setup, 1)] * cores()) as workers:
        yield Bound(workers)


class Bound:
    """Sequential's bound: its server's work cannot be shared, and no core can do more than work all the time."""

    name = "bound"

    def __init__(self, workers: Sequence[Helper]) -> None:
        self.workers = workers

    def round(self, round_number: int) -> dict[str, float]:
        times: list[RoundTimes] = call_all(self.workers, WAIT_S, "round", round_number)
        client_s, server_s = fmean(each.client_s for each in times), fmean(each.server_s for each in times)
        return {
            "bound_s": sequential_bound_s(client_s, server_s, len(self.workers)),
            "client_work_s": client_s,
            "server_work_s": server_s,
        }

    def digests(self) -> list[str]:
        return call_all(self.workers, WAIT_S, "digest")


def sequential_bound_s(client_s: float, server_s: float, n_cores: int) -> float:
    """Seconds that a round takes at least, of seconds of work on one core."""
    return max(server_s, (server_s + client_s) / n_cores)


def balanced(costs: Sequence[float], n_shares: int) -> list[tuple[int, ...]]:
    """Indices of the costs in shares of about equal sums, none empty: the largest first, to whoever has least."""
    shares: list[list[int]] = [[] for _ in range(min(n_shares, len(costs)))]
    sums = [0.0] * len(shares)
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        least = sums.index(min(sums))
        shares[least].append(index)
        sums[least] += costs[index]
    return [tuple(sorted(share)) for share in shares]


def averages(setup: Setup, states: Mapping[ModelId, Mapping[str, UnitState]]) -> dict[ModelId, dict[str, UnitState]]:
    """Averages that every model takes by unit after a round in which all clients have trained."""
    plan = plan_aggregation(setup.config, setup.fleet, range(len(setup.fleet.clients)), setup.local_samples)
    means = average_copies(plan.copies, states, {}, setup.config.training)
    return {model: {unit: means[key] for unit, key in units.items()} for model, units in plan.takes.items()}


def _costs(setup: Setup) -> list[float]:
    """Multiply-adds of each client's round on both sides of the cut; the exit's are few and left out."""
    units = CostTable(setup.config, setup.files.image_shape, setup.n_classes).units
    network = sum(unit.multiply_adds for unit in units)
    return [float(network * samples) for samples in setup.local_samples]


def _compare(finished: Run, models: Path, plain: Helper, best: Best) -> tuple[dict[str, Any], list[str]]:
    """Weights of all three, and what is wrong with them."""
    ours = finished.summary["weights_sha256"]
    (plain_digest,) = call_all([plain], WAIT_S, "digest")
    (files,) = call_all([plain], WAIT_S, "files")
    by_tensor = [
        difference
        for stem, of in files.items()
        for difference in differences(read_model(models / f"{stem}.safetensors"), of)
    ]
    digests = best.digests()
    errors = [f"the {best.name}'s weights are {digest}, ours {ours}" for digest in digests if digest != ours]
    if cores() == 1 and plain_digest != ours:
        errors.append(f"the plain loop's weights are {plain_digest}, ours {ours}")
    found = {
        "ours": ours,
        best.name: digests[0],
        "plain": plain_digest,
        "plain_relative_difference": Spread.of(by_tensor).json(),
        "plain_largest_relative_difference": max(by_tensor),
    }
    return found, errors


def differences(found: Arrays, wanted: Arrays) -> list[float]:
    """The largest difference in each tensor, relative to the tensor's largest value."""
    if found.keys() != wanted.keys():
        raise RunError("a model of the plain loop has other tensors than ours")
    return [
        float(np.abs(found[name].astype(np.float64) - wanted[name]).max() / max(np.abs(wanted[name]).max(), 1e-30))
        for name in wanted
    ]
