"""Paths and places as people write them. `tests/unit/config/test_yaml_text.py` has those of a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsee_ray.config.files import load_config
from hsee_ray.errors import ConfigError, UserError
from hsee_ray.paths import expanded
from hsee_ray.rundir.location import RunLocation
from hsee_ray.storage import Storage
from jobs.compare import main as compare
from jobs.init import main as init
from jobs.train import main as train

SECRET = [
    "s3://KEY:hunter2@bucket/runs",
    "s3://bucket/runs?access_key=K&secret_key=hunter2",
    "abfs://c@a/x?sas_token=hunter2",
]


@pytest.mark.parametrize("place", SECRET)
def test_credentials_in_a_uri_are_refused_and_not_repeated(place: str) -> None:
    values = {"tiers": [{"name": "a", "clients": 1, "cut": 1}], "storage": {"uri": place}}
    for use in (lambda: Storage.at(place), lambda: RunLocation(place), lambda: load_config(values)):
        with pytest.raises(ConfigError, match="URI holds credentials") as raised:
            use()
        assert "hunter2" not in str(raised.value) and "\n" not in str(raised.value)


def test_a_uri_without_a_password_is_none_of_that(tmp_path: Path) -> None:
    assert Storage.at(f"file://{tmp_path}").local
    assert load_config({"tiers": [{"name": "a", "clients": 1, "cut": 1}], "storage": {"uri": "hdfs://me@host/x?a=b"}})


def test_a_run_directory_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    assert RunLocation("$SCRATCH/run").local == tmp_path / "run"
    assert expanded("${SCRATCH}/a$") == f"{tmp_path}/a$"
    with pytest.raises(UserError, match="the environment variable NOT_SET_HERE is not set"):
        RunLocation("$NOT_SET_HERE/run")


def test_what_is_no_place_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("tiers: [{name: a, clients: 1, cut: 1}]\n", encoding="utf-8")
    train_at = ["--config", str(tmp_path / "a.yaml"), "--in-process", "--dry-run"]
    for arguments, message in (
        (["--run-dir", ""], "'': names no place; write a path"),
        (["--set", "storage.uri=''"], "'': names no place; write a path"),
        (["--run-dir", f"{tmp_path}/\udcff"], "/\\udcff': it is no UTF-8 text in one line; rename it"),
        (["--run-dir", f"{tmp_path}/a\nb"], "/a\\nb': it is no UTF-8 text in one line; rename it"),
    ):
        assert train(train_at + arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.endswith(f"{message}\n")


def test_paths_of_commands_are_expanded(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert init(["--data", "$NOT_SET_HERE/photos"]) == 2
    assert "variable NOT_SET_HERE is not set" in capsys.readouterr().err
    monkeypatch.setenv("SET_HERE", "/nowhere")
    assert compare(["$SET_HERE/run"]) == 2
    assert "/nowhere/run: is no run directory" in capsys.readouterr().err
