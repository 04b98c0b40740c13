"""Directories of runs: one process each, and none that holds a run already."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from actors.cluster.connection import address_of
from hsee_ray.config.schema import ClusterConfig
from hsee_ray.errors import ConfigError, UserError
from hsee_ray.rundir.location import RunLocation
from hsee_ray.training.begin import _locked, check_free


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with _locked(tmp_path / "run"), pytest.raises(UserError, match="another process is training there"):  # noqa: SIM117
        with _locked(tmp_path / "run"):
            pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with _locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


def test_a_run_that_came_first_is_not_overwritten(tmp_path: Path) -> None:
    location = RunLocation(tmp_path / "run")
    check_free(location)
    with _locked(location.local):
        check_free(location)
        (location.local / "config.yaml").write_text("seed: 1")
        with pytest.raises(ConfigError, match="is not empty, it may hold a run"):
            check_free(location)


@pytest.mark.parametrize(("named", "variable"), [(None, ""), (None, "local"), ("local", "10.0.0.1:6379")])
def test_a_ray_of_its_own_by_any_name(named: str | None, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", variable)
    assert address_of(ClusterConfig(address=named)) is None
