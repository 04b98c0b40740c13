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


def test_a_tier_that_goes_away_is_left_out_and_taken_back(start: Start, tmp_path: Path) -> None:
    """Under 20 kills; what the run says of who took part is what happened."""
    stays, goes = ({"num_cpus": 0.25, "custom": {node: 1}} for node in ("stays", "goes"))
    rounds, goes_in, comes_after = 8, 3, 5
    config = {
        **CONFIG,
        "tiers": [
            {"name": "sensor", "clients": 2, "cut": "stem", "resources": stays},
            {"name": "hub", "clients": 2, "cut": "body.1", "resources": goes},
        ],
        "server": {"slots": 2, "resources": stays},
        "training": {"strategy": "averaging", "rounds": rounds, "batch_size": 8, "local_epochs": 4},
        "failures": {"on_lost_client": "drop", "max_per_actor": 200, "max_total": 200, "step_timeout_s": 300},
        # Both longer than a start on a busy machine: only who has no node is left out, and nobody hangs.
        "cluster": {"placement_timeout_s": 60},
    }
    config_file = tmp_path / "nodes.yaml"
    config_file.write_text(yaml.safe_dump(config))
    command = start("tests.e2e.lost_tier", config_file, tmp_path / "run", 20, goes_in, comes_after, 0)
    out, err = command.finish(timeout_s=900)
    assert command.process.returncode == 0, err
    said = json.loads(next(line for line in out.splitlines() if line.startswith('{"summary"')))
    events, clients = said["events"], said["summary"]["clients"]
    took_part = {int(number): who for number, who in said["took_part"].items()}
    assert said["summary"]["rounds"] == rounds and said["hits"] >= 15
    for client in clients:
        number, label = client["id"], f"client {client['id']:03d}"
        of_client = [event for event in events if label in event]
        trained = [at for at in took_part if number in took_part[at]]
        assert client["trained_rounds"] == len(trained), events
        assert client["missed_rounds"] == [at for at in took_part if at not in trained], events
        dropped = [event for event in of_client if "go on without the client" in event]
        returned = [event for event in of_client if "takes part again" in event]
        if client["tier"] == "sensor":
            assert trained == [*range(1, rounds + 1)] and not dropped, events
        else:
            # The round in which the node goes may have had its turn already. Nobody waits for it twice.
            out_in = {*range(goes_in + 1, comes_after + 1)}
            assert not out_in & {*trained} and {*range(1, goes_in), *range(comes_after + 1, rounds + 1)} <= {*trained}
            assert len(dropped) == len(returned) == 1, events
    missed = sum(len(client["missed_rounds"]) for client in clients)
    assert f"left out: 2 of 2 hub clients, for {missed} of their {2 * rounds} rounds" in out
    assert command.left_behind() == []
