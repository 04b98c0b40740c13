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
    class_rows,
    distances,
    exit_rows,
    gate_name,
    gate_rows,
    read_evaluation,
    shown_gate,
    write_evaluation,
)
from hsee_ray.evaluation.tables import render_evaluation
from hsee_ray.method.predictions import Answers, ExitPredictions, ServerPredictions, join, pooled
from hsee_ray.pictures import tier_colors

LABELS = np.array([0, 1, 0, 1])
LOGITS = np.array([[5.0, 0.0], [4.0, 0.0], [0.0, 0.1], [0.0, 0.2]], np.float32)
"""The exit says 0 0 1 1: right on the first and the last."""
SERVER = np.array([1, 1, 0, 1])
"""Right on all but the first."""


def spec(number: int, tier: str, cut: int) -> ClientSpec:
    return ClientSpec(number, f"{number:03d}", tier, cut, f"u{cut}", cut < 3, cut < 3, 8, ResourcesConfig())


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


def test_recalls_and_confusions_by_hand() -> None:
    """Class 0 has samples 0 and 2, class 1 has 1 and 3. Exit: 0 0 1 1; server: 1 1 0 1; gated: 0 0 0 1."""
    classes, confusions = class_rows(PASSAGES, FLEET, ["cat", "dog"])

    def of(name: str, answers: str) -> list[tuple[str, int, float, str | None, int]]:
        return [
            (row.class_name, row.samples, row.recall, row.mistaken_for, row.mistaken)
            for row in classes
            if (row.name, row.answers) == (name, answers)
        ]

    assert of("sensor", "exit") == [("cat", 2, 0.5, "dog", 1), ("dog", 2, 0.5, "cat", 1)]
    assert of("sensor", "server") == [("cat", 2, 0.5, "dog", 1), ("dog", 2, 1.0, None, 0)]
    assert of("sensor", "gated") == [("cat", 2, 1.0, None, 0), ("dog", 2, 0.5, "cat", 1)]
    assert of("whole", "server") == of("whole", "exit"), "at cut L the client answers"
    assert of("overall", "gated") == [("cat", 4, 0.75, "dog", 1), ("dog", 4, 0.5, "cat", 2)]
    cells = [
        (row.label, row.answer, row.samples) for row in confusions if (row.name, row.answers) == ("overall", "gated")
    ]
    assert cells == [(0, 0, 3), (0, 1, 1), (1, 0, 2), (1, 1, 2)]
    assert len(classes) == 3 * 3 * 2


def test_the_calibrated_gate_is_shown_else_the_middle_of_the_grid() -> None:
    grid = [gate_run("grid", tau, [True] * 4) for tau in (0.1, 0.5, 0.9)]
    calibrated = gate_run("calibrated", 0.3, [True] * 4)
    assert gate_name(shown_gate([PASSAGES[0], *grid, PASSAGES[-1]])) == "tau 0.5"
    assert gate_name(shown_gate([PASSAGES[0], *grid, calibrated, PASSAGES[-1]])) == "calibrated"


def test_calibrated_rows_stand_first_and_tiers_in_their_order() -> None:
    passes = [*PASSAGES[:2], gate_run("calibrated", 0.5, [True, True, False, False]), PASSAGES[-1]]
    rows = gate_rows(passes, FLEET, COSTS)
    lines = render_evaluation(Evaluation("run", "ab", "test", "entropy", "offload<=0.5", rows, [], [])).splitlines()
    assert [line.split()[:2] for line in lines[2:5]] == [
        ["sensor", "calibrated"], ["whole", "calibrated"], ["overall", "calibrated"],
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[5:14]] == ["sensor"] * 3 + ["whole"] * 3 + ["overall"] * 3
    assert [" ".join(line.split()[1:3]) for line in lines[5:8]] == ["none sent", "0.5 50.0%", "all sent"]


def test_of_many_classes_the_worst_are_printed() -> None:
    """Twelve classes with two samples each; the exits answer class 3 wrong, and half of class 5."""
    labels = np.repeat(np.arange(12), 2)
    said = labels.copy()
    said[[6, 7, 10]] = [0, 0, 2]
    logits = np.eye(12, dtype=np.float32)[said]
    stays = np.ones(24, bool)
    whole = Answers(Classification(), labels, logits, stays, np.full(24, -1), 0, 0, 0.1, 0.0)
    runs = [GateRun(kind, {1: Gate("entropy", 0.5)}, {1: whole}) for kind in ("local", "grid", "sent")]  # type: ignore[arg-type]
    names = [f"kind-{k}" for k in range(12)]
    classes, confusions = class_rows(runs, FLEET, names)
    found = Evaluation(
        "run", "ab", "test", "entropy", None, gate_rows(runs, FLEET, COSTS), [], [], "tau 0.5", classes, confusions
    )
    lines = render_evaluation(found).splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("class"))
    assert lines[first + 2].split() == ["kind-3", "2", "0.0%", "0.0%", "0.0%", "kind-0", "(2)"]
    assert lines[first + 3].split() == ["kind-5", "2", "50.0%", "50.0%", "50.0%", "kind-2", "(1)"]
    assert lines[first + 12].startswith("the 10 worst of 12 classes; ")


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
    classes, confusions = class_rows(PASSAGES, FLEET, ["cat", "dog"])
    found = Evaluation("run", "ab" * 32, "test", "entropy", None, rows, exits, [], "tau 0.5", classes, confusions)
    directory = tmp_path / "evaluation"
    for _ in range(2):  # the second takes the place of the first
        write_evaluation(directory, found)
        save_figures(directory, "test", draw(found, {"sensor": answers([False] * 4)}, ["cat", "dog"]))

    table = pq.read_table(directory / "test.parquet")
    assert table.to_pylist() == [asdict(each) for each in rows]
    assert json.loads(table.schema.metadata[b"hsee-ray"])["network"] == "ab" * 32
    assert pq.read_table(directory / "test-exits.parquet").to_pylist() == [asdict(each) for each in exits]
    content = json.loads((directory / "test.json").read_text())
    assert len(content["gates"]) == len(rows)
    assert content["exits"][0]["name"] == "000"
    pictures = sorted(path.name for path in directory.glob("*.png"))
    assert pictures == [
        "test-accuracy_offload.png",
        "test-confidence.png",
        "test-confusion-0-overall.png",
        "test-confusion-1-sensor.png",
        "test-confusion-2-whole.png",
        "test-recall.png",
        "test-reliability.png",
    ]
    assert pq.read_table(directory / "test-classes.parquet").to_pylist() == [asdict(each) for each in classes]
    assert pq.read_table(directory / "test-confusion.parquet").to_pylist() == [asdict(each) for each in confusions]
    assert read_evaluation(tmp_path, "test") == replace(found, confusions=[])
    for name in ("gated", "classes"):  # as 0.1.0 wrote them
        del content[name]
    (directory / "test.json").write_text(json.dumps(content))
    assert read_evaluation(tmp_path, "test").gates == rows
    assert len(list((directory / "tensorboard" / "test").iterdir())) == 1

    lines = render_evaluation(found).splitlines()
    (line,) = (line for line in lines if line.startswith("sensor") and " 0.5 " in line)
    assert "50.0%" in line and "75.0%" in line and "62.5%" in line
    assert any(line.startswith("overall") and "all sent" in line for line in lines)
    assert draw(found, {}, []) == {}


def test_what_is_seen_in_the_pictures() -> None:
    """Names and figures are written in, legends stand below the panels, and a tier has one colour everywhere."""
    passes = [*PASSAGES[:2], gate_run("calibrated", 0.5, [True, True, False, False]), PASSAGES[-1]]
    classes, confusions = class_rows(passes, FLEET, ["cat", "dog"])
    exits = exit_rows(passes[-1].answers, {"sensor": 2.0}, FLEET)
    rows = gate_rows(passes, FLEET, COSTS)
    found = Evaluation(
        "run", "ab", "test", "entropy", "offload<=0.5", rows, exits, [], "calibrated", classes, confusions
    )
    figures = draw(found, {"sensor": answers([False] * 4)}, ["cat", "dog"])
    color = tier_colors(["sensor", "whole"])["sensor"]

    believed, counted = figures["reliability"].axes
    ece = f"ECE {exits[0].calibration_error:.3f} as trained, {exits[0].scaled_calibration_error:.3f} at T 2.00"
    assert believed.get_title() == f"sensor (4 answers)\n{ece}"
    assert sum(int(text.get_text()) for text in counted.texts) == 2 * 4, "every sample, as trained and scaled"
    together, sensor = figures["accuracy_offload"].axes
    assert together.lines[0].get_color() == sensor.lines[0].get_color() == sensor.title.get_color() == color
    for figure in figures.values():
        assert not any(axes.get_legend() for axes in figure.axes), "a legend may hide the data"
    assert len(figures["accuracy_offload"].legends) == 1

    alone = figures["recall"].axes[0]
    assert [text.get_text() for text in alone.texts] == ["50"] * 6
    assert [label.get_text() for label in alone.get_xticklabels()] == ["sensor", "whole", "overall"]
    assert alone.get_xticklabels()[0].get_color() == color
    gated = figures["confusion-1-sensor"].axes[2]
    assert [text.get_text() for text in gated.texts] == ["100", "50", "50"]
    assert gated.get_title() == "behind the gate (calibrated)"
