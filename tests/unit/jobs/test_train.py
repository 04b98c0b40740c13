"""Bad input to the train job: exit code 2, one line that says what to do, and nothing written. Starts no Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray

from hsee_ray.config.files import load_config
from hsee_ray.config.schema import StorageConfig
from jobs.train import main, new_place, train

CONFIG = """
model: {width: 4}
data: {name: synthetic, cache: CACHE, train_samples: 16, test_samples: 8, image_size: 8, channels: 1, classes: 2}
tiers: [{name: sensor, clients: 2, cut: stem}]
training: {rounds: 1}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good configuration, and an empty working directory."""
    path = tmp_path / "good.yaml"
    path.write_text(CONFIG.replace("CACHE", str(tmp_path / "cache")), encoding="utf-8")
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    return path


def refused(capsys: pytest.CaptureFixture[str], config: Path, *arguments: str) -> str:
    """The one line on stderr of a run that is refused."""
    assert main(["--config", str(config), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    assert not ray.is_initialized()
    assert list(Path.cwd().iterdir()) == [], "nothing was written"
    return captured.err


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.round=3", "training.round: unknown key; did you mean rounds?"),
        ("tiers.0.clients=0", "tiers.0.clients is 0: should be greater than or equal to 1"),
        ("tiers.0.cut=layr1", "tiers.0.cut is 'layr1': the network has no such cut; it can be cut after 1 stem, 2 lay"),
        ("tiers.0.cut=11", "tiers.0.cut is 11: the network has no such cut"),
        ("tiers.0.clients=17", "17 clients cannot share 16 training samples: use fewer clients (tiers) or raise data."),
        ("tiers.0.clients=12", "is left with 1 training samples and needs 2"),
        ("model.name=resnet19", "model.name is 'resnet19': there is no such network; use one of resnet18"),
        ("model.weights=missing.safetensors", "there is no such file"),
        ("rounds", "--set rounds: write it as a.b.c=value"),
    ],
)
def test_bad_values(config: Path, capsys: pytest.CaptureFixture[str], override: str, told: str) -> None:
    assert told in refused(capsys, config, "--set", override)


def test_missing_data_directory(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "no such data"
    told = refused(capsys, config, "--set", "data.name=parquet", f"data.root={root}")
    assert f"the data directory {root} does not exist" in told
    assert "--set data.root=DIR" in told


def test_missing_config_file(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, config.with_name("bad.yaml"))
    assert "bad.yaml: cannot be read (No such file or directory); give a YAML file with --config" in told


def test_config_file_that_is_not_yaml(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("tiers: [", encoding="utf-8")
    assert f"{config}: is not valid YAML" in refused(capsys, config)


def test_run_directory_that_holds_something(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "notes.txt").write_text("mine", encoding="utf-8")
    told = refused(capsys, config, "--run-dir", str(run_dir))
    assert f"{run_dir}: is not empty" in told
    assert "--run-dir" in told
    assert [path.name for path in run_dir.iterdir()] == ["notes.txt"]


def test_run_directory_that_is_a_file(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    path.write_text("mine", encoding="utf-8")
    assert str(path) in refused(capsys, config, "--run-dir", str(path))
    assert path.read_text(encoding="utf-8") == "mine"


def test_a_refused_run_directory_is_not_made(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, config, "--set", "tiers.0.cut=99", "--run-dir", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert "exit codes:" in told
    assert "--set" in told


def test_config_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "--config" in capsys.readouterr().err


def test_a_run_bears_its_configs_name_and_lies_in_the_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HSEE_STORAGE", raising=False)
    config = load_config({"tiers": [{"name": "sensor", "clients": 1, "cut": "stem"}]})
    assert new_place(config, "quickstart").startswith("runs/quickstart-")
    monkeypatch.setenv("HSEE_STORAGE", "gs://bucket/all/")
    assert new_place(config, "quickstart").startswith("gs://bucket/all/quickstart-")
    stored = config.model_copy(update={"storage": StorageConfig(uri="s3://bucket/mine")})
    assert new_place(stored, "quickstart").startswith("s3://bucket/mine/quickstart-")


def test_a_submitted_run_bears_its_submission_id_and_outlives_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HSEE_STORAGE", raising=False)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "night-1"}}))
    config = load_config({"tiers": [{"name": "sensor", "clients": 1, "cut": "stem"}]})
    assert new_place(config, "quickstart") == f"{Path.home()}/hsee-ray/runs/night-1"


def test_the_function_raises_what_the_command_prints(config: Path) -> None:
    from hsee_ray.errors import ConfigError

    with pytest.raises(ConfigError, match="tiers: is missing"):
        train({"seed": 1})


@pytest.mark.parametrize("where", [[], ["--in-process"]])
def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(
    where: list[str], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(config), "--dry-run", *where]) == 0
    out = capsys.readouterr().out
    assert "averaging: 2 sensor (cut stem)" in out and "16 training and 8 test images" in out.replace(" 1 set", " set")
    assert out.endswith("dry run: nothing was trained or written\n")
    assert ("without Ray" in out) == bool(where)
    assert list(Path.cwd().iterdir()) == []
    assert not ray.is_initialized()
