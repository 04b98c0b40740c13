"""Real Ray clusters on this machine for tests: started by Ray's own command, ended with the test without `ray stop`."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HEAD_ID = "f" * 51 + "00000"
"""The id that Ray's fake provider expects of its head."""


@dataclass
class Head:
    """A head node that runs, and how to reach it."""

    ip: str
    port: int
    dashboard_port: int
    metrics_port: int
    folder: str
    """Ray's files: with the machine's other clusters they would say which one was started last."""
    environment: dict[str, str] = field(default_factory=dict)
    """What a process needs to be let in."""

    @property
    def address(self) -> str:
        return f"{self.ip}:{self.port}"

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"


def new_head(location: Path) -> Head:
    """Ports, and a token of its own, for a head that is not there yet. `location` is where its jobs keep runs."""
    from ray.util import get_node_ip_address

    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "HOME": str(location),
        # A job's `python` is the one with this project.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    return Head(
        get_node_ip_address(), _free_port(), _free_port(), _free_port(), tempfile.mkdtemp(prefix="ray-"), environment
    )


def start_head(start: Callable[..., Any], head: Head, *options: str, environment: dict[str, str] | None = None) -> Any:
    """Starts Ray's head as a command of the test; waits until it answers."""
    command = start(
        "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
        f"--port={head.port}", f"--dashboard-port={head.dashboard_port}",
        f"--metrics-export-port={head.metrics_port}", f"--temp-dir={head.folder}",
        f"--dashboard-agent-listen-port={_free_port()}", f"--ray-client-server-port={_free_port()}", *options,
        environment={**head.environment, **(environment or {})},
    )  # fmt: skip
    command.wait_for_line("--block", timeout_s=60)
    return command


def fake_autoscaling(head: Head, node_types: dict[str, dict[str, Any]], file: Path) -> tuple[str, dict[str, str]]:
    """Writes an autoscaling cluster whose nodes are processes on this machine, in the layout of `cluster.yaml`.

    Gives the option of `ray start` and the environment that it takes.
    """
    commands = (
        "file_mounts", "cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands",
        "setup_commands", "head_setup_commands", "worker_setup_commands", "head_start_ray_commands",
        "worker_start_ray_commands",
    )  # fmt: skip
    config: dict[str, Any] = {
        "cluster_name": "fake",
        "max_workers": 8,
        "idle_timeout_minutes": 0.05,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": head.address,
        },
        "auth": {},
        "file_mounts_sync_continuously": False,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **{name: {"node_config": {}, "min_workers": 0, **values} for name, values in node_types.items()},
        },
        **{name: {} if name == "file_mounts" else [] for name in commands},
    }
    file.write_text(yaml.safe_dump(config))
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    return f"--autoscaling-config={file}", environment


def worker_nodes(head: Head) -> list[dict[str, float]]:
    """Resources of every living node beside the head, asked in a process that has the head's token."""
    script = (
        "import json, ray, logging; "
        f"ray.init(address={head.address!r}, log_to_driver=False, logging_level=logging.ERROR); "
        "print(json.dumps([n['Resources'] for n in ray.nodes() if n['Alive'] "
        "and 'node:__internal_head__' not in n['Resources']]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **head.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    nodes: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return nodes


def wait_until_alone(head: Head, timeout_s: float) -> list[dict[str, float]]:
    """Waits until the head has no other node beside it; gives those that are left when the time is over."""
    deadline = time.monotonic() + timeout_s
    while (left := worker_nodes(head)) and time.monotonic() < deadline:
        time.sleep(1)
    return left


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def metrics(head: Head, wanted: str, timeout_s: float) -> str:
    """What the head's node shows to Prometheus, as soon as it holds a text; as it is when the time is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        with urllib.request.urlopen(f"http://{head.ip}:{head.metrics_port}/metrics", timeout=10) as answer:
            shown: str = answer.read().decode()
        if wanted in shown or time.monotonic() > deadline:
            return shown
        time.sleep(1)
