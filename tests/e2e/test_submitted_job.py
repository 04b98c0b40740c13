"""`ray job submit` on a real head with dashboard and token: success, failure with its reason, stop and resume."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from hsee_ray import load_run
from tests.clusters import Head, metrics, new_head, start_head
from tests.e2e.conftest import ROOT, Command
from tests.e2e.test_resume_command import reference_digest
from tests.ray.test_recovery import check_each_round_once

Start = Callable[..., Command]

CONFIG: dict[str, Any] = {
    "seed": 5,
    "model": {"width": 4},  # a job does not take the tests along, with their networks
    "data": {"name": "synthetic", "image_size": 8, "classes": 3, "train_samples": 96, "test_samples": 30},
    "tiers": [
        {"name": "sensor", "clients": 1, "cut": "stem", "resources": {"num_cpus": 0.5}},
        {"name": "gateway", "clients": 1, "cut": "layer1", "resources": {"num_cpus": 0.5, "num_gpus": 0.5}},
    ],
    "server": {"resources": {"num_cpus": 0.5}},
    "training": {"strategy": "sequential", "rounds": 30, "batch_size": 8},
    "checkpoint": {"every": 1000},
}


@pytest.fixture(scope="module")
def head(start_for_module: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    head = new_head(tmp_path_factory.mktemp("home"))
    command = start_head(start_for_module, head, "--num-cpus=4", "--num-gpus=1")
    wait_until_jobs_are_taken(client(head))
    yield head
    command.process.send_signal(signal.SIGTERM)
    assert command.left_behind() == []


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def submit(start: Start, head: Head, name: str, *arguments: Any) -> Command:
    """`ray job submit`, as a user types it, in the repository."""
    return start(
        "ray.scripts.scripts", "job", "submit", "--address", head.dashboard, "--submission-id", name,
        "--working-dir", ROOT, "--", "python", "-m", "jobs.train", *arguments,
        environment=head.environment,
    )  # fmt: skip


def client(head: Head) -> JobSubmissionClient:
    # Ray reads its environment when it is loaded, which was before the token was made.
    return JobSubmissionClient(
        head.dashboard, headers={"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"}
    )


def wait_until_jobs_are_taken(jobs: JobSubmissionClient, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            jobs.submit_job(entrypoint="true")
            return
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def runs(head: Head) -> Path:
    return Path(head.environment["HOME"]) / "hsee-ray" / "runs"


def test_a_job_succeeds_and_its_run_bears_its_name(start: Start, head: Head, config_file: Path, tmp_path: Path) -> None:
    command = submit(start, head, "night-1", "--config", config_file)
    command.wait_for_line("[round 3/30]")
    shown = metrics(head, "ray_hsee_round", timeout_s=30)
    out, err = command.finish()
    assert command.process.returncode == 0, out + err
    assert "gateway (start): has 0.5 GPU of Ray's and no CUDA" in out
    lines = [line for line in out.splitlines() if line.startswith("[round ")]
    assert all(f"[round {number}/30] loss client" in "".join(lines) for number in range(1, 31))
    assert "\x1b[" not in "".join(lines) and "\r" not in out
    run = load_run(runs(head) / "night-1")
    assert run.summary["weights_sha256"] == reference_digest(config_file, tmp_path / "reference")
    assert 'run="night-1"' in shown and "ray_hsee_server_loss{" in shown and 'tier="gateway"' in shown


def test_a_job_that_fails_says_why_in_its_last_line(start: Start, head: Head, config_file: Path) -> None:
    wrong = submit(start, head, "wrong", "--config", config_file, "--set", "tiers.0.cut=99")
    diverged = submit(start, head, "diverged", "--config", config_file, "--set", "training.optimizer.lr=1e30")
    jobs = client(head)
    for name, command, reason in (
        ("wrong", wrong, "error: tiers.0.cut is 99: the network has no such cut"),
        ("diverged", diverged, "error: client 00"),
    ):
        command.finish()
        assert command.process.returncode == 1
        assert jobs.get_job_status(name) == JobStatus.FAILED
        last = jobs.get_job_logs(name).rstrip().splitlines()[-1]
        assert last.startswith(reason)
    assert " failed in round 1 while it did `train`: NonFiniteError" in last


def test_a_job_that_is_stopped_goes_on_under_another_id(
    start: Start, head: Head, config_file: Path, tmp_path: Path
) -> None:
    stopped = submit(start, head, "evening", "--config", config_file)
    stopped.wait_for_line("[round 5/30]")
    jobs = client(head)
    jobs.stop_job("evening")
    stopped.finish()
    assert jobs.get_job_status("evening") == JobStatus.STOPPED
    last = jobs.get_job_logs("evening").rstrip().splitlines()[-1]
    assert last.startswith("interrupted; round ") and last.endswith(f"continue with --resume {runs(head) / 'evening'}")

    morning = submit(start, head, "morning", "--resume", runs(head) / "evening")
    out, err = morning.finish()
    assert morning.process.returncode == 0, out + err
    assert not (runs(head) / "morning").exists()
    run = load_run(runs(head) / "evening")
    assert run.summary["weights_sha256"] == reference_digest(config_file, tmp_path / "reference")
    check_each_round_once(run, 30)
