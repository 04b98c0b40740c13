"""A run on TensorBoard: curves per tier, overall and per client, confidences, class counts, hyperparameters.

Tags read `<metric>/<tier>` and, behind a gate, `<metric>/tau=0.5/<tier>`: TensorBoard groups them by metric.
Means are over the clients of the tier that have the metric; the step is the round. Where devices are simulated,
`by_simulated_second/...` and `by_sent_mib/...` have the accuracies once more; the step is then whole seconds, or MiB,
of training and exchange so far.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from hsee_ray.config.fleet import Fleet
from hsee_ray.config.schema import Config
from hsee_ray.method.figures import metrics_of
from hsee_ray.method.reports import CONFIDENCE_BINS, RoundReport
from hsee_ray.pictures import drawing
from hsee_ray.rundir.metrics import MetricRow, metric_rows
from hsee_ray.rundir.summary import SimulatedTotals
from hsee_ray.simulation.prediction import RoundCost

MOST_LABELS = 32
"""Above this many clients there are no curves per client, and above this many rows or columns no labels."""

OVERALL = "overall"
AGAINST_SPENDING = ("client_accuracy/", "server_accuracy/", "gated_accuracy/")
"""Figures also drawn against simulated seconds and sent bytes, by tier and overall."""
PER_CLIENT = ("client_loss", "server_loss", "client_accuracy", "server_accuracy", "gated_accuracy")


class RunBoard:
    """Writes one event file; every call is on disk when it returns."""

    def __init__(self, log_dir: Path, config: Config, fleet: Fleet) -> None:
        self._writer = SummaryWriter(str(log_dir))
        self._config = config
        self._fleet = fleet

    def class_counts(self, counts_NK: NDArray[np.int64], class_names: Sequence[str]) -> None:
        """Picture of the samples that each client (row) holds of each class (column)."""
        with drawing():
            self._writer.add_figure("data/class_counts", class_counts_figure(counts_NK, class_names), 0)
        self._writer.flush()

    def round(
        self, report: RoundReport, cost: RoundCost | None = None, simulated: SimulatedTotals | None = None
    ) -> None:
        """Every metric of a round, and the confidences of the exits when the round was evaluated.

        `cost`: of the round in simulated time; `simulated`: what the devices have spent so far. Accuracies then stand
        against that as well.
        """
        rows = metric_rows(report, self._fleet, self._config.exits.taus, cost, metrics_of(self._config))
        for tag, value in self._scalars(rows):
            self._writer.add_scalar(tag, value, report.round_number)
            if simulated is not None and tag.startswith(AGAINST_SPENDING):
                sent_mib = sum(simulated.sent_bytes.values()) / 2**20
                self._writer.add_scalar(f"by_simulated_second/{tag}", value, round(simulated.learning_s))
                self._writer.add_scalar(f"by_sent_mib/{tag}", value, round(sent_mib))
        if report.evaluation:
            self._confidences(report)
        self._writer.flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Hyperparameters beside the final metrics, in the run's own event file."""
        metrics = _final_metrics(summary)
        # SummaryWriter.add_hparams would open a run of its own below this one. Both calls lack annotations.
        event_file = self._writer._get_file_writer()  # type: ignore[no-untyped-call]
        for content in hparams(hyperparameters(self._config), metrics):  # type: ignore[no-untyped-call]
            event_file.add_summary(content)
        for tag, value in metrics.items():
            self._writer.add_scalar(tag, value, summary["rounds"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _scalars(self, rows: Iterable[MetricRow]) -> Iterable[tuple[str, float]]:
        """Tags and values of a round: its own numbers, means by tier and overall, then single clients."""
        per_client = len(self._fleet.clients) <= MOST_LABELS
        single: dict[str, float] = {}
        groups: dict[str, list[float]] = {}
        for row in rows:
            if row.client is None:
                single[f"round/{row.metric}" if row.tier is None else f"{row.metric}/{row.tier}"] = row.value
                continue
            gate = "" if row.tau is None else f"tau={row.tau:g}/"
            for group in (str(row.tier), OVERALL):
                groups.setdefault(f"{row.metric}/{gate}{group}", []).append(row.value)
            if per_client and row.metric in PER_CLIENT:
                label = self._fleet.clients[row.client].label
                single[f"{row.metric}_per_client/{gate}{label}"] = row.value
        return [*single.items(), *((tag, fmean(values)) for tag, values in groups.items())]

    def _confidences(self, report: RoundReport) -> None:
        """Histogram per tier; its mean and spread are those of the bins' midpoints."""
        edges = np.linspace(0.0, 1.0, CONFIDENCE_BINS + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        for tier in self._fleet.tiers:
            evaluated = [
                report.evaluation[client.client_id]
                for client in self._fleet.clients
                if client.tier == tier and client.client_id in report.evaluation
            ]
            if not evaluated:
                continue
            counts = np.sum([each.confidence_counts for each in evaluated], axis=0)
            self._writer.add_histogram_raw(
                f"confidence/{tier}",
                min=0.0,
                max=1.0,
                num=int(counts.sum()),
                sum=float(counts @ middles),
                sum_squares=float(counts @ middles**2),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=report.round_number,
            )


def hyperparameters(config: Config) -> dict[str, bool | int | float | str]:
    """Hyperparameters by dotted key of the configuration; a tier is shown as `2 x layer1`."""
    sections = config.model_dump(mode="json", include={"seed", "model", "data", "training", "exits"})
    tiers = {f"tiers.{tier.name}": f"{tier.clients} x {tier.cut}" for tier in config.tiers}
    return {**_flat(sections), **tiers}


@drawing()
def class_counts_figure(counts_NK: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Heat map with a row per client and a column per class; labels only where there is room to read them."""
    clients, classes = counts_NK.shape
    height = 1.6 + 0.22 * min(clients, MOST_LABELS)
    width = 3.0 + 0.3 * min(classes, MOST_LABELS)
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(counts_NK, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    axes.set_xlabel("class")
    axes.set_ylabel("client")
    axes.set_xticks([])
    axes.set_yticks([])
    if classes <= MOST_LABELS:
        axes.set_xticks(range(classes), class_names, rotation=90, fontsize=8)
    if clients <= MOST_LABELS:
        axes.set_yticks(range(clients), [str(number) for number in range(clients)], fontsize=8)
    figure.colorbar(image, ax=axes, label="samples")
    return figure


@drawing()
def save_class_counts(path: Path, counts_NK: NDArray[np.int64], class_names: Sequence[str]) -> None:
    """PNG file of `class_counts_figure`."""
    class_counts_figure(counts_NK, class_names).savefig(path, format="png")


def _final_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Means over all clients and, where tiers differ, the server's accuracy in each of them."""
    overall = summary["overall"]
    metrics = {
        "final/client_accuracy": overall["client_accuracy"],
        "final/samples_per_s": summary["samples_per_s"],
    }
    for means, group in [(overall, ""), *((tier, f"/{tier['name']}") for tier in summary["tiers"])]:
        metrics[f"final/server_accuracy{group}"] = means["server_accuracy"]
    for gate in overall["gated"]:
        metrics[f"final/gated_accuracy/tau={gate['tau']:g}"] = gate["accuracy"]
        metrics[f"final/offload_ratio/tau={gate['tau']:g}"] = gate["offload_ratio"]
    return {name: value for name, value in metrics.items() if value is not None}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Dotted keys; lists become text, and what is not set is left out."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        elif isinstance(value, list):
            flat[f"{prefix}{key}"] = ", ".join(str(item) for item in value)
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat
