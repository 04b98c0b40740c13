"""Tables of the quickstart, of planned_cifar10.yaml and of a folder of photos: every figure worked out beside it.

Multiply-adds of ResNet-18 of width 8, for images of S pixels a side: 3x3 convolutions of the stem, of layer1 (8 to 8
channels, four of them at S x S) and of layers 2 to 4 (8 to 16, 16 to 32, 32 to 64 channels, each at half the side of
the one before), with the 1x1 shortcut of a layer's first block. Backward takes each convolution twice, but the first
one once: images need no gradient.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from hsee_ray.evaluation.calibration import Calibration, TierCalibration, save_calibration
from hsee_ray.evaluation.report import EVALUATION_DIR, Evaluation, GateRow, write_evaluation
from hsee_ray.rundir.run import Run
from hsee_ray.rundir.summary import write_summary
from jobs.plan import main
from tests.run_directories import train_run

CONFIGS = Path(__file__).parents[3] / "jobs" / "configs"
DEVICES = ("esp32-s3", "raspberry-pi-4", "jetson-orin-nano")
GFLOPS = {"esp32-s3": 0.085, "raspberry-pi-4": 1.78, "jetson-orin-nano": 384, "cloud-t4": 2442, "cloud-cpu": 6.15}
WATTS = {"esp32-s3": (0.35, 1.4), "raspberry-pi-4": (7.2, 1.0), "jetson-orin-nano": (15, 0.5)}
BYTES_S = {"esp32-s3": 20e6 / 8, "raspberry-pi-4": 80e6 / 8, "jetson-orin-nano": 941e6 / 8}
CORE_W = {"cloud-t4": 84 / 1, "cloud-cpu": 140 / 64}


@dataclass(frozen=True)
class Case:
    """A configuration with three tiers on DEVICES, and the sizes that its figures come from."""

    content: Mapping[str, Any]
    samples: int
    """Training images of each client when 1,200 are dealt out to all."""
    batches: tuple[int, int, int]
    """In a round, by tier."""
    stem_adds: int
    """Forward, of one image."""
    classes: int
    image_bytes: int
    stem_bytes: int
    """Of one image's features after the stem, with 8 bytes of label."""
    batch_bytes: int
    """That a message takes on top: of int8 8 channels' offset and scale, 4 bytes each."""
    side: int
    """Pixels of an image."""

    @property
    def exit_adds(self) -> int:
        """Forward, of one image's 8 channels behind the stem."""
        if "exits" not in self.content:
            return 8 * self.classes
        # A 3x3 convolution with stride 2 to 16 channels, and a linear layer.
        return (self.side // 2) ** 2 * 9 * 8 * 16 + 16 * self.classes

    @property
    def exit_parameters(self) -> int:
        """With biases, and the scale and shift of a batch norm."""
        return 9 * self.classes if "exits" not in self.content else 9 * 8 * 16 + 2 * 16 + 17 * self.classes


def loaded(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    for tier, device in zip(content["tiers"], DEVICES, strict=True):
        tier["device"] = device
    content["simulation"] = {"server": "cloud-t4"}
    return content


def photos(root: Path) -> Path:
    """Pictures of 16 x 16 in 4 classes, 24 of each to train on and 4 to test."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 4)):
        for kind in ("cat", "dog", "fox", "hen"):
            place = root / part / kind
            place.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / f"{number}.png")
    return root


@pytest.fixture(params=["quickstart", "planned", "photos"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    # 1,200 images to 6 clients are 200 each, of which 5 % are set aside; to 3 clients 400.
    if request.param == "quickstart":
        # Stem: 8 * 8 places * 9 * 1 channel * 8. Features 8 x 8 x 8 as float32. 190 images in batches of 32.
        return Case(loaded("quickstart.yaml"), 190, (6, 6, 6), 4_608, 10, 64, 2048 + 8, 0, 8)
    if request.param == "planned":
        # 32 * 32 * 9 * 3 * 8. Features 32 x 32 x 8 as int8. 190 images in batches of 16 and of 64.
        content = loaded("planned_cifar10.yaml")
        return Case(content, 190, (12, 3, 3), 221_184, 10, 3072, 8192 + 8, 64, 32)
    # 16 * 16 * 9 * 3 * 8. Features 16 x 16 x 8 as float32. 380 images in batches of 32.
    content = loaded("quickstart.yaml")
    content["data"] = {"name": "folder", "root": str(photos(tmp_path / "photos"))}
    del content["exits"]
    for tier in content["tiers"]:
        tier["clients"] = 1
    return Case(content, 380, (12, 12, 12), 55_296, 4, 768, 8192 + 8, 0, 16)


def written(case: Case, tmp_path: Path, **data: Any) -> Path:
    content = {**case.content, "data": {**case.content["data"], "cache": str(tmp_path / "cache"), **data}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_plans_table(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = tmp_path / "plan.json"
    assert main(["--config", str(written(case, tmp_path)), "--samples", "1200", "--json", str(told)]) == 0
    plan = json.loads(told.read_text())
    # Forward, weights' gradient; the exit forward, and both gradients.
    adds = 2 * case.stem_adds + 3 * case.exit_adds
    # Parameters of the stem (convolution, batch norm) and of the exit, 4 bytes each, up and down after the round.
    parameter_bytes = 4 * (case.stem_adds // (case.side**2) + 16 + case.exit_parameters)
    joules = 0.0
    for tier, device, batches in zip(plan["tiers"], DEVICES, case.batches, strict=True):
        stem = tier["cuts"][0]
        assert (tier["samples"], stem["name"]) == ([case.samples] * 2, "stem")
        compute_s = case.samples * 2 * adds / (GFLOPS[device] * 1e9)
        assert stem["compute_s"] == pytest.approx(compute_s)
        features = case.samples * case.stem_bytes + batches * case.batch_bytes
        assert stem["upload_s"] == pytest.approx(features / BYTES_S[device])
        assert stem["sent_bytes"] == features + 2 * parameter_bytes
        active_w, radio_w = WATTS[device]
        own = active_w * compute_s + radio_w * (features + 2 * parameter_bytes) / BYTES_S[device]
        assert stem["joules"] == pytest.approx(own)
        joules += tier["clients"] * own
    assert [tier["cut"] for tier in plan["tiers"]] == [1, 1, 1]
    assert plan["round"]["joules"] == pytest.approx(joules)
    shown = capsys.readouterr().out
    assert "note: every tier has the same cut, stem, as if all devices were alike: a round waits for client" in shown
    assert "Accuracy is not in the plan: --probe N trains each cut briefly and shows it" in shown


TARGET = "offload<=0.25"


def evaluated(run: Run) -> None:
    """Gates that send a quarter of the samples, of the stem's features as float32; accuracies by gate."""
    digest = run.summary["weights_sha256"]
    tiers = [tier.name for tier in run.config.tiers]
    gate = TierCalibration(1.0, 0.5, 10, 0.25, 0.8, 0.7, 0.9, 0.1, 64.0)
    save_calibration(run.path, Calibration(TARGET, "entropy", digest, dict.fromkeys(tiers, gate)))
    rows = [
        GateRow("tier", tier, kind, 0.5, 1.0, 16, accuracy, 0.25, 4, 0.8, 0.9, 0.8, 512.0, 1.0, 1.0, 1.0, 1.0)
        for tier in tiers
        for kind, accuracy in (("local", 0.5), ("calibrated", 0.75), ("sent", 0.875))
    ]  # fmt: skip
    (run.path / EVALUATION_DIR).mkdir()
    write_evaluation(run.path / EVALUATION_DIR, Evaluation("run", digest, "test", "entropy", TARGET, rows, [], []))


def test_the_savings_table(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {**case.content, "training": {**case.content["training"], "rounds": 1}}
    content["tiers"] = [{**tier, "cut": "stem"} for tier in content["tiers"]]
    if content["data"]["name"] == "parquet":  # CIFAR-10 is not here; images of its size are made up
        content["data"] = {
            "name": "synthetic", "image_size": 32, "classes": 10, "train_samples": 120, "test_samples": 16,
        }  # fmt: skip
    run = train_run(tmp_path / "run", content)
    write_summary(run.path / "summary.json", run.summary)
    evaluated(run)
    side = case.side
    layer1 = 4 * side**2 * 9 * 8 * 8
    # Layers 2, 3 and 4 alike, for a quarter of the places has four times the channels' product: three 3x3 convolutions
    # of 2c to 2c channels, one of c to 2c, and the shortcut. Of layer2, c is 8.
    above = 3 * (side // 2) ** 2 * (3 * 9 * 16 * 16 + 9 * 8 * 16 + 8 * 16) + 64 * case.classes
    client, whole = case.stem_adds + case.exit_adds, case.stem_adds + layer1 + above
    for server in ("cloud-t4", "cloud-cpu"):
        told = tmp_path / f"{server}.json"
        asked = ["--run", str(run.path), "--savings", "--set", f"simulation.server={server}", "--json", str(told)]
        assert main([*asked, "--price-per-kwh", "0.30", "--price-per-server-hour", "1.2", "--currency", "EUR"]) == 0
        found = json.loads(told.read_text())
        cores = {"cloud-t4": 1, "cloud-cpu": 64}[server]
        for tier, device, latency_s in zip(found["tiers"], DEVICES, (0.01, 0.01, 0.005), strict=False):
            ways = tier["ways"]
            active_w, radio_w = WATTS[device]
            client_s, whole_s = (2 * adds / (GFLOPS[device] * 1e9) for adds in (client, whole))
            above_s, at_server_s = (2 * adds / (GFLOPS[server] * 1e9) for adds in (layer1 + above, whole))
            by_hand = {
                "split": (
                    512e6,
                    1e6 * (active_w * client_s + radio_w * 512 / BYTES_S[device]),
                    1e6 * 0.25 * above_s * CORE_W[server],
                    1000 * (client_s + 512 / BYTES_S[device] + 0.25 * (2 * latency_s + above_s)),
                    1e6 * 0.25 * above_s,
                    0.75,
                ),
                "exit": (0, 1e6 * active_w * client_s, 0, 1000 * client_s, 0, 0.5),
                "cloud": (
                    1e6 * case.image_bytes,
                    1e6 * radio_w * case.image_bytes / BYTES_S[device],
                    1e6 * at_server_s * CORE_W[server],
                    1000 * (case.image_bytes / BYTES_S[device] + 2 * latency_s + at_server_s),
                    1e6 * at_server_s,
                    0.875,
                ),
                "device": (0, 1e6 * active_w * whole_s, 0, 1000 * whole_s, 0, 0.875),
            }
            for way, (sent, on_device, at_server, ms, core_s, accuracy) in by_hand.items():
                figures = {name: each["value"] for name, each in ways[way]["figures"].items()}
                assert ways[way]["accuracy"] == accuracy
                assert figures == pytest.approx(
                    {
                        "bytes": sent,
                        "device_joules": on_device,
                        "server_joules": at_server,
                        "joules": on_device + at_server,
                        "milliseconds": ms,
                        "server_seconds": core_s,
                        # The hour's price has the server's electricity in it.
                        "money": 0.30 * on_device / 3.6e6 + 1.2 * core_s / 3600 / cores,
                    }
                ), f"{device} {way} {server}"
        shown = capsys.readouterr().out
        watts = {"cloud-t4": "84 W for 1 core, so 84 W", "cloud-cpu": "140 W for 64 cores, so 2.19 W"}[server]
        assert f"Server {server}: {watts} for each core at work" in shown
        # 2442 / 84 = 29.1 and 6.15 / 2.1875 = 2.81: what explains how the two differ.
        assert {"cloud-t4": "29.1 GFLOP per joule", "cloud-cpu": "2.81 GFLOP per joule"}[server] in shown
        assert "gated beside all to the cloud" in shown and "12.5 points less" in shown


def test_both_clouds_say_the_same_of_one_fleet() -> None:
    """The image of the quickstart in the cloud: 2 * 545,920 operations; by joules 2.81 and 29.1 GFLOP each."""
    cpu, gpu = (1_091_840 / (GFLOPS[name] * 1e9) * CORE_W[name] for name in ("cloud-cpu", "cloud-t4"))
    assert cpu / gpu == pytest.approx((2442 / 84) / (6.15 / (140 / 64)))
    # An ESP32 that computes up to layer1 (152,144 multiply-adds) at 0.35 W costs more than either: both say "costs".
    device = 0.35 * 2 * 152_144 / 0.085e9
    radio = 1.4 * 64 / 2.5e6
    assert device > radio + cpu > radio + gpu
