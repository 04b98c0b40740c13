"""Ray's knowledge of actors and nodes. The only use of its private state."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import ray
import ray._private.state
import ray._private.utils
from ray._common.network_utils import build_address  # type: ignore[attr-defined]
from ray._private import ray_constants, services
from ray._private.grpc_utils import init_grpc_channel
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.actor import ActorHandle
from ray.core.generated.gcs_service_pb2 import CheckAliveRequest  # type: ignore[attr-defined]
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.core.generated.node_manager_pb2 import FormatGlobalMemoryInfoRequest  # type: ignore[attr-defined]
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

from actors.cluster.resources import Node

ASK_S = 5.0
"""For what is only told, and never waited for."""


@contextmanager
def daemons_in_own_groups() -> Iterator[None]:
    """Ray's daemons that start in the block get process groups of their own.

    A signal to the group of the driver, as `timeout` and terminals send it, would end them before the run can leave a
    checkpoint.
    """
    module: Any = services
    popen = module.ConsolePopen
    module.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    finally:
        module.ConsolePopen = popen


@contextmanager
def loopback_only() -> Iterator[None]:
    """A Ray that starts in the block listens on this machine only, with all its ports.

    Ray does so where it can have no cluster (on macOS and Windows), and replaces a loopback address elsewhere.
    """
    constants: Any = ray_constants
    clusters = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = clusters


@contextmanager
def token_of_its_own() -> Iterator[None]:
    """A Ray that starts in the block asks for a random token, which its processes find in their environment.

    Whatever the user has for other clusters (mode, token, file) is there again after the block.
    """
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    before = {name: os.environ.get(name) for name in ours}
    _set_authentication(ours)
    try:
        yield
    finally:
        _set_authentication(before)


def _set_authentication(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
    Config.initialize("")  # Ray reads the environment when it is loaded, and keeps a token that it has read
    AuthenticationTokenLoader.instance().reset_cache()


def own_daemons() -> dict[str, subprocess.Popen[bytes]]:
    """Daemons that this process's own Ray cannot do without."""
    node: Any = ray._private.worker._global_node
    return {name: node.all_processes[name][0].process for name in ("raylet", "gcs_server")}


def temp_dir() -> str:
    """Directory in which a Ray that this process starts keeps its sockets and logs: Ray's default, made absolute."""
    system = os.environ.get("TMPDIR") if sys.platform == "linux" else None
    return os.path.abspath(os.path.join(os.environ.get("RAY_TMPDIR") or system or "/tmp", "ray"))


def ping(address: str, timeout_s: float) -> None:
    """Asks whether a Ray cluster answers at HOST:PORT: joining one that does not, Ray would try for minutes.

    Raises ConnectionError, or PermissionError when it asks for another token.
    """
    channel = init_grpc_channel(address)
    try:
        alive = NodeInfoGcsServiceStub(channel).CheckAlive  # type: ignore[no-untyped-call]
        alive(CheckAliveRequest(), timeout=timeout_s, wait_for_ready=True)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise PermissionError(error.details()) from None
        raise ConnectionError(f"nothing within {timeout_s:g} s") from None
    finally:
        channel.close()


def process_of(actor: ActorHandle[Any]) -> int | None:
    """Process id of an actor on its node, also while it starts; None before it has a place."""
    entry = ray._private.state.actors(actor._actor_id.hex())
    return entry.get("Pid") or None


def placed_actors(actors: Mapping[Any, ActorHandle[Any]]) -> set[Any]:
    """Those of the actors that have a process on some node."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    table: dict[str, dict[str, Any]] = ray._private.state.actors(job_id=job)
    return {name for name, actor in actors.items() if table.get(actor._actor_id.hex(), {}).get("Pid")}


def draining_nodes() -> dict[str, int]:
    """Nodes that are about to go, with the time at which they do, in ms since 1970; 0 when nobody knows."""
    return dict(ray._private.state.state.get_draining_nodes())


def spilled_bytes() -> int | None:
    """Bytes that the object stores of all nodes have spilled to disk so far; None if unknown."""
    living = next((node for node in ray.nodes() if node["Alive"]), None)  # type: ignore[no-untyped-call]
    if living is None:
        return None
    channel = init_grpc_channel(build_address(living["NodeManagerAddress"], living["NodeManagerPort"]))
    try:
        ask_all_nodes = NodeManagerServiceStub(channel).FormatGlobalMemoryInfo  # type: ignore[no-untyped-call]
        reply = ask_all_nodes(FormatGlobalMemoryInfoRequest(), timeout=ASK_S)
    except grpc.RpcError:
        return None
    finally:
        channel.close()
    return int(reply.store_stats.spilled_bytes_total)


def living_nodes() -> list[Node]:
    """Nodes that can take actors, with what is free on them."""
    free = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]
    return [
        Node(node["Resources"], free.get(node["NodeID"], node["Resources"]), node.get("Labels") or {})
        for node in _staying_nodes()
    ]


def node_ids() -> dict[str, str]:
    """Living nodes that stay: id -> address."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in _staying_nodes()}


def _staying_nodes() -> list[dict[str, Any]]:
    draining = draining_nodes()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"] and node["NodeID"] not in draining]


def may_grow() -> bool:
    """Whether the cluster seems to have an autoscaler that can add nodes.

    A cluster without one has a monitor all the same, which calls every node a type of its own.
    """
    gcs: Any = ray._private.worker.global_worker.gcs_client  # type: ignore[attr-defined]
    if gcs.internal_kv_get(b"__autoscaler_v2_enabled", b"__autoscaler") == b"1":
        return True
    status = gcs.internal_kv_get(b"__autoscaling_status", None)
    types: Iterable[str] = json.loads(status).get("autoscaler_report", {}).get("active_nodes", ()) if status else ()
    return any(not name.startswith("node_") for name in types)


def free_memory() -> int:
    """Bytes of memory that this machine, or the container that this is in, has left."""
    utils: Any = ray._private.utils
    return max(0, int(utils.get_system_memory() - utils.get_used_memory()))
