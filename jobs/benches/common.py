"""Shared by the benchmarks: medians and their spread, this machine, progress, result files."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from hsee_ray.errors import ConfigError
from hsee_ray.process import cores, processor

PACKAGES = ("hsee-ray", "torch", "ray", "numpy")

NEVER = 1_000_000
"""Rounds between two evaluations or checkpoints of a run that is not to have any."""
Result = dict[str, Any]
"""Results of a benchmark as JSON; `error` says in one line what was wrong with the computation."""


@dataclass(frozen=True)
class Spread:
    """The median of some measurements, and their quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError when there are none."""
        if not values:
            raise ValueError("nothing was measured")
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(median(values), low, high)

    def json(self) -> dict[str, float]:
        return asdict(self)


def shown(spread: Mapping[str, float], digits: int) -> str:
    """`median (low to high)` of a spread in a result."""
    return "{median:.{d}f} ({low:.{d}f} to {high:.{d}f})".format(**spread, d=digits)


def paired(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Spread of the ratios of measurements that were taken beside each other."""
    return Spread.of([a / b for a, b in zip(over, under, strict=True)])


def machine() -> dict[str, Any]:
    """Machine and versions behind a figure."""
    return {
        "processor": processor() or platform.machine(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def shown_machine(found: Mapping[str, Any]) -> str:
    """One line about a machine."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    size = f"cores: {found['cores']}, {found['memory_gib']} GiB"
    return f"{found['processor']}, {size}; Python {found['python']}, {versions}"


def tell(text: str) -> None:
    """One line of progress; results alone are on stdout."""
    print(text, file=sys.stderr, flush=True)


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def refuse_cluster() -> None:
    """Raises ConfigError when a run would join a cluster: benchmarks are of this machine."""
    if os.environ.get("RAY_ADDRESS"):
        raise ConfigError("jobs.bench measures this machine: unset RAY_ADDRESS")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
