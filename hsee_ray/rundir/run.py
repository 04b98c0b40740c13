"""A finished run, read back from its directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsee_ray.config.files import load_config
from hsee_ray.config.schema import Config, SimulationConfig
from hsee_ray.errors import DataError, UserError
from hsee_ray.method.strategies import build_fleet

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch
    from torch import nn

    from hsee_ray.config.fleet import Fleet
    from hsee_ray.models.split import UnitChain
    from hsee_ray.rundir.trained import TrainedModels

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
ERROR_FILE = "error.log"
METRICS_FILE = "metrics.parquet"
MODELS_DIR = "final"
CHECKPOINTS_DIR = "checkpoints"
LOCK_FILE = ".lock"
"""Held by the process that trains in the directory."""


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
        """Rows of `metrics.parquet`, with the columns of `hsee_ray.rundir.metrics.SCHEMA`.

        Raises DataError when the file is missing or damaged.
        """
        # Comparing runs needs no metrics, and pyarrow would double its start.
        from hsee_ray.rundir.metrics import read_metrics

        return read_metrics(self.path / METRICS_FILE)

    @cached_property
    def fleet(self) -> Fleet:
        """The clients of the run."""

        return build_fleet(self.config, self.summary["model_units"])

    @cached_property
    def models(self) -> TrainedModels:
        """The networks of the run, as torch modules."""
        # Comparing runs needs no torch.
        from hsee_ray.rundir.trained import TrainedModels

        return TrainedModels(self.path, self.path / MODELS_DIR, self.config, self.fleet, self.summary)

    def client(self, client_id: int) -> UnitChain:
        """f^c of a client, trained: as `TrainedModels.client`."""
        return self.models.client(client_id)

    def exit(self, client_id: int) -> nn.Module:
        """f^o of a client, trained: as `TrainedModels.exit`."""
        return self.models.exit(client_id)

    def server(self, client_id: int) -> UnitChain:
        """f^s for a client, trained: as `TrainedModels.server`."""
        return self.models.server(client_id)

    def preprocess(self, images_NHWC: np.ndarray[Any, Any]) -> torch.Tensor:
        """Images as the run was trained on them: as `TrainedModels.preprocess`."""
        return self.models.preprocess(images_NHWC)


def without_training(config: Config) -> Config:
    """A run's configuration for those who only read its models: the files that training began with may be gone."""
    model = config.model.model_copy(update={"weights": None})
    tiers = tuple(tier.model_copy(update={"device": None}) for tier in config.tiers)
    return config.model_copy(update={"model": model, "tiers": tiers, "simulation": SimulationConfig()})


def load_begun(run_dir: Path, overrides: Iterable[str] = ()) -> Config:
    """Configuration of a run that was begun in a directory. Raises UserError when there is none."""
    if not (run_dir / CONFIG_FILE).is_file():
        raise UserError(f"{run_dir}: holds no run that could be resumed (it has no {CONFIG_FILE}); start one there")
    return load_config(run_dir / CONFIG_FILE, overrides)


def side_figures(means: Mapping[str, Any]) -> list[str]:
    """Names of the figures of either side in a part of a summary."""
    return [name for name in means if name.startswith(("client_", "server_"))]


def kept_round(summary: Mapping[str, Any]) -> int:
    """The round whose models a finished run has left."""
    return int(summary.get("best_round") or summary["rounds"])


def load_run(path: str | Path) -> Run:
    """Run in a directory that a finished training left behind.

    Raises UserError when it is no run directory or the run has not finished, DataError when its summary is
    damaged.
    """
    if ":/" in str(path):
        raise UserError(f"{path}: is a URI; copy the run into a directory first, and give that")
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
