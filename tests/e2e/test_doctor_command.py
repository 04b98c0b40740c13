"""The doctor's verdicts on a real cluster of two nodes, one of which has other software than the driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Command

Start = Callable[..., Command]

LIMIT_S = 60.0
"""Far above the seconds that it takes: a hang must fail, a busy machine must not."""
CONFIG: dict[str, Any] = {
    "model": {"width": 4},
    "data": {"name": "synthetic", "image_size": 8, "classes": 3},
    "tiers": [{"name": "sensor", "clients": 2, "cut": "stem", "resources": {"num_cpus": 1}}],
    "server": {"resources": {"num_cpus": 0.5}},
}
CLUSTER_YAML = {
    "max_workers": 4,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}},
        "gpu": {"resources": {"CPU": 8, "GPU": 1}, "labels": {"zone": "a"}, "max_workers": 2},
    },
}


@dataclass
class Nodes:
    """A cluster of tests/e2e/two_nodes.py."""

    address: str
    folder: Path


@pytest.fixture(scope="module")
def nodes(start_for_module: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bool], Nodes]]:
    """Starts the cluster when it is first asked for; `True`: with a node that has another numpy."""
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER_YAML))
    started: dict[bool, tuple[Command, Nodes]] = {}

    def of(mixed: bool) -> Nodes:
        if mixed not in started:
            command = start_for_module("tests.e2e.two_nodes", folder, *(["other"] if mixed else []))
            command.wait_for_line("ready at ", timeout_s=90)
            address = next(line.split()[-1] for line in command.lines if line.startswith("ready at "))
            started[mixed] = command, Nodes(address, folder)
        return started[mixed][1]

    yield of
    for command, _ in started.values():
        command.process.terminate()
        command.finish()
        assert command.left_behind() == []


def doctor(
    start: Start, nodes: Nodes | None, tmp_path: Path, *overrides: str, options: tuple[Any, ...] = ()
) -> tuple[int, str]:
    """Exit code and everything that was printed."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    address = [] if nodes is None else [f"cluster.address={nodes.address}"]
    storage = f"storage.uri={tmp_path / 'runs'}"
    begin = time.monotonic()
    command = start("jobs.doctor", "--config", file, *options, "--set", storage, *address, *overrides)
    out, err = command.finish(timeout_s=LIMIT_S)
    print(f"{time.monotonic() - begin:.1f} s {overrides}")
    assert "Traceback" not in err
    return command.process.returncode, out + err


GPU = "tiers.0.resources.num_gpus=0.5"


@pytest.mark.parametrize(
    ("overrides", "code", "told"),
    [
        ([], 0, "1 CPU  fits"),
        ([GPU, "cluster.node_types=FOLDER/cluster.yaml"], 2, "no node has any GPU"),  # it has no autoscaler
        ([GPU], 2, "no node has any GPU"),
        (["tiers.0.resources.num_cpus=64"], 2, "no node has 64 CPU (the most is 4 CPU)"),
        (["tiers.0.resources.memory=9000000000000"], 2, "no node has 8.38e+03 GiB memory (the most is"),
        (["tiers.0.resources.custom={jetson: 1}"], 2, "no node has any jetson"),
        (["tiers.0.resources.label_selector={zone: moon}"], 2, "no node has the label zone=moon (zone is b)"),
        (["tiers.0.resources.accelerator_type=H100"], 2, "no node has any accelerator_type:H100"),
        (["tiers.0.clients=9"], 2, "finds no room beside the others"),
        (["tiers.0.clients=9", "tiers.0.slots=2", "server.slots=2"], 0, "1 CPU  fits"),
        (["storage.uri=/proc/no/such"], 2, "BAD      storage: /proc/no/such cannot be written to"),
        (["storage.uri=nowhere://bucket"], 2, "nowhere://bucket: is no storage that can be reached"),
    ],
    ids=["fits", "static", "gpu", "cpu", "memory", "custom", "label", "model", "total", "turns", "storage", "kind"],
)  # fmt: skip
def test_the_verdict_on_a_cluster(
    overrides: list[str], code: int, told: str, nodes: Callable[[bool], Nodes], start: Start, tmp_path: Path
) -> None:
    cluster = nodes(False)
    given = [override.replace("FOLDER", str(cluster.folder)) for override in overrides]
    found, said = doctor(start, cluster, tmp_path, *given)
    assert found == code, said
    assert told in said


def test_other_software_on_a_node_is_noticed(nodes: Callable[[bool], Nodes], start: Start, tmp_path: Path) -> None:
    found, said = doctor(start, nodes(True), tmp_path)
    assert found == 2
    assert "has numpy 9.9.9 and not " in said


def test_a_file_alone_is_judged(nodes: Callable[[bool], Nodes], start: Start, tmp_path: Path) -> None:
    file = nodes(False).folder / "cluster.yaml"
    found, said = doctor(start, None, tmp_path, GPU, options=("--cluster-yaml", file))
    assert found == 0, said
    assert "waits for 1 more node of type gpu" in said


def test_a_cluster_that_does_not_answer(start: Start, tmp_path: Path) -> None:
    found, said = doctor(start, None, tmp_path, "cluster.address=127.0.0.1:1")
    assert found == 2
    assert "no Ray cluster answers there" in said.splitlines()[-1]
