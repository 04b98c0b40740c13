"""Figures of a run: every place that shows one has its name and its value from here.

A metric of your own is a subclass of Metric: `evaluation.figures: [package.module:Name]` (docs/extend.md).
Legend: B samples of a batch, K classes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from hsee_ray.config.plugins import Pluggable, create
from hsee_ray.config.schema import Config, EvaluationConfig
from hsee_ray.errors import ConfigError
from hsee_ray.method.reports import Array, EvaluationReport, RoundReport
from hsee_ray.rng import generator

_OWN = ("loss", "accuracy", "skipped_batches")
"""Names that the project's own figures of a side have."""


class Metric(Pluggable):
    """Measures logits by counts that add up. Each side counts its own logits, which never travel."""

    @abstractmethod
    def count(self, logits_BK: Array, labels_B: Array) -> Mapping[str, float]:
        """Counts of one batch by name; the counts of a set are their sums. float32 logits, int64 labels."""

    @abstractmethod
    def figure(self, counts: Mapping[str, float], samples: int) -> Mapping[str, float]:
        """Figures by name, from all counts of one side over a set of samples; shown as `client_<name>` and so on."""


class Figure(NamedTuple):
    """One number about a client in a round."""

    name: str
    tau: float | None
    """None where no gate is involved."""
    value: float


def metrics_of(config: Config) -> tuple[Metric, ...]:
    """The metrics that the configuration adds. Raises ConfigError when one cannot be had."""
    return _metrics(config.evaluation.model_dump_json(include={"figures"}))


@lru_cache
def _metrics(section: str) -> tuple[Metric, ...]:
    plugins = EvaluationConfig.model_validate_json(section).figures
    base: Any = Metric  # mypy takes no abstract class for a type[Metric]
    return tuple(create("figure", _key(index), plugin, base) for index, plugin in enumerate(plugins))


def check_metrics(config: Config, n_classes: int) -> None:
    """Tries every metric on four samples. Raises ConfigError unless it gives finite numbers under names of its own."""
    rng = generator(0, "figures")
    logits_BK, labels_B = rng.standard_normal((4, n_classes), "float32"), rng.integers(0, n_classes, 4)
    known_counts: set[str] = set()
    known_figures = set(_OWN)
    for index, metric in enumerate(metrics_of(config)):
        where = f"{_key(index)} is {config.evaluation.figures[index].name!r}"
        try:
            counts = count([metric], logits_BK, labels_B)
            found = {name: float(value) for name, value in metric.figure(counts, 4).items()}
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"{where}: fails on logits of shape (4, {n_classes}): {error!r}") from error
        wrong = [name for name, value in {**counts, **found}.items() if not math.isfinite(value)]
        if wrong or not found:
            reason = f"{', '.join(wrong)} is NaN or infinite" if wrong else "there is no figure"
            raise ConfigError(f"{where}: {reason} for random logits of shape (4, {n_classes}); return finite numbers")
        if twice := sorted((known_counts & counts.keys()) | (known_figures & found.keys())):
            raise ConfigError(f"{where}: the name {twice[0]} is taken by another figure; choose another name")
        known_counts |= counts.keys()
        known_figures |= found.keys()


def count(metrics: Iterable[Metric], logits_BK: Array, labels_B: Array) -> dict[str, float]:
    """Counts of all metrics over one batch."""
    return {name: float(value) for metric in metrics for name, value in metric.count(logits_BK, labels_B).items()}


def client_figures(report: RoundReport, client_id: int, metrics: Iterable[Metric] = ()) -> Iterator[Figure]:
    """Figures that a client has in a round: of its training, its server's, and its evaluation. Losses in nats."""
    trained = report.client_training.get(client_id)
    if trained is not None:
        if trained.stepped:
            yield Figure("client_loss", None, trained.mean_loss)
        yield Figure("train_samples", None, trained.samples)
        yield Figure("train_sent_bytes", None, trained.sent_bytes)
        if trained.received_bytes:
            yield Figure("train_received_bytes", None, trained.received_bytes)
        if trained.skipped:
            yield Figure("client_skipped_batches", None, trained.skipped)
    taught = report.server_training.get(client_id)
    if taught is not None:
        if taught.stepped:
            yield Figure("server_loss", None, taught.mean_loss)
        if taught.skipped:
            yield Figure("server_skipped_batches", None, taught.skipped)
    evaluated = report.evaluation.get(client_id)
    if evaluated is not None:
        yield from evaluation_figures(evaluated, metrics)
    if client_id in report.validation:
        yield Figure("validation_accuracy", None, report.validation[client_id].mean_accuracy)


def evaluation_figures(report: EvaluationReport, metrics: Iterable[Metric] = ()) -> Iterator[Figure]:
    """Figures of one client's answers; none of the server's where there is none. Accuracies and rates lie in [0, 1]."""
    samples = report.samples
    yield Figure("client_accuracy", None, report.client_correct / samples)
    if report.server_correct is not None:
        yield Figure("server_accuracy", None, report.server_correct / samples)
    yield Figure("eval_sent_bytes", None, report.sent_bytes)
    yield Figure("majority_rate", None, max(report.label_counts) / samples)
    for metric in metrics:
        for side, counts in report.counts.items():
            for name, value in metric.figure(counts, samples).items():
                yield Figure(f"{side}_{name}", None, float(value))


def gate_figures(report: EvaluationReport, taus: Sequence[float]) -> Iterator[Figure]:
    """Accuracy and share of samples sent at every tau, which are in the order of the report's counts."""
    for tau, correct, offloaded in zip(taus, report.gated_correct, report.offloaded, strict=True):
        yield Figure("gated_accuracy", tau, correct / report.samples)
        yield Figure("offload_ratio", tau, offloaded / report.samples)


def gathered(report: RoundReport, client_ids: Iterable[int]) -> dict[str, list[float]]:
    """Values of some clients in a round by figure, without gates; of what a client lacks there is no value."""
    values: dict[str, list[float]] = {}
    for client_id in client_ids:
        for name, _, value in client_figures(report, client_id):
            values.setdefault(name, []).append(value)
    return values


def _key(index: int) -> str:
    return f"evaluation.figures.{index}"
