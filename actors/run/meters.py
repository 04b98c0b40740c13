"""A run's figures among Ray's own metrics, for its dashboard and Prometheus: per tier, never per client.

A cluster keeps every combination of tags as a series of its own, so a thousand clients would be thousands of series.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean

from ray.util.metrics import Counter, Gauge

from hsee_ray.config.fleet import Fleet
from hsee_ray.method.reports import RoundReport

TAGS = ("run", "tier")


class Meters:
    """What a run tells Ray after every round."""

    def __init__(self, run: str, fleet: Fleet) -> None:
        self.run = run
        self.fleet = fleet
        self.round = Gauge("hsee_round", "The last whole round.", ("run",))
        self.samples = Counter("hsee_trained_samples", "Samples that clients have trained on.", TAGS)
        self.sent = Counter("hsee_sent_bytes", "Bytes of features and labels that clients have sent in training.", TAGS)
        self.replaced = Counter("hsee_replaced_actors", "Actors that were created anew; servers are a tier.", TAGS)
        self.client_loss = Gauge("hsee_client_loss", "Mean loss of the clients' exits in the last round, nats.", TAGS)
        self.server_loss = Gauge("hsee_server_loss", "Mean loss of the servers in the last round, nats.", TAGS)
        self.client_accuracy = Gauge("hsee_client_accuracy", "Mean accuracy of the exits, in [0, 1].", TAGS)
        self.server_accuracy = Gauge("hsee_server_accuracy", "Mean accuracy of the servers, in [0, 1].", TAGS)
        self._replaced: dict[str, int] = {}

    def update(self, report: RoundReport, replaced: Mapping[str, int]) -> None:
        """Takes one whole round, and how many actors of each tier have been replaced since the session began."""
        self.round.set(report.round_number, {"run": self.run})
        for tier in self.fleet.tiers:
            numbers = [client.client_id for client in self.fleet.clients if client.tier == tier]
            tags = {"run": self.run, "tier": tier}
            trained = [report.client_training[n] for n in numbers if n in report.client_training]
            taught = [report.server_training[n] for n in numbers if n in report.server_training]
            evaluated = [report.evaluation[n] for n in numbers if n in report.evaluation]
            _add(self.samples, sum(each.samples for each in trained), tags)
            _add(self.sent, sum(each.sent_bytes for each in trained), tags)
            _show(self.client_loss, (each.mean_loss for each in trained), tags)
            _show(self.server_loss, (each.mean_loss for each in taught), tags)
            _show(self.client_accuracy, (each.client_correct / each.samples for each in evaluated), tags)
            answered = (each.server_correct / each.samples for each in evaluated if each.server_correct is not None)
            _show(self.server_accuracy, answered, tags)
        for tier, count in replaced.items():
            _add(self.replaced, count - self._replaced.get(tier, 0), {"run": self.run, "tier": tier})
        self._replaced = dict(replaced)


def _add(counter: Counter, amount: float, tags: dict[str, str]) -> None:
    if amount > 0:  # Ray's counters refuse 0
        counter.inc(amount, tags)


def _show(gauge: Gauge, values: Iterable[float], tags: dict[str, str]) -> None:
    found = list(values)
    if found:
        gauge.set(fmean(found), tags)
