"""Whole commands, as a user runs them, and whatever processes they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MARK = "HSEE_TEST_RUN"


class Command:
    """A started `python -m ...`; all processes below it bear a mark in their environment."""

    def __init__(self, process: subprocess.Popen[str], mark: str) -> None:
        self.process = process
        self.mark = mark
        self.lines: list[str] = []
        """What it has printed on stdout so far."""
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=_keep_lines, args=(stream, kept), daemon=True)
            for kept, stream in ((self.lines, process.stdout), (self._errors, process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def wait_for_line(self, text: str, timeout_s: float = 120) -> None:
        """Waits until a line of stdout holds the text."""
        deadline = time.monotonic() + timeout_s
        seen = 0
        while time.monotonic() < deadline:
            ended = not self._readers[0].is_alive()
            for line in self.lines[seen:]:
                seen += 1
                if text in line:
                    return
            if ended:
                break
            time.sleep(0.05)
        raise AssertionError(f"no line with {text!r} in {self.lines}; stderr: {''.join(self._errors)}")

    def finish(self, timeout_s: float = 180) -> tuple[str, str]:
        """All of stdout and stderr, when the command has ended."""
        self.process.wait(timeout=timeout_s)
        for reader in self._readers:
            reader.join(timeout=30)
        return "".join(self.lines), "".join(self._errors)

    def left_behind(self, patience_s: float = 30) -> list[str]:
        """Command lines of processes below the command that still live when it has ended."""
        deadline = time.monotonic() + patience_s
        while alive := marked_processes(self.mark):
            if time.monotonic() > deadline:
                return list(alive.values())
            time.sleep(0.2)
        return []


def _keep_lines(stream: Any, kept: list[str]) -> None:
    for line in stream:
        kept.append(line)


def marked_processes(mark: str) -> dict[int, str]:
    """Living processes whose environment bears the mark: pid -> command line."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # ended while we looked
    return found


def _hear_hangups() -> None:
    """Under `nohup` commands would start with SIGHUP ignored, and leave it so."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@contextmanager
def starting(cache: Path) -> Iterator[Callable[..., Command]]:
    """Starts `python -m <module> <arguments>` in the repository; ends what is left of it with the block."""
    started: list[Command] = []

    def start_command(
        *arguments: Any, environment: dict[str, str] | None = None, own_group: bool = False, own_session: bool = False
    ) -> Command:
        mark = uuid.uuid4().hex
        inherited = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "HSEE_STORAGE")}
        environment = {**inherited, "XDG_CACHE_HOME": str(cache), **(environment or {}), MARK: mark}
        process = subprocess.Popen(
            [sys.executable, "-m", *(str(argument) for argument in arguments)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0 if own_group else None,
            start_new_session=own_session,
            preexec_fn=_hear_hangups,
        )
        started.append(Command(process, mark))
        return started[-1]

    try:
        yield start_command
    finally:
        for command in started:
            if command.process.poll() is None:
                command.process.kill()
                command.finish(timeout_s=30)
            for pid in marked_processes(command.mark):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts commands that end with the test."""
    with starting(tmp_path / "cache") as start_command:
        yield start_command


@pytest.fixture(scope="module")
def start_for_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Command]]:
    """Starts commands that end with the module's last test."""
    with starting(tmp_path_factory.mktemp("cache")) as start_command:
        yield start_command
