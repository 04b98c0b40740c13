"""A run with devices: the same bits as without, and a simulated time that an interruption does not change."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.run.driver import resume, run
from actors.workers.contract import ActorFactory
from hsee_ray.config.files import load_config
from hsee_ray.errors import Interrupted
from hsee_ray.method.reports import RoundReport
from hsee_ray.method.setup import prepare_run
from hsee_ray.reference import Reference
from hsee_ray.rundir.summary import SimulatedTotals
from hsee_ray.simulation.clock import clock_of
from hsee_ray.training.interrupt import StopRequest
from hsee_ray.training.listener import Listener

BOARD = {
    "compute_gflops": 0.001,
    "memory_mib": 512,
    "uplink_mbit_s": 1,
    "downlink_mbit_s": 2,
    "latency_ms": 5,
    "active_w": 2,
    "radio_w": 1,
    "source": "made up",
}


def with_devices(tiny: dict[str, Any], profiles: Path) -> dict[str, Any]:
    profiles.write_text(yaml.safe_dump({"board": BOARD, "machine": {**BOARD, "compute_gflops": 0.01, "cores": 2}}))
    simulation = {"profiles": str(profiles), "server": "machine", "dropout_probability": 0.5, "dropout_s": 30}
    tiers = [{**tier, "device": "board"} for tier in tiny["tiers"]]
    return {**tiny, "tiers": tiers, "simulation": simulation}


def test_devices_change_no_bit_and_interruptions_no_second(
    tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    config = load_config(with_devices(tiny, tmp_path / "profiles.yaml"), ["checkpoint.every=1"])
    stop = StopRequest()

    def after_two(report: RoundReport, cost: object) -> None:
        if report.round_number == 2:
            stop.ask(15)

    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", Listener(finished_round=after_two), stop, create=warm_actors)
    finished = resume(tmp_path / "run", create=warm_actors)

    plain = Reference(prepare_run(load_config(tiny)))
    clock, expected = clock_of(prepare_run(config)), SimulatedTotals()
    assert clock is not None
    costs = [clock.advance(report) for report in plain.run()]
    for cost in costs:
        expected.add(cost)
    assert finished.summary["weights_sha256"] == plain.digest()

    simulation = finished.summary["simulation"]
    assert [simulation[f"{part}_s"] for part in ("train", "exchange", "evaluation")] == [
        expected.train_s, expected.exchange_s, expected.evaluation_s
    ]  # fmt: skip
    assert {tier["name"]: tier["joules"] for tier in simulation["tiers"]} == expected.joules
    assert expected.train_s > 0 and expected.exchange_s > 0 and expected.evaluation_s > 0
    rows = [row for row in finished.metrics.to_pylist() if row["metric"] == "simulated_s"]
    assert [(row["round"], row["value"]) for row in rows] == list(enumerate((cost.round_s for cost in costs), start=1))

    events = json.loads((finished.path / "timeline.json").read_text())["traceEvents"]
    pieces = [event for event in events if event["ph"] == "X"]
    assert {event["args"]["round"] for event in pieces} == {1, 2}
    simulated = Counter(event["args"]["round"] for event in pieces if event["cat"] == "simulated")
    assert simulated == {n: len(costs[n - 1].spans) + len(costs[n - 1].evaluation_spans) for n in (1, 2)}
    real = {(event["pid"], event["tid"], event["ts"]) for event in pieces if event["cat"] == "real"}
    assert len(real) == sum(event["cat"] == "real" for event in pieces)
    assert {"train", "evaluate", "aggregate"} <= {event["name"] for event in pieces if event["cat"] == "real"}
