"""The server parts of a run's bundles as a Ray Serve application. The only importer of `ray.serve`."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any

import numpy as np
import ray
import torch
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import ApplicationStatus, LoggingConfig
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from actors.cluster.connection import connected
from actors.cluster.ray_internals import process_of
from actors.cluster.resources import Request
from actors.serving.door import put_in_front
from actors.serving.http_handler import HttpHandler
from hsee_ray.config.schema import ClusterConfig
from hsee_ray.deploy.server_models import Bundles, ServerModels, sent_features
from hsee_ray.edge.codecs import CODE_TYPES
from hsee_ray.edge.protocol import READY_PATH, Offload
from hsee_ray.errors import ResourceError, RunError
from hsee_ray.models.torch_device import choose_device

Array = np.ndarray[Any, Any]

APPLICATION = "hsee"
HEALTH_PATH = "/-/healthz"
_NAMESPACE = "serve"
START_TIMEOUT_S = 300.0
GONE_S = 300.0
"""Ray Serve replaces what has died of its own sooner; where nothing answers for so long, nothing will."""
CONNECTIONS = 4096
"""Requests that a replica reads at once, and as many may wait outside; whoever comes then is told to come again."""
_POLL_S = 0.2
_WATCH_S = 5.0


@dataclass(frozen=True)
class Service:
    """How a run is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    min_replicas: int = 1
    max_replicas: int = 1
    num_cpus: float = 1.0
    """Of each replica; the whole ones are its threads."""
    num_gpus: float = 0.0
    max_batch_size: int = 32
    """Requests of one micro-batch."""
    batch_wait_s: float = 0.002
    """How long the first request of a micro-batch waits for others."""
    max_body_bytes: int = 64 << 20
    token_digest: bytes | None = None
    """Of the token that requests must bear; None where anyone may ask."""
    address: str | None = None
    """Ray cluster to join; None for a local Ray of its own."""


class Replica:
    """One process with all models of a run, and the requests that Ray Serve hands to it."""

    def __init__(self, bundles: Bundles, service: Service) -> None:
        torch.set_num_threads(max(1, int(service.num_cpus)))
        self.models = ServerModels(bundles, choose_device("auto", service.num_gpus, torch.cuda.is_available()))
        self.served = sent_features(bundles)
        (network,) = {bundle.network for bundle in bundles.values()}
        self.handle = HttpHandler(
            network, self.served, self.answer, service.max_body_bytes, service.token_digest, 4 * service.max_batch_size
        )
        # A thread beside the event loop, and no second one: it would only take the first one's cores.
        self.computing = ThreadPoolExecutor(1)
        batched = serve.batch(max_batch_size=service.max_batch_size, batch_wait_timeout_s=service.batch_wait_s)
        self.answer_in_batch = batched(self.answer_batch)

    async def __call__(self, request: HttpRequest) -> Response:
        return await self.handle(request)

    async def answer(self, offload: Offload) -> Array:
        answer = await self.answer_in_batch(offload)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def answer_batch(self, offloads: list[Offload]) -> list[Array | Exception]:
        return await asyncio.get_running_loop().run_in_executor(self.computing, self.models.answer_all, offloads)

    async def check_health(self) -> None:
        """Fails where one sample cannot be answered, as with a broken GPU: Ray Serve then replaces the replica."""
        client, sent = next(iter(self.served.items()))
        sample = np.zeros((1, *sent.shape), CODE_TYPES[sent.codec])
        await asyncio.get_running_loop().run_in_executor(self.computing, self.models.answer, client, sample)


class Server:
    """The application while it serves, for whoever has started it."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def watch(self) -> None:
        """Returns when nothing has answered for long: Ray is gone, or somebody has shut down Ray Serve."""
        last_seen = time.monotonic()
        while time.monotonic() < last_seen + GONE_S:
            # The proxy's own answer does not wait for a replica; without the application there is no such path.
            if self.get(HEALTH_PATH) == 200 and self.get(READY_PATH) != 404:
                last_seen = time.monotonic()
            time.sleep(_WATCH_S)

    def get(self, path: str) -> int:
        """Status of an answer; 0 where there is none."""
        connection = HTTPConnection(self.host, self.port, timeout=_WATCH_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, HTTPException):
            return 0
        finally:
            connection.close()

    def metrics_urls(self) -> list[str]:
        """URLs of Ray's metrics of each node, in Prometheus' format."""
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        alive = [node for node in nodes if node["Alive"]]
        return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in alive]

    def replica_processes(self) -> list[int]:
        """Process ids of the replicas, each on its own node."""
        actors = ray.util.list_named_actors(all_namespaces=True)
        names = [actor["name"] for actor in actors if actor["name"].startswith(f"SERVE_REPLICA::{APPLICATION}#")]
        found = [process_of(ray.get_actor(name, _NAMESPACE)) for name in names]
        return [pid for pid in found if pid is not None]


@contextmanager
def serving(bundles: Bundles, service: Service) -> Iterator[Server]:
    """Serves for the length of the block, and is ready when it begins.

    Raises ResourceError when the port is taken or the cluster cannot give what is asked, RunError when the server
    does not start.
    """
    server = Server(service.host, find_port(service.host, service.port))
    # On a cluster, what is needed from the beginning; a local Ray must hold what it may grow to.
    replicas = service.max_replicas if service.address is None else service.min_replicas
    request = Request("a replica", "replicas", "--num-cpus", {"CPU": service.num_cpus, "GPU": service.num_gpus})
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    put_in_front()
    with connected(ClusterConfig(address=service.address), [request] * replicas, print_waiting, metrics=True):
        if serve.status().proxies:
            raise ResourceError("Ray Serve is at work on this cluster already; end it with `serve shutdown` first")
        try:
            _deploy(bundles, service, server)
            _wait_until_ready(server)
            yield server
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]


def print_waiting(who: str, text: str) -> None:
    print(f"{who}: {text}", flush=True)


def find_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises ResourceError when this machine cannot listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # Connections of a server that has just ended do not count, only one that listens.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror or error
            raise ResourceError(f"--host {host} --port {port}: cannot listen there ({reason}); give others") from None
        found: int = probe.getsockname()[1]
        return found


def _deploy(bundles: Bundles, service: Service, server: Server) -> None:
    """Has Ray Serve start the application. Raises RunError when it does not listen or not take it."""
    try:
        serve.start(
            ProxyLocation.HeadOnly,
            HTTPOptions(host=server.host, port=server.port),
            logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        )
        application = serve.RunTarget(_application(bundles, service), APPLICATION)
        serve.run_many([application], wait_for_applications_running=False)
    except RuntimeError as error:
        raise RunError(f"the server did not start: {_last_line(str(error))}") from error


def _wait_until_ready(server: Server) -> None:
    """Returns when a request would be answered. Raises RunError when the replicas fail or find no place."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        application = serve.status().applications[APPLICATION]
        if application.status == ApplicationStatus.DEPLOY_FAILED:
            messages = [deployment.message for deployment in application.deployments.values()]
            raise RunError(f"the server did not start: {_last_line((messages or [application.message])[-1])}")
        # The door opens a little later than the replicas are there.
        if application.status == ApplicationStatus.RUNNING and server.get(READY_PATH) == 200:
            return
        if time.monotonic() > deadline:
            raise RunError(f"the server did not start within {START_TIMEOUT_S:g} s; has the cluster room for it?")
        time.sleep(_POLL_S)


def _last_line(text: str) -> str:
    """The error itself, of an error with a traceback in it."""
    return (text.strip().splitlines() or ["no reason given"])[-1].strip()


def _application(bundles: Bundles, service: Service) -> serve.Application:
    fixed = service.min_replicas == service.max_replicas
    scaling = {
        "min_replicas": service.min_replicas,
        "max_replicas": service.max_replicas,
        "target_ongoing_requests": service.max_batch_size,
    }
    deployment = serve.deployment(
        num_replicas=service.min_replicas if fixed else None,
        autoscaling_config=None if fixed else scaling,
        # A health check waits for the batch that is being computed.
        health_check_timeout_s=120.0,
        ray_actor_options={"num_cpus": service.num_cpus, "num_gpus": service.num_gpus},
        # A body is read in the replica, and only a whole one takes one of its few places (`HttpHandler`).
        max_ongoing_requests=CONNECTIONS,
        max_queued_requests=CONNECTIONS,
    )
    return deployment(Replica).bind(bundles, service)
