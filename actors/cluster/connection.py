"""The Ray cluster of a run: a local one that ends with the run, or the one that it is told to join."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from ray.exceptions import AuthenticationError

from actors.cluster.capacity import assess
from actors.cluster.daemons import DaemonWatch
from actors.cluster.node_types import read_growth
from actors.cluster.orphan_reaper import kept_processes
from actors.cluster.ray_internals import (
    daemons_in_own_groups,
    free_memory,
    living_nodes,
    loopback_only,
    may_grow,
    own_daemons,
    ping,
    temp_dir,
    token_of_its_own,
)
from actors.cluster.requests import requests
from actors.cluster.resources import Growth, Request, take_gpus, total_of
from actors.cluster.slots import SERVERS, SlotPlan, plan_slots
from hsee_ray.config.fleet import Fleet
from hsee_ray.config.schema import ClusterConfig, Config
from hsee_ray.errors import ResourceError
from hsee_ray.process import cores

PING_S = 10.0
"""Patience with a cluster that is to be joined."""
NO_CALL_RECORDS = {"task_events_report_interval_ms": 0}
"""Settings of a local Ray: no record of every call, at which nobody looks; it grows by 2 KiB each."""
NO_METRICS = {"enable_metrics_collection": False}
LOCAL_SHARE = 0.6
"""Share of this machine's free memory for actors; the rest is for the object store and for what they compute."""

Tell = Callable[[str, str], None]
"""Takes who something is about, and what."""


@contextmanager
def connected(
    config: ClusterConfig, requests: Sequence[Request], tell: Tell, metrics: bool = False
) -> Iterator[DaemonWatch | None]:
    """Connects to Ray for the length of the block; gives the watch over a local Ray of this run's own.

    A local Ray has just the logical resources that the requests add up to, and `metrics` only when asked; nobody beyond
    this machine, and nobody without its token, reaches it. A Ray that the caller has already connected to is used and
    left as it is. Tells of tiers that must wait for nodes. Raises ResourceError when the cluster can never give what is
    asked, or a local Ray does not start.
    """
    if ray.is_initialized():
        check_room(config, requests, tell)
        yield None
        return
    address = address_of(config)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        end_processes = None
        if address is None:
            config = config.model_copy(update={"node_types": None})
            requests = [replace(request, label_selector={}) for request in requests]
            end_processes = stack.enter_context(kept_processes())
            stack.enter_context(token_of_its_own())
        start(address, requests, "cluster.address" if config.address else "$RAY_ADDRESS", metrics)
        stack.callback(ray.shutdown)
        watch = None if end_processes is None else stack.enter_context(DaemonWatch(own_daemons(), end_processes))
        if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # ray.init has put its own in its place
        check_room(config, requests, tell)
        yield watch


@dataclass(frozen=True)
class ClusterContext:
    """Cluster of a run."""

    local: bool
    """On a Ray of this run's own, where every actor sees this machine's files."""
    slot_plan: SlotPlan
    at_once: int
    """Clients that compute at the same time."""
    cores: int | None = None
    """Actors that have work at the same time, where all share one machine; None: Ray has given each its own CPUs."""
    daemons: DaemonWatch | None = None
    """Ends this process when the run's own Ray dies."""

    @property
    def at_a_time(self) -> int | None:
        """How many actors start at a time: one for every core, which is busy loading torch; None: all."""
        return None if self.cores is None else max(2, self.cores)


@contextmanager
def cluster_context(config: Config, fleet: Fleet, tell: Tell) -> Iterator[ClusterContext]:
    """Connects to Ray for the length of the block, and decides how many actors the models of a run share.

    Tells of tiers that must wait for nodes. Raises ResourceError as `connected` does.
    """
    if not starts_own_ray(config.cluster):
        with connected(config.cluster, [], tell):
            context = joined_context(config, fleet)
            check_room(config.cluster, requests(config, fleet, context.slot_plan), tell)
            yield context
        return
    context = local_context(config, fleet)
    with connected(config.cluster, requests(config, fleet, context.slot_plan), tell) as daemons:
        yield replace(context, daemons=daemons)


def local_context(config: Config, fleet: Fleet) -> ClusterContext:
    """A run on a Ray of its own: as many clients at once as there are cores."""
    at_once = config.cluster.concurrent or cores()
    slot_plan = plan_slots(config, fleet, int(LOCAL_SHARE * free_memory()), at_once)
    return ClusterContext(True, slot_plan, at_once, max(cores(), at_once))


def joined_context(config: Config, fleet: Fleet) -> ClusterContext:
    """A run on the connected cluster: every client that has a slot computes, as Ray has given it room for that."""
    nodes = living_nodes()
    memory, cpus = (sum(node.total.get(name, 0.0) for node in nodes) for name in ("memory", "CPU"))
    asked = [*(tier.resources.num_cpus for tier in config.tiers), config.server.resources.num_cpus]
    of_one_each = sum(asked)
    per_pool = max(1, int(cpus / of_one_each)) if of_one_each else max(1, int(cpus))
    at_once = config.cluster.concurrent
    slot_plan = plan_slots(config, fleet, None if may_grow() else int(memory), per_pool)
    clients = sum(count for pool, count in slot_plan.slots.items() if pool != SERVERS)
    return ClusterContext(False, slot_plan, at_once or clients)


def starts_own_ray(config: ClusterConfig) -> bool:
    """Whether a run starts a local Ray of its own, and joins none."""
    return not ray.is_initialized() and address_of(config) is None


def address_of(config: ClusterConfig) -> str | None:
    """Address of the cluster to join; None for a local Ray of the run's own, which `local` means to Ray too."""
    address = config.address or os.environ.get("RAY_ADDRESS")
    return address if address and address != "local" else None


def start(address: str | None, requests: Sequence[Request], named_by: str, metrics: bool) -> None:
    """Connects to a cluster that `named_by` names, or starts a local Ray that can hold the requests.

    Raises ResourceError.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Results of calls that were given up are dropped with their errors; the one that matters is raised.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    logging.getLogger("ray").setLevel(logging.ERROR)
    _silence_death_logs()
    if address is None:
        _start_local(local_resources(requests), metrics)
    else:
        _join(address, named_by)


def _silence_death_logs() -> None:
    """Ray prints twenty lines on stdout for every worker that dies, with no way to ask it not to; a run prints one."""
    ray._private.worker.print_to_stdstream = lambda data, ignore_prefix: None


def _start_local(resources: dict[str, float], metrics: bool) -> None:
    try:
        with daemons_in_own_groups(), loopback_only():
            ray.init(
                address="local",
                num_cpus=int(resources.pop("CPU")),
                num_gpus=int(resources.pop("GPU")),
                resources=resources,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=temp_dir(),
                _system_config=NO_CALL_RECORDS if metrics else NO_CALL_RECORDS | NO_METRICS,
            )
    except OSError as error:
        variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "RAY_TMPDIR")
        raise ResourceError(
            f"${variable}: Ray cannot start in {temp_dir()} ({error}); set RAY_TMPDIR to a directory with a short path "
            "that can be written to"
        ) from error
    except Exception as error:
        if type(error) not in (Exception, RuntimeError):  # as Ray raises them
            raise
        raise ResourceError(
            f"Ray does not start on this machine ({str(error).splitlines()[0]}); give it more memory, or a less busy "
            f"machine; its logs are in {temp_dir()}/session_latest/logs"
        ) from error


def _join(address: str, named_by: str) -> None:
    try:
        _, colon, port = address.rpartition(":")
        if colon and port.isdigit() and "://" not in address:
            ping(address, PING_S)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (PermissionError, AuthenticationError) as error:
        raise ResourceError(
            f"{named_by} is {address!r}: the cluster asks for a token; export RAY_AUTH_MODE=token, and put the token "
            "of the cluster into ~/.ray/auth_token or RAY_AUTH_TOKEN"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ResourceError(
            f"{named_by} is {address!r}: no Ray cluster answers there ({reason}); give HOST:PORT of its head, usually "
            "port 6379 (8265 is for jobs), or start one"
        ) from error


def local_resources(requests: Sequence[Request]) -> dict[str, float]:
    """Logical resources of a local Ray: enough for every actor at once. GPUs are whole, fractions share one."""
    totals = {"CPU": 0.0, **total_of(requests)}
    totals.pop("memory", None)
    gpus: list[float] = []
    for amount in sorted((request.resources.get("GPU", 0.0) for request in requests), reverse=True):
        left = take_gpus(gpus, amount)
        gpus += [] if left is not None else [1.0] * math.ceil(amount)
        taken = take_gpus(gpus, amount)
        assert taken is not None, "there are enough now"
        gpus = taken + [0.0] * (len(gpus) - len(taken))
    return {**{name: math.ceil(amount) for name, amount in totals.items()}, "GPU": float(len(gpus))}


def check_room(config: ClusterConfig, requests: Sequence[Request], tell: Tell) -> None:
    """Tells of tiers that must wait. Raises ResourceError when one can never have its place."""
    for verdict in assess(requests, living_nodes(), growth_of(config)):
        if verdict.never is not None:
            raise ResourceError(verdict.never)
        if verdict.waits:
            tell(f"tier {verdict.tier}", str(verdict))


def growth_of(config: ClusterConfig) -> Growth:
    """Nodes that the connected cluster's autoscaler can add: as its file says, or unknown without one.

    Nothing where there is no autoscaler, whatever a file says.
    """
    if not may_grow():
        return Growth()
    return Growth(known=False) if config.node_types is None else read_growth(Path(config.node_types))
