"""Whole commands, as a user runs them, and whatever processes they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MARK = "HSEE_TEST_RUN"


@dataclass
class Command:
    """A started `python -m ...`; all processes below it bear a mark in their environment."""

    process: subprocess.Popen[str]
    mark: str
    lines: list[str] = field(default_factory=list)

    def wait_for_line(self, text: str, timeout_s: float = 120) -> None:
        """Reads stdout until a line holds the text."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            line = self.process.stdout.readline()
            if not line:
                break
            self.lines.append(line)
            if text in line:
                return
        raise AssertionError(f"no line with {text!r} in {self.lines}; stderr: {self.finish()[1]}")

    def finish(self, timeout_s: float = 180) -> tuple[str, str]:
        """Stdout and stderr to the end."""
        out, err = self.process.communicate(timeout=timeout_s)
        return "".join(self.lines) + out, err

    def left_behind(self, patience_s: float = 30) -> list[str]:
        """Command lines of processes below the command that still live when it has ended."""
        deadline = time.monotonic() + patience_s
        while alive := marked_processes(self.mark):
            if time.monotonic() > deadline:
                return list(alive.values())
            time.sleep(0.2)
        return []


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


@contextmanager
def starting(cache: Path) -> Iterator[Callable[..., Command]]:
    """Starts `python -m <module> <arguments>` in the repository; ends what is left of it with the block."""
    started: list[Command] = []

    def start_command(*arguments: Any, environment: dict[str, str] | None = None) -> Command:
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
        )
        started.append(Command(process, mark))
        return started[-1]

    try:
        yield start_command
    finally:
        for command in started:
            if command.process.poll() is None:
                command.process.kill()
                command.process.communicate(timeout=30)
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
