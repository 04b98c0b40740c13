"""Metrics of a user's own: what is checked at load, and every place in which their figures appear."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hsee_ray.config.files import load_config
from hsee_ray.errors import ConfigError
from hsee_ray.method.figures import Metric, check_metrics, count, metrics_of
from hsee_ray.method.reports import EvaluationReport, RoundReport
from hsee_ray.method.setup import Setup, prepare_run
from hsee_ray.reference import Reference
from hsee_ray.rundir.checkpoint import _report
from hsee_ray.rundir.metrics import metric_rows
from hsee_ray.rundir.summary import DataSummary, RunTotals, build_summary
from hsee_ray.rundir.tables import tier_table
from hsee_ray.rundir.tensorboard import RunBoard
from tests.unit.rundir.test_tensorboard import read_events

TOP = "tests.extensions.top5:TopK"
CONFIG: dict[str, Any] = {
    "model": {"name": "tests.networks:conv_units"},
    "data": {"name": "synthetic", "image_size": 8, "classes": 3, "train_samples": 64, "test_samples": 20},
    "tiers": [{"name": "sensor", "clients": 1, "cut": "body.0"}, {"name": "phone", "clients": 1, "cut": "head"}],
    "training": {"rounds": 1, "batch_size": 16},
    "evaluation": {"batch_size": 8, "figures": [{"name": TOP, "options": {"k": k}} for k in (1, 2)]},
}


class Infinite(Metric):
    def count(self, logits_BK: Any, labels_B: Any) -> Mapping[str, float]:
        return {"logits": logits_BK.sum()}

    def figure(self, counts: Mapping[str, float], samples: int) -> Mapping[str, float]:
        return {"inverse": np.inf}


class Accuracy(Infinite):
    def figure(self, counts: Mapping[str, float], samples: int) -> Mapping[str, float]:
        return {"accuracy": 1.0}


class Failing(Infinite):
    def count(self, logits_BK: Any, labels_B: Any) -> Mapping[str, float]:
        return {"fourth": logits_BK[:, 3].sum()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Setup, RoundReport]]:
    cache = tmp_path_factory.mktemp("cache")
    setup = prepare_run(load_config({**CONFIG, "data": {**CONFIG["data"], "cache": str(cache)}}))
    (report,) = Reference(setup).run()
    yield setup, report


def test_counts_of_three_samples() -> None:
    logits_BK = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]], np.float32)
    assert count(metrics_of(load_config(CONFIG)), logits_BK, np.array([0, 1, 2])) == {"top1": 1.0, "top2": 2.0}


def test_a_batch_without_the_servers_counts_leaves_none_in_the_sum() -> None:
    def report(**counts: dict[str, float]) -> EvaluationReport:
        return EvaluationReport(1, 1, 1, (), (), 0, (1,), (1,), counts)  # type: ignore[arg-type]

    both = report(client={"a": 1.0}, server={"a": 2.0})
    assert (both + report(client={"a": 1.0, "b": 1.0})).counts == {"client": {"a": 2.0, "b": 1.0}}
    assert (both + both).counts == {"client": {"a": 2.0}, "server": {"a": 4.0}}


def test_reports_of_checkpoints_with_and_without_counts_are_read() -> None:
    report = EvaluationReport(1, 1, 1, (1,), (0,), 0, (1,), (1,), {"client": {"a": 1.0}})
    values = json.loads(json.dumps(asdict(report)))
    assert _report(values) == report
    del values["counts"]
    assert _report(values).counts == {}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (f"{__name__}:Infinite", "evaluation.figures.0 is .*: inverse is NaN or infinite for random logits"),
        (f"{__name__}:Accuracy", "evaluation.figures.0 is .*: the name accuracy is taken"),
        (f"{__name__}:Failing", "evaluation.figures.0 is .*: fails on logits of shape"),
        ("tests.networks:conv_units", "evaluation.figures.0 is .*: that is no subclass of"),
        ("top5", "evaluation.figures.0 is .*: there is no figure 'top5'; use package.module:name for your own"),
    ],
)
def test_a_metric_that_cannot_be_had_is_refused_by_its_key(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_metrics(load_config({**CONFIG, "evaluation": {"figures": [name]}}), 3)


def test_two_metrics_cannot_share_a_name() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.figures\.1 is .*: the name top5 is taken"):
        check_metrics(load_config({**CONFIG, "evaluation": {"figures": [TOP, TOP]}}), 3)


def test_rows_have_the_figures_of_both_sides(trained: tuple[Setup, RoundReport]) -> None:
    setup, report = trained
    rows = metric_rows(report, setup.fleet, setup.config.exits.taus, metrics=metrics_of(setup.config))
    values = {(row.client, row.metric): row.value for row in rows if row.client is not None and row.tau is None}
    for side in ("client", "server"):
        assert values[0, f"{side}_top1"] == values[0, f"{side}_accuracy"]
        assert values[0, f"{side}_top1"] <= values[0, f"{side}_top2"] <= 1
    assert values[1, "client_top1"] == values[1, "client_accuracy"]
    assert (1, "server_top1") not in values


def test_summary_and_its_table_have_them(trained: tuple[Setup, RoundReport]) -> None:
    setup, report = trained
    totals = RunTotals()
    totals.add(report)
    data = DataSummary("synthetic", (8, 8, 3), ("a", "b", "c"), (0.5,), (0.5,))
    summary = build_summary(setup.config, setup.fleet, totals, (30, 30), "ab", 1.0, data, {})
    clients, (sensor, phone), overall = summary["clients"], summary["tiers"], summary["overall"]
    assert overall["client_top2"] == (clients[0]["client_top2"] + clients[1]["client_top2"]) / 2
    assert overall["server_top2"] == sensor["server_top2"] == clients[0]["server_top2"]
    assert "server_top2" not in phone
    header, *rows = tier_table(summary)
    assert header[3:9] == ["client accuracy", "server accuracy", *header[5:9]]
    assert set(header[5:9]) == {"client top1", "client top2", "server top1", "server top2"}
    assert rows[-1][header.index("server top2")] == f"{overall['server_top2']:.3f}"
    assert rows[1][header.index("server top2")] == "-"


def test_tensorboard_has_them_by_tier(trained: tuple[Setup, RoundReport], tmp_path: Path) -> None:
    setup, report = trained
    board = RunBoard(tmp_path, setup.config, setup.fleet)
    board.round(report)
    board.close()
    tags = read_events(tmp_path).Tags()["scalars"]
    assert {"client_top2/sensor", "client_top2/phone", "server_top2/sensor", "server_top2/overall"} <= set(tags)
    assert "server_top2/phone" not in tags
