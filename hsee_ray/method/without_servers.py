"""Rivals of split learning: strategies without servers, in which every client answers alone.

Nothing crosses a cut. What differs is what a client has, and with whom its copies are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from hsee_ray.config.fleet import EXIT, EXITS, Fleet, with_cuts
from hsee_ray.config.schema import Config, TrainingConfig
from hsee_ray.errors import ConfigError
from hsee_ray.method.strategies import AverageKeys, Strategy


class WithoutServers(Strategy):
    """Every client has the units up to its tier's cut and an exit there, and answers alone; only parameters travel."""

    has_servers = False

    def check(self, config: Config) -> None:
        super().check(config)
        training = config.training
        if training.aggregate == "server":
            raise ConfigError(
                f"training.aggregate is 'server', and {training.strategy} has no servers, so nothing would be "
                "averaged: use all"
            )
        if training.feedback.name != "none":
            raise ConfigError(
                f"training.feedback is '{training.feedback.name}', and {training.strategy} has no servers that could "
                "send any: leave it out"
            )

    def fleet(self, config: Config, unit_names: Sequence[str]) -> Fleet:
        fleet = super().fleet(config, unit_names)
        return replace(
            fleet, clients=tuple(replace(spec, has_server=False, codec="none", stages=()) for spec in fleet.clients)
        )


class FedAvg(WithoutServers):
    """Every client trains the whole network, whatever its cut (McMahan et al. 2017, arXiv:1602.05629)."""

    ignores_cuts = True

    def fleet(self, config: Config, unit_names: Sequence[str]) -> Fleet:
        return super().fleet(with_cuts(config, [len(unit_names)] * len(config.tiers)), unit_names)


class Smallest(WithoutServers):
    """The smallest common model: all have what the client with the lowest cut has, with the exit there."""

    def fleet(self, config: Config, unit_names: Sequence[str]) -> Fleet:
        lowest = min(spec.cut for spec in super().fleet(config, unit_names).clients)
        return super().fleet(with_cuts(config, [lowest] * len(config.tiers)), unit_names)


class PerTier(WithoutServers):
    """A model for each tier, averaged among its own clients only."""

    def averaged_units(self, training: TrainingConfig, fleet: Fleet) -> AverageKeys:
        tiers = [fleet.tiers.index(spec.tier) for spec in fleet.clients]
        return {
            model: {name: f"tier{tiers[model.client_id]}/{key}" for name, key in units.items()}
            for model, units in super().averaged_units(training, fleet).items()
        }


class DepthFL(WithoutServers):
    """An exit head at every cut of the fleet that a client holds, all trained at once (Kim et al., ICLR 2023).

    The exits of a client teach each other (`hsee_ray.method.steps.client_step`). Units are averaged among all clients
    that hold them, heads among all that have one at the same cut. A client answers with the head at its own cut.
    """

    class Options(WithoutServers.Options):
        distillation: float = Field(1.0, ge=0)
        """Weight of the mutual distillation; 0 leaves the sum of the exits' losses."""

    @property
    def distillation(self) -> float:
        weight: float = self.options.distillation
        return weight

    def fleet(self, config: Config, unit_names: Sequence[str]) -> Fleet:
        fleet = super().fleet(config, unit_names)
        cuts = sorted({spec.cut for spec in fleet.clients})
        clients = (replace(spec, inner_exits=tuple(cut for cut in cuts if cut < spec.cut)) for spec in fleet.clients)
        return replace(fleet, clients=tuple(clients))

    def averaged_units(self, training: TrainingConfig, fleet: Fleet) -> AverageKeys:
        inner = {spec.client_id: [fleet.unit_names[cut - 1] for cut in spec.inner_exits] for spec in fleet.clients}
        return {
            model: {**units} | {f"{EXITS}.{name}": f"{EXIT}/{name}" for name in inner[model.client_id]}
            for model, units in super().averaged_units(training, fleet).items()
        }
