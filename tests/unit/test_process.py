"""Cores that a process may use, where a container has fewer than its machine."""

from __future__ import annotations

from pathlib import Path

import pytest

import hsee_ray.process as process


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.os, "sched_getaffinity", lambda _pid: range(8))


def in_group(monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    read = Path.read_text

    def read_text(path: Path, encoding: str) -> str:
        return lines if str(path) == "/proc/self/cgroup" else read(path, encoding)

    monkeypatch.setattr(Path, "read_text", read_text)


@pytest.mark.parametrize(
    ("of_group", "of_parent", "found"),
    [("max 100000", None, 8), ("150000 100000", None, 2), ("max 100000", "100000 100000", 1), ("1000 100000", None, 1)],
)
def test_version_2(
    of_group: str, of_parent: str | None, found: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_group(monkeypatch, "0::/job/task\n")
    (tmp_path / "job" / "task").mkdir(parents=True)
    (tmp_path / "job" / "task" / "cpu.max").write_text(f"{of_group}\n")
    if of_parent is not None:
        (tmp_path / "job" / "cpu.max").write_text(f"{of_parent}\n")
    assert process.cores(tmp_path) == found


@pytest.mark.parametrize(("quota", "found"), [("-1", 8), ("250000", 3)])
def test_version_1(quota: str, found: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_group(monkeypatch, "4:cpu,cpuacct:/docker/abc\n1:memory:/docker/abc\n")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert process.cores(tmp_path) == found


def test_without_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_group(monkeypatch, "")
    assert process.cores(tmp_path) == 8
