"""The method on a GPU: near to the CPU, and the same bits whenever it is repeated."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from hsee_ray.config.files import load_config
from hsee_ray.method.reports import RoundReport
from hsee_ray.method.setup import Setup, prepare_run
from hsee_ray.models.snapshot import from_bytes, to_bytes
from hsee_ray.reference import Reference

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here: nothing was tried on CUDA"),
]
CUDA = torch.device("cuda")
STRATEGIES = ["averaging", "sequential", "distributed", "centralized", "tests.extensions.splitfed:SplitFed"]


@pytest.fixture(autouse=True)
def deterministic() -> None:
    """As an actor on a GPU computes (actors.workers.compute)."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def prepared(cache: Path, *overrides: str) -> Setup:
    values = {
        "model": {"name": "tests.networks:conv_units"},
        "data": {
            "name": "synthetic",
            "image_size": 8,
            "classes": 3,
            "train_samples": 96,
            "test_samples": 24,
            "augment": True,
            "cache": str(cache),
        },
        "tiers": [
            {"name": "sensor", "clients": 2, "cut": "stem", "codec": "int8"},
            {"name": "hub", "clients": 1, "cut": "body.1", "codec": "fp16"},
        ],
        "training": {"rounds": 2, "batch_size": 8, "device": "cuda"},
    }
    return prepare_run(load_config(values, overrides))


def trained(setup: Setup, device: torch.device) -> tuple[Reference, list[RoundReport]]:
    reference = Reference(setup, device)
    return reference, list(reference.run())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_gpu_ends_near_the_cpu_and_where_it_ended_before(strategy: str, tmp_path: Path) -> None:
    setup = prepared(tmp_path, f"training.strategy={strategy}")
    gpu, reports = trained(setup, CUDA)
    again, _ = trained(setup, CUDA)
    assert gpu.digest() == again.digest()
    _, on_cpu = trained(setup, torch.device("cpu"))
    for one, other in zip(reports, on_cpu, strict=True):
        for client_id, report in one.client_training.items():
            assert report.mean_loss == pytest.approx(other.client_training[client_id].mean_loss, rel=0.02)
            assert report.sent_bytes == other.client_training[client_id].sent_bytes


def test_a_snapshot_goes_through_a_file_and_back_onto_the_gpu(tmp_path: Path) -> None:
    setup = prepared(tmp_path)
    once, other = Reference(setup, CUDA), Reference(setup, CUDA)
    client, twin = once.clients[0], other.clients[0]
    client.train(1, 0, 2)
    twin.restore(from_bytes(to_bytes(client.snapshot())))
    client.train(1, 2, 4)
    twin.train(1, 2, 4)
    for name, wanted in client.tensors().items():
        np.testing.assert_array_equal(twin.tensors()[name], wanted, err_msg=name)


def test_bfloat16_trains(tmp_path: Path) -> None:
    _, reports = trained(prepared(tmp_path, "training.autocast=bfloat16"), CUDA)
    assert all(np.isfinite(report.mean_loss) for report in reports[-1].client_training.values())


def test_samples_per_second_of_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said, not asserted: ResNet-18 of width 64 on 32x32 images, both sides of the cut, batches of 128."""
    values = [
        "model={name: resnet18, width: 64}",
        "data.image_size=32",
        "data.classes=10",
        "data.train_samples=3072",
        "tiers=[{name: a, clients: 1, cut: layer2}]",
        "training.batch_size=128",
        "training.strategy=distributed",
        "training.rounds=3",
        "evaluation.every=99",
    ]
    reference = Reference(prepared(tmp_path, *values), CUDA)
    begin = 0.0
    for report in reference.run():
        torch.cuda.synchronize()
        if report.round_number == 2:
            speed = report.samples / (time.perf_counter() - begin)
            with capsys.disabled():
                print(f"\n{speed:.0f} samples/s on {torch.cuda.get_device_name()}")
        begin = time.perf_counter()
