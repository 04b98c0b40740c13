"""`serve`: devices and their server together on this machine, over loopback.

Each device is a thread with one client's bundle; a tau that nothing exceeds makes it send every image. Its answers
must be those that the server's models give without a server in between.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from jobs.benches.common import Result, refuse_cluster
from jobs.options import at_least

if TYPE_CHECKING:
    import numpy as np

    from actors.serving.application import Server
    from hsee_ray.deploy.server_models import Bundles
    from hsee_ray.edge.edge_client import EdgeClient

    Array = np.ndarray[Any, Any]

DESCRIPTION = "Measure a server: many requests of concurrent devices, if asked while a replica is killed."
IMAGES = 16
"""Of each device, which it sends in turns."""
METRICS_DELAY_S = 12.0
"""Ray's processes hand their metrics on every 10 seconds."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="an export")
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="in all (default: 10000)")
    parser.add_argument("--clients", type=int, default=8, metavar="N", help="devices at once (default: 8)")
    parser.add_argument("--replicas", type=int, default=1, metavar="N", help="of the server (default: 1)")
    parser.add_argument("--kill-replica", action="store_true", help="SIGKILL one when half of the requests are done")


@dataclass
class Device:
    """One thread's client, what it sends, and what came of it."""

    edge: EdgeClient
    images: list[Array]
    labels: list[int]
    """Predictions of the server's models for the images."""
    requests: int
    latencies_ms: list[float] = field(default_factory=list)
    """Of the requests that were answered."""
    wrong: int = 0
    done: int = 0

    def run(self) -> None:
        from hsee_ray.errors import HseeError

        for index in range(self.requests):
            with suppress(HseeError):  # who has no latency has failed
                (answer,) = self.edge.predict(self.images[index % IMAGES])
                self.latencies_ms.append(answer.latency_ms)
                self.wrong += answer.label != self.labels[index % IMAGES]
            self.done += 1


def measure(options: argparse.Namespace) -> Result:
    """Failures, latency, speed and batch sizes; an error when a request was not answered, or wrongly."""
    at_least(options, requests=1, clients=1, replicas=1)
    refuse_cluster()
    from actors.serving.application import Service, serving
    from hsee_ray.deploy.server_models import find_bundles

    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it reports every retry
    bundles = find_bundles(options.bundle)
    service = Service(port=0, min_replicas=options.replicas, max_replicas=options.replicas)
    with serving(bundles, service) as server, counted_retries() as retries:
        devices = _devices(bundles, server.url, options.requests, options.clients)
        begin = time.perf_counter()
        killed = _drive(server, devices, options.requests // 2 if options.kill_replica else None)
        wall_s = time.perf_counter() - begin
        time.sleep(METRICS_DELAY_S)
        sizes = batch_sizes(_metrics(server.metrics_urls()[0]))
    latencies_ms = sorted(latency for device in devices for latency in device.latencies_ms)
    failed, wrong = options.requests - len(latencies_ms), sum(device.wrong for device in devices)
    return {
        "requests": options.requests,
        "devices": options.clients,
        "replicas": options.replicas,
        "wall_s": wall_s,
        "failed": failed,
        "wrong": wrong,
        "retries": dict(retries),
        "latency_ms": _percentiles(latencies_ms),
        "micro_batches": sizes,
        "killed": killed,
        **({"error": f"{failed} requests failed, {wrong} were answered wrongly"} if failed or wrong else {}),
    }


def render(result: Mapping[str, Any]) -> str:
    retries, latency_ms = result["retries"], result["latency_ms"]
    micro_batches = ", ".join(f"{count} of {size}" for size, count in result["micro_batches"].items())
    lines = [
        f"requests      {result['requests']} of {result['devices']} devices in {result['wall_s']:.1f} s",
        f"speed         {result['requests'] / result['wall_s']:.0f} requests/s, replicas: {result['replicas']}",
        f"failed        {result['failed']}, answered wrongly {result['wrong']}, tried again {sum(retries.values())} "
        f"{retries or ''}",
    ]
    if latency_ms:
        p50, p99, longest = (latency_ms[name] for name in ("p50", "p99", "longest"))
        lines.append(f"latency       p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {longest:.0f} ms")
    lines.append(f"micro-batches {micro_batches} requests")
    if result["killed"] is not None:
        lines.append(f"killed        replica {result['killed']}, after half of the requests")
    return "\n".join(lines)


def _percentiles(latencies_ms: Sequence[float]) -> dict[str, float]:
    """Of sorted latencies; empty when there are none."""
    if not latencies_ms:
        return {}
    p50, p99 = (latencies_ms[int(share * (len(latencies_ms) - 1))] for share in (0.5, 0.99))
    return {"p50": p50, "p99": p99, "longest": latencies_ms[-1]}


def _devices(bundles: Bundles, url: str, requests: int, clients: int) -> list[Device]:
    """Devices of the run's clients in turn, each with random images and the answers to expect."""
    import numpy as np
    import onnxruntime as ort
    import torch

    from hsee_ray.deploy.server_models import ServerModels
    from hsee_ray.edge.bundle import CLIENT_MODEL
    from hsee_ray.edge.edge_client import EdgeClient
    from hsee_ray.edge.gate import SENDS_ALL
    from hsee_ray.rng import generator

    models = ServerModels(bundles, torch.device("cpu"))
    devices: list[Device] = []
    for number in range(clients):
        directory, bundle = list(bundles.items())[number % len(bundles)]
        images = generator(number, "bench").integers(0, 256, (IMAGES, *bundle.image_shape), np.uint8)
        _, features = ort.InferenceSession(directory / CLIENT_MODEL).run(None, {"images": images})
        edge = EdgeClient(directory, url, threads=1, on_unreachable="raise")
        edge.bundle = replace(bundle, gate=replace(bundle.gate, tau=SENDS_ALL))
        share = len(range(number, requests, clients))
        devices.append(Device(edge, list(images), models.answer(bundle.client, features).tolist(), share))
    return devices


def _drive(server: Server, devices: list[Device], kill_after: int | None) -> int | None:
    """Runs all devices at once to their ends; gives the process that was killed on the way."""
    threads = [threading.Thread(target=device.run, daemon=True) for device in devices]
    for thread in threads:
        thread.start()
    killed = None
    while any(thread.is_alive() for thread in threads):
        if kill_after is not None and killed is None and sum(device.done for device in devices) >= kill_after:
            killed = server.replica_processes()[0]
            os.kill(killed, signal.SIGKILL)
        time.sleep(0.05)
    return killed


@contextmanager
def counted_retries() -> Iterator[Counter[str]]:
    """Counts what devices try again in the block, by the reason."""
    import urllib3

    counts: Counter[str] = Counter()
    increment = urllib3.Retry.increment

    def counting(*which: Any, **why: Any) -> urllib3.Retry:
        response = why.get("response")
        counts[type(why.get("error")).__name__ if response is None else f"status {response.status}"] += 1
        again: urllib3.Retry = increment(*which, **why)
        return again

    with patch.object(urllib3.Retry, "increment", counting):
        yield counts


def _metrics(url: str) -> str:
    import urllib3

    return urllib3.request("GET", url, timeout=10).data.decode()


def batch_sizes(metrics: str) -> dict[str, int]:
    """How many micro-batches had `1`, `2`, `3-4`, `5-8` ... requests, of Ray Serve's metrics in Prometheus' format."""
    up_to: Counter[int] = Counter()
    for size, count in re.findall(
        r'^ray_serve_actual_batch_size_bucket\{.*\ble="([\d.]+)".*\} ([\d.]+)$', metrics, re.M
    ):
        up_to[int(float(size))] += int(float(count))
    sizes: dict[str, int] = {}
    last_size = last_count = 0
    for size, count in sorted(up_to.items()):
        if count > last_count:
            sizes[str(size) if size == last_size + 1 else f"{last_size + 1}-{size}"] = count - last_count
        last_size, last_count = size, count
    return sizes
