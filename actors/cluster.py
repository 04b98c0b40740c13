"""The Ray cluster of a run: a local one that ends with the run, or the one that it is told to join."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import ray

from actors.keeper import kept_processes
from actors.placement import Request
from hsee_ray.config import ClusterConfig
from hsee_ray.errors import ResourceError

Resources = Mapping[str, float]
TOLERANCE = 1e-4
"""Ray counts resources in steps of 0.0001."""


@contextmanager
def connected(config: ClusterConfig, requests: Sequence[Request]) -> Iterator[bool]:
    """Connects to Ray for the length of the block; gives whether it is a local Ray of this run's own.

    A local Ray has just the logical resources that the requests add up to. A Ray that the caller has already
    connected to is used and left as it is. Raises ResourceError when the cluster cannot give what is asked.
    """
    if ray.is_initialized():
        check_feasible(requests, node_resources())
        yield False
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Results of calls that were given up are dropped with their errors; the one that matters is raised.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    logging.getLogger("ray").setLevel(logging.ERROR)
    _mute_obituaries()
    address = config.address or os.environ.get("RAY_ADDRESS")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with kept_processes() if address is None else nullcontext():
        if address is None:
            _start_local(local_resources(requests))
        else:
            _join(address)
        if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # ray.init has put its own in its place
        try:
            check_feasible(requests, node_resources())
            yield address is None
        finally:
            ray.shutdown()


def _mute_obituaries() -> None:
    """Ray prints twenty lines on stdout for every worker that dies, with no way to ask it not to; a run prints one."""
    ray._private.worker.print_to_stdstream = lambda data, ignore_prefix: None


def _start_local(resources: dict[str, float]) -> None:
    ray.init(
        address="local",
        num_cpus=int(resources.pop("CPU")),
        num_gpus=int(resources.pop("GPU")),
        resources=resources,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _join(address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ResourceError(
            f"cluster.address is {address!r}: no Ray cluster answers there ({reason}); "
            "start one, or set cluster.address=null for a local one"
        ) from error


def local_resources(requests: Sequence[Request]) -> dict[str, float]:
    """Logical resources of a local Ray: enough for every actor at once. GPUs are whole, fractions share one."""
    totals: dict[str, float] = {"CPU": 0.0, "GPU": 0.0}
    for request in requests:
        for name, amount in request.resources.items():
            if name != "memory":
                totals[name] = totals.get(name, 0.0) + amount
    gpus: list[float] = []
    for amount in sorted((request.resources.get("GPU", 0.0) for request in requests), reverse=True):
        whole = int(amount)
        gpus.extend([0.0] * whole)
        if amount > whole:
            fits = next((i for i, free in enumerate(gpus) if free + TOLERANCE > amount - whole), None)
            if fits is None:
                gpus.append(1.0)
                fits = len(gpus) - 1
            gpus[fits] -= amount - whole
    return {**{name: math.ceil(amount) for name, amount in totals.items()}, "GPU": float(len(gpus))}


def node_resources() -> list[Resources]:
    """Total resources of every living node."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def check_feasible(requests: Sequence[Request], nodes: Sequence[Resources]) -> None:
    """Raises ResourceError when these nodes, empty, could not hold all requests at once.

    The pickiest request first, each on the node with room that has the fewest kinds of resources: a CPU client does
    not take the place of a GPU client. What this places, Ray can place.
    """
    free = sorted((dict(node) for node in nodes), key=_kinds)
    for request in sorted(requests, key=lambda item: (-_kinds(item.resources), -sum(item.resources.values()))):
        node = next((node for node in free if _fits(request.resources, node)), None)
        if node is None:
            raise ResourceError(_shortage(request, requests, nodes))
        for name, amount in request.resources.items():
            node[name] = node.get(name, 0.0) - amount


def _kinds(resources: Resources) -> int:
    return sum(amount > 0 for name, amount in resources.items() if not name.startswith("node:"))


def _fits(wanted: Resources, node: Resources) -> bool:
    return all(node.get(name, 0.0) + TOLERANCE > amount for name, amount in wanted.items() if amount > 0)


def _shortage(request: Request, requests: Sequence[Request], nodes: Sequence[Resources]) -> str:
    alone = any(_fits(request.resources, node) for node in nodes)
    asked = _text(request.resources)
    has = "; ".join(_text({k: v for k, v in node.items() if not k.startswith("node:")}) for node in nodes)
    if not alone:
        return (
            f"{request.who} asks for {asked}, and no node of the cluster has that (nodes: {has}); "
            f"lower {request.config_key} or add such a node"
        )
    totals: dict[str, float] = {}
    for item in requests:
        for name, amount in item.resources.items():
            totals[name] = totals.get(name, 0.0) + amount
    return (
        f"the run asks for {_text(totals)} in {len(requests)} actors, and {request.who} ({asked}) finds no room "
        f"beside the others (nodes: {has}); lower {request.config_key} or the number of clients, or add nodes"
    )


def _text(resources: Resources) -> str:
    shown = [
        f"{amount:g} {name}"
        for name, amount in sorted(resources.items())
        if name not in ("object_store_memory",) and amount > 0
    ]
    return ", ".join(shown) or "nothing"
