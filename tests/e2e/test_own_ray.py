"""The Ray that a run starts for itself: who reaches it, and what becomes of the run when it dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from actors.cluster.orphan_reaper import Watch
from actors.cluster.ray_internals import ping
from hsee_ray import load_run
from hsee_ray.rundir.checkpoint import committed_rounds
from hsee_ray.storage import Storage
from tests.e2e.conftest import MARK, Command
from tests.e2e.test_resume_command import ROUNDS, config_file, reference_digest
from tests.ray.test_recovery import check_each_round_once

Start = Callable[..., Command]
__all__ = ["config_file"]
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same in IPv6, and ::1, as /proc/net writes them."""


def processes_of(command: Command) -> dict[int, str]:
    """Every process below a command, by the name of its program."""
    return {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in Watch(f"{MARK}={command.mark}").look()}


def listening(pid: int) -> set[tuple[str, int]]:
    """Addresses, as /proc/net writes them, and ports on which a process listens."""
    sockets = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found


def test_it_is_for_this_machine_and_this_run_only(start: Start, config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    others = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "of another cluster", "HOME": str(tmp_path / "home")}
    where = ("--config", config_file, "--run-dir", tmp_path / "run")
    command = start("jobs.train", *where, environment=others)
    command.wait_for_line("[round 1/")
    processes = processes_of(command)
    ports = {pid: listening(pid) for pid in (*processes, command.process.pid)}
    assert {address for found in ports.values() for address, _ in found} <= LOOPBACK
    by_name = {name: pid for pid, name in processes.items()}
    for daemon in ("gcs_server", "raylet"):
        assert ports[by_name[daemon]]
        environment = Path(f"/proc/{by_name[daemon]}/environ").read_bytes().split(b"\0")
        (token,) = (entry for entry in environment if entry.startswith(b"RAY_AUTH_TOKEN="))
        assert len(token) == len("RAY_AUTH_TOKEN=") + 64
    ((_, port),) = ports[by_name["gcs_server"]]
    with pytest.raises(PermissionError):
        ping(f"127.0.0.1:{port}", 10)
    os.kill(command.process.pid, signal.SIGTERM)
    command.finish()
    assert command.left_behind() == []
    assert list((tmp_path / "home").rglob("auth_token")) == []


def test_a_daemon_that_dies_ends_the_run_with_one_line(start: Start, config_file: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    where: tuple[object, ...] = ("--config", config_file, "--run-dir", run_dir)
    for daemon, last in (("raylet", 3), ("gcs_server", 7)):
        command = start("jobs.train", *where)
        command.wait_for_line(f"[round {last}/")
        (victim,) = (pid for pid, name in processes_of(command).items() if name == daemon)
        os.kill(victim, signal.SIGKILL)
        _, err = command.finish()
        assert (command.process.returncode, len(err.splitlines())) == (1, 1), err
        assert err.startswith(f"error: {daemon}, a daemon of the local Ray, has died (SIGKILL")
        newest = committed_rounds(Storage.at(str(run_dir / "checkpoints")))[0]
        assert f"; round {newest} is in a checkpoint, continue with --resume {run_dir}; the traceback is in " in err
        assert (run_dir / "error.log").read_text().startswith(f"{daemon}, a daemon")
        assert command.left_behind() == []
        where = ("--resume", run_dir)
    command = start("jobs.train", *where)
    _, err = command.finish()
    assert command.process.returncode == 0, err
    finished = load_run(run_dir)
    assert finished.summary["weights_sha256"] == reference_digest(config_file, tmp_path / "reference")
    check_each_round_once(finished, ROUNDS)
    assert not (run_dir / "error.log").exists()


@pytest.mark.parametrize(("directory", "reason"), [("x" * 60, "AF_UNIX path length"), ("file", "Not a directory")])
def test_a_directory_that_ray_cannot_use_is_one_line(
    directory: str, reason: str, start: Start, config_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    where = ("--config", config_file, "--run-dir", tmp_path / "run")
    command = start("jobs.train", *where, environment={"RAY_TMPDIR": str(tmp_path / directory)})
    _, err = command.finish()
    assert (command.process.returncode, len(err.splitlines())) == (2, 1), err
    assert err.startswith(f"error: $RAY_TMPDIR: Ray cannot start in {tmp_path / directory}/ray") and reason in err
    assert "set RAY_TMPDIR to a directory with a short path" in err
    assert not (tmp_path / "run").exists()


def test_a_missing_relative_directory_is_made(start: Start, config_file: Path, tmp_path: Path) -> None:
    where = ("--config", config_file, "--run-dir", tmp_path / "run")
    with TemporaryDirectory(dir="/tmp") as short:
        directory = os.path.relpath(f"{short}/new")
        command = start("jobs.train", *where, "--set", "training.rounds=1", environment={"TMPDIR": directory})
        _, err = command.finish()
        assert command.process.returncode == 0, err
        assert list(Path(short, "new", "ray").glob("session_*"))
