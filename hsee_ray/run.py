"""A finished run, read back from its directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsee_ray.config import Config
from hsee_ray.config_files import load_config
from hsee_ray.errors import DataError, UserError

if TYPE_CHECKING:
    import pyarrow as pa

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
METRICS_FILE = "metrics.parquet"


@dataclass(frozen=True)
class Run:
    """A run directory that `load_run` has found complete. Whatever is large is read when it is asked for."""

    path: Path
    summary: Mapping[str, Any]
    """Content of `summary.json`, as `build_summary` describes it."""

    @property
    def name(self) -> str:
        """Name of the run's directory."""
        return self.path.resolve().name

    @cached_property
    def config(self) -> Config:
        """Configuration of the run, with every default spelled out.

        Raises ConfigError when `config.yaml` was damaged or comes from a version that this one cannot read.
        """
        return load_config(self.path / CONFIG_FILE)

    @cached_property
    def metrics(self) -> pa.Table:
        """Rows of `metrics.parquet`, with the columns of `hsee_ray.metrics.SCHEMA`.

        Raises DataError when the file is missing or damaged.
        """
        # Comparing runs needs no metrics, and pyarrow would double its start.
        from hsee_ray.metrics import read_metrics

        return read_metrics(self.path / METRICS_FILE)


def load_run(path: str | Path) -> Run:
    """Run in a directory that a finished training left behind.

    Raises UserError when it is no run directory or the run has not finished, DataError when its summary is
    damaged.
    """
    path = Path(path)
    if not (path / CONFIG_FILE).is_file():
        raise UserError(f"{path}: is no run directory (it has no {CONFIG_FILE}); give the directory of a run")
    summary_path = path / SUMMARY_FILE
    if not summary_path.is_file():
        raise UserError(f"{path}: the run has not finished (it has no {SUMMARY_FILE} yet); let it finish first")
    try:
        summary = json.loads(summary_path.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{summary_path}: is damaged (not JSON); copy the run directory again") from None
    return Run(path, summary)
