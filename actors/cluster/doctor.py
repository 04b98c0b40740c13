"""Whether a run can go well on a cluster, asked before it starts: its nodes, their software, the run's storage."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ray
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster.capacity import Verdict, assess, most_actors
from actors.cluster.connection import (
    ClusterContext,
    Tell,
    address_of,
    connected,
    growth_of,
    joined_context,
    local_context,
    local_resources,
)
from actors.cluster.describe import cluster_text
from actors.cluster.node_report import SHM, NodeReport, look_at_node
from actors.cluster.node_types import read_growth
from actors.cluster.ray_internals import living_nodes, node_ids
from actors.cluster.requests import requests
from actors.cluster.resources import Growth, Node, Request
from actors.cluster.slots import plan_slots
from actors.workers.origin import REMEDY, difference, versions
from hsee_ray.backbones import Backbone, build_backbone, feature_shapes
from hsee_ray.config.fleet import ClientSpec, Fleet, names_ahead
from hsee_ray.config.schema import Config, DataConfig
from hsee_ray.data import known_classes, known_shape, known_train_images
from hsee_ray.data.known import KnownSet
from hsee_ray.data.sizes import even_samples
from hsee_ray.edge.codecs import feature_bytes
from hsee_ray.errors import ResourceError, UserError
from hsee_ray.method.schedule import evaluation_window, window_batches
from hsee_ray.method.setup import Setup
from hsee_ray.method.strategies import build_fleet
from hsee_ray.planning.planner import pick_cuts
from hsee_ray.process import submission_id
from hsee_ray.rundir.location import RunLocation, run_place
from hsee_ray.simulation.loads import check_profiles
from hsee_ray.storage import Storage, is_uri

PATIENCE_S = 60.0
SPILLS_AT = 0.8
"""Share of an object store above which Ray writes to disk."""
GUESSED = KnownSet(size=32, channels=3, classes=10, train_images=50_000)
"""Assumptions about images that are not there to be read."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    what: str
    finding: Literal["well", "slow", "bad"]
    """`slow`: a run is possible, and would not be what it could. `bad`: it must fail."""
    text: str
    """Finding, with the remedy where something is wrong."""


@dataclass(frozen=True)
class Diagnosis:
    """Verdict on a configuration and a cluster."""

    where: str
    """Cluster that was examined."""
    has: str
    """Existing and possible nodes."""
    verdicts: list[Verdict]
    checks: list[Check]

    @property
    def hopeless(self) -> bool:
        return any(v.never is not None for v in self.verdicts) or any(c.finding == "bad" for c in self.checks)


def diagnose(config: Config, cluster_yaml: Path | None) -> Diagnosis:
    """Holds a configuration against the cluster that it names, or against a file that describes one.

    Reads no images: sizes that only they tell are guessed from the data set's name, also for the plan of cuts that are
    `auto`. Raises ConfigError for a configuration that cannot be used, ResourceError when the cluster cannot be joined.
    """
    check_profiles(config)
    shape, classes = _image_shape(config.data), known_classes(config.data) or GUESSED.classes
    backbone = build_backbone(config.model, shape, classes, config.seed)
    n_images = known_train_images(config.data) or GUESSED.train_images
    samples = [max(2, n) for n in even_samples(config, n_images)]
    config = pick_cuts(config, shape, classes, samples)
    fleet = build_fleet(config, tuple(backbone.units))
    if cluster_yaml is not None:
        named = config.cluster.model_copy(update={"node_types": str(cluster_yaml)})
        config = config.model_copy(update={"cluster": named})
    address, growth = address_of(config.cluster), config.cluster.node_types
    if address is None and growth is not None:
        can_add = read_growth(Path(growth))
        nodes = [] if can_add.head is None else [can_add.head]
        verdicts = assess(requests(config, fleet, plan_slots(config, fleet, None, 1)), nodes, can_add)
        where = f"{growth}, with its head alone"
        return Diagnosis(
            where, cluster_text(nodes, can_add), verdicts, [_unedited(Path(growth)), *_named_storage(config)]
        )
    if address is None:
        asked = requests(config, fleet, local_context(config, fleet).slot_plan)
        here = [replace(request, label_selector={}) for request in asked]
        room = {**local_resources(here), "memory": float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))}
        return Diagnosis(
            "a Ray of its own on this machine, with just what it asks for",
            cluster_text([Node(room, room)], Growth()),
            assess(here, [Node(room, room)], Growth()),
            [_own_storage(_storage_uri(config))],
        )
    with connected(config.cluster, [], lambda who, text: None):
        nodes, can_add, context = living_nodes(), growth_of(config.cluster), joined_context(config, fleet)
        asked = requests(config, fleet, context.slot_plan)
        verdicts = assess(asked, nodes, can_add)
        shapes = feature_shapes(backbone, shape)
        checks = [
            _authentication(),
            *node_checks(_storage_uri(config)),
            store_check(object_store_bytes(config, fleet, context, shapes, backbone), asked, nodes),
        ]
        return Diagnosis(f"the cluster at {address}", cluster_text(nodes, can_add), verdicts, checks)


def node_checks(uri: str) -> list[Check]:
    """Looks at all nodes of the connected cluster, side by side: their software, the storage at `uri`, /dev/shm."""
    names = node_ids()
    storage = Storage.at(uri)
    mark = uuid.uuid4().hex[:8]
    probe = f".doctor-{mark}"
    own = {node: f"{probe}-{node[-8:]}" for node in names}
    try:
        storage.write(probe, probe.encode())
    except OSError as error:
        return [Check("storage", "bad", _unwritable(uri, error))]
    try:
        reports, silent = _ask_nodes(uri, probe, own)
        unseen = [node for node in reports if not _reads(storage, own[node])]
    finally:
        for name in (probe, *own.values()):
            storage.remove_file(name)
    still = node_ids()
    checks = [
        Check("node", "bad", f"{names[node]} does not answer ({why})") for node, why in silent.items() if node in still
    ]
    checks += _storage_checks(uri, reports, unseen, names)
    checks += _version_checks(reports, names)
    checks += _shm_checks(reports, names)
    return checks


def check_nodes(setup: Setup, context: ClusterContext, location: RunLocation, tell: Tell) -> None:
    """Tells of what would slow a run down on the connected cluster, or leave it open to others.

    A node that comes later is looked at by the actors that start on it. Raises ResourceError when a node cannot take
    part in a run that lives there.
    """
    asked = requests(setup.config, setup.fleet, context.slot_plan)
    backbone = build_backbone(setup.config.model, setup.files.image_shape, setup.n_classes, setup.config.seed)
    expected = object_store_bytes(setup.config, setup.fleet, context, setup.feature_shapes, backbone)
    for check in [_authentication(), *node_checks(location.uri), store_check(expected, asked, living_nodes())]:
        if check.finding == "bad":
            raise ResourceError(check.text)
        if check.finding == "slow":
            tell(check.what, check.text)


def store_check(expected_bytes: int, asked: Sequence[Request], nodes: Sequence[Node]) -> Check:
    """The object store of each node against its part of what a run is expected to keep in all of them.

    Who comes where is Ray's to decide. So a node's part is that of all the actors that it could get, each taken to keep
    as much as any other. Nodes that are still to come are not looked at.
    """
    worst, text = SPILLS_AT, "every node that is there holds those of all the actors that it could get"
    for node in nodes:
        count, store = most_actors(asked, node), node.total.get("object_store_memory", 0.0)
        part = expected_bytes * count / max(1, len(asked))
        if part > worst * store:
            worst = part / max(1.0, store)
            name = next((key.removeprefix("node:") for key in node.total if re.match(r"node:[^_]", key)), "")
            text = (
                f"node {name} could get {count} of {len(asked)} actors, with about {_mib(part)} of them, and has an "
                f"object store of {_mib(store)}: Ray writes to disk then; lower pipeline.max_in_flight_mib, or give it "
                "more (ray start --object-store-memory)"
            )
    finding: Literal["well", "slow"] = "slow" if worst > SPILLS_AT else "well"
    return Check("object store", finding, f"about {_mib(expected_bytes)} for features and states; {text}")


def object_store_bytes(
    config: Config, fleet: Fleet, context: ClusterContext, shapes: Sequence[tuple[int, ...]], backbone: Backbone
) -> int:
    """Upper bound of a run's objects in the stores, beside images: features in flight, and states.

    Of every model there are a state before the round, one after it, and one that is being made, each with the
    optimiser's share: one more copy of the parameters for SGD's momentum, two for AdamW's moments.
    """

    def batch_bytes(spec: ClientSpec, samples: int) -> int:
        return feature_bytes(spec.codec, shapes[spec.cut - 1], samples) if spec.has_server else 0

    batches = [batch_bytes(spec, spec.batch_size) for spec in fleet.clients]
    ahead = [size * window_batches(config.pipeline, max(batches)) for size in batches]
    tested_batches = [batch_bytes(spec, config.evaluation.batch_size) for spec in fleet.clients]
    tested = [size * evaluation_window(config.pipeline, max(tested_batches)) for size in tested_batches]
    features = max(sum(sorted(each, reverse=True)[: context.at_once]) for each in (ahead, tested))
    of_unit = {name: sum(4 * p.numel() for p in unit.parameters()) for name, unit in backbone.units.items()}
    network = sum(of_unit.values())
    ahead_of = (names_ahead(config.training, list(of_unit), spec.cut) for spec in fleet.clients)
    models = len(fleet.clients) * network + sum(of_unit[name] for names in ahead_of for name in names)
    copies = {"sgd": 2, "adamw": 3}[config.training.optimizer.name]
    # The newest averages are one more copy of the whole network.
    return features + copies * (3 * models + network)


def _image_shape(data: DataConfig) -> tuple[int, int, int]:
    """(H, W, C) of the images, as far as it is known without reading them."""
    size = data.image_size or GUESSED.size
    return known_shape(data) or (size, size, data.channels or GUESSED.channels)


def _storage_uri(config: Config) -> str:
    """Location of a run of the configuration, without its name."""
    place = run_place(config, "", submitted=submission_id() is not None).rstrip("/")
    return place if is_uri(place) else os.path.abspath(place)


def _own_storage(uri: str) -> Check:
    """Whether this process can use a storage."""
    name = f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        storage = Storage.at(uri)
        storage.write(name, name.encode())
        sees = _reads(storage, name)
        storage.remove_file(name)
    except (OSError, UserError) as error:
        return Check("storage", "bad", _unwritable(uri, error))
    return Check("storage", "well" if sees else "bad", f"{uri} is written to and read on this machine")


def _named_storage(config: Config) -> list[Check]:
    """A look at the storage of a run on a cluster that is not there yet, if it is known here."""
    if config.storage.uri is None and "HSEE_STORAGE" not in os.environ:
        return []
    return [_own_storage(_storage_uri(config))]


def _unedited(file: Path) -> Check:
    """Whether somebody has gone through a file that was shipped with names to be filled in."""
    left = [number for number, line in enumerate(file.read_text().splitlines(), 1) if "change-me" in line.lower()]
    if not left:
        return Check("file", "well", f"{file} has no name left to fill in")
    lines = ", ".join(map(str, left))
    return Check("file", "slow", f"{file} still says CHANGE-ME (line {lines}): fill in your own before it goes up")


def _unwritable(uri: str, error: Exception) -> str:
    reason = str(error).splitlines()[0]
    return f"{uri} cannot be written to ({reason}); name another with --set storage.uri=s3://... or a shared directory"


def _authentication() -> Check:
    if is_token_auth_enabled():
        return Check("authentication", "well", "by token")
    return Check(
        "authentication",
        "slow",
        "none: whoever reaches the cluster's ports can run programs on it; start it with RAY_AUTH_MODE=token",
    )


def _ask_nodes(uri: str, probe: str, own: Mapping[str, str]) -> tuple[dict[str, NodeReport], dict[str, str]]:
    """Reports of all nodes, and why some are missing."""
    task = ray.remote(look_at_node)
    asked = {
        node: task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(uri, probe, name)
        for node, name in own.items()
    }
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=PATIENCE_S)
    reports: dict[str, NodeReport] = {}
    silent: dict[str, str] = {}
    for node, ref in asked.items():
        try:
            reports[node] = ray.get(ref, timeout=0)
        except GetTimeoutError:
            silent[node] = f"nothing within {PATIENCE_S:g} s"
        except RayError as error:
            silent[node] = str(error).strip().splitlines()[-1]
    return reports, silent


def _reads(storage: Storage, name: str) -> bool:
    try:
        return storage.read(name) == name.encode()
    except OSError:
        return False


def _storage_checks(
    uri: str, reports: Mapping[str, NodeReport], unseen: Sequence[str], names: Mapping[str, str]
) -> Iterator[Check]:
    bad = False
    for node, report in reports.items():
        if report.writes is not None:
            bad = True
            yield Check("storage", "bad", f"node {names[node]} cannot write to {uri} ({report.writes}); {REMEDY}")
        elif not report.reads or node in unseen:
            bad = True
            yield Check("storage", "bad", f"node {names[node]} does not see what others write to {uri}; {REMEDY}")
    if not bad:
        yield Check("storage", "well", f"{uri} is written to and read on {_nodes(len(reports))}")


def _version_checks(reports: Mapping[str, NodeReport], names: Mapping[str, str]) -> Iterator[Check]:
    here, bad = versions(), False
    for node, report in reports.items():
        other = difference(here, report.versions)
        if other is not None:
            bad = True
            yield Check("versions", "bad", f"node {names[node]} has {other}; install on it what the driver has")
    if not bad:
        shown = ", ".join(f"{name} {number}" for name, number in here.items())
        yield Check("versions", "well", f"{shown} on {_nodes(len(reports))}")


def _shm_checks(reports: Mapping[str, NodeReport], names: Mapping[str, str]) -> Iterator[Check]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    stores = {node["NodeID"]: node["Resources"].get("object_store_memory", 0.0) for node in nodes}
    bad = False
    for node, report in reports.items():
        if report.shm_bytes < stores.get(node, 0.0):
            bad = True
            yield Check(
                "shared memory",
                "slow",
                f"node {names[node]} has {_mib(report.shm_bytes)} of {SHM} for an object store of "
                f"{_mib(stores[node])}, which is on disk then and slow; give it more (docker: --shm-size)",
            )
    if not bad:
        yield Check("shared memory", "well", f"{SHM} holds the object store on {_nodes(len(reports))}")


def _nodes(count: int) -> str:
    return f"{count} node{'s' * (count != 1)}"


def _mib(amount: float) -> str:
    return f"{amount / (1 << 20):,.0f} MiB"
