"""The summary of a run: one JSON document about every client, every tier and all of them.

Nothing here grows with the rounds: of a whole run only sums and the last evaluation are kept.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from hsee_ray.config import Config
from hsee_ray.fleet import ClientSpec, Fleet
from hsee_ray.reports import EvaluationReport, RoundReport

CENTRAL = "central"
"""Identity of Centralized's only client, where others have their number."""

_AVERAGED = (
    "samples",
    "client_accuracy",
    "majority_rate",
    "train_sent_bytes",
    "eval_samples",
    "eval_sent_bytes",
)


@dataclass(frozen=True)
class DataSummary:
    """What a model has to know about its data to be used elsewhere."""

    name: str
    image_shape: tuple[int, int, int]
    """Height, width, channels."""
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""
    std: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""


@dataclass
class RunTotals:
    """What the rounds add up to so far."""

    rounds: int = 0
    samples: int = 0
    """Training samples behind `train_s`."""
    train_s: float = 0.0
    """Seconds of training, without the first round: actors start in it, unless it is the only one."""
    train_sent_bytes: dict[int, int] = field(default_factory=dict)
    """By client number, over all rounds."""
    evaluation: Mapping[int, EvaluationReport] = field(default_factory=dict)
    """Of the last round that was evaluated, by client number."""

    def add(self, report: RoundReport) -> None:
        """Counts one more round."""
        if self.rounds == 1:
            self.samples, self.train_s = 0, 0.0
        self.rounds = report.round_number
        self.samples += report.samples
        self.train_s += report.train_s
        for number, trained in report.client_training.items():
            self.train_sent_bytes[number] = self.train_sent_bytes.get(number, 0) + trained.sent_bytes
        if report.evaluation:
            self.evaluation = report.evaluation


def build_summary(
    config: Config,
    fleet: Fleet,
    totals: RunTotals,
    local_samples: Sequence[int],
    weights_sha256: str,
    wall_s: float,
    data: DataSummary,
) -> dict[str, Any]:
    """Content of `summary.json` for a finished run, of which the last round was evaluated.

    `local_samples` counts each client's own training samples, in the order of the fleet. Accuracies and ratios lie in
    [0, 1]; `samples_per_s` counts training samples per second of training after the first round. Tiers and `overall`
    are means over their clients, each client with the same weight; `server_accuracy` is the mean over the clients
    that have one, or None.
    """
    clients = [
        _client_summary(client, samples, totals, config.exits.taus)
        for client, samples in zip(fleet.clients, local_samples, strict=True)
    ]
    return {
        "strategy": config.training.strategy,
        "seed": config.seed,
        "rounds": totals.rounds,
        "wall_s": wall_s,
        "samples_per_s": totals.samples / totals.train_s,
        "weights_sha256": weights_sha256,
        "environment": environment(),
        "data": asdict(data),
        "model_units": list(fleet.unit_names),
        "clients": clients,
        "tiers": [_tier_summary(tier, clients) for tier in fleet.tiers],
        "overall": {"clients": len(clients), **_means(clients)},
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
        "cpu_model": _cpu_model(),
        "cores": os.cpu_count(),
    }


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """JSON file of the summary; numbers that are not finite become null.

    It appears under its name only when it is complete.
    """
    partial = path.with_name(f"{path.name}.partial")
    text = json.dumps(_finite(summary), indent=2, allow_nan=False, ensure_ascii=False)
    partial.write_text(f"{text}\n", encoding="utf-8")
    partial.replace(path)


def _client_summary(client: ClientSpec, samples: int, totals: RunTotals, taus: Sequence[float]) -> dict[str, Any]:
    evaluated = totals.evaluation[client.number]
    server_correct = evaluated.server_correct
    gates = zip(taus, evaluated.gated_correct, evaluated.offloaded, strict=True)
    return {
        "id": CENTRAL if client.label == CENTRAL else client.number,
        "tier": client.tier,
        "cut": client.cut_name,
        "cut_index": client.cut,
        "samples": samples,
        "client_accuracy": evaluated.client_correct / evaluated.samples,
        "server_accuracy": None if server_correct is None else server_correct / evaluated.samples,
        "majority_rate": max(evaluated.label_counts) / evaluated.samples,
        "train_sent_bytes": totals.train_sent_bytes.get(client.number, 0),
        "eval_samples": evaluated.samples,
        "eval_sent_bytes": evaluated.sent_bytes,
        "gated": [
            {"tau": tau, "accuracy": correct / evaluated.samples, "offload_ratio": sent / evaluated.samples}
            for tau, correct, sent in gates
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


def _means(clients: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    served = [client["server_accuracy"] for client in clients if client["server_accuracy"] is not None]
    means: dict[str, Any] = {name: fmean(client[name] for client in clients) for name in _AVERAGED}
    means["server_accuracy"] = fmean(served) if served else None
    means["gated"] = [
        {
            "tau": gates[0]["tau"],
            "accuracy": fmean(gate["accuracy"] for gate in gates),
            "offload_ratio": fmean(gate["offload_ratio"] for gate in gates),
        }
        for gates in zip(*(client["gated"] for client in clients), strict=True)
    ]
    return means


def _cpu_model() -> str | None:
    """Name of the processor where Linux tells it, or None."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None


def _finite(value: Any) -> Any:
    """The same value with None for NaN and infinities, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
