"""The paper's configs, each for one round over actors, on tiny files in the formats of the real data sets."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from actors.run.driver import run
from actors.workers.contract import ActorFactory
from hsee_ray.config.files import load_config
from hsee_ray.rundir.run import Run
from tests.tiny_data import accept_any_digest, write_cifar10, write_cifar100, write_stl10

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
LABEL_BYTES = 8

# Features of one sample in bytes, four for each value, at width 8: 8 channels after layer1, 16 after layer2 and 32
# after layer3. With the CIFAR stem, maps of 32x32 pixels are 32, 16 and 8 pixels wide there; with the ImageNet stem,
# maps of 96x96 pixels are 24, 12 and 6 pixels wide.
CIFAR_BYTES = {"sensor": 4 * 8 * 32 * 32, "hub": 4 * 16 * 16 * 16, "gateway": 4 * 32 * 8 * 8}
STL10_BYTES = {"sensor": 4 * 8 * 24 * 24, "hub": 4 * 16 * 12 * 12, "gateway": 4 * 32 * 6 * 6}


def one_round(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, create: ActorFactory) -> Run:
    """The config as it is shipped, but for where its data is, its length, its width and what it asks of Ray."""
    accept_any_digest(monkeypatch)
    small = [
        f"data.root={tmp_path / 'data'}",
        f"data.cache={tmp_path / 'cache'}",
        "training.rounds=1",
        "model.width=8",
        *(f"tiers.{tier}.slots=1" for tier in range(3)),
        "server.slots=2",
    ]
    return run(load_config(CONFIGS / f"{name}.yaml", small), tmp_path / "run", create=create)


def check_clients(finished: Run, samples: list[int], n_test: int, feature_bytes: dict[str, int]) -> None:
    clients = finished.summary["clients"]
    assert [(client["tier"], client["cut"], client["cut_index"]) for client in clients] == [
        ("sensor", "layer1.1", 3),
        ("sensor", "layer1.1", 3),
        ("hub", "layer2.1", 5),
        ("hub", "layer2.1", 5),
        ("gateway", "layer3.1", 7),
        ("gateway", "layer3.1", 7),
    ]
    assert [client["samples"] for client in clients] == samples
    for client in clients:
        one_sample = feature_bytes[client["tier"]]
        assert client["train_sent_bytes"] == client["samples"] * (one_sample + LABEL_BYTES)
        assert client["eval_sent_bytes"] == n_test * one_sample
        gated = [gate["accuracy"] for gate in client["gated"]]
        accuracies = [client["client_accuracy"], client["server_accuracy"], *gated]
        assert all(math.isfinite(accuracy) and 0 <= accuracy <= 1 for accuracy in accuracies)
    losses = [row["value"] for row in finished.metrics.to_pylist() if row["metric"].endswith("loss")]
    assert len(losses) == 12 and all(map(math.isfinite, losses))


def test_cifar10(warm_actors: ActorFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path / "data")
    finished = one_round("paper_cifar10", tmp_path, monkeypatch, warm_actors)
    data = finished.summary["data"]
    assert (data["name"], data["image_shape"], len(data["class_names"])) == ("cifar10", [32, 32, 3], 10)
    # Of 100 images the first four clients get 17 and the others 16; 5 % of either is one image set aside.
    check_clients(finished, [16, 16, 16, 16, 15, 15], 20, CIFAR_BYTES)


def test_cifar100(warm_actors: ActorFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar100(tmp_path / "data")
    finished = one_round("paper_cifar100", tmp_path, monkeypatch, warm_actors)
    data = finished.summary["data"]
    assert (data["name"], data["image_shape"], len(data["class_names"])) == ("cifar100", [32, 32, 3], 100)
    # Of 200 images the first two clients get 34 and the others 33; 5 % of either is two images set aside.
    check_clients(finished, [32, 32, 31, 31, 31, 31], 100, CIFAR_BYTES)


def test_stl10(warm_actors: ActorFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stl10(tmp_path / "data")
    finished = one_round("paper_stl10", tmp_path, monkeypatch, warm_actors)
    data = finished.summary["data"]
    assert (data["name"], data["image_shape"], len(data["class_names"])) == ("stl10", [96, 96, 3], 10)
    # Of 20 images the first two clients get 4 and the others 3; 5 % of either is no image.
    check_clients(finished, [4, 4, 3, 3, 3, 3], 10, STL10_BYTES)
