"""A run on TensorBoard: curves per tier, overall and per client, confidences, class counts, hyperparameters.

Tags read `<metric>/<tier>` and, behind a gate, `<metric>/tau=0.5/<tier>`: TensorBoard groups them by metric. What is
looked at first are losses, accuracies, the middle gate of the grid and the round itself; everything else is in the
group `details/`. Under Custom Scalars one page has all tiers of each figure in one chart.
Means are over the clients of the tier that have the metric; the step is the round. Where devices are simulated,
`details/by_simulated_second/...` and `details/by_sent_mib/...` have the accuracies once more; the step is then whole
seconds, or MiB, of training and exchange so far.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import custom_scalars, hparams

from hsee_ray.config.fleet import ClientSpec, Fleet
from hsee_ray.config.schema import Config
from hsee_ray.method.figures import metrics_of
from hsee_ray.method.reports import CONFIDENCE_BINS, RoundReport
from hsee_ray.pictures import drawing, heat_map, label_columns, new_figure, shortened, tier_colors
from hsee_ray.rundir.curves import OVERALL
from hsee_ray.rundir.metrics import MetricRow, metric_rows
from hsee_ray.rundir.summary import SimulatedTotals
from hsee_ray.simulation.prediction import RoundCost

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LABELS = 32
"""Above this many clients there are no curves per client, and above this many rows or columns no labels."""

DETAILS = "details/"
"""Group of the tags that are not looked at first."""
IN_DETAIL = (
    "train_samples",
    "train_sent_bytes",
    "train_received_bytes",
    "eval_sent_bytes",
    "majority_rate",
    "simulated_joules",
    "simulated_sent_bytes",
    "simulated_received_bytes",
    "simulated_evaluation_joules",
    "simulated_evaluation_sent_bytes",
)
"""Metrics of tiers that stand there."""
AGAINST_SPENDING = ("client_accuracy/", "server_accuracy/", "gated_accuracy/")
"""Figures also drawn against simulated seconds and sent bytes, by tier and overall."""
PER_CLIENT = ("client_loss", "server_loss", "client_accuracy", "server_accuracy", "gated_accuracy")


class RunBoard:
    """Writes one event file; every call is on disk when it returns."""

    def __init__(self, log_dir: Path, config: Config, fleet: Fleet) -> None:
        self._writer = SummaryWriter(str(log_dir))
        self._config = config
        self._fleet = fleet
        # Both calls lack annotations.
        self._writer._get_file_writer().add_summary(custom_scalars(layout(config, fleet)))  # type: ignore[no-untyped-call]
        self._writer.flush()

    def class_counts(self, counts_NK: NDArray[np.int64], class_names: Sequence[str], path: Path) -> None:
        """Picture of the samples that each client (row) holds of each class (column), also as a PNG at `path`."""
        with drawing():
            figure = class_counts_figure(counts_NK, class_names, self._fleet.clients)
            figure.savefig(path, format="png")
            self._writer.add_figure("data/class_counts", figure, 0)
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
                self._writer.add_scalar(f"{DETAILS}by_simulated_second/{tag}", value, round(simulated.learning_s))
                self._writer.add_scalar(f"{DETAILS}by_sent_mib/{tag}", value, round(sent_mib))
        if report.evaluation:
            self._confidences(report)
        self._writer.flush()

    def curves(self, figure: Figure, round_number: int) -> None:
        """The picture of the whole run, in which tiers have their colours."""
        self._writer.add_figure("data/curves", figure, round_number, close=False)
        self._writer.flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Hyperparameters beside the final metrics, in the run's own event file."""
        metrics = _final_metrics(summary, shown_tau(self._config))
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
        shown = shown_tau(self._config)
        single: dict[str, float] = {}
        groups: dict[str, list[float]] = {}
        for row in rows:
            detail = DETAILS if row.metric in IN_DETAIL or row.tau not in (None, shown) else ""
            if row.client is None:
                single[f"round/{row.metric}" if row.tier is None else f"{detail}{row.metric}/{row.tier}"] = row.value
                continue
            gate = "" if row.tau is None else f"tau={row.tau:g}/"
            for group in (str(row.tier), OVERALL):
                groups.setdefault(f"{detail}{row.metric}/{gate}{group}", []).append(row.value)
            if per_client and row.metric in PER_CLIENT:
                label = self._fleet.clients[row.client].label
                single[f"{DETAILS}{row.metric}_per_client/{gate}{label}"] = row.value
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


def shown_tau(config: Config) -> float:
    """The gate that is looked at first: the middle of the grid, as in the table after training."""
    return config.exits.taus[len(config.exits.taus) // 2]


def layout(config: Config, fleet: Fleet) -> dict[str, dict[str, list[Any]]]:
    """Charts under Custom Scalars, by page and title: all tiers in one chart, then every tau of each tier.

    Tags are regular expressions that match from a tag's beginning.
    """
    tau = f"tau={shown_tau(config):g}"
    gate = re.escape(tau)
    overview = {
        "accuracy of exits": "client_accuracy/",
        "accuracy of servers": "server_accuracy/",
        f"accuracy behind the gate, {tau}": f"gated_accuracy/{gate}/",
        f"share of samples sent, {tau}": f"offload_ratio/{gate}/",
        "loss of exits (nats)": "client_loss/",
        "loss of servers (nats)": "server_loss/",
    }
    any_tau = f"({DETAILS})?gated_accuracy/tau=[^/]*/"
    pages = {
        "overview: all tiers in one chart (Matches, below it, says which mark is which tier)": overview,
        "accuracy behind the gate at every tau": {
            tier: f"{any_tau}{re.escape(tier)}$" for tier in (*fleet.tiers, OVERALL)
        },
    }
    if config.simulates:
        pages["accuracy behind the gate against what devices spend"] = {
            "simulated seconds": f"{DETAILS}by_simulated_second/gated_accuracy/{gate}/",
            "MiB sent": f"{DETAILS}by_sent_mib/gated_accuracy/{gate}/",
        }
    return {page: {title: ["Multiline", [tag]] for title, tag in charts.items()} for page, charts in pages.items()}


def hyperparameters(config: Config) -> dict[str, bool | int | float | str]:
    """Hyperparameters by dotted key of the configuration; a tier is shown as `2 x layer1`."""
    sections = config.model_dump(mode="json", include={"seed", "model", "data", "training", "exits"})
    tiers = {f"tiers.{tier.name}": f"{tier.clients} x {tier.cut}" for tier in config.tiers}
    return {**_flat(sections), **tiers}


@drawing()
def class_counts_figure(
    counts_NK: NDArray[np.int64], class_names: Sequence[str], clients: Sequence[ClientSpec]
) -> Figure:
    """Heat map with a row per client and a column per class; names and numbers where there is room to read them."""
    n_clients, classes = counts_NK.shape
    tiers = [client.tier for client in clients]
    colors = tier_colors(dict.fromkeys(tiers))
    height = 2.2 + 0.3 * min(n_clients, MOST_LABELS)
    width = 4.0 + 0.45 * min(classes, MOST_LABELS)
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    figure.suptitle("training images of each class that a client holds", fontsize=11)
    axes.set_xlabel("class" if classes <= MOST_LABELS else f"class ({classes} of them)")
    heat_map(axes, counts_NK, "Greys", "{:.0f}", vmax=float(max(counts_NK.max(), 1)))
    if classes <= MOST_LABELS:
        label_columns(axes, class_names)
    if n_clients <= MOST_LABELS:
        axes.set_yticks(range(n_clients), [f"{shortened(c.tier)} {c.label}" for c in clients], fontsize=9)
    else:
        starts = [tiers.index(tier) for tier in colors] + [n_clients]
        middles = [(first + after - 1) / 2 for first, after in pairwise(starts)]
        axes.set_yticks(middles, [shortened(tier) for tier in colors], fontsize=9)
    for label, tier in zip(axes.get_yticklabels(), tiers if n_clients <= MOST_LABELS else colors, strict=True):
        label.set_color(colors[tier])
    for row in range(1, n_clients):
        if tiers[row] != tiers[row - 1]:
            axes.axhline(row - 0.5, color="black", linewidth=1.2)
    return figure


def _final_metrics(summary: Mapping[str, Any], shown: float) -> dict[str, float]:
    """Means over all clients; in detail the server's accuracy in each tier, and the gates that are not `shown`."""
    overall = summary["overall"]
    metrics = {
        "final/client_accuracy": overall["client_accuracy"],
        "final/server_accuracy": overall["server_accuracy"],
        "final/samples_per_s": summary["samples_per_s"],
    }
    for tier in summary["tiers"]:
        metrics[f"{DETAILS}final/server_accuracy/{tier['name']}"] = tier["server_accuracy"]
    for gate in overall["gated"]:
        detail = "" if gate["tau"] == shown else DETAILS
        metrics[f"{detail}final/gated_accuracy/tau={gate['tau']:g}"] = gate["accuracy"]
        metrics[f"{detail}final/offload_ratio/tau={gate['tau']:g}"] = gate["offload_ratio"]
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
