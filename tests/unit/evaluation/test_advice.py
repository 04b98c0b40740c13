"""What is said when figures are bad, each case made on purpose, and that nothing is said when they are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hsee_ray.config.files import dump_config, load_config
from hsee_ray.evaluation.advice import of_calibration, of_evaluation, of_training, warnings
from hsee_ray.evaluation.calibration import Calibration, TierCalibration
from hsee_ray.evaluation.report import Evaluation, ExitRow, GateRow
from hsee_ray.rundir.metrics import MetricRow, metrics_table, write_table
from hsee_ray.rundir.run import CONFIG_FILE, METRICS_FILE, Run

GOOD = TierCalibration(
    temperature=1.2,
    tau=0.5,
    samples=5000,
    offload_ratio=0.4,
    accuracy=0.82,
    client_accuracy=0.6,
    server_accuracy=0.85,
    drop_half_width=0.01,
    sent_bytes=100.0,
)


def calibrated(**figures: Any) -> list[str]:
    return of_calibration(Calibration("offload<=0.4", "entropy", "abc", {"hub": replace(GOOD, **figures)}))


def test_a_good_gate_needs_no_word() -> None:
    assert calibrated() == []
    assert warnings([]) == ""


def test_a_gate_no_better_than_chance() -> None:
    """At random 40 % of the samples sent would give 0.6 + 0.4 (0.85 - 0.6) = 0.70."""
    (line,) = calibrated(accuracy=0.70)
    assert line.startswith("hub: its gate is no better than chance, 70.0% are right, and 70.0% if the same share were")
    assert calibrated(accuracy=0.7001) == []


def test_servers_that_do_harm() -> None:
    (line,) = calibrated(accuracy=0.58, server_accuracy=0.5)
    assert line.startswith("hub: with its gate 58.0% are right, with its exits alone 60.0%: the servers do harm here")


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_gates_that_send_all_or_nothing_decide_nothing(share: float) -> None:
    assert calibrated(offload_ratio=share, accuracy=0.5) == []


def test_how_many_samples_would_do() -> None:
    """An interval is as wide as one by the root of the samples: 0.05 from 80, 0.02 from 80 (5/2)^2 = 500."""
    (line,) = calibrated(samples=80, drop_half_width=0.05)
    assert line == (
        "few samples to calibrate on: on other images the accuracy drop may be off by as many points: 5 for hub "
        "(80 samples; about 500 make it 2); train with a larger data.calibration_fraction"
    )


def gate_row(gate: Any, accuracy: float, random: float = 0.7, share: float = 0.4) -> GateRow:
    return GateRow(
        scope="tier",
        name="hub",
        gate=gate,
        tau=0.5,
        temperature=1.0,
        samples=100,
        accuracy=accuracy,
        offload_ratio=share,
        server_samples=40,
        stayed_accuracy=None,
        sent_accuracy=None,
        random_accuracy=random,
        sent_bytes=1.0,
        client_multiply_adds=1.0,
        server_multiply_adds=1.0,
        client_ms=1.0,
        server_ms=1.0,
    )


def evaluated(accuracy: float, error: float, scaled: float | None) -> list[str]:
    gates = [gate_row("local", 0.6), gate_row("calibrated", accuracy)]
    exits = [ExitRow("tier", "hub", 100, 0.6, 1.2, error, scaled)]
    return of_evaluation(Evaluation("run", "abc", "test", "entropy", "offload<=0.4", gates, exits, []))


def test_an_evaluation_says_the_same_of_other_samples() -> None:
    assert evaluated(0.8, 0.1, 0.05) == []
    assert evaluated(0.8, 0.1, None) == []
    assert [line.split(",")[0] for line in evaluated(0.69, 0.1, 0.05)] == ["hub: its gate is no better than chance"]
    (line,) = evaluated(0.8, 0.1, 0.21)
    assert line.startswith("hub: its temperature makes the calibration error larger here, 0.210 for 0.100")


def finished(tmp_path: Path, exits: float, servers: float | None, client_loss: float, server_loss: float) -> Run:
    tier = {
        "name": "hub",
        "clients": 2,
        "client_accuracy": exits,
        "server_accuracy": servers,
        "majority_rate": 0.25,
        "eval_samples": 300,
    }
    config = load_config({"tiers": [{"name": "hub", "clients": 2, "cut": "layer1"}], "training": {"rounds": 2}})
    (tmp_path / CONFIG_FILE).write_text(dump_config(config), encoding="utf-8")
    rows = [
        MetricRow(number, client, "hub", f"{side}_loss", None, loss)
        for number, of_round in ((1, (9.0, 9.0)), (2, (client_loss, server_loss)))
        for client in (0, 1)
        for side, loss in zip(("client", "server"), of_round, strict=True)
    ]
    write_table(tmp_path / METRICS_FILE, metrics_table(rows))
    return Run(tmp_path, {"rounds": 2, "tiers": [tier]})


def test_accuracy_at_the_majority_rate(tmp_path: Path) -> None:
    """Of 600 answers at 25 % two standard errors are 2 sqrt(0.25 * 0.75 / 600) = 3.5 points."""
    (line,) = of_training(finished(tmp_path, 0.28, 0.29, 1.3, 1.3))
    assert line.startswith(
        "right no more often than the commonest class alone would be: hub's exits in 28.0% (that class"
    )


def test_training_images_known_by_heart(tmp_path: Path) -> None:
    """exp(-0.05) = 95.1 %, more than 15 points above 78 %; exp(-0.3) = 74.1 % is not above 70 % by as much."""
    (line,) = of_training(finished(tmp_path, 0.70, 0.78, 0.3, 0.05))
    assert "labels for accuracy): hub's servers 95.1% of training for 78.0% of test; more images" in line
    assert of_training(finished(tmp_path, 0.70, None, 0.3, 0.3)) == []
