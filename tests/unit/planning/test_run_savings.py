"""From a run directory to savings, and to predicted against measured rounds; what is missing is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from hsee_ray.evaluation.calibration import Calibration, TierCalibration, save_calibration
from hsee_ray.evaluation.report import EVALUATION_DIR, Evaluation, GateRow, write_evaluation
from hsee_ray.rundir.metrics import MetricRow, metrics_table, write_table
from hsee_ray.rundir.run import METRICS_FILE, Run, load_run
from hsee_ray.rundir.summary import write_summary
from jobs.plan import main
from tests.run_directories import train_run
from tests.unit.jobs.test_plan import PROFILES, refused

CONTENT: dict[str, Any] = {
    "model": {"name": "tests.networks:conv_units"},
    "data": {
        "name": "synthetic", "train_samples": 64, "test_samples": 8, "image_size": 8, "channels": 1, "classes": 2,
    },
    "tiers": [
        {"name": "sensor", "clients": 2, "cut": "stem", "device": "tiny"},
        {"name": "hub", "clients": 1, "cut": "head", "device": "small"},
    ],
    "training": {"rounds": 1, "batch_size": 8},
}  # fmt: skip
TARGET = "offload<=0.25"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two tiers, with metrics of three rounds and nothing else beside its models."""
    place = tmp_path_factory.mktemp("runs")
    profiles = place / "profiles.yaml"
    profiles.write_text(yaml.safe_dump(PROFILES), encoding="utf-8")
    run = train_run(place / "run", {**CONTENT, "simulation": {"server": "rack", "profiles": str(profiles)}})
    rows = []
    # 60 samples a round: 3 s, then 2 s, then 2.5 s.
    for number, rate in ((1, 20.0), (2, 30.0), (3, 24.0)):
        rows.append(MetricRow(number, None, None, "samples_per_s", None, rate))
        rows += [MetricRow(number, client, "sensor", "train_samples", None, 20.0) for client in range(3)]
    write_table(run.path / METRICS_FILE, metrics_table(rows))
    clients = [{"samples": samples} for samples in (21, 21, 20)]
    write_summary(run.path / "summary.json", {**run.summary, "clients": clients})
    return load_run(run.path)


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy of the run that a test may write to."""

    shutil.copytree(trained.path, tmp_path / "run")
    return load_run(tmp_path / "run")


def calibrate(run: Run, target: str = TARGET) -> None:
    gate = TierCalibration(1.0, 0.5, 10, 0.25, 0.8, 0.7, 0.9, 0.1, 64.0)
    save_calibration(run.path, Calibration(target, "entropy", run.summary["weights_sha256"], {"sensor": gate}))


def evaluate(run: Run, **changes: Any) -> None:
    """An evaluation in which the sensors send a quarter of the samples, 256 bytes each."""
    row = GateRow(
        "tier", "sensor", "calibrated", 0.5, 1.0, 8, 0.875, 0.25, 2, 0.8, 0.9, 0.8, 64.0, 1e4, 1e4, 1.0, 1.0
    )  # fmt: skip
    hub = replace(row, name="hub", offload_ratio=0.0, sent_bytes=0.0)
    rows = [replace(each, gate=kind) for each in (row, hub) for kind in ("local", "calibrated", "sent")]
    found = Evaluation("run", run.summary["weights_sha256"], "test", "entropy", TARGET, rows, [], [])
    (run.path / EVALUATION_DIR).mkdir(exist_ok=True)
    write_evaluation(run.path / EVALUATION_DIR, replace(found, **changes))


def write_profiles(run: Run, **changed: Mapping[str, Any]) -> None:
    """The run's own file of profiles, with some figures changed."""
    path = run.path / "profiles.yaml"
    content = {name: {**figures, **changed.get(name, {})} for name, figures in PROFILES.items()}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    config["simulation"]["profiles"] = str(path)
    (run.path / "config.yaml").write_text(yaml.safe_dump(config))


def test_savings_of_a_run(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate(run)
    evaluate(run)
    told = tmp_path / "savings.json"
    asked = ["--run", str(run.path), "--savings", "--price-per-gib", "0.1", "--json", str(told)]
    assert main(asked) == 0
    shown = capsys.readouterr().out
    found: Mapping[str, Any] = json.loads(told.read_text())
    sensor, hub, overall = found["tiers"]
    assert [tier["tier"] for tier in found["tiers"]] == ["sensor", "hub", "overall"]
    assert sensor["ways"]["split"]["figures"]["bytes"] == {
        "value": 64e6, "formula": "n * sent_bytes", "inputs": {"n": 1_000_000, "sent_bytes": 64.0},
    }  # fmt: skip
    # One gray image of 8 x 8.
    assert sensor["ways"]["cloud"]["figures"]["bytes"]["value"] == 64e6
    assert hub["ways"]["split"]["figures"]["bytes"]["value"] == 0
    assert overall["ways"]["split"]["figures"]["bytes"]["value"] == pytest.approx(2 / 3 * 64e6)
    assert hub["ways"]["split"]["figures"]["joules"]["value"] == hub["ways"]["device"]["figures"]["joules"]["value"]
    assert "active_w * client_s" not in shown
    assert ["sensor", "2", "tiny", "stem", "none", "25.0%"] in [line.split() for line in shown.splitlines()]
    assert [each["accuracy"] for each in sensor["ways"].values()] == [0.875] * 4
    assert main([*asked, "--explain", "--currency", "EUR", "--requests-per-month", "3000"]) == 0
    shown = capsys.readouterr().out
    for figure in ("active_w * client_s", "n * image_bytes", "price_per_gib * bytes / 1073741824", "EUR"):
        assert figure in shown
    # Two of three clients are sensors: 2,000 images of 64 bytes.
    month = json.loads(told.read_text())
    assert month["tiers"][0]["ways"]["split"]["figures"]["bytes"]["value"] == 128_000
    assert (month["currency"], month["inferences"], month["warnings"]) == ("EUR", 3000, [])


def test_the_size_of_a_raw_image_can_be_given(run: Run, tmp_path: Path) -> None:
    calibrate(run)
    evaluate(run)
    told = tmp_path / "savings.json"
    assert main(["--run", str(run.path), "--savings", "--image-bytes", "20", "--json", str(told)]) == 0
    assert json.loads(told.read_text())["tiers"][0]["ways"]["cloud"]["figures"]["bytes"]["value"] == 20e6


def test_what_savings_need_is_said(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--run", str(run.path), "--savings"]
    assert "is not calibrated, and savings count with its gates; run hsee calibrate first" in refused(capsys, *asked)
    calibrate(run)
    assert "has not been evaluated (it has no evaluation/test.json); run hsee evaluate" in refused(capsys, *asked)
    evaluate(run, target=None)
    assert "was calibrated after it had been evaluated; run hsee evaluate again" in refused(capsys, *asked)
    evaluate(run, confidence="margin")
    assert "was evaluated by margin and calibrated by entropy; run hsee evaluate" in refused(capsys, *asked)
    evaluate(run, network="00" * 32)
    assert "its evaluation is of other models; run hsee evaluate again" in refused(capsys, *asked)
    evaluate(run)
    gate = TierCalibration(1.0, 0.25, 10, 0.25, 0.8, 0.7, 0.9, 0.1, 64.0)
    save_calibration(run.path, Calibration(TARGET, "entropy", run.summary["weights_sha256"], {"sensor": gate}))
    assert "was calibrated after it had been evaluated; run hsee evaluate again" in refused(capsys, *asked)
    (run.path / EVALUATION_DIR / "test.json").write_text("{")
    assert "is damaged" in refused(capsys, *asked)
    assert "--price-per-kwh -1: a price is 0 or more" in refused(capsys, *asked, "--price-per-kwh", "-1")
    assert "--image-bytes 0: should be above 0" in refused(capsys, *asked, "--image-bytes", "0")
    told = refused(capsys, *asked, "--set", "training.rounds=5")
    assert "of a finished run only tiers.N.device and simulation.* can be set" in told
    assert "is no run directory" in refused(capsys, "--run", str(tmp_path), "--savings")


def test_savings_need_devices(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate(run)
    evaluate(run)
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    config["simulation"]["server"] = None
    for tier in config["tiers"]:
        tier["device"] = None
    (run.path / "config.yaml").write_text(yaml.safe_dump(config))
    told = refused(capsys, "--run", str(run.path), "--savings")
    assert "tiers.0.device, tiers.1.device, simulation.server: missing" in told
    devices = ["tiers.0.device=tiny", "tiers.1.device=small", "simulation.server=rack"]
    assert main(["--run", str(run.path), "--savings", "--set", *devices]) == 0


def test_predicted_against_measured(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = tmp_path / "actual.json"
    refusal = refused(capsys, "--run", str(run.path), "--actual", "--profile", "rack")
    assert "--actual: the profile rack is a preset, or not measured by hsee profile-device (4 cores), and" in refusal
    assert "on that machine, run hsee profile-device --out this-machine.yaml" in refusal
    here = {"environment": {"cpu_model": "Abacus 2", "machine": "x86_64", "cores": 4}}
    write_summary(run.path / "summary.json", {**run.summary, **here})
    write_profiles(run, small={"processor": "Abacus 1"})
    refusal = refused(capsys, "--run", str(run.path), "--actual", "--profile", "small")
    assert "the profile small is of Abacus 1 (1 cores), and the run was on Abacus 2 (4 cores)" in refusal
    write_profiles(run, rack={"source": "measured by hsee profile-device on Abacus 2, torch 2.0"})
    assert main(["--run", str(run.path), "--actual", "--profile", "rack"]) == 0, "a profile of before the key"
    write_profiles(run, rack={"processor": "Abacus 2"})
    assert main(["--run", str(run.path), "--actual", "--profile", "rack", "--json", str(told)]) == 0
    found = json.loads(told.read_text())
    assert found["profile"] == "rack" and found["cores"] == 4
    # The first round starts actors; the others took 2 s and 2.5 s.
    assert (found["rounds"], found["actual_s"], found["fastest_s"], found["slowest_s"]) == (2, 2.25, 2.0, 2.5)
    assert found["error"] == pytest.approx(found["predicted_s"] / 2.25 - 1)
    assert "measured 2.25 s (median of 2, from 2.00 to 2.50)" in capsys.readouterr().out
    assert "--profile is 'rock': there is no such device; did you mean rack?" in refused(
        capsys, "--run", str(run.path), "--actual", "--profile", "rock"
    )
