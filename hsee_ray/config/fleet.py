"""The clients of a run: who they are, where they cut the network, and what they ask of Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hsee_ray.config.plugins import PlugIn
from hsee_ray.config.schema import Config, ResourcesConfig, TrainingConfig
from hsee_ray.edge.codecs import Codec
from hsee_ray.errors import ConfigError

EXIT = "exit"
"""Name of the exit head among a client's units; no unit of a network may bear it."""
AUTO = "auto"
"""A cut that the planner is to pick (docs/planning.md)."""
OBJECTIVE = "objective"
"""Name of what an objective remembers among a model's units; no unit of a network may bear it."""
EXITS = "exits"
"""Prefix, among a client's units, of exit heads below its cut (`exits.layer1.1`)."""
AHEAD = "ahead"
"""Prefix, among a client's units, of those that it looks ahead through (`ahead.layer2.0`, `ahead.exit`)."""
FEEDBACK = "feedback"
"""Name, among a client's units, of what its server has answered; no unit of a network may bear it."""
TRAINING_ONLY = (OBJECTIVE, EXITS, AHEAD, FEEDBACK)
"""First parts of names of what is in no model file."""
CODEC, PATH = "codec", "path"
"""Names, among a client's units, of what its codec and the stages before it (`path.0`) know; no unit may bear them."""


@dataclass(frozen=True)
class ClientSpec:
    """One client of the fleet."""

    client_id: int
    """From 0, in the order of the tiers."""
    label: str
    """`003`, or `central`: its files are `client-<label>` and `server-<label>`."""
    tier: str
    cut: int
    """Units on the client, from 1 to L."""
    cut_name: str
    """Name of the last unit on the client."""
    has_server: bool
    """Whether a server takes up its features; none does where the cut is L, or the strategy has no servers."""
    has_exit: bool
    """False where the cut is L: the network's own end answers."""
    batch_size: int
    resources: ResourcesConfig
    codec: Codec = "none"
    """How its features are sent; `none` where it has no server."""
    inner_exits: tuple[int, ...] = ()
    """Cuts below its own, ascending, at which it has further exit heads, for training only."""
    stages: tuple[PlugIn, ...] = ()
    """Prefix of the feature stages before the codec."""

    @property
    def client_file(self) -> str:
        return f"client-{self.label}"

    @property
    def server_file(self) -> str:
        return f"server-{self.label}"


@dataclass(frozen=True, order=True)
class ModelId:
    """One model of a run. Sorts client models before server models, each by number."""

    side: Literal["client", "server"]
    client_id: int
    """The client's number; the one shared server of Sequential is server 0."""


@dataclass(frozen=True)
class Fleet:
    """All clients of a run over one base network."""

    clients: tuple[ClientSpec, ...]
    unit_names: tuple[str, ...]

    @property
    def tiers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(client.tier for client in self.clients))


def fleet_of_tiers(config: Config, unit_names: Sequence[str]) -> Fleet:
    """Clients of the configuration's tiers over a base network with these units.

    Raises ConfigError for a cut that the network does not have; the message lists the cuts there are.
    """
    digits = max(3, len(str(config.n_clients - 1)))
    clients: list[ClientSpec] = []
    for index, tier in enumerate(config.tiers):
        cut = resolve_cut(tier.cut, unit_names, where=f"tiers.{index}.cut")
        for _ in range(tier.clients):
            clients.append(
                ClientSpec(
                    client_id=len(clients),
                    label=f"{len(clients):0{digits}d}",
                    tier=tier.name,
                    cut=cut,
                    cut_name=unit_names[cut - 1],
                    has_server=cut < len(unit_names),
                    has_exit=cut < len(unit_names),
                    batch_size=tier.batch_size or config.training.batch_size,
                    resources=tier.resources,
                    codec=tier.codec if cut < len(unit_names) else "none",
                    stages=tier.stages if cut < len(unit_names) else (),
                )
            )
    return Fleet(tuple(clients), tuple(unit_names))


def resolve_cut(cut: str | int, unit_names: Sequence[str], where: str = "cut") -> int:
    """Number of units below a cut that is named by its unit, by its stage (its last unit), or by its index.

    `stem` and 1 are the first unit; `layer2` is the end of that stage, as `layer2.1` is.
    Raises ConfigError with the list of cuts when there is no such unit, and for `auto`: that is for a plan to replace.
    """
    if cut == AUTO:
        raise ConfigError(f"{where} is '{AUTO}': no plan has picked it yet; hsee plan --write FILE does, or name a cut")
    if isinstance(cut, int) or (cut.isascii() and cut.isdigit()):
        index = int(cut)
        if 1 <= index <= len(unit_names):
            return index
    else:
        ends = [i for i, name in enumerate(unit_names, start=1) if name == cut or name.startswith(f"{cut}.")]
        if ends:
            return ends[-1]
    cuts = ", ".join(f"{i} {name}" for i, name in enumerate(unit_names, start=1))
    raise ConfigError(f"{where} is {cut!r}: the network has no such cut; it can be cut after {cuts}")


def with_cuts(config: Config, cuts: Sequence[int | str]) -> Config:
    """The configuration with other cuts, one for each tier."""
    tiers = [tier.model_copy(update={"cut": cut}) for tier, cut in zip(config.tiers, cuts, strict=True)]
    return config.model_copy(update={"tiers": tuple(tiers)})


def names_ahead(training: TrainingConfig, unit_names: Sequence[str], cut: int) -> tuple[str, ...]:
    """The units behind a cut to look through; never the network's last one, whose place a classifier takes."""
    units = 0 if training.look_ahead is None else training.look_ahead.units
    return tuple(unit_names[cut : min(cut + units, len(unit_names) - 1)])
