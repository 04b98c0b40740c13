"""Rows of a round worked out by hand, and their way through a Parquet file."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import Fleet
from hsee_ray.errors import DataError
from hsee_ray.method.reports import CONFIDENCE_BINS, EvaluationReport, RoundReport, TrainReport
from hsee_ray.method.strategies import build_fleet
from hsee_ray.rundir.metrics import (
    SCHEMA,
    MetricRow,
    metric_rows,
    metrics_table,
    read_metrics,
    write_table,
)
from hsee_ray.simulation.prediction import ClientCost, RoundCost

TAUS = (0.2, 0.8)


@pytest.fixture
def fleet() -> Fleet:
    """A sensor that cuts after the stem, and a phone that holds the whole network."""
    tiers = [{"name": "sensor", "clients": 1, "cut": "stem"}, {"name": "phone", "clients": 1, "cut": "head"}]
    return build_fleet(load_config({"tiers": tiers}), ["stem", "layer1", "head"])


def evaluation(client_correct: int, server_correct: int | None) -> EvaluationReport:
    return EvaluationReport(
        samples=10,
        client_correct=client_correct,
        server_correct=server_correct,
        gated_correct=(4, 6),
        offloaded=(1, 9),
        sent_bytes=1000,
        label_counts=(3, 7),
        confidence_counts=(10,) + (0,) * (CONFIDENCE_BINS - 1),
    )


def simulated(fleet: Fleet, evaluated: bool) -> RoundCost:
    """3 s of training, 1 s of exchange; the sensor spends 2 J, the phone 5 J. An evaluation of 8 s and 0.5 J each."""
    spent = {0: ClientCost(1.0, 0.5, 0.25, 600, 40, 2.0), 1: ClientCost(3.0, 0.0, 0.0, 0, 40, 5.0)}
    tested = {number: ClientCost(sent_bytes=100, joules=0.5) for number in spent} if evaluated else {}
    return RoundCost(3.0, 1.0, 8.0 if evaluated else 0.0, fleet, spent, tested)


def both_sides(evaluated: bool) -> RoundReport:
    return RoundReport(
        round_number=3,
        learning_rate=0.05,
        wall_s=5.0,
        train_s=4.0,
        client_training={0: TrainReport(12, (2.0, 1.0), 600), 1: TrainReport(8, (0.5,))},
        server_training={0: TrainReport(12, (1.0, 0.0))},
        evaluation={0: evaluation(4, 7), 1: evaluation(5, None)} if evaluated else {},
    )


def values(rows: list[MetricRow], client: int | None) -> dict[tuple[str, float | None], float]:
    return {(row.metric, row.tau): row.value for row in rows if row.client == client}


def test_rows_of_the_round_itself(fleet: Fleet) -> None:
    rows = metric_rows(both_sides(evaluated=True), fleet, TAUS)
    assert values(rows, None) == {
        ("learning_rate", None): 0.05,
        ("samples_per_s", None): 5.0,
        ("wall_s", None): 5.0,
    }
    assert {row.round for row in rows} == {3}


def test_rows_of_a_client_with_a_server(fleet: Fleet) -> None:
    rows = metric_rows(both_sides(evaluated=True), fleet, TAUS)
    assert values(rows, 0) == {
        ("client_loss", None): 1.5,
        ("train_samples", None): 12.0,
        ("train_sent_bytes", None): 600.0,
        ("server_loss", None): 0.5,
        ("client_accuracy", None): 0.4,
        ("server_accuracy", None): 0.7,
        ("gated_accuracy", 0.2): 0.4,
        ("gated_accuracy", 0.8): 0.6,
        ("offload_ratio", 0.2): 0.1,
        ("offload_ratio", 0.8): 0.9,
        ("eval_sent_bytes", None): 1000.0,
        ("majority_rate", None): 0.7,
    }
    assert {row.tier for row in rows if row.client == 0} == {"sensor"}


def test_a_client_without_a_server_has_no_server_rows(fleet: Fleet) -> None:
    of_phone = values(metric_rows(both_sides(evaluated=True), fleet, TAUS), 1)
    assert ("server_accuracy", None) not in of_phone
    assert ("server_loss", None) not in of_phone
    assert of_phone["client_accuracy", None] == 0.5


def test_a_client_that_sat_out_an_unevaluated_round_has_no_rows(fleet: Fleet) -> None:
    report = RoundReport(1, 0.1, 1.0, 1.0, {1: TrainReport(8, (0.5,))}, {})
    rows = metric_rows(report, fleet, TAUS)
    assert values(rows, 0) == {}
    assert {metric for metric, _ in values(rows, 1)} == {"client_loss", "train_samples", "train_sent_bytes"}


def test_a_grid_of_another_length_is_refused(fleet: Fleet) -> None:
    with pytest.raises(ValueError, match="zip"):
        metric_rows(both_sides(evaluated=True), fleet, (0.5,))


def test_file_gives_the_rows_back(fleet: Fleet, tmp_path: Path) -> None:
    rows = metric_rows(both_sides(evaluated=True), fleet, TAUS)
    write_table(tmp_path / "metrics.parquet", metrics_table(rows))
    table = read_metrics(tmp_path / "metrics.parquet")
    assert table.schema.equals(SCHEMA)
    assert [MetricRow(**row) for row in table.to_pylist()] == rows
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.parquet"]


def test_file_types_and_nulls(tmp_path: Path) -> None:
    write_table(tmp_path / "m.parquet", metrics_table([MetricRow(1, None, None, "wall_s", None, 2.0)]))
    table = read_metrics(tmp_path / "m.parquet")
    assert table.column("round").type == pa.int32()
    assert [table.column(name).null_count for name in ("client", "tier", "tau", "value")] == [1, 1, 1, 0]


def test_no_rows_make_an_empty_table(tmp_path: Path) -> None:
    write_table(tmp_path / "m.parquet", metrics_table([]))
    assert read_metrics(tmp_path / "m.parquet").num_rows == 0


def test_damaged_or_missing_file_is_one_line(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"not parquet at all")
    for path in (damaged, tmp_path / "missing.parquet"):
        with pytest.raises(DataError, match=f"{path.name}: metrics cannot be read") as caught:
            read_metrics(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("evaluated", [True, False])
def test_rows_of_what_a_round_took_on_the_devices(fleet: Fleet, evaluated: bool) -> None:
    """The round's own rows have no tier, those of a tier no client."""
    rows = metric_rows(both_sides(evaluated), fleet, TAUS, simulated(fleet, evaluated))
    found = {(row.tier, row.metric): row.value for row in rows if row.metric.startswith("simulated")}
    expected: dict[tuple[str | None, str], float] = {
        (None, "simulated_s"): 4.0,
        (None, "simulated_train_s"): 3.0,
        (None, "simulated_exchange_s"): 1.0,
        ("sensor", "simulated_joules"): 2.0,
        ("sensor", "simulated_sent_bytes"): 600.0,
        ("sensor", "simulated_received_bytes"): 40.0,
        ("phone", "simulated_joules"): 5.0,
        ("phone", "simulated_sent_bytes"): 0.0,
        ("phone", "simulated_received_bytes"): 40.0,
    }
    if evaluated:
        expected |= {(None, "simulated_s"): 12.0, (None, "simulated_evaluation_s"): 8.0}
        for tier in ("sensor", "phone"):
            expected[tier, "simulated_evaluation_joules"] = 0.5
            expected[tier, "simulated_evaluation_sent_bytes"] = 100.0
    assert found == expected
    assert metrics_table(rows).to_pylist() == [row._asdict() for row in rows]
