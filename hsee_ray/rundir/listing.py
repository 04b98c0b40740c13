"""The runs below a directory, finished or not, and how each of them stands. Needs no torch."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hsee_ray.config.schema import Config
from hsee_ray.errors import UserError
from hsee_ray.rundir.run import CHECKPOINTS_DIR, CONFIG_FILE, ERROR_FILE, LOCK_FILE, SUMMARY_FILE, load_begun, load_run


@dataclass(frozen=True)
class Listed:
    """A directory that a run was begun in."""

    path: Path
    config: Config
    summary: Mapping[str, Any] | None
    """None where it has not finished."""
    done: int
    """Rounds that are in a checkpoint, or all."""
    trains: bool
    """Whether a process holds it now."""
    error: str | None
    """Last line of its error log."""
    changed: datetime

    @property
    def state(self) -> str:
        """`finished`, `trains`, `failed` or `stopped`."""
        if self.summary is not None:
            return "finished"
        return "trains" if self.trains else "failed" if self.error is not None else "stopped"


def listed_runs(directory: Path) -> tuple[list[Listed], list[UserError]]:
    """The runs in a directory, the newest first, and what is wrong with others. Raises UserError when it is none."""
    if not directory.is_dir():
        raise UserError(f"{directory}: there is no such directory; name the one that your runs are in")
    found: list[Listed] = []
    damaged: list[UserError] = []
    for path in sorted(directory.iterdir()):
        if (path / CONFIG_FILE).is_file():
            try:
                found.append(listed(path))
            except UserError as error:
                damaged.append(error)
    return sorted(found, key=lambda run: (run.changed, run.path.name), reverse=True), damaged


def listed(path: Path) -> Listed:
    """One run. Raises UserError where none was begun, or its files cannot be read."""
    if not (path / CONFIG_FILE).is_file():
        raise UserError(f"{path}: holds no run (it has no {CONFIG_FILE})")
    try:
        config = load_begun(path)
        summary = load_run(path).summary if (path / SUMMARY_FILE).is_file() else None
    except OSError as error:
        raise UserError(f"{path}: its files cannot be read ({error.strerror}); copy the run directory again") from None
    rounds = [int(manifest.parent.name.removeprefix("round-")) for manifest in _manifests(path)]
    done = summary["rounds"] if summary is not None else max(rounds, default=0)
    written = [path / CONFIG_FILE, path / SUMMARY_FILE, path / ERROR_FILE, *_manifests(path)]
    changed = datetime.fromtimestamp(max(file.stat().st_mtime for file in written if file.is_file()))
    return Listed(path, config, summary, done, _is_locked(path), _last_line(path / ERROR_FILE), changed)


def _manifests(path: Path) -> list[Path]:
    return list((path / CHECKPOINTS_DIR).glob("round-*/manifest.json"))


def _last_line(path: Path) -> str | None:
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _is_locked(path: Path) -> bool:
    """Whether a process trains in a directory; unknown, and so False, where file systems have no locks."""
    try:
        with open(path / LOCK_FILE, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
