"""The plan job: what it prints and writes, where it needs no devices, and one line for everything that it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hsee_ray.config.files import load_config
from hsee_ray.data.sizes import image_sizes, local_samples
from hsee_ray.errors import ConfigError, DataError
from hsee_ray.method.setup import prepare_run
from hsee_ray.planning.planner import planned
from jobs.doctor import main as doctor
from jobs.plan import main

PROFILE = {
    "compute_gflops": 1.0, "memory_mib": 10.0, "uplink_mbit_s": 10.0, "downlink_mbit_s": 10.0, "latency_ms": 5.0,
    "active_w": 5.0, "radio_w": 1.0, "source": "made up for a test",
}  # fmt: skip
PROFILES = {
    "tiny": {**PROFILE, "compute_gflops": 0.01, "memory_mib": 0.2},
    "small": PROFILE,
    "rack": {**PROFILE, "compute_gflops": 50.0, "memory_mib": 1000.0, "uplink_mbit_s": 1000.0, "cores": 4},
    "full": {**PROFILE, "memory_mib": 0.001},
}
CONFIG: dict[str, Any] = {
    "model": {"name": "tests.networks:conv_units"},
    "data": {
        "name": "synthetic", "train_samples": 64, "test_samples": 8, "image_size": 8, "channels": 1, "classes": 2,
    },
    "tiers": [
        {"name": "sensor", "clients": 2, "cut": "auto", "device": "tiny", "codec": "int8"},
        {"name": "hub", "clients": 1, "cut": "body.1", "device": "small"},
    ],
    "simulation": {"server": "rack"},
    "training": {"rounds": 1, "batch_size": 8},
}  # fmt: skip
NO_DEVICES = ["tiers.0.device=null", "tiers.1.device=null", "simulation.server=null"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration of two unequal tiers, one of which leaves its cut to the planner."""
    profiles = tmp_path / "profiles.yaml"
    profiles.write_text(yaml.safe_dump(PROFILES), encoding="utf-8")
    content = {**CONFIG, "simulation": {**CONFIG["simulation"], "profiles": str(profiles)}}
    content["data"] = {**CONFIG["data"], "cache": str(tmp_path / "cache")}
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of what is refused."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_a_plan_is_printed_drawn_and_written(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {name: tmp_path / f"plan.{name}" for name in ("json", "png", "yaml")}
    asked = ["--config", str(config), "--json", str(places["json"]), "--png", str(places["png"])]
    assert main([*asked, "--write", str(places["yaml"])]) == 0
    shown = capsys.readouterr().out
    assert "61 training images of synthetic, and 3 set aside" in shown
    assert "sensor: 2 x tiny" in shown and "features as int8" in shown and "hub: 1 x small" in shown
    assert "least time: " in shown and "straggler: client " in shown and "server: rack, " in shown
    assert places["png"].read_bytes().startswith(b"\x89PNG")
    plan = json.loads(places["json"].read_text())
    picked = [tier["cuts"][tier["cut"] - 1] for tier in plan["tiers"]]
    assert [cut["rejected"] for cut in picked] == [None, None]
    assert [cut["round_s"] for cut in picked] == [plan["round"]["seconds"]] * 2
    assert plan["configured"] is None, "one of its cuts is auto"
    assert plan["samples"]["counts"] == [len(part.train) for part in prepare_run(load_config(places["yaml"])).parts]
    written = load_config(places["yaml"])
    assert [tier.cut for tier in written.tiers] == [cut["name"] for cut in picked]
    before = load_config(config)
    assert written.model_copy(update={"tiers": before.tiers}) == before
    assert f"--write {places['yaml']}: there is such a file already" in refused(
        capsys, "--config", str(config), "--write", str(places["yaml"])
    )


def test_a_probe_shows_accuracies_beside_every_cut(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hsee_ray.planning.probe import CLIENTS, smaller
    from hsee_ray.reference import Reference

    told = tmp_path / "plan.json"
    # Five sensors, of which two are probed.
    asked = ["--config", str(config), "--probe", "2", "--json", str(told), "--set", "tiers.0.clients=5"]
    assert main([*asked, "training.rounds=9"]) == 0
    captured = capsys.readouterr()
    plan = json.loads(told.read_text())
    assert "probe: stem, cut 1 of " in captured.err and "2 rounds" in captured.err
    assert "on 8 test images after 2 rounds (--probe)" in captured.out
    assert plan["probe"] == {
        "rounds": 2, "train_images": 64, "test_images": 8, "majority_rate": plan["probe"]["majority_rate"],
    }  # fmt: skip
    for tier in plan["tiers"]:
        *below, whole = tier["cuts"]
        # Each is a number of right answers of all the tier's clients to 8 images.
        shares = [cut[side] * 8 * CLIENTS for cut in below for side in ("exit_accuracy", "server_accuracy")]
        assert shares == [round(share) for share in shares]
        assert whole["exit_accuracy"] is None
    # By the reference itself: both tiers at the first cut, two sensors and the hub.
    small = smaller(load_config(config, ["tiers.0.clients=5", "training.rounds=9"]), 2)
    assert [tier.clients for tier in small.tiers] == [CLIENTS, 1]
    small = small.model_copy(update={"tiers": tuple(t.model_copy(update={"cut": 1}) for t in small.tiers)})
    *_, last = Reference(prepare_run(small)).run()
    assert last.round_number == 2
    right = last.evaluation[2].client_correct
    assert plan["tiers"][1]["cuts"][0]["exit_accuracy"] == right / 8


def test_a_note_about_one_cut_for_all(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config), "--set", "tiers.1.device=tiny"]) == 0
    assert "note: every tier has the same cut, " in capsys.readouterr().out
    alone = yaml.safe_load(config.read_text())
    alone["tiers"] = alone["tiers"][:1]
    config.write_text(yaml.safe_dump(alone))
    assert main(["--config", str(config)]) == 0
    assert "note: " not in capsys.readouterr().out, "a single tier has one cut"


def test_a_run_takes_the_cuts_of_the_plan_and_keeps_those_that_are_named(config: Path) -> None:
    setup = prepare_run(planned(load_config(config)))
    assert setup.config.tiers[0].cut != "auto" and setup.config.tiers[1].cut == "body.1"
    assert [spec.cut_name for spec in setup.fleet.clients] == [setup.config.tiers[0].cut] * 2 + ["body.1"]
    again = prepare_run(planned(setup.config))
    assert again.config == setup.config and again.fleet == setup.fleet


def test_only_a_strategy_that_ignores_cuts_or_has_servers_may_leave_them_to_a_plan(config: Path) -> None:
    whole = prepare_run(planned(load_config(config, ["training.strategy=fedavg"])))
    assert {spec.cut_name for spec in whole.fleet.clients} == {whole.fleet.unit_names[-1]}
    with pytest.raises(ConfigError, match="nothing to plan and no cut can be auto; name the cuts"):
        planned(load_config(config, ["training.strategy=per_tier"]))


def test_the_doctor_reckons_with_the_cuts_of_a_plan(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(["--config", str(config)]) == 0
    assert "sensor" in capsys.readouterr().out
    # More clients than images are not the doctor's to tell of.
    assert doctor(["--config", str(config), "--set", "tiers.0.clients=70"]) in (0, 2)
    assert doctor(["--config", str(config), "--set", "tiers.0.device=full"]) == 2
    assert "tiers.0 (sensor): no cut fits on full" in capsys.readouterr().err


def test_the_table_needs_neither_devices_nor_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, table = tmp_path / "plain.yaml", tmp_path / "table.json"
    path.write_text("data: {name: cifar10, root: nowhere}\ntiers: [{name: a, clients: 1, cut: layer1}]\n")
    assert main(["--config", str(path), "--table", "--json", str(table)]) == 0
    shown = capsys.readouterr().out
    assert "One raw image is 3.0 KiB" in shown
    assert "after layer1.1: 256.0 KiB, 85.3 times the image" in shown
    cuts = json.loads(table.read_text())["cuts"]
    assert [cut["unit"] for cut in cuts][:3] == ["stem", "layer1.0", "layer1.1"]
    assert cuts[2]["feature_shape"] == [64, 32, 32] and cuts[0]["parameters"] == 64 * 3 * 9 + 2 * 64
    assert cuts[-1]["server_memory_bytes"] is None
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--round-time-s", "0"], "--round-time-s 0: should be above 0"),
        (["--round-time-s", "nan"], "--round-time-s nan: should be above 0"),
        (["--probe", "0"], "--probe 0: should be above 0"),
        (["--samples", "-5"], "--samples -5: should be above 0"),
        (["--samples", "5"], "5 training images, as --samples says, are too few for 3 clients"),
        (["--round-time-s", "1e-9", "--objective", "bytes"], "--round-time-s 1e-09: no plan has rounds so short"),
        (["--set", "tiers.0.device=tinny"], "tiers.0.device is 'tinny': there is no such device; did you mean tiny?"),
        (["--set", "tiers.0.device=full"], "tiers.0 (sensor): no cut fits on full: the smallest, stem, needs"),
        (["--set", "simulation.server=full"], "simulation.server (full): its models need"),
        (["--set", "training.strategy=centralized"], "no server takes work off a device, so there is nothing to plan"),
        (["--json", "no/x.json"], "--json no/x.json: there is no directory no"),
        (["--write", "no/x.yaml"], "--write no/x.yaml: there is no directory no"),
        (["--set", "tiers.3.cut=stem"], "tiers.3.cut=stem: 3 is no index"),
        (["--set", "simulation.server=null"], "simulation.server: missing, and simulated time needs a device profile"),
        (["--set", *NO_DEVICES], "tiers.0.cut: `auto` needs to know the devices; set tiers.0.device"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], told: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, "--config", str(config), *arguments)


def test_a_plan_without_devices_says_which_keys_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plain.yaml"
    path.write_text("tiers: [{name: a, clients: 2, cut: layer1}]\n")
    told = refused(capsys, "--config", str(path))
    assert "tiers.0.device, simulation.server: missing" in told and "--set tiers.0.device=NAME (known: " in told


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--config", "a.yaml", "--run", "b"],
        ["--config", "a.yaml", "--savings"],
        ["--config", "a.yaml", "--price-per-kwh", "1"],
        ["--config", "a.yaml", "--price-per-kwh", "0"],
        ["--run", "b", "--savings", "--actual"],
        ["--config", "a.yaml", "--table", "--write", "b.yaml"],
        ["--run", "b"],
        ["--run", "b", "--savings", "--objective", "time"],
        ["--run", "b", "--actual", "--image-bytes", "100"],
        ["--run", "b", "--savings", "--probe", "1"],
        ["--config", "a.yaml", "--requests-per-month", "5"],
        ["--config", "a.yaml", "--explain"],
        ["--config", "a.yaml", "--objective", "money"],
    ],
)
def test_options_that_do_not_go_together(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as told:
        main(arguments)
    assert told.value.code == 2


def test_samples_are_dealt_out_as_a_run_does(tmp_path: Path) -> None:
    digits = load_config(
        {
            "data": {"name": "digits", "cache": str(tmp_path), "partition": {"kind": "dirichlet", "alpha": 0.5}},
            "tiers": [{"name": "a", "clients": 5, "cut": "layer1"}],
        }
    )
    assert list(local_samples(digits).counts) == [len(part.train) for part in prepare_run(digits).parts]
    even = local_samples(digits, 103)
    assert list(even.counts) == [20, 20, 20, 19, 19]
    assert even.origin == "103 training images, as --samples says: the data were not read, equal shares assumed"
    cifar = load_config({"data": {"name": "cifar10", "root": str(tmp_path)}, "tiers": digits.model_dump()["tiers"]})
    assert list(local_samples(cifar).counts) == [9500] * 5
    assert local_samples(cifar).origin.startswith("50,000 training images, as cifar10 has: the data were not read")


def test_data_that_nothing_tells_of_are_asked_for() -> None:
    content: dict[str, Any] = {"name": "folder", "root": "nowhere"}
    config = load_config({"data": content, "tiers": [{"name": "a", "clients": 1, "cut": 1}]})
    with pytest.raises(DataError, match=r"set data\.image_size, data\.channels and data\.classes"):
        image_sizes(config.data)
    with pytest.raises(DataError, match="--samples N"):
        local_samples(config)
    told = load_config({"data": {**content, "image_size": 20, "channels": 3, "classes": 7}, "tiers": config.tiers})
    assert image_sizes(told.data) == ((20, 20, 3), 7)


def test_a_cut_that_nobody_has_planned_is_refused_where_none_can() -> None:
    from hsee_ray.method.strategies import build_fleet

    content = {**CONFIG, "simulation": {"server": "rack"}}
    with pytest.raises(ConfigError, match=r"tiers\.0\.cut is 'auto': no plan has picked it yet"):
        build_fleet(load_config(content), ["stem", "head"])
