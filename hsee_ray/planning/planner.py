"""Which cut suits which device: every cut of every tier held against its device, and the best of their combinations.

What a plan costs is what the simulation of a round says (hsee_ray.simulation.prediction): a round in which everybody
takes part and nobody is away, with an aggregation where the strategy has one, without an evaluation. Seconds are those
of the round; joules are those of all clients' devices; bytes are what all clients send and receive.

A plan never has a tier whose device cannot hold its part in training, nor models that the server cannot hold. It has
cuts 1 to L - 1: at cut L there is no exit and no server, which is another method, for a user to choose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from hsee_ray.config.fleet import AUTO, ClientSpec, Fleet, resolve_cut, with_cuts
from hsee_ray.config.schema import Config
from hsee_ray.data import prepare
from hsee_ray.data.sizes import local_samples
from hsee_ray.devices.cost import CostTable, Memory
from hsee_ray.devices.profiles import DeviceProfile, load_profiles, profile_of
from hsee_ray.errors import ConfigError
from hsee_ray.method.schedule import round_batches
from hsee_ray.method.strategies import strategy_of
from hsee_ray.planning.search import Figures, Objective, Option, search
from hsee_ray.simulation.bounds import lower_bound_s, server_bound_s
from hsee_ray.simulation.loads import check_profiles
from hsee_ray.simulation.model import ClientLoad, Rules
from hsee_ray.simulation.prediction import Predictor, RoundCost

MIB = 2**20


class NoCutFits(ConfigError):
    """A tier's device cannot hold even the smallest cut."""

    def __init__(self, tier: int, message: str) -> None:
        super().__init__(message)
        self.tier = tier


@dataclass(frozen=True)
class CutOption(Option):
    """One cut of one tier: what it needs of memory, and what no round with it is below."""

    name: str
    need_bytes: float
    """Of a client in training."""
    device_bytes: float
    kept_bytes: float
    """At the server, all the time, of all the tier's models: parameters, gradients, optimiser state."""
    work_bytes: Sequence[float]
    """At the server, of each model while it computes: activations and a batch."""
    specs: Sequence[ClientSpec]
    samples: Sequence[int]
    exchanges: Sequence[ClientLoad]
    """Parameters that each client exchanges if there are no other tiers."""

    @property
    def fits(self) -> bool:
        return self.need_bytes <= self.device_bytes


class Planner:
    """One configuration's tiers on their devices, and what every choice of cuts takes."""

    def __init__(
        self,
        config: Config,
        costs: CostTable,
        profiles: Mapping[str, DeviceProfile],
        local_samples: Sequence[int],
    ) -> None:
        """`local_samples` by client, in the order of the tiers. Raises ConfigError where nothing can be planned."""
        check_devices(config, profiles)
        training = config.training.model_copy(update={"clients_per_round": 1.0})
        simulation = config.simulation.model_copy(update={"dropout_probability": 0.0})
        self.config = config.model_copy(update={"training": training, "simulation": simulation})
        self.strategy = strategy_of(config)
        self.costs = costs
        self.profiles = profiles
        self.local_samples = list(local_samples)
        self.unit_names = tuple(unit.name for unit in costs.units)
        self.predictor = Predictor(self.config, costs, profiles)
        self.simulated: dict[tuple[int, ...], RoundCost] = {}

    @cached_property
    def tiers(self) -> list[list[CutOption]]:
        """Every cut of every tier, 1 to L, whether it fits or not."""
        cuts = range(1, len(self.unit_names) + 1)
        return [[self._option(index, cut) for cut in cuts] for index in range(len(self.config.tiers))]

    @property
    def server_bytes(self) -> float:
        """Memory of the server."""
        return self.profiles[str(self.config.simulation.server)].memory_mib * MIB

    def best(
        self, objective: Objective = "time", limit_s: float | None = None, fixed: Mapping[int, int] | None = None
    ) -> tuple[int, ...]:
        """Cut of every tier in the best plan; `fixed` ones, by the tier's index, are taken as they are.

        Raises ConfigError when no plan fits the devices and the server, or none has rounds of at most `limit_s`.
        """
        choices = self._choices(fixed or {})
        cuts = search(choices, objective, limit_s, self.figures, self._bound_s, self._server_holds)
        if cuts is not None:
            return cuts
        fastest = None if limit_s is None else search(
            choices, "time", None, self.figures, self._bound_s, self._server_holds
        )  # fmt: skip
        if fastest is None:
            raise ConfigError(self._server_is_full(choices))
        raise ConfigError(
            f"--round-time-s {limit_s:g}: no plan has rounds so short; the fastest takes "
            f"{self.figures(fastest).seconds:.4g} s ({self.names(fastest)})"
        )

    def figures(self, cuts: tuple[int, ...]) -> Figures:
        """Cost of a round with these cuts."""
        cost = self.round(cuts)
        clients = cost.clients.values()
        return Figures(
            cost.train_s + cost.exchange_s,
            sum(client.joules for client in clients),
            sum(client.sent_bytes + client.received_bytes for client in clients),
        )

    def round(self, cuts: tuple[int, ...]) -> RoundCost:
        """A round with these cuts, in simulated time."""
        if cuts not in self.simulated:
            self.simulated[cuts] = self._predict(self.fleet(cuts), self.local_samples)
        return self.simulated[cuts]

    def fleet(self, cuts: Sequence[int]) -> Fleet:
        """All clients, cut so."""
        return self.strategy.fleet(with_cuts(self.config, cuts), self.unit_names)

    def names(self, cuts: Sequence[int]) -> str:
        """`layer1.1 for sensor, layer3.1 for hub`."""
        named = zip(cuts, self.config.tiers, strict=True)
        return ", ".join(f"{self.unit_names[cut - 1]} for {tier.name}" for cut, tier in named)

    def configured(self) -> tuple[int, ...] | None:
        """The configuration's own cuts, or None where one of them is `auto`."""
        tiers = self.config.tiers
        if any(tier.cut == AUTO for tier in tiers):
            return None
        where = (f"tiers.{index}.cut" for index in range(len(tiers)))
        return tuple(resolve_cut(tier.cut, self.unit_names, each) for tier, each in zip(tiers, where, strict=False))

    def server_need_bytes(self, chosen: Iterable[CutOption]) -> float:
        """Memory of the server for the models of these tiers.

        Every model keeps its parameters, gradients and optimiser state; activations and a batch are there of as many
        as compute at once. Of the shared server of Sequential there is one, from the lowest cut on.
        """
        chosen = list(chosen)
        work = sorted((size for option in chosen for size in option.work_bytes), reverse=True)
        if self.strategy.shared_server:
            return max((option.kept_bytes for option in chosen), default=0.0) + sum(work[:1])
        cores = self.profiles[str(self.config.simulation.server)].cores
        return sum(option.kept_bytes for option in chosen) + sum(work[:cores])

    def _predict(self, fleet: Fleet, local_samples: Sequence[int]) -> RoundCost:
        aggregates = strategy_of(self.config).aggregates_after(self.config.training, self.config.training.rounds)
        return self.predictor.round(fleet, local_samples, 1, aggregates=aggregates, evaluates=False)

    def _option(self, index: int, cut: int) -> CutOption:
        """Lower bound: a tier alone uses no more than beside others.

        A unit is averaged where there are two copies of it, and more clients never make them fewer; and where messages
        hold several batches, more clients never make them longer.
        """
        tier = self.config.tiers[index]
        specs, samples = self._alone(index, cut)
        alone = self._predict(Fleet(tuple(specs), self.unit_names), samples)
        exchanges: list[ClientLoad] = []
        for spec, n in zip(specs, samples, strict=True):
            load, used = self.predictor.loads.training(spec, n), alone.clients[spec.client_id]
            up_bytes = used.sent_bytes - sum(batch.sent_bytes for batch in load.batches)
            exchanges.append(replace(load, batches=(), model_up_bytes=up_bytes, model_down_bytes=used.received_bytes))
        first = specs[0]
        # A last sample alone joins the batch before it, and few samples make no full batch.
        steps = [step for n in samples for step in round_batches(self.config.training, n, first.batch_size)]
        batch_size = max(step.stop - step.start for step in steps)
        server = self.costs.server(cut, batch_size).memory if first.has_server else None
        models = 1 if self.strategy.shared_server else tier.clients
        return CutOption(
            cut=cut,
            least_joules=sum(used.joules for used in alone.clients.values()),
            least_bytes=sum(used.sent_bytes + used.received_bytes for used in alone.clients.values()),
            name=self.unit_names[cut - 1],
            need_bytes=self.costs.client(cut, batch_size, with_exit=first.has_exit).memory.total_bytes,
            device_bytes=self.profiles[str(tier.device)].memory_mib * MIB,
            kept_bytes=0.0 if server is None else _kept_bytes(server) * models,
            work_bytes=[] if server is None else [server.total_bytes - _kept_bytes(server)] * tier.clients,
            specs=specs,
            samples=samples,
            exchanges=exchanges,
        )

    def _alone(self, index: int, cut: int) -> tuple[list[ClientSpec], list[int]]:
        """The clients of one tier at a cut, numbered from 0 as if there were no others, and their samples."""
        before = sum(tier.clients for tier in self.config.tiers[:index])
        tier = self.config.tiers[index]
        cuts = [cut if other == index else 1 for other in range(len(self.config.tiers))]
        own = self.fleet(cuts).clients[before : before + tier.clients]
        samples = self.local_samples[before : before + tier.clients]
        return [replace(spec, client_id=client_id) for client_id, spec in enumerate(own)], samples

    def _choices(self, fixed: Mapping[int, int]) -> list[list[CutOption]]:
        choices: list[list[CutOption]] = []
        for index, options in enumerate(self.tiers):
            if index in fixed:
                choices.append([options[fixed[index] - 1]])
                continue
            fitting = [option for option in options[:-1] if option.fits]
            if not fitting:
                least = min(options[:-1], key=lambda option: option.need_bytes)
                raise NoCutFits(index, self._device_is_full(index, least))
            choices.append(fitting)
        return choices

    def _bound_s(self, chosen: Sequence[CutOption]) -> float:
        """Seconds that no round is below in which these tiers are cut so: of training, and of the exchange after it.

        A client waits for nobody when it is alone, so it is never faster with others; what all send passes one link,
        and what all servers compute their cores, or one machine's, and others only add to it (simulation.bounds).
        """
        specs = [spec for option in chosen for spec in option.specs]
        samples = [n for option in chosen for n in option.samples]
        exchanges = [load for option in chosen for load in option.exchanges]
        context, one_machine = self.predictor.context, self.predictor.one_machine
        alone_s = max(lower_bound_s(load, context, one_machine) for load in exchanges)
        exchange_s = max(alone_s, server_bound_s(exchanges, context, Rules("parallel"), one_machine))
        return self.predictor.bound_s(specs, samples) + exchange_s

    def _server_holds(self, chosen: Sequence[CutOption]) -> bool:
        return self.server_need_bytes(chosen) <= self.server_bytes

    def _device_is_full(self, index: int, least: CutOption) -> str:
        tier, need, have = self.config.tiers[index], size_text(least.need_bytes), size_text(least.device_bytes)
        return (
            f"tiers.{index} ({tier.name}): no cut fits on {tier.device}: the smallest, {least.name}, needs {need} in "
            f"training and the device has {have}; use a smaller "
            f"tiers.{index}.batch_size, a narrower model.width, or another tiers.{index}.device"
        )

    def _server_is_full(self, choices: Sequence[Sequence[CutOption]]) -> str:
        """The deeper the cut, the less is left for the server."""
        deepest = [options[-1] for options in choices]
        need, names = size_text(self.server_need_bytes(deepest)), self.names([option.cut for option in deepest])
        return (
            f"simulation.server ({self.config.simulation.server}): its models need {need} at least ({names}) and it "
            f"has {size_text(self.server_bytes)}; use another device, fewer clients, a smaller batch_size, or "
            "training.strategy=sequential"
        )


def planned(config: Config) -> Config:
    """The configuration of a run that is about to begin: its devices are known, and no cut is left to the planner.

    Finds or builds the image cache where a cut is. Raises ConfigError when a device has no profile or no plan fits,
    DataError as `prepare` does.
    """
    check_profiles(config)
    if all(tier.cut != AUTO for tier in config.tiers):
        return config
    files = prepare(config.data)
    return pick_cuts(config, files.image_shape, len(files.class_names), local_samples(config).counts)


def pick_cuts(
    config: Config, image_shape: tuple[int, int, int], n_classes: int, local_samples: Sequence[int]
) -> Config:
    """The configuration with a cut by name in every tier that leaves it to the planner: those of the fastest round.

    Raises ConfigError when no plan fits.
    """
    if strategy_of(config).ignores_cuts or all(tier.cut != AUTO for tier in config.tiers):
        return config
    planner = Planner(
        config, CostTable(config, image_shape, n_classes), load_profiles(config.simulation.profiles), local_samples
    )
    fixed = {
        index: resolve_cut(tier.cut, planner.unit_names, f"tiers.{index}.cut")
        for index, tier in enumerate(config.tiers)
        if tier.cut != AUTO
    }
    cuts = planner.best(fixed=fixed)
    names = [planner.unit_names[cut - 1] for cut in cuts]
    return with_cuts(config, [n if t.cut == AUTO else t.cut for n, t in zip(names, config.tiers, strict=True)])


def check_devices(config: Config, known: Mapping[str, DeviceProfile]) -> None:
    """Raises ConfigError for a configuration that has nothing to plan, or does not name devices that are known."""
    if not strategy_of(config).has_servers:
        raise ConfigError(
            f"training.strategy is '{config.training.strategy}': no server takes work off a device, so there is "
            "nothing to plan and no cut can be auto; name the cuts, or use a strategy with servers"
        )
    devices = {f"tiers.{index}.device": tier.device for index, tier in enumerate(config.tiers)}
    devices["simulation.server"] = config.simulation.server
    missing = [key for key, device in devices.items() if device is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}: missing, and a plan needs to know the devices: name them in the config or with "
            f"--set {missing[0]}=NAME (known: {', '.join(sorted(known))}; your own in simulation.profiles)"
        )
    for key, device in devices.items():
        profile_of(known, str(device), key)


def size_text(size_bytes: float) -> str:
    """`640 B`, `3.0 KiB`, `12.5 MiB`, `1.2 GiB`."""
    for unit, divisor in (("GiB", 2**30), ("MiB", MIB), ("KiB", 2**10)):
        if size_bytes >= divisor:
            return f"{size_bytes / divisor:,.1f} {unit}"
    return f"{size_bytes:,.0f} B"


def _kept_bytes(memory: Memory) -> float:
    return memory.parameter_bytes + memory.gradient_bytes + memory.optimizer_bytes
