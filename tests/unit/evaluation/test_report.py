"""Rows of an evaluation from answers written down by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hsee_ray.config.fleet import ClientSpec, Fleet
from hsee_ray.config.schema import ResourcesConfig
from hsee_ray.edge.gate import NEVER_SENDS, SENDS_ALL, Gate
from hsee_ray.edge.task import Classification
from hsee_ray.evaluation.calibration import parse_target
from hsee_ray.evaluation.plots import draw, save_figures
from hsee_ray.evaluation.report import (
    Costs,
    Evaluation,
    GateRow,
    GateRun,
    distances,
    exit_rows,
    gate_rows,
    write_evaluation,
)
from hsee_ray.evaluation.tables import render_evaluation
from hsee_ray.method.predictions import Answers, ExitPredictions, ServerPredictions, join, pooled

LABELS = np.array([0, 1, 0, 1])
LOGITS = np.array([[5.0, 0.0], [4.0, 0.0], [0.0, 0.1], [0.0, 0.2]], np.float32)
"""The exit says 0 0 1 1: right on the first and the last."""
SERVER = np.array([1, 1, 0, 1])
"""Right on all but the first."""


def spec(number: int, tier: str, cut: int) -> ClientSpec:
    return ClientSpec(number, f"{number:03d}", tier, cut, f"u{cut}", cut < 3, 8, ResourcesConfig())


FLEET = Fleet((spec(0, "sensor", 1), spec(1, "whole", 3)), ("u1", "u2", "u3"))
COSTS = {0: Costs(100, 1000), 1: Costs(1100, 0)}


def answers(exits_B: list[bool]) -> Answers:
    stays_N = np.array(exits_B)
    return Answers(
        Classification(),
        LABELS, LOGITS, stays_N, np.where(stays_N, -1, SERVER), int((~stays_N).sum()), 64 * int((~stays_N).sum()),
        client_s=0.004, server_s=0.002 * float((~stays_N).mean()),
    )  # fmt: skip


def gate_run(kind: str, tau: float, exits_B: list[bool]) -> GateRun:
    gate = Gate("entropy", tau)
    return GateRun(kind, {0: gate, 1: gate}, {0: answers(exits_B), 1: answers([True] * 4)})  # type: ignore[arg-type]


PASSAGES = [
    gate_run("local", NEVER_SENDS, [True] * 4),
    gate_run("grid", 0.5, [True, True, False, False]),
    gate_run("sent", SENDS_ALL, [False] * 4),
]


def row(rows: list[GateRow], name: str, gate: str) -> GateRow:
    (found,) = (row for row in rows if (row.name, row.gate) == (name, gate))
    return found


def test_gate_rows_by_hand() -> None:
    rows = gate_rows(PASSAGES, FLEET, COSTS)
    assert len(rows) == 3 * 5  # for each gate: two clients, two tiers, overall

    middle = row(rows, "sensor", "grid")
    assert (middle.tau, middle.samples, middle.offload_ratio, middle.server_samples) == (0.5, 4, 0.5, 2)
    assert (middle.accuracy, middle.stayed_accuracy, middle.sent_accuracy) == (0.75, 0.5, 1.0)
    # Half of them at random: the mean of 1/2 by the exit and 3/4 by the server.
    assert middle.random_accuracy == 0.625
    assert (middle.sent_bytes, middle.client_multiply_adds, middle.server_multiply_adds) == (32.0, 100.0, 500.0)
    assert (middle.client_ms, middle.server_ms) == (1.0, 0.25)

    none, everything = row(rows, "sensor", "local"), row(rows, "sensor", "sent")
    assert (none.accuracy, none.offload_ratio, none.server_samples, none.sent_accuracy) == (0.5, 0.0, 0, None)
    assert (none.server_multiply_adds, none.sent_bytes, none.random_accuracy) == (0.0, 0.0, 0.5)
    assert (everything.accuracy, everything.offload_ratio, everything.stayed_accuracy) == (0.75, 1.0, None)
    assert everything.random_accuracy == 0.75

    whole = row(rows, "whole", "sent")
    assert (whole.accuracy, whole.offload_ratio, whole.random_accuracy) == (0.5, 0.0, 0.5)
    overall = row(rows, "overall", "grid")
    assert (overall.samples, overall.offload_ratio, overall.server_samples) == (8, 0.25, 2)
    assert (overall.accuracy, overall.client_multiply_adds, overall.random_accuracy) == (0.625, 600.0, 0.5625)


def test_exit_rows_and_distances() -> None:
    exits = exit_rows(PASSAGES[-1].answers, {"sensor": 2.0}, FLEET)
    assert [(each.scope, each.name) for each in exits] == [
        ("client", "000"), ("client", "001"), ("tier", "sensor"), ("tier", "whole"),
    ]  # fmt: skip
    assert (exits[0].accuracy, exits[0].temperature, exits[1].temperature) == (0.5, 2.0, None)
    assert exits[0].scaled_calibration_error != exits[0].calibration_error
    assert exits[1].scaled_calibration_error is None

    calibrated = [replace(each, gate="calibrated") for each in gate_rows(PASSAGES[1:2] + PASSAGES[::2], FLEET, COSTS)]
    rows = gate_rows(PASSAGES, FLEET, COSTS) + calibrated[:5]
    (lost,) = distances(rows, parse_target("accuracy_drop<=0.01"), {"sensor": 0.0})
    assert (lost.tier, lost.measured, lost.beyond) == ("sensor", 0.0, -0.01)
    (sent,) = distances(rows, parse_target("offload<=0.4"), {"sensor": 0.4})
    assert (sent.measured, sent.beyond) == (0.5, pytest.approx(0.1))


def test_pieces_are_joined_in_order() -> None:
    exits_B = np.array([True, False])
    first = ExitPredictions(LABELS[:2], LOGITS[:2], exits_B, 64, 0.5), ServerPredictions(np.array([7]), 1, 0.25)
    second = ExitPredictions(LABELS[2:], LOGITS[2:], np.array([True, True]), 0, 0.5), None
    whole = join(Classification(), [first, second])
    assert whole.server_prediction_N.tolist() == [-1, 7, -1, -1]
    assert (whole.server_samples, whole.sent_bytes, whole.client_s, whole.server_s) == (1, 64, 1.0, 0.25)
    assert pooled([whole, whole]).samples == 8


def test_files_tables_and_pictures(tmp_path: Path) -> None:
    rows = gate_rows(PASSAGES, FLEET, COSTS)
    exits = exit_rows(PASSAGES[-1].answers, {"sensor": 2.0}, FLEET)
    found = Evaluation("run", "ab" * 32, "test", "entropy", None, rows, exits, [])
    directory = tmp_path / "evaluation"
    for _ in range(2):  # the second takes the place of the first
        write_evaluation(directory, found)
        save_figures(directory, "test", draw(found, {"sensor": answers([False] * 4)}))

    table = pq.read_table(directory / "test.parquet")
    assert table.to_pylist() == [asdict(each) for each in rows]
    assert json.loads(table.schema.metadata[b"hsee-ray"])["network"] == "ab" * 32
    assert pq.read_table(directory / "test-exits.parquet").to_pylist() == [asdict(each) for each in exits]
    content = json.loads((directory / "test.json").read_text())
    assert len(content["gates"]) == len(rows)
    assert content["exits"][0]["name"] == "000"
    pictures = sorted(path.name for path in directory.glob("*.png"))
    assert pictures == ["test-accuracy_offload.png", "test-confidence.png", "test-reliability.png"]
    assert len(list((directory / "tensorboard" / "test").iterdir())) == 1

    lines = render_evaluation(found).splitlines()
    (line,) = (line for line in lines if line.startswith("sensor") and " 0.5 " in line)
    assert "50.0%" in line and "75.0%" in line and "62.5%" in line
    assert any(line.startswith("overall") and "all sent" in line for line in lines)
    assert draw(found, {}) == {}
