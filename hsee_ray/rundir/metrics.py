"""Metrics of a run as rows: one per round, client and metric, kept in a Parquet file.

Long rather than wide: a client that has no server, or a round that was not evaluated, simply has no row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from hsee_ray.config.fleet import Fleet
from hsee_ray.errors import DataError
from hsee_ray.method.figures import Metric, client_figures, gate_figures
from hsee_ray.method.reports import RoundReport
from hsee_ray.storage import write_whole

if TYPE_CHECKING:
    from hsee_ray.simulation.prediction import RoundCost

SCHEMA = pa.schema(
    [
        ("round", pa.int32()),
        ("client", pa.int32()),
        ("tier", pa.string()),
        ("metric", pa.string()),
        ("tau", pa.float64()),
        ("value", pa.float64()),
    ]
)


class MetricRow(NamedTuple):
    """One number of a run; the fields are the columns of the file."""

    round: int
    client: int | None
    """None where the number is about a whole tier, or about the whole run's round."""
    tier: str | None
    """None where the number is about the whole run's round."""
    metric: str
    tau: float | None
    """None where the metric has no gate."""
    value: float


def metric_rows(
    report: RoundReport,
    fleet: Fleet,
    taus: Sequence[float],
    cost: RoundCost | None = None,
    metrics: Sequence[Metric] = (),
) -> list[MetricRow]:
    """Rows of one round: the round's own first, then the tiers', then every client's in the order of the fleet.

    Losses are means over the round's steps in nats; accuracies, ratios and rates lie in [0, 1]. `taus` is the
    grid in the order of the report's counts; `cost` is the round in simulated time, where devices are known;
    `metrics` are those of `evaluation.figures`. A metric that does not exist for a client has no row:
    `server_accuracy` without a server, or training in a round that it sat out.
    """
    number = report.round_number
    rows = [
        MetricRow(number, None, None, "learning_rate", None, report.learning_rate),
        MetricRow(number, None, None, "samples_per_s", None, report.samples / report.train_s),
        MetricRow(number, None, None, "wall_s", None, report.wall_s),
    ]
    for missing in report.missing:
        client = fleet.clients[missing]
        rows.append(MetricRow(number, client.client_id, client.tier, "missing", None, 1.0))
    if cost is not None:
        rows.extend(MetricRow(number, None, *simulated) for simulated in _simulated_metrics(cost))
    for client in fleet.clients:
        evaluated = report.evaluation.get(client.client_id)
        gates = () if evaluated is None else gate_figures(evaluated, taus)
        for metric, tau, value in (*client_figures(report, client.client_id, metrics), *gates):
            rows.append(MetricRow(number, client.client_id, client.tier, metric, tau, float(value)))
    return rows


def metrics_table(rows: Iterable[MetricRow]) -> pa.Table:
    """The rows as a table with the columns of SCHEMA."""
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in SCHEMA]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


def write_table(path: Path, table: pa.Table) -> None:
    """Parquet file of a table; it appears under its name only when it is complete."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_whole(path, sink.getvalue().to_pybytes())


def read_metrics(path: Path) -> pa.Table:
    """Table of a file that `write_table` wrote, with the columns of SCHEMA.

    Raises DataError when the file is missing or damaged.
    """
    try:
        return pq.read_table(path, schema=SCHEMA)
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: metrics cannot be read ({reason}); copy the run directory again") from None


def _simulated_metrics(cost: RoundCost) -> Iterator[tuple[str | None, str, None, float]]:
    """Tier, name, no tau and value of what a round took on the tiers' devices."""
    yield None, "simulated_s", None, cost.round_s
    yield None, "simulated_train_s", None, cost.train_s
    yield None, "simulated_exchange_s", None, cost.exchange_s
    if cost.evaluated:
        yield None, "simulated_evaluation_s", None, cost.evaluation_s
    for tier, spent in cost.tiers().items():
        yield tier, "simulated_joules", None, spent.joules
        yield tier, "simulated_sent_bytes", None, float(spent.sent_bytes)
        yield tier, "simulated_received_bytes", None, float(spent.received_bytes)
    for tier, spent in cost.evaluated_tiers().items() if cost.evaluated else ():
        yield tier, "simulated_evaluation_joules", None, spent.joules
        yield tier, "simulated_evaluation_sent_bytes", None, float(spent.sent_bytes)
