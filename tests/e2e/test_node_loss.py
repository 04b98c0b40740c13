"""A node with clients and servers on it goes, another comes: the run ends in the bits of the undisturbed one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import Command
from tests.e2e.test_resume_command import CONFIG, reference_digest

Start = Callable[..., Command]


@pytest.mark.parametrize(
    ("strategy", "lost_in", "goes_back_to"),
    [("averaging", 4, None), ("distributed", 4, "round 2")],
)
def test_a_lost_node_changes_no_bit(
    strategy: str, lost_in: int, goes_back_to: str | None, start: Start, tmp_path: Path
) -> None:
    config = {
        **CONFIG,
        "tiers": [
            {"name": "sensor", "clients": 1, "cut": "stem", "resources": {"num_cpus": 0.5, "custom": {"stays": 1}}},
            {"name": "hub", "clients": 1, "cut": "body.1", "resources": {"num_cpus": 0.5, "custom": {"goes": 1}}},
        ],
        "server": {"resources": {"num_cpus": 0.5, "custom": {"goes": 1}}},
        "training": {"strategy": strategy, "rounds": 6, "batch_size": 8},
        "checkpoint": {"every": 2},
        "failures": {"max_total": 5, "step_timeout_s": 60},
    }
    config_file = tmp_path / "nodes.yaml"
    config_file.write_text(yaml.safe_dump(config))
    command = start("tests.e2e.node_loss", config_file, tmp_path / "run", lost_in)
    out, err = command.finish(timeout_s=300)
    assert command.process.returncode == 0, err
    said = json.loads(out.splitlines()[-1])
    assert said["lost"]
    # Distributed has snapshots on the lost node only. In Averaging the aggregator has fetched copies of them.
    if goes_back_to is not None:
        assert any(f"goes back to {goes_back_to}" in event for event in said["events"]), said["events"]
    assert said["digest"] == reference_digest(config_file, tmp_path / "reference")
    assert command.left_behind() == []


@pytest.mark.parametrize("placement", ["pack", "colocate"])
def test_a_node_that_is_taken_back_with_notice_is_left_in_time(placement: str, start: Start, tmp_path: Path) -> None:
    goes = {"num_cpus": 0.5, "custom": {"goes": 1}}
    stays = {"num_cpus": 0.5, "custom": {"stays": 1}}
    config = {
        **CONFIG,
        "tiers": [
            {"name": "sensor", "clients": 1, "cut": "stem", "resources": goes},
            {"name": "hub", "clients": 1, "cut": "body.1", "resources": goes if placement == "colocate" else stays},
        ],
        "server": {"resources": goes},
        "training": {"strategy": "distributed", "rounds": 8, "batch_size": 8},
        "cluster": {"placement": placement},
        "checkpoint": {"every": 100},
        "failures": {"max_per_actor": 0, "max_total": 0, "step_timeout_s": 60},
    }
    config_file = tmp_path / "nodes.yaml"
    config_file.write_text(yaml.safe_dump(config))
    command = start("tests.e2e.drained_node", config_file, tmp_path / "run", 3)
    out, err = command.finish(timeout_s=300)
    assert command.process.returncode == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("{")]
    said = json.loads(line)
    assert any("goes within" in event and "actors move" in event for event in said["events"]), said["events"]
    assert not any("goes back" in event for event in said["events"]), said["events"]
    assert said["failures"] == {}
    assert said["digest"] == reference_digest(config_file, tmp_path / "reference")
    assert command.left_behind() == []
