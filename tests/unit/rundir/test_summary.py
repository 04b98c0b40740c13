"""The summary of a small run worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hsee_ray.config.files import load_config
from hsee_ray.method.reports import CONFIDENCE_BINS, EvaluationReport, RoundReport, TrainReport
from hsee_ray.method.strategies import build_fleet
from hsee_ray.rundir.summary import DataSummary, RunTotals, build_summary, environment, write_summary
from hsee_ray.rundir.tables import render_summary
from hsee_ray.simulation.prediction import ClientCost, RoundCost

UNITS = ("stem", "layer1", "head")
DATA = DataSummary("digits", (8, 8, 1), ("zero", "one"), (0.5,), (0.25,))
CONFIG: dict[str, Any] = {
    "seed": 7,
    "tiers": [
        {"name": "sensor", "clients": 2, "cut": "stem"},
        {"name": "phone", "clients": 1, "cut": "head"},
    ],
    "exits": {"taus": [0.2, 0.8]},
}


def evaluation(client_correct: int, server_correct: int | None, offloaded: int) -> EvaluationReport:
    return EvaluationReport(
        samples=10,
        client_correct=client_correct,
        server_correct=server_correct,
        gated_correct=(client_correct, client_correct + 1),
        offloaded=(0, offloaded),
        sent_bytes=0 if server_correct is None else 1000,
        label_counts=(4, 6),
        confidence_counts=(10,) + (0,) * (CONFIDENCE_BINS - 1),
    )


def totals_of_two_rounds() -> RunTotals:
    """Client 1 sits out the second round, which is the only one that is evaluated."""
    totals = RunTotals()
    taught = {0: TrainReport(12, (1.0,)), 1: TrainReport(20, (1.0,))}
    everyone = {0: TrainReport(12, (1.0,), 600), 1: TrainReport(20, (1.0,), 900), 2: TrainReport(8, (1.0,))}
    totals.add(RoundReport(1, 0.1, 3.0, 2.0, everyone, taught, starting=True))
    two = {0: TrainReport(12, (1.0,), 600), 2: TrainReport(8, (1.0,))}
    evaluated = {0: evaluation(2, 6, 5), 1: evaluation(4, 8, 10), 2: evaluation(9, None, 0)}
    totals.add(RoundReport(2, 0.1, 3.0, 3.0, two, {0: taught[0]}, evaluated))
    return totals


def summary_of_two_rounds() -> dict[str, Any]:
    config = load_config(CONFIG)
    fleet = build_fleet(config, UNITS)
    return build_summary(config, fleet, totals_of_two_rounds(), (12, 20, 8), "ab" * 32, 6.5, DATA, {"client 001": 1})


def test_totals_keep_sums_and_the_last_evaluation() -> None:
    totals = totals_of_two_rounds()
    last = totals.evaluation
    assert (totals.rounds, totals.samples, totals.train_s) == (2, 20, 3.0)
    assert totals.train_sent_bytes == {0: 1200, 1: 900, 2: 0}
    totals.add(RoundReport(3, 0.1, 1.0, 1.0, {2: TrainReport(8, (1.0,))}, {}, missing=(1,)))
    assert totals.evaluation == last
    assert totals.missed_rounds == {1: [3]}


def test_who_was_left_out_stands_beneath_the_tiers() -> None:
    totals = totals_of_two_rounds()
    totals.add(RoundReport(3, 0.1, 1.0, 1.0, {2: TrainReport(8, (1.0,))}, {}, missing=(0, 1)))
    totals.add(RoundReport(4, 0.1, 1.0, 1.0, {2: TrainReport(8, (1.0,))}, {}, missing=(1,)))
    config = load_config(CONFIG)
    summary = build_summary(config, build_fleet(config, UNITS), totals, (12, 20, 8), "ab" * 32, 6.5, DATA, {})
    lines = [line for line in render_summary(summary).splitlines() if "left out" in line]
    assert lines == ["left out: 2 of 2 sensor clients, for 3 of their 8 rounds"]
    assert "left out" not in render_summary(summary_of_two_rounds())


def test_who_made_no_step_has_not_trained() -> None:
    """Neither who skipped every batch, nor whose server did."""
    totals = RunTotals()
    skipped, trained = TrainReport(0, (), 600, 2), TrainReport(12, (1.0,), 600)
    totals.add(RoundReport(1, 0.1, 3.0, 2.0, {0: skipped, 1: trained, 2: trained}, {0: skipped, 1: skipped}))
    assert totals.trained_rounds == {2: 1}


def test_run_and_data() -> None:
    summary = summary_of_two_rounds()
    assert {key: summary[key] for key in ("strategy", "seed", "rounds", "wall_s", "samples_per_s")} == {
        "strategy": "averaging",
        "seed": 7,
        "rounds": 2,
        "wall_s": 6.5,
        "samples_per_s": 20 / 3.0,
    }
    assert summary["weights_sha256"] == "ab" * 32
    assert summary["failures"] == {"client 001": 1}
    assert summary["model_units"] == ["stem", "layer1", "head"]
    assert summary["data"]["image_shape"] == (8, 8, 1)
    assert summary["data"]["class_names"] == ("zero", "one")


def test_a_client_that_was_never_there_has_no_figures() -> None:
    totals = totals_of_two_rounds()
    totals.evaluation = {number: report for number, report in totals.evaluation.items() if number != 0}
    config = load_config(CONFIG)
    summary = build_summary(config, build_fleet(config, UNITS), totals, (12, 20, 8), "", 1.0, DATA, {})
    absent, present, _ = summary["clients"]
    assert (absent["client_accuracy"], absent["server_accuracy"], absent["eval_samples"]) == (None, None, None)
    assert absent["gated"][0] == {"tau": 0.2, "accuracy": None, "offload_ratio": None}
    assert summary["tiers"][0]["client_accuracy"] == present["client_accuracy"]


def test_a_client_with_a_server() -> None:
    assert summary_of_two_rounds()["clients"][1] == {
        "id": 1,
        "tier": "sensor",
        "cut": "stem",
        "cut_index": 1,
        "samples": 20,
        "client_accuracy": 0.4,
        "server_accuracy": 0.8,
        "majority_rate": 0.6,
        "train_sent_bytes": 900,
        "train_received_bytes": 0,
        "missed_rounds": [],
        "trained_rounds": 1,
        "eval_samples": 10,
        "eval_sent_bytes": 1000,
        "gated": [
            {"tau": 0.2, "accuracy": 0.4, "offload_ratio": 0.0},
            {"tau": 0.8, "accuracy": 0.5, "offload_ratio": 1.0},
        ],
    }


def test_tiers_are_means_over_their_clients() -> None:
    sensor, phone = summary_of_two_rounds()["tiers"]
    assert (sensor["name"], sensor["cut"], sensor["clients"]) == ("sensor", "stem", 2)
    assert sensor["client_accuracy"] == pytest.approx(0.3)
    assert sensor["server_accuracy"] == pytest.approx(0.7)
    assert sensor["train_sent_bytes"] == 1050
    assert sensor["gated"][1] == pytest.approx({"tau": 0.8, "accuracy": 0.4, "offload_ratio": 0.75})
    assert (phone["cut_index"], phone["clients"], phone["server_accuracy"]) == (3, 1, None)


def test_overall_server_accuracy_is_over_the_clients_that_have_one() -> None:
    overall = summary_of_two_rounds()["overall"]
    assert overall["clients"] == 3
    assert overall["client_accuracy"] == pytest.approx((0.2 + 0.4 + 0.9) / 3)
    assert overall["server_accuracy"] == pytest.approx(0.7)
    assert overall["majority_rate"] == pytest.approx(0.6)
    assert overall["samples"] == pytest.approx(40 / 3)


def test_centralized_has_one_client_by_name() -> None:
    config = load_config(CONFIG, ["training.strategy=centralized"])
    totals = RunTotals()
    evaluated = {0: evaluation(9, None, 0)}
    totals.add(RoundReport(1, 0.1, 1.0, 1.0, {0: TrainReport(40, (1.0,))}, {}, evaluated))
    summary = build_summary(config, build_fleet(config, UNITS), totals, (40,), "0" * 64, 1.0, DATA, {})
    assert [client["id"] for client in summary["clients"]] == ["central"]
    assert [tier["name"] for tier in summary["tiers"]] == ["central"]
    assert summary["overall"]["server_accuracy"] is None


def test_environment_names_what_decides_the_bits() -> None:
    found = environment()
    assert list(found) == [
        *("python", "torch", "torchvision", "ray", "numpy"),
        *("machine", "cpu_capability", "cpu_model", "cores"),
    ]
    assert all(found[name][0].isdigit() for name in ("python", "torch", "torchvision", "ray", "numpy"))
    assert found["cores"] >= 1


def test_file_is_json_without_nan(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_summary(path, {"a": math.nan, "b": [math.inf, 1.5], "c": {"d": (1, None)}, "e": "hé"})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "a": None,
        "b": [None, 1.5],
        "c": {"d": [1, None]},
        "e": "hé",
    }
    assert '\n  "a": null' in path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_simulated_seconds_and_spending() -> None:
    """Two rounds of 3 s and 1 s: each sensor spends 2 J and sends 1 MiB, the phone 5 J. One evaluation of 8 s."""
    config = load_config(
        {
            **CONFIG,
            "tiers": [{**CONFIG["tiers"][0], "device": "board"}, {**CONFIG["tiers"][1], "device": "phone"}],
            "simulation": {"server": "cloud"},
        }
    )
    fleet = build_fleet(config, UNITS)
    spent = {number: ClientCost(1.0, 0.5, 0.25, 2**20, 40, 2.0) for number in range(2)}
    spent[2] = ClientCost(3.0, received_bytes=40, joules=5.0)
    totals = RunTotals()
    training = {number: TrainReport(12, (1.0,)) for number in range(3)}
    answers = {0: evaluation(2, 6, 5), 1: evaluation(4, 8, 10), 2: evaluation(9, None, 0)}
    for number in (1, 2):
        tested = {n: ClientCost(sent_bytes=100, joules=0.5) for n in range(3)} if number == 2 else {}
        cost = RoundCost(3.0, 1.0, 8.0 if tested else 0.0, fleet, spent, tested)
        evaluated = answers if tested else {}
        totals.add(RoundReport(number, 0.1, 3.0, 2.0, training, {}, evaluated), cost)
    assert totals.simulated is not None
    assert (totals.simulated.learning_s, totals.simulated.total_s) == (8.0, 16.0)
    summary = build_summary(config, fleet, totals, (12, 12, 12), "", 1.0, DATA, {})
    assert summary["simulation"] == {
        "server": "cloud",
        "one_machine": False,
        "train_s": 6.0,
        "exchange_s": 2.0,
        "evaluation_s": 8.0,
        "tiers": [
            {
                "name": "sensor",
                "device": "board",
                "joules": 8.0,
                "sent_bytes": 4 * 2**20,
                "received_bytes": 160,
                "evaluation_joules": 1.0,
                "evaluation_sent_bytes": 200,
            },
            {
                "name": "phone",
                "device": "phone",
                "joules": 10.0,
                "sent_bytes": 0,
                "received_bytes": 80,
                "evaluation_joules": 0.5,
                "evaluation_sent_bytes": 100,
            },
        ],
    }
    assert render_summary(summary).splitlines()[-1] == (
        "simulated: 6.0 s train, 2.0 s exchange, 8.0 s evaluation; in training: "
        "sensor on board 8.0 J, 4.0 MiB sent; phone on phone 10.0 J, 0.0 MiB sent"
    )


def test_without_devices_nothing_is_simulated() -> None:
    summary = summary_of_two_rounds()
    assert summary["simulation"] is None
    assert "simulated" not in render_summary(summary)
