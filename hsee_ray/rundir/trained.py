"""The trained networks of a finished run as torch modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from hsee_ray.backbones import Backbone, build_backbone, feature_shapes, tensors_of
from hsee_ray.config.fleet import EXIT, ClientSpec, Fleet, ModelId
from hsee_ray.config.schema import Config
from hsee_ray.data.batches import normalise
from hsee_ray.errors import DataError, UserError
from hsee_ray.features.path import FeaturePath
from hsee_ray.method.strategies import strategy_of
from hsee_ray.models.exits import build_exit
from hsee_ray.models.split import UnitChain, client_units, server_units
from hsee_ray.models.weights import digest_lines, read_model, weights_sha256

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class TrainedModels:
    """Models of a run; every call reads their files again. Raises UserError where there is no such client."""

    run_dir: Path
    directory: Path
    """Of the model files."""
    config: Config
    fleet: Fleet
    summary: Mapping[str, Any]

    def check(self) -> None:
        """Raises DataError when the model files are not those that the summary's `weights_sha256` names."""
        files = sorted(self.directory.glob("*.safetensors"))
        lines = [line for path in files for line in digest_lines(path.stem, read_model(path))]
        if weights_sha256(lines) != self.summary["weights_sha256"]:
            raise DataError(
                f"{self.directory}: holds other models than those that were trained; copy the run directory again, or "
                "wait for the run that is going on in it"
            )

    def backbone(self) -> Backbone:
        """The whole base network at its initial weights, a new one at every call."""
        return build_backbone(self.config.model, self._image_shape, self._n_classes, self.config.seed)

    def client(self, client_id: int) -> UnitChain:
        """f^c of a client in evaluation mode: images from `preprocess` -> features (B, C, H, W).

        At cut L it is the whole network, and gives logits (B, K).
        """
        spec = self._spec(client_id)
        chain = UnitChain(client_units(self.backbone().units, spec.cut))
        return _fill(chain, chain.units, self._tensors(spec.client_file))

    def exit(self, client_id: int) -> nn.Module:
        """f^o of a client in evaluation mode: features (B, C, H, W) -> logits (B, K).

        Raises UserError when it holds the whole network and has no exit.
        """
        spec = self._spec(client_id)
        if not spec.has_exit:
            raise UserError(f"{self.run_dir}: client {client_id} holds the whole network: it has no exit")
        shape = self._feature_shapes[spec.cut - 1]
        head = build_exit(self.config, spec.cut_name, shape, self._n_classes)
        return _fill(head, {EXIT: head}, self._tensors(spec.client_file))

    def server(self, client_id: int) -> UnitChain:
        """f^s for a client in evaluation mode: features (B, C, H, W) -> logits (B, K).

        Of a shared server it is the part above this client's cut, with this client's statistics.
        Raises UserError when the client has none.
        """
        spec = self._spec(client_id)
        if not spec.has_server:
            raise UserError(f"{self.run_dir}: client {client_id} has no server: it answers alone")
        chain = UnitChain(server_units(self.backbone().units, spec.cut))
        strategy = strategy_of(self.config)
        model = ModelId("server", strategy.server_of(spec) or 0)
        tensors = self._tensors(strategy.file_of(self.fleet, model))
        own = f"{spec.client_file}."
        tensors.update({name.removeprefix(own): t for name, t in tensors.items() if name.startswith(own)})
        return _fill(chain, chain.units, tensors)

    def has_learnt(self, client_id: int) -> bool:
        """Whether a client has a model that it has trained itself; runs of 0.1.0 say no more than that it is there."""
        there = (self.directory / f"{self._spec(client_id).client_file}.safetensors").is_file()
        return there and self.summary["clients"][client_id].get("trained_rounds", 1) > 0

    def feature_path(self, client_id: int) -> FeaturePath | None:
        """How a client's features travel outside of training.

        None where it never trained, or has seen no range for int8.
        """
        spec = self._spec(client_id)
        if not self.has_learnt(client_id):
            return None
        found = FeaturePath(self.config, spec, self._feature_shapes[spec.cut - 1])
        tensors = self._tensors(spec.client_file)
        for name, stage in found.units.items():
            _fill(stage, {name: stage}, tensors)
        return found if found.ready else None

    def preprocess(self, images_NHWC: np.ndarray[Any, Any]) -> torch.Tensor:
        """Normalised float32 images (N, C, H, W) of uint8 images (N, H, W, C), as the run was trained on."""
        data = self.summary["data"]
        return normalise(images_NHWC, data["mean"], data["std"], torch.contiguous_format)

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.summary["data"]["image_shape"]
        return height, width, channels

    @cached_property
    def _feature_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of one sample's features after each unit."""
        return feature_shapes(self.backbone(), self._image_shape)

    @property
    def _n_classes(self) -> int:
        return len(self.summary["data"]["class_names"])

    def _spec(self, client_id: int) -> ClientSpec:
        if not 0 <= client_id < len(self.fleet.clients):
            last = len(self.fleet.clients) - 1
            raise UserError(f"{self.run_dir}: has no client {client_id}; its clients are 0 to {last}")
        return self.fleet.clients[client_id]

    def _tensors(self, stem: str) -> dict[str, torch.Tensor]:
        arrays = read_model(self.directory / f"{stem}.safetensors")
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _fill(module: Network, units: Mapping[str, nn.Module], tensors: Mapping[str, torch.Tensor]) -> Network:
    """The module in evaluation mode, its units filled from tensors named `<unit>.<name in the unit>`."""
    for name, unit in units.items():
        with torch.no_grad():
            for key, tensor in tensors_of(unit).items():
                trained = tensors.get(f"{name}.{key}")
                if trained is None or trained.shape != tensor.shape:
                    raise DataError(f"{name}.{key}: the run's models have no such tensor; copy the run directory again")
                tensor.copy_(trained)
    return module.eval()
