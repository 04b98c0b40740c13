"""A run's figures among Ray's own metrics, for its dashboard and Prometheus: per tier, never per client.

A cluster keeps every combination of tags as a series of its own, so a thousand clients would be thousands of series.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from ray.util.metrics import Counter, Gauge

from hsee_ray.config.fleet import Fleet
from hsee_ray.method.figures import gathered
from hsee_ray.method.reports import RoundReport

TAGS = ("run", "tier")
COUNTERS = {
    "train_samples": ("hsee_trained_samples", "Samples that clients have trained on."),
    "train_sent_bytes": ("hsee_sent_bytes", "Bytes of features and labels that clients have sent in training."),
}
"""Name and description by the figure that is added up."""
GAUGES = {
    "client_loss": "Mean loss of the clients' exits in the last round, nats.",
    "server_loss": "Mean loss of the servers in the last round, nats.",
    "client_accuracy": "Mean accuracy of the exits, in [0, 1].",
    "server_accuracy": "Mean accuracy of the servers, in [0, 1].",
}
"""Description by figure."""


class Meters:
    """Metrics that a run exports through Ray after every round."""

    def __init__(self, run: str, fleet: Fleet) -> None:
        self.run = run
        self.fleet = fleet
        self.round = Gauge("hsee_round", "The last whole round.", ("run",))
        self.replaced = Counter("hsee_replaced_actors", "Actors replaced after a failure; servers are a tier.", TAGS)
        self.counters = {figure: Counter(name, text, TAGS) for figure, (name, text) in COUNTERS.items()}
        self.gauges = {figure: Gauge(f"hsee_{figure}", text, TAGS) for figure, text in GAUGES.items()}
        self._replaced: dict[str, int] = {}

    def update(self, report: RoundReport, replaced: Mapping[str, int]) -> None:
        """Takes one whole round, and how many actors of each tier have been replaced since the session began."""
        self.round.set(report.round_number, {"run": self.run})
        for tier in self.fleet.tiers:
            numbers = [client.client_id for client in self.fleet.clients if client.tier == tier]
            tags = {"run": self.run, "tier": tier}
            figures = gathered(report, numbers)
            for name, counter in self.counters.items():
                _add(counter, sum(figures.get(name, ())), tags)
            for name, gauge in self.gauges.items():
                if name in figures:
                    gauge.set(fmean(figures[name]), tags)
        for tier, count in replaced.items():
            _add(self.replaced, count - self._replaced.get(tier, 0), {"run": self.run, "tier": tier})
        self._replaced = dict(replaced)


def _add(counter: Counter, amount: float, tags: dict[str, str]) -> None:
    if amount > 0:  # Ray's counters refuse 0
        counter.inc(amount, tags)
