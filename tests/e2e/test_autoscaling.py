"""From the head alone: a run makes Ray's own autoscaler add the nodes of its tiers, and leaves the head alone again."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hsee_ray import load_run
from tests.clusters import Head, fake_autoscaling, new_head, start_head, wait_until_alone, worker_nodes
from tests.e2e.conftest import Command
from tests.e2e.test_resume_command import reference_digest

Start = Callable[..., Command]

CONFIG: dict[str, Any] = {
    "seed": 5,
    "model": {"name": "tests.networks:conv_units"},
    "data": {"name": "synthetic", "image_size": 8, "classes": 3, "train_samples": 120, "test_samples": 20},
    "tiers": [
        {"name": "sensor", "clients": 2, "cut": "stem", "resources": {"num_cpus": 0.5, "custom": {"sensor": 1}}},
        {
            "name": "hub",
            "clients": 2,
            "cut": "body.1",
            "resources": {"num_cpus": 0.5, "label_selector": {"tier": "hub"}},
        },
        {"name": "gateway", "clients": 2, "cut": "body.1", "resources": {"num_cpus": 0.5, "num_gpus": 0.5}},
    ],
    "server": {"resources": {"num_cpus": 0.5, "custom": {"server": 1}}},
    "training": {"strategy": "sequential", "rounds": 4, "batch_size": 8},
    "cluster": {"placement_timeout_s": 90},
    "checkpoint": {"every": 1},
}
NODE_TYPES: dict[str, dict[str, Any]] = {
    "sensor": {"resources": {"CPU": 1, "sensor": 2}, "max_workers": 2},
    "hub": {"resources": {"CPU": 2}, "labels": {"tier": "hub"}, "max_workers": 2},
    "gateway": {"resources": {"CPU": 2, "GPU": 1}, "max_workers": 2},
    "server": {"resources": {"CPU": 1, "server": 1}, "max_workers": 1},
}


@pytest.fixture(scope="module")
def cluster(start_for_module: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Head, Path]]:
    """A head that can grow, and the file that says to what."""
    folder = tmp_path_factory.mktemp("autoscaling")
    head, file = new_head(folder / "home"), folder / "cluster.yaml"
    option, environment = fake_autoscaling(head, NODE_TYPES, file)
    command = start_head(
        start_for_module, head, option, "--num-cpus=0", "--include-dashboard=false", environment=environment
    )
    yield head, file
    command.process.send_signal(signal.SIGTERM)
    assert command.left_behind() == []


@pytest.fixture
def config_file(cluster: tuple[Head, Path], tmp_path: Path) -> Path:
    head, file = cluster
    path = tmp_path / "tiers.yaml"
    settings = {**CONFIG["cluster"], "address": head.address, "node_types": str(file)}
    path.write_text(yaml.safe_dump({**CONFIG, "cluster": settings}))
    return path


def test_a_cluster_grows_for_a_run_and_shrinks_after_it(
    cluster: tuple[Head, Path], config_file: Path, start: Start, tmp_path: Path
) -> None:
    head, _ = cluster
    assert worker_nodes(head) == []
    command = start("jobs.train", "--config", config_file, "--run-dir", tmp_path / "run", environment=head.environment)
    command.wait_for_line("[round 2/4]")
    nodes = worker_nodes(head)
    out, err = command.finish()
    assert command.process.returncode == 0, err

    for tier, node_type in (("sensor", "sensor"), ("hub", "hub"), ("gateway", "gateway"), ("servers", "server")):
        assert f"tier {tier} (start): waits for 1 more node of type {node_type}" in out
    assert "gateway (start): has 0.5 GPU of Ray's and no CUDA" in out
    kinds = sorted(sorted(name for name in node if name in ("sensor", "server", "GPU")) for node in nodes)
    assert kinds == [[], ["GPU"], ["sensor"], ["server"]]
    assert load_run(tmp_path / "run").summary["weights_sha256"] == reference_digest(config_file, tmp_path / "reference")
    assert wait_until_alone(head, timeout_s=60) == []
    assert command.left_behind() == []


def test_a_cluster_shrinks_when_the_driver_has_been_killed(
    cluster: tuple[Head, Path], config_file: Path, start: Start, tmp_path: Path
) -> None:
    head, _ = cluster
    command = start(
        "jobs.train", "--config", config_file, "--run-dir", tmp_path / "run", "--set", "training.rounds=500",
        environment=head.environment,
    )  # fmt: skip
    command.wait_for_line("[round 2/500]")
    assert len(worker_nodes(head)) == 4
    command.process.kill()
    command.finish()
    assert wait_until_alone(head, timeout_s=60) == []


def test_what_no_node_type_has_is_refused_at_once(
    cluster: tuple[Head, Path], config_file: Path, start: Start, tmp_path: Path
) -> None:
    head, _ = cluster
    command = start(
        "jobs.train", "--config", config_file, "--run-dir", tmp_path / "run",
        "--set", "tiers.1.resources.label_selector={tier: moon}", environment=head.environment,
    )  # fmt: skip
    _, err = command.finish()
    assert command.process.returncode == 2
    assert (
        "asks for 0.5 CPU, label tier=moon, and no node has the label tier=moon (tier is hub)" in err.splitlines()[-1]
    )
    assert not (tmp_path / "run").exists()
