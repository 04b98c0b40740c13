"""A finished run, read back from its directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hsee_ray.config.files import load_config
from hsee_ray.config.problems import first_problem
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
        """The clients of the run. Raises DataError when they are not those that were trained."""
        fleet, n_trained = build_fleet(self.config, self.summary["model_units"]), len(self.summary["clients"])
        if len(fleet.clients) != n_trained:
            raise DataError(
                f"{self.path}: {n_trained} clients were trained, and {CONFIG_FILE} has {len(fleet.clients)}; copy the "
                "run directory again"
            )
        return fleet

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
    return Run(path, read_summary(summary_path))


def read_summary(path: Path) -> Mapping[str, Any]:
    """Content of a `summary.json`, which may lack what readers do not ask for: versions differ in it.

    Raises DataError when it is damaged; so does a key that it lacks when a reader asks for it.
    """
    try:
        summary = json.loads(path.read_bytes(), object_hook=lambda content: _Content(content, path))
        _Summary.model_validate(summary)
    except ValidationError as error:
        raise DataError(f"{path}: is damaged ({first_problem(error)}); copy the run directory again") from None
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{path}: is damaged (not JSON); copy the run directory again") from None
    return cast(Mapping[str, Any], summary)


class _Content(dict[str, Any]):
    """A mapping in a file, which says where it lies when something is not in it."""

    def __init__(self, content: Mapping[str, Any], path: Path) -> None:
        super().__init__(content)
        self._path = path

    def __missing__(self, key: str) -> NoReturn:
        raise DataError(f"{self._path}: is damaged (it has no {key}); copy the run directory again")


_Figure = float | None


class _Known(BaseModel):
    """Types of what readers ask for, where it is there."""

    model_config = ConfigDict(strict=True)


class _Gate(_Known):
    tau: float = 0.0
    accuracy: _Figure = None
    offload_ratio: _Figure = None


class _Means(_Known):
    client_accuracy: _Figure = None
    server_accuracy: _Figure = None
    majority_rate: _Figure = None
    eval_samples: _Figure = None
    eval_sent_bytes: _Figure = None
    gated: list[_Gate] = Field([], min_length=1)


class _Tier(_Means):
    name: str = ""
    cut: str = ""
    clients: int = 0


class _Client(_Means):
    tier: str = ""
    trained_rounds: int = 0
    missed_rounds: list[int] = []


class _Data(_Known):
    image_shape: list[int] = Field([], min_length=3, max_length=3)
    class_names: list[str] = []
    mean: list[float] = []
    std: list[float] = []


class _Summary(_Known):
    strategy: str = ""
    seed: int = 0
    rounds: int = 0
    wall_s: float = 0.0
    samples_per_s: float = 0.0
    weights_sha256: str = ""
    failures: dict[str, int] = {}
    environment: dict[str, Any] = {}
    data: _Data = _Data()
    model_units: list[str] = []
    clients: list[_Client] = []
    tiers: list[_Tier] = []
    overall: _Means = _Means()
    simulation: dict[str, Any] | None = None
