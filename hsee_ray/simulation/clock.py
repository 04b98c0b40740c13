"""Simulated time of a run: what each of its rounds has cost on the devices that the tiers stand for.

It is told of rounds when they are over, so it can delay none and change nothing. All that it remembers, who trained
since the last average and who has seen which, a checkpoint holds anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from hsee_ray.config.fleet import Fleet
from hsee_ray.config.schema import Config
from hsee_ray.devices.profiles import DeviceProfile, load_profiles
from hsee_ray.method.aggregation import Ledger, plan_aggregation
from hsee_ray.method.reports import RoundReport, learnt
from hsee_ray.method.schedule import queue_order
from hsee_ray.method.strategies import strategy_of
from hsee_ray.rng import generator
from hsee_ray.simulation.prediction import Predictor, RoundCost, RoundScenario

if TYPE_CHECKING:
    from hsee_ray.devices.cost import CostTable
    from hsee_ray.method.setup import Setup


class Clock:
    """Accumulates the simulated cost of a run, round by round."""

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        local_samples: Sequence[int],
        n_test: int,
        costs: CostTable,
        profiles: Mapping[str, DeviceProfile],
    ) -> None:
        self.config = config
        self.fleet = fleet
        self.local_samples = local_samples
        self.n_test = n_test
        self.predictor = Predictor(config, costs, profiles)
        self.ledger = Ledger()
        self.trained: set[int] = set()

    def set(self, ledger: Ledger, trained: Iterable[int]) -> None:
        """Goes to where a checkpoint left off; nothing of it is changed."""
        self.ledger = Ledger(dict(ledger.newest), dict(ledger.seen))
        self.trained = set(trained)

    def advance(self, report: RoundReport) -> RoundCost:
        """Cost of the round that has just ended."""
        config, fleet, number = self.config, self.fleet, report.round_number
        who = report.client_training
        caught_up = self.ledger.catch_up(config, fleet, who)
        self.trained |= learnt({"client": report.client_training, "server": report.server_training}, number)
        averages = None
        if strategy_of(config).aggregates_after(config.training, number):
            averages = plan_aggregation(config, fleet, self.trained, self.local_samples)
            self.ledger.record(averages, number)
            self.trained.clear()
        scenario = RoundScenario(
            queue=[client for client in queue_order(config, fleet, number) if client in who],
            averages=averages,
            caught_up=caught_up,
            away_s=dropouts(config, who, number),
            trained=report.client_training,
            evaluated=tuple(report.evaluation),
            evaluation=report.evaluation,
        )
        return self.predictor.cost(fleet, self.local_samples, self.n_test, scenario)


def clock_of(setup: Setup) -> Clock | None:
    """The clock of a run, at its beginning; None where devices are not known.

    Raises ConfigError for a device without a profile.
    """
    if not setup.config.simulates:
        return None
    # Counting needs torch, and whoever only reads a clock's results does not.
    from hsee_ray.devices.cost import CostTable

    costs = CostTable(setup.config, setup.files.image_shape, setup.n_classes)
    profiles = load_profiles(setup.config.simulation.profiles)
    return Clock(setup.config, setup.fleet, setup.local_samples, len(setup.test_indices), costs, profiles)


def dropouts(config: Config, clients: Iterable[int], round_number: int) -> dict[int, float]:
    """By client, the seconds for which it is away at the beginning of a round; most are not."""
    chance = config.simulation.dropout_probability
    if chance == 0:
        return {}
    return {
        number: config.simulation.dropout_s
        for number in clients
        if generator(config.seed, "dropout", number, round_number).random() < chance
    }
