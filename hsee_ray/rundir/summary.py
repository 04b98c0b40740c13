"""The summary of a run: one JSON document about every client, every tier and all of them.

Of a whole run only sums and the last evaluation are kept.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hsee_ray.config.fleet import ClientSpec, Fleet
from hsee_ray.config.schema import Config
from hsee_ray.method.figures import evaluation_figures, gate_figures, metrics_of
from hsee_ray.method.reports import EvaluationReport, RoundReport, learnt
from hsee_ray.method.strategies import strategy_of
from hsee_ray.process import processor
from hsee_ray.rundir.run import side_figures
from hsee_ray.storage import write_whole

if TYPE_CHECKING:
    from hsee_ray.simulation.prediction import RoundCost

CENTRAL = "central"
"""Identity of Centralized's only client, where others have their number."""

_EVALUATED = ("client_accuracy", "server_accuracy", "majority_rate", "eval_samples", "eval_sent_bytes")


@dataclass(frozen=True)
class DataSummary:
    """Facts about the data that a model needs elsewhere."""

    name: str
    image_shape: tuple[int, int, int]
    """Height, width, channels."""
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""
    std: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""


@dataclass
class SimulatedTotals:
    """Simulated totals over all rounds (docs/simulation.md)."""

    train_s: float = 0.0
    exchange_s: float = 0.0
    evaluation_s: float = 0.0
    joules: dict[str, float] = field(default_factory=dict)
    """Of the devices of each tier, in training and exchange."""
    sent_bytes: dict[str, int] = field(default_factory=dict)
    received_bytes: dict[str, int] = field(default_factory=dict)
    evaluation_joules: dict[str, float] = field(default_factory=dict)
    """The same in evaluations, which only measure."""
    evaluation_sent_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def learning_s(self) -> float:
        """Seconds without evaluations: what the models took to become what they are."""
        return self.train_s + self.exchange_s

    @property
    def total_s(self) -> float:
        return self.learning_s + self.evaluation_s

    def add(self, cost: RoundCost) -> None:
        """Counts one more round."""
        self.train_s += cost.train_s
        self.exchange_s += cost.exchange_s
        self.evaluation_s += cost.evaluation_s
        for tier, spent in cost.tiers().items():
            self.joules[tier] = self.joules.get(tier, 0.0) + spent.joules
            self.sent_bytes[tier] = self.sent_bytes.get(tier, 0) + spent.sent_bytes
            self.received_bytes[tier] = self.received_bytes.get(tier, 0) + spent.received_bytes
        for tier, spent in cost.evaluated_tiers().items():
            self.evaluation_joules[tier] = self.evaluation_joules.get(tier, 0.0) + spent.joules
            self.evaluation_sent_bytes[tier] = self.evaluation_sent_bytes.get(tier, 0) + spent.sent_bytes


@dataclass
class RunTotals:
    """Totals over the rounds so far."""

    rounds: int = 0
    samples: int = 0
    """Training samples behind `train_s`."""
    train_s: float = 0.0
    """Seconds of training in rounds in which no actors started; in all rounds, as long as there is no such round."""
    warm: bool = False
    """Whether there has been a round in which no actors started."""
    train_sent_bytes: dict[int, int] = field(default_factory=dict)
    """By client number, over all rounds."""
    evaluation: Mapping[int, EvaluationReport] = field(default_factory=dict)
    """Of the last round in which a client was evaluated, by client number."""
    missed_rounds: dict[int, list[int]] = field(default_factory=dict)
    """By client number, the rounds in which it had no place on the cluster."""
    trained_rounds: dict[int, int] = field(default_factory=dict)
    """By client number, the rounds in which it and its server have learnt something."""
    simulated: SimulatedTotals | None = None
    """None where the devices are not known."""
    train_received_bytes: dict[int, int] = field(default_factory=dict)
    """By client number, over all rounds: what `training.feedback` has sent back."""

    def add(self, report: RoundReport, cost: RoundCost | None = None) -> None:
        """Counts one more round, and what it cost in simulated time where devices are known."""
        self.rounds = report.round_number
        if not report.starting and not self.warm:
            self.warm, self.samples, self.train_s = True, 0, 0.0
        if report.starting != self.warm:
            self.samples += report.samples
            self.train_s += report.train_s
        for number, trained in report.client_training.items():
            self.train_sent_bytes[number] = self.train_sent_bytes.get(number, 0) + trained.sent_bytes
            self.train_received_bytes[number] = self.train_received_bytes.get(number, 0) + trained.received_bytes
        for number in learnt({"client": report.client_training, "server": report.server_training}, self.rounds):
            self.trained_rounds[number] = self.trained_rounds.get(number, 0) + 1
        self.evaluation = {**self.evaluation, **report.evaluation}
        for number in report.missing:
            self.missed_rounds.setdefault(number, []).append(report.round_number)
        if cost is not None:
            self.simulated = self.simulated or SimulatedTotals()
            self.simulated.add(cost)


def build_summary(
    config: Config,
    fleet: Fleet,
    totals: RunTotals,
    local_samples: Sequence[int],
    weights_sha256: str,
    wall_s: float,
    data: DataSummary,
    failures: Mapping[str, int],
    best_round: int | None = None,
) -> dict[str, Any]:
    """Content of `summary.json` for a finished run, of which the last round was evaluated.

    `best_round` is the one whose models are kept, where `training.keep` asks for it. `failures` counts the replaced
    actors by name. `local_samples` counts each client's own training samples, in the order of the fleet. Accuracies and
    ratios lie in [0, 1]; `samples_per_s` counts training samples per second of training, without rounds in which actors
    started. Tiers and `overall` are means over their clients, each client with the same weight, those that have learnt
    nothing left out of figures; `server_accuracy` is the mean over the clients that have one, or None. `simulation`
    tells what the run took on the tiers' devices, or is None.
    """
    clients = [
        _client_summary(client, samples, totals, config)
        for client, samples in zip(fleet.clients, local_samples, strict=True)
    ]
    return {
        "strategy": config.training.strategy.name,
        "seed": config.seed,
        "rounds": totals.rounds,
        "best_round": best_round,
        "ended_by_patience": config.training.patience if totals.rounds < config.training.rounds else None,
        "wall_s": wall_s,
        "samples_per_s": totals.samples / totals.train_s,
        "weights_sha256": weights_sha256,
        "failures": dict(failures),
        "environment": environment(),
        "data": asdict(data),
        "model_units": list(fleet.unit_names),
        "clients": clients,
        "tiers": [_tier_summary(tier, clients) for tier in fleet.tiers],
        "overall": {"clients": len(clients), **_means(clients)},
        "simulation": _simulation_summary(config, fleet, totals.simulated),
    }


def environment() -> dict[str, Any]:
    """Libraries and processor, on which it depends whether two runs can be equal bit for bit."""
    # torch takes seconds to import, and a reader of summaries never gets here.
    import torch

    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "ray", "numpy")},
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_model": processor(),
        "cores": os.cpu_count(),
    }


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """JSON file of the summary; numbers that are not finite become null.

    It appears under its name only when it is complete.
    """
    text = json.dumps(_finite(summary), indent=2, allow_nan=False, ensure_ascii=False)
    write_whole(path, f"{text}\n".encode())


def _client_summary(client: ClientSpec, samples: int, totals: RunTotals, config: Config) -> dict[str, Any]:
    return {
        "id": CENTRAL if client.label == CENTRAL else client.client_id,
        "tier": client.tier,
        "cut": client.cut_name,
        "cut_index": client.cut,
        "samples": samples,
        "train_sent_bytes": totals.train_sent_bytes.get(client.client_id, 0),
        "train_received_bytes": totals.train_received_bytes.get(client.client_id, 0),
        "missed_rounds": totals.missed_rounds.get(client.client_id, []),
        "trained_rounds": totals.trained_rounds.get(client.client_id, 0),
        **_evaluation_summary(totals.evaluation.get(client.client_id), config),
    }


def _evaluation_summary(evaluated: EvaluationReport | None, config: Config) -> dict[str, Any]:
    """Figures of the last evaluation; None for a client that took part in none."""
    found: dict[str, Any] = dict.fromkeys(_EVALUATED)
    gated: dict[tuple[str, float | None], float] = {}
    if evaluated is not None:
        found["eval_samples"] = evaluated.samples
        found |= {name: value for name, _, value in evaluation_figures(evaluated, metrics_of(config))}
        gated = {(name, tau): value for name, tau, value in gate_figures(evaluated, config.exits.taus)}
    found["gated"] = [
        {"tau": tau, "accuracy": gated.get(("gated_accuracy", tau)), "offload_ratio": gated.get(("offload_ratio", tau))}
        for tau in config.exits.taus
    ]
    return found


def _simulation_summary(config: Config, fleet: Fleet, totals: SimulatedTotals | None) -> dict[str, Any] | None:
    """Simulated seconds of the whole run, and what each tier's devices spent; None where devices are not known."""
    if totals is None:
        return None
    devices = {tier.name: tier.device for tier in config.tiers}
    on_server = config.simulation.one_machine or strategy_of(config).on_server
    return {
        "server": config.simulation.server,
        "one_machine": config.simulation.one_machine,
        "train_s": totals.train_s,
        "exchange_s": totals.exchange_s,
        "evaluation_s": totals.evaluation_s,
        "tiers": [
            {
                "name": tier,
                "device": config.simulation.server if on_server else devices[tier],
                "joules": totals.joules.get(tier, 0.0),
                "sent_bytes": totals.sent_bytes.get(tier, 0),
                "received_bytes": totals.received_bytes.get(tier, 0),
                "evaluation_joules": totals.evaluation_joules.get(tier, 0.0),
                "evaluation_sent_bytes": totals.evaluation_sent_bytes.get(tier, 0),
            }
            for tier in fleet.tiers
        ],
    }


def _tier_summary(tier: str, clients: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    members = [client for client in clients if client["tier"] == tier]
    return {
        "name": tier,
        "cut": members[0]["cut"],
        "cut_index": members[0]["cut_index"],
        "clients": len(members),
        **_means(members),
    }


def _means(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    clients = [client if client["trained_rounds"] else _without_figures(client) for client in members]
    names = ["samples", "train_sent_bytes", "train_received_bytes", *_EVALUATED]
    names += [name for client in clients for name in side_figures(client)]
    means: dict[str, Any] = {name: _mean(client.get(name) for client in clients) for name in names}
    means["gated"] = [
        {
            "tau": gates[0]["tau"],
            "accuracy": _mean(gate["accuracy"] for gate in gates),
            "offload_ratio": _mean(gate["offload_ratio"] for gate in gates),
        }
        for gates in zip(*(client["gated"] for client in clients), strict=True)
    ]
    return means


def _without_figures(client: Mapping[str, Any]) -> dict[str, Any]:
    gated = [{**gate, "accuracy": None, "offload_ratio": None} for gate in client["gated"]]
    return {**client, **dict.fromkeys({*_EVALUATED, *side_figures(client)}), "gated": gated}


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that there are; None when there are none."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def _finite(value: Any) -> Any:
    """The same value with None for NaN and infinities, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
