"""A run directory read back, and what is said of directories that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsee_ray.config.files import dump_config, load_config
from hsee_ray.errors import DataError, UserError
from hsee_ray.rundir.metrics import MetricRow, metrics_table, write_table
from hsee_ray.rundir.run import load_run
from hsee_ray.rundir.summary import write_summary

CONFIG = load_config({"seed": 3, "tiers": [{"name": "sensor", "clients": 2, "cut": "stem"}]})


def write_run(path: Path) -> None:
    path.mkdir()
    (path / "config.yaml").write_text(dump_config(CONFIG), encoding="utf-8")
    write_summary(path / "summary.json", {"rounds": 2})
    write_table(path / "metrics.parquet", metrics_table([MetricRow(1, None, None, "wall_s", None, 2.0)]))


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    write_run(tmp_path / "first")
    run = load_run(str(tmp_path / "first"))
    assert run.name == "first"
    assert run.path == tmp_path / "first"
    assert run.config == CONFIG
    assert run.summary == {"rounds": 2}
    assert run.metrics.column("value").to_pylist() == [2.0]


def test_name_does_not_depend_on_how_the_directory_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "first")
    monkeypatch.chdir(tmp_path / "first")
    assert load_run(".").name == "first"


def test_no_run_directory(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"is no run directory \(it has no config.yaml\)"):
            load_run(path)


def test_not_finished(tmp_path: Path) -> None:
    write_run(tmp_path / "first")
    (tmp_path / "first" / "summary.json").unlink()
    with pytest.raises(UserError, match=r"the run has not finished \(it has no summary.json yet\)"):
        load_run(tmp_path / "first")


def test_damaged_summary(tmp_path: Path) -> None:
    write_run(tmp_path / "first")
    (tmp_path / "first" / "summary.json").write_text('{"rounds": ', encoding="utf-8")
    with pytest.raises(DataError, match=r"summary\.json: is damaged"):
        load_run(tmp_path / "first")


def test_metrics_lost(tmp_path: Path) -> None:
    write_run(tmp_path / "first")
    (tmp_path / "first" / "metrics.parquet").unlink()
    run = load_run(tmp_path / "first")
    with pytest.raises(DataError, match=r"metrics\.parquet: metrics cannot be read"):
        _ = run.metrics
