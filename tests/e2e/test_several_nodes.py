"""Clients land where their tier says, and features go from their node to the server's, past the driver."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.conftest import Command
from tests.e2e.test_resume_command import CONFIG, reference_digest

Start = Callable[..., Command]


def run_on_nodes(start: Start, tmp_path: Path, config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What the run says of itself, and the digest that it should have."""
    config_file = tmp_path / "nodes.yaml"
    config_file.write_text(yaml.safe_dump(config))
    command = start("tests.e2e.several_nodes", config_file, tmp_path / "run")
    out, err = command.finish(timeout_s=240)
    assert command.process.returncode == 0, err
    assert command.left_behind() == []
    return json.loads(out.splitlines()[-1]), reference_digest(config_file, tmp_path / "reference")


def tier(name: str, cut: str, **resources: Any) -> dict[str, Any]:
    return {"name": name, "clients": 2, "cut": cut, "resources": {"num_cpus": 0.5, **resources}}


def test_every_tier_is_on_its_node_and_features_cross_by_reference(start: Start, tmp_path: Path) -> None:
    config = {
        **CONFIG,
        "tiers": [
            tier("sensor", "stem", custom={"sensor": 1}),
            tier("gateway", "body.1", label_selector={"kind": "gateway"}),
        ],
        "server": {"resources": {"num_cpus": 0.5, "custom": {"server": 1}}},
        "training": {"strategy": "averaging", "rounds": 3, "batch_size": 8},
    }
    said, digest = run_on_nodes(start, tmp_path, config)
    assert said["digest"] == digest
    assert said["where"] == {
        **{f"client {number:03d}": "sensor" for number in (0, 1)},
        **{f"client {number:03d}": "gateway" for number in (2, 3)},
        **{f"server {number:03d}": "server" for number in range(4)},
    }
    # Made on the client's node, copied to the server's, and never on the driver's.
    assert {tuple(nodes) for client, nodes in said["paths"] if client in (0, 1)} == {("sensor", "server")}
    assert {tuple(nodes) for client, nodes in said["paths"] if client in (2, 3)} == {("gateway", "server")}


def test_a_client_and_its_server_share_a_node(start: Start, tmp_path: Path) -> None:
    config = {
        **CONFIG,
        "tiers": [tier("sensor", "stem", custom={"sensor": 1}), tier("hub", "body.1")],
        "server": {"resources": {"num_cpus": 0.5}},
        "training": {"strategy": "averaging", "rounds": 2, "batch_size": 8},
        "cluster": {"placement": "colocate"},
    }
    said, digest = run_on_nodes(start, tmp_path, config)
    assert said["digest"] == digest
    where = said["where"]
    assert all(where[f"client {number:03d}"] == where[f"server {number:03d}"] for number in range(4))
    assert where["client 000"] == where["client 001"] == "sensor"
    assert {len(nodes) for _, nodes in said["paths"]} == {1}, "nothing crosses between nodes"
