"""What a run tells Ray after a round: by tier, counters as increments."""

from __future__ import annotations

from typing import Any

import pytest

import actors.run.meters
from actors.run.meters import Meters
from hsee_ray.config.files import load_config
from hsee_ray.method.reports import EvaluationReport, RoundReport, TrainReport
from hsee_ray.method.strategies import build_fleet


class Recorded:
    """Stands in for Ray's counters and gauges."""

    values: dict[tuple[str, str], list[float]]

    def __init__(self, name: str, description: str, tags: tuple[str, ...]) -> None:
        assert name.startswith("hsee_") and description.endswith(".")
        self.name, self.tags = name, tags

    def inc(self, amount: float, tags: dict[str, str]) -> None:
        assert amount > 0, "Ray refuses to count nothing"
        self.set(amount, tags)

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.tags) and tags["run"] == "night-1"
        self.values.setdefault((self.name, tags.get("tier", "")), []).append(value)


def evaluated(client: int, server: int | None) -> EvaluationReport:
    return EvaluationReport(10, client, server, (0,), (0,), 0, (10,), (10,))


def test_a_round_is_told_by_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    Recorded.values = {}
    monkeypatch.setattr(actors.run.meters, "Counter", Recorded)
    monkeypatch.setattr(actors.run.meters, "Gauge", Recorded)
    tiers: list[dict[str, Any]] = [
        {"name": "sensor", "clients": 2, "cut": "a"},
        {"name": "phone", "clients": 1, "cut": "b"},
    ]
    meters = Meters("night-1", build_fleet(load_config({"tiers": tiers}), ("a", "b")))
    training = {0: TrainReport(8, (1.0,), 100), 1: TrainReport(8, (2.0,), 60), 2: TrainReport(4, (0.5,), 0)}
    evaluation = {0: evaluated(5, 7), 1: evaluated(6, 8), 2: evaluated(9, None)}
    meters.update(RoundReport(1, 0.1, 1.0, 1.0, training, {0: training[0], 1: training[1]}, evaluation), {"sensor": 2})
    meters.update(RoundReport(2, 0.1, 1.0, 1.0, {2: TrainReport(4, (0.25,), 0)}, {}), {"sensor": 2, "servers": 1})
    assert Recorded.values == {
        ("hsee_round", ""): [1, 2],
        ("hsee_trained_samples", "sensor"): [16],
        ("hsee_trained_samples", "phone"): [4, 4],
        ("hsee_sent_bytes", "sensor"): [160],
        ("hsee_replaced_actors", "sensor"): [2],
        ("hsee_replaced_actors", "servers"): [1],
        ("hsee_client_loss", "sensor"): [1.5],
        ("hsee_client_loss", "phone"): [0.5, 0.25],
        ("hsee_server_loss", "sensor"): [1.5],
        ("hsee_client_accuracy", "sensor"): [0.55],
        ("hsee_client_accuracy", "phone"): [0.9],
        ("hsee_server_accuracy", "sensor"): [0.75],
    }
