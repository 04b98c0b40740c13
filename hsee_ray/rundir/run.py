"""A finished run, read back from its directory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import ModelId
from hsee_ray.config.schema import Config, SimulationConfig
from hsee_ray.errors import DataError, UserError
from hsee_ray.method.strategies import strategy_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch
    from torch import nn

    from hsee_ray.backbones import Backbone
    from hsee_ray.config.fleet import ClientSpec, Fleet
    from hsee_ray.evaluation.calibration import Calibration
    from hsee_ray.features.path import FeaturePath
    from hsee_ray.models.split import ExitHead, UnitChain

    Network = TypeVar("Network", bound=nn.Module)

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
METRICS_FILE = "metrics.parquet"
MODELS_DIR = "final"


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
    def calibration(self) -> Calibration | None:
        """The gates that were calibrated for this run's weights; None when that has not been done.

        Raises DataError when the file is damaged.
        """
        from hsee_ray.evaluation.calibration import load_calibration

        found = load_calibration(self.path)
        return found if found is not None and found.network == self.summary["weights_sha256"] else None

    def check_models(self) -> None:
        """Raises DataError when the model files are not those that the summary's `weights_sha256` names."""
        from hsee_ray.models.weights import digest_lines, read_model, weights_sha256

        files = sorted((self.path / MODELS_DIR).glob("*.safetensors"))
        lines = [line for path in files for line in digest_lines(path.stem, read_model(path))]
        if weights_sha256(lines) != self.summary["weights_sha256"]:
            raise DataError(
                f"{self.path / MODELS_DIR}: holds other models than those that were trained; copy the run directory "
                "again, or wait for the run that is going on in it"
            )

    @cached_property
    def fleet(self) -> Fleet:
        """The clients of the run."""

        return strategy_of(self.config).fleet(self.config, self.summary["model_units"])

    def backbone(self) -> Backbone:
        """The whole base network at its initial weights, a new one at every call."""
        from hsee_ray.backbones import build_backbone

        classes = len(self.summary["data"]["class_names"])
        return build_backbone(self.config.model, self._image_shape, classes, self.config.seed)

    def client(self, client_id: int) -> UnitChain:
        """f^c of a client, trained, in evaluation mode: images from `preprocess` -> features (B, C, H, W).

        At cut L it is the whole network, and gives logits (B, K). Raises UserError when there is no such client.
        """
        from hsee_ray.models.split import UnitChain, client_units

        spec = self._spec(client_id)
        chain = UnitChain(client_units(self.backbone().units, spec.cut))
        return _fill(chain, chain.units, self._tensors(spec.client_file))

    def exit(self, client_id: int) -> ExitHead:
        """f^o of a client, trained, in evaluation mode: features (B, C, H, W) -> logits (B, K).

        Raises UserError when there is no such client, or it holds the whole network and has no exit.
        """
        from hsee_ray.config.fleet import EXIT
        from hsee_ray.models.split import build_exit

        spec = self._spec(client_id, needs_server=True)
        shape = self._feature_shapes[spec.cut - 1]
        head = build_exit(self.config, spec.cut_name, shape, len(self.summary["data"]["class_names"]))
        return _fill(head, {EXIT: head}, self._tensors(spec.client_file))

    def server(self, client_id: int) -> UnitChain:
        """f^s for a client, trained, in evaluation mode: features (B, C, H, W) -> logits (B, K).

        Of Sequential's shared server it is the part above this client's cut, with this client's statistics.
        Raises UserError when there is no such client, or it holds the whole network and has no server.
        """
        from hsee_ray.models.split import UnitChain, server_units

        spec = self._spec(client_id, needs_server=True)
        chain = UnitChain(server_units(self.backbone().units, spec.cut))
        strategy = strategy_of(self.config)
        model = ModelId("server", strategy.server_of(spec) or 0)
        tensors = self._tensors(strategy.file_of(self.fleet, model))
        own = f"{spec.client_file}."
        tensors.update({name.removeprefix(own): t for name, t in tensors.items() if name.startswith(own)})
        return _fill(chain, chain.units, tensors)

    def feature_path(self, client_id: int) -> FeaturePath | None:
        """How a client's features travel outside of training.

        None where it never trained: it has no model file, or has seen no range for int8. Raises UserError when there is
        no such client.
        """
        from hsee_ray.features.path import FeaturePath

        spec = self._spec(client_id)
        if not (self.path / MODELS_DIR / f"{spec.client_file}.safetensors").is_file():
            return None
        found = FeaturePath(self.config, spec, self._feature_shapes[spec.cut - 1])
        tensors = self._tensors(spec.client_file)
        for name, stage in found.units.items():
            _fill(stage, {name: stage}, tensors)
        return found if found.ready else None

    def preprocess(self, images_NHWC: np.ndarray[Any, Any]) -> torch.Tensor:
        """Normalised float32 images (N, C, H, W) of uint8 images (N, H, W, C), as the run was trained on."""
        import torch

        from hsee_ray.data.batches import normalise

        data = self.summary["data"]
        return normalise(images_NHWC, data["mean"], data["std"], torch.contiguous_format)

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.summary["data"]["image_shape"]
        return height, width, channels

    @cached_property
    def _feature_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of one sample's features after each unit."""
        from hsee_ray.backbones import feature_shapes

        return feature_shapes(self.backbone(), self._image_shape)

    def _spec(self, client_id: int, needs_server: bool = False) -> ClientSpec:
        if not 0 <= client_id < len(self.fleet.clients):
            raise UserError(
                f"{self.path}: has no client {client_id}; its clients are 0 to {len(self.fleet.clients) - 1}"
            )
        spec = self.fleet.clients[client_id]
        if needs_server and not spec.has_server:
            raise UserError(f"{self.path}: client {client_id} holds the whole network: it has no exit and no server")
        return spec

    def _tensors(self, stem: str) -> dict[str, torch.Tensor]:
        import torch

        from hsee_ray.models.weights import read_model

        arrays = read_model(self.path / MODELS_DIR / f"{stem}.safetensors")
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _fill(module: Network, units: Mapping[str, nn.Module], tensors: Mapping[str, torch.Tensor]) -> Network:
    """The module in evaluation mode, its units filled from tensors named `<unit>.<name in the unit>`."""
    for name, unit in units.items():
        own = f"{name}."
        unit.load_state_dict({key.removeprefix(own): t for key, t in tensors.items() if key.startswith(own)})
    return module.eval()


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
