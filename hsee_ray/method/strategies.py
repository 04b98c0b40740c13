"""Strategies: who holds which server model, in which order batches travel, and which copies are averaged.

A strategy of your own is a subclass of Strategy: `training.strategy: package.module:Name` (docs/extend.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import fmean

from hsee_ray.config.fleet import AHEAD, EXIT, ClientSpec, Fleet, ModelId, fleet_of_tiers, names_ahead
from hsee_ray.config.plugins import Pluggable, PlugIn, create
from hsee_ray.config.schema import Config, TrainingConfig
from hsee_ray.errors import ConfigError
from hsee_ray.method.legs import TRAINING, WITH_GRADIENTS, WITH_SOFT_LABELS, Side, Trip

AverageKeys = Mapping[ModelId, Mapping[str, str]]
"""For every model, the average that each of its units takes part in: unit -> key."""


class Strategy(Pluggable):
    """How the models of a run are trained together. What it does not override is as in Averaging."""

    shared_server = False
    """One server model for all clients; else one for each."""
    on_server = False
    """Whether clients, too, compute where the server does, so that no device takes part."""
    has_servers = True
    """Whether servers take up clients' features, where a cut lets them."""
    ignores_cuts = False
    """Whether the cuts of tiers decide nothing."""
    trip: Trip = TRAINING
    """Legs of a training batch."""

    def check(self, config: Config) -> None:
        """Raises ConfigError for a configuration that the strategy cannot follow."""
        if self.shared_server and config.cluster.placement == "colocate":
            name = config.training.strategy
            raise ConfigError(
                f"cluster.placement is 'colocate', and {name} has one server for all clients: use pack or spread"
            )
        if self.trip is not TRAINING and config.training.feedback.name != "none":
            raise ConfigError(
                f"training.feedback is '{config.training.feedback.name}', and {config.training.strategy} has legs of "
                "its own: leave feedback out"
            )

    @property
    def distillation(self) -> float:
        """Weight of the mutual distillation between the exits of a client that has several."""
        return 0.0

    def trip_of(self, training: TrainingConfig) -> Trip:
        """Legs of a training batch, with what `training.feedback` adds."""
        return {"none": self.trip, "soft_labels": WITH_SOFT_LABELS, "gradients": WITH_GRADIENTS}[training.feedback.name]

    def lockstep(self, training: TrainingConfig) -> bool:
        """Whether a client's next batch waits until this one's trip is over, as it needs what comes back."""
        if training.feedback.name == "soft_labels":
            # Nobody waits for these, but where all clients are one retry unit a client may leave its slot in between.
            return self.retries_together(training)
        return len(self.trip_of(training)) > 2

    def fleet(self, config: Config, unit_names: Sequence[str]) -> Fleet:
        """The clients of a run over a base network with these units. Raises ConfigError for an unknown cut."""
        return fleet_of_tiers(config, unit_names)

    def server_of(self, spec: ClientSpec) -> int | None:
        """Which server model takes up a client's features; None at cut L."""
        if not spec.has_server:
            return None
        return 0 if self.shared_server else spec.client_id

    def served(self, fleet: Fleet) -> dict[int, tuple[int, ...]]:
        """Every server model, with the clients whose features it takes up."""
        clients: dict[int, list[int]] = {}
        for spec in fleet.clients:
            if (server := self.server_of(spec)) is not None:
                clients.setdefault(server, []).append(spec.client_id)
        return {server: tuple(served) for server, served in clients.items()}

    def file_of(self, fleet: Fleet, model: ModelId) -> str:
        """Name of a model's final file, without its suffix."""
        if model.side == "server" and self.shared_server:
            return "server"
        spec = fleet.clients[model.client_id]
        return spec.client_file if model.side == "client" else spec.server_file

    def retries_together(self, training: TrainingConfig) -> bool:
        """Whether all clients of a round are one retry unit: what one of them repeats after a failure, all repeat."""
        return self.shared_server and training.interleave == "batch"

    def aggregates_after(self, training: TrainingConfig, round_number: int) -> bool:
        """Whether copies are averaged at the end of this round; the last round always aggregates."""
        return round_number % training.aggregate_every == 0 or round_number == training.rounds

    def averaged_units(self, training: TrainingConfig, fleet: Fleet) -> AverageKeys:
        """Units that take part in averages, as `training.aggregate` says."""
        units: dict[ModelId, dict[str, str]] = {}
        scope = "all" if training.aggregate == "all" else "server"
        if training.aggregate != "server":
            below = "all" if training.aggregate == "all" else "client"
            for client in fleet.clients:
                keys = {name: f"{below}/{name}" for name in fleet.unit_names[: client.cut]}
                if client.has_exit:
                    keys[EXIT] = f"{EXIT}/{client.cut_name}"
                    keys |= _ahead_keys(training, fleet.unit_names, client)
                units[ModelId("client", client.client_id)] = keys
        for server, served in self.served(fleet).items():
            above = fleet.unit_names[min(fleet.clients[client].cut for client in served) :]
            units[ModelId("server", server)] = {name: f"{scope}/{name}" for name in above}
        return units

    def weight(self, training: TrainingConfig, side: Side, samples: Sequence[int], cuts: Sequence[int]) -> float:
        """Weight of a side's copy in an average, of the training samples and the cuts of the clients behind it."""
        by = {"uniform": 1.0, "samples": float(sum(samples)), "depth": fmean(cuts)}[training.aggregate_weights]
        return by * training.server_weight if side == "server" else by


def _ahead_keys(training: TrainingConfig, unit_names: Sequence[str], client: ClientSpec) -> dict[str, str]:
    """Averages of the units that a client looks ahead through: among clients of its cut, or the network's own."""
    ahead = names_ahead(training, unit_names, client.cut)
    if not ahead:
        return {}
    assert training.look_ahead is not None
    peers = {f"{AHEAD}.{name}": f"{AHEAD}/{client.cut_name}/{name}" for name in (*ahead, EXIT)}
    if training.look_ahead.copies == "peers":
        return peers
    return peers | {f"{AHEAD}.{name}": f"all/{name}" for name in ahead}


class Averaging(Strategy):
    """A server model for each client, all in parallel; copies of a unit are averaged across unequal cuts."""


class Sequential(Strategy):
    """One shared server model serves a queue of clients."""

    shared_server = True

    def aggregates_after(self, training: TrainingConfig, round_number: int) -> bool:
        """The shared server's copy is the only one on its side."""
        return training.aggregate != "server" and super().aggregates_after(training, round_number)


class Distributed(Strategy):
    """Every client with a server of its own, alone: nothing is ever averaged."""

    def aggregates_after(self, training: TrainingConfig, round_number: int) -> bool:
        return False

    def averaged_units(self, training: TrainingConfig, fleet: Fleet) -> AverageKeys:
        return {}


class Centralized(Distributed):
    """One client, `central`, trains the whole network on everybody's data."""

    on_server = True
    has_servers = False
    ignores_cuts = True

    def fleet(self, config: Config, unit_names: Sequence[str]) -> Fleet:
        central = ClientSpec(
            client_id=0,
            label="central",
            tier="central",
            cut=len(unit_names),
            cut_name=unit_names[-1],
            has_server=False,
            has_exit=False,
            batch_size=config.training.batch_size,
            resources=config.server.resources,
        )
        return Fleet((central,), tuple(unit_names))


def strategy_of(config: Config) -> Strategy:
    """The strategy that the configuration names. Raises ConfigError when it cannot be had."""
    return _strategy(config.training.strategy.model_dump_json())


@lru_cache
def _strategy(plugin: str) -> Strategy:
    return create("strategy", "training.strategy", PlugIn.model_validate_json(plugin), Strategy)


def build_fleet(config: Config, unit_names: Sequence[str]) -> Fleet:
    """The clients of a configuration over a base network with these units.

    Raises ConfigError for an unknown cut, and for what the strategy cannot follow.
    """
    strategy = strategy_of(config)
    strategy.check(config)
    return strategy.fleet(config, unit_names)


def models_of(strategy: Strategy, fleet: Fleet) -> list[ModelId]:
    """Every model of a run in the order in which their actors start: pairs that compute first, first."""
    servers = [ModelId("server", server) for server in strategy.served(fleet)]
    models = servers if strategy.shared_server else []
    for spec in fleet.clients:
        models.append(ModelId("client", spec.client_id))
        if not strategy.shared_server and spec.has_server:
            models.append(ModelId("server", spec.client_id))
    return models


def label_of(strategy: Strategy, fleet: Fleet, model: ModelId) -> str:
    """`client 003`, `server 003`, `shared server`."""
    if model.side == "server" and strategy.shared_server:
        return "shared server"
    return f"{model.side} {fleet.clients[model.client_id].label}"
