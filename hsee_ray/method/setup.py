"""Preparation of a run: the network's shapes, the fleet, and the partition of the images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hsee_ray.backbones import Backbone, build_backbone, feature_shapes, load_weights
from hsee_ray.config.fleet import ClientSpec, Fleet
from hsee_ray.config.schema import Config
from hsee_ray.data import (
    ClientIndices,
    DatasetFiles,
    channel_statistics,
    class_counts,
    open_images,
    partition,
    prepare,
    select,
)
from hsee_ray.data.augment import check_augment
from hsee_ray.errors import ConfigError, DataError
from hsee_ray.features.path import check_stages, feature_bytes
from hsee_ray.method.client import Client, ClientData, Samples
from hsee_ray.method.figures import check_metrics
from hsee_ray.method.objective import check_objective
from hsee_ray.method.predictions import Part
from hsee_ray.method.server import Server
from hsee_ray.method.strategies import Strategy, build_fleet, strategy_of
from hsee_ray.method.task import check_task
from hsee_ray.models.exits import check_exits

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Setup:
    """A configuration with everything that follows from it and from the data."""

    config: Config
    files: DatasetFiles
    fleet: Fleet
    parts: tuple[ClientIndices, ...]
    """Rows of the training file, client by client."""
    test_indices: Array
    mean_C: tuple[float, ...]
    std_C: tuple[float, ...]
    feature_shapes: tuple[tuple[int, ...], ...]
    """Shape of one sample's features after each unit."""
    class_counts: Array
    """Training samples, (clients, classes)."""
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of what a run begins with, beside its configuration: a resumed run must begin with the same."""
    untouched_weights: tuple[str, ...] = ()
    """Tensors that `model.weights` has for another number of classes, and which begin as without it."""

    @property
    def strategy(self) -> Strategy:
        return strategy_of(self.config)

    @property
    def n_classes(self) -> int:
        return len(self.files.class_names)

    @property
    def local_samples(self) -> tuple[int, ...]:
        """Training samples of every client."""
        return tuple(len(part.train) for part in self.parts)

    def samples_of(self, part: Part) -> dict[int, int]:
        """How many samples of a part of the data each client has."""
        if part == "test":
            return dict.fromkeys(range(len(self.fleet.clients)), len(self.test_indices))
        return {client_id: len(getattr(own, part)) for client_id, own in enumerate(self.parts)}

    def feature_bytes(self, spec: ClientSpec, samples: int) -> int:
        """Bytes of so many samples' features as the client sends them."""
        return feature_bytes(self.config, spec, self.feature_shapes[spec.cut - 1], samples)


def prepare_run(config: Config) -> Setup:
    """Finds or builds the image cache, checks the network and the cuts, deals out the data.

    Cuts that the configuration leaves to the planner must have been picked (`planning.planner.planned`).
    Raises ConfigError or DataError, in one line, for everything that the user can mend.
    """
    strategy = strategy_of(config)
    files = prepare(config.data)
    if config.model.weights is not None and not os.path.isfile(config.model.weights):
        raise ConfigError(f"model.weights is {config.model.weights!r}: there is no such file")
    backbone, untouched = _network_and_untouched(config, files)
    train, test = open_images(files.train), open_images(files.test)
    n_classes = len(files.class_names)
    check_task(config, n_classes)
    check_metrics(config, n_classes)
    check_objective(config, backbone.units, n_classes)
    check_augment(config.data.augment, files.image_shape)
    chosen = select(train.labels_N, config.data.train_samples, config.seed, "train")
    parts = partition(train.labels_N, chosen, config.n_clients, n_classes, config.data, config.seed)
    if config.training.keep == "best" and not any(len(part.validation) for part in parts):
        raise DataError(
            f"data.validation_fraction is {config.data.validation_fraction:g}: that sets aside no image of any client; "
            "raise it, or use training.keep=last"
        )
    if strategy.on_server:
        parts = (_union(parts),)
    fleet, shapes = build_fleet(config, tuple(backbone.units)), feature_shapes(backbone, files.image_shape)
    check_stages(config, fleet, shapes)
    check_exits(config, fleet, shapes, n_classes)
    mean_C, std_C = channel_statistics(train.images_NHWC, np.concatenate([part.train for part in parts]))
    return Setup(
        config=config,
        files=files,
        fleet=fleet,
        parts=parts,
        test_indices=select(test.labels_N, config.data.test_samples, config.seed, "test"),
        mean_C=mean_C,
        std_C=std_C,
        feature_shapes=shapes,
        class_counts=class_counts(train.labels_N, [part.train for part in parts], n_classes),
        fingerprint={
            "training images": files.digests[0],
            "test images": files.digests[1],
            "names of the classes": _sha256("\0".join(files.class_names).encode("utf-8", "surrogatepass")),
            "partition": _sha256(*(rows for part in parts for rows in (part.train, part.calibration))),
            "initial weights": _sha256(*_tensor_bytes(backbone)),
        },
        untouched_weights=untouched,
    )


def _sha256(*contents: bytes | Array) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(f"{len(content)} ".encode())
        digest.update(content.tobytes() if isinstance(content, np.ndarray) else content)
    return digest.hexdigest()


def _tensor_bytes(backbone: Backbone) -> Iterator[Array]:
    for unit in backbone.units.values():
        for tensor in unit.state_dict().values():
            yield tensor.detach().contiguous().flatten().view(torch.uint8).numpy()


def build_network(config: Config, files: DatasetFiles) -> Backbone:
    """The whole base network at its seeded initialisation, or with the weights of `model.weights`."""
    return _network_and_untouched(config, files)[0]


def _network_and_untouched(config: Config, files: DatasetFiles) -> tuple[Backbone, tuple[str, ...]]:
    """The network, and names of the tensors that `model.weights` has left as they were initialised."""
    backbone = build_backbone(config.model, files.image_shape, len(files.class_names), config.seed)
    if config.model.weights is None:
        return backbone, ()
    return backbone, load_weights(backbone, config.model.weights)


def build_client(
    setup: Setup, client_id: int, data: ClientData, device: torch.device, backbone: Backbone | None = None
) -> Client:
    """A client over the units of `backbone`, which it takes for itself; over a new one without it."""
    spec = setup.fleet.clients[client_id]
    backbone = backbone or build_network(setup.config, setup.files)
    return Client(setup.config, spec, backbone, setup.feature_shapes, data, device)


def build_server(setup: Setup, served: Sequence[int], device: torch.device, backbone: Backbone | None = None) -> Server:
    """A server for these clients over the units of `backbone`, or of a new one; all must have a cut below L."""
    specs = [setup.fleet.clients[client_id] for client_id in served]
    return Server(setup.config, specs, backbone or build_network(setup.config, setup.files), setup.n_classes, device)


def mapped_client_data(setup: Setup, client_id: int) -> ClientData:
    """A client's data over the image files of this machine, mapped without copying."""
    train, test = open_images(setup.files.train), open_images(setup.files.test)
    return ClientData(
        train=Samples(train.images_NHWC, train.labels_N, setup.parts[client_id].train),
        test=Samples(test.images_NHWC, test.labels_N, setup.test_indices),
        calibration=Samples(train.images_NHWC, train.labels_N, setup.parts[client_id].calibration),
        validation=Samples(train.images_NHWC, train.labels_N, setup.parts[client_id].validation),
        class_names=setup.files.class_names,
        mean_C=setup.mean_C,
        std_C=setup.std_C,
    )


def _union(parts: Sequence[ClientIndices]) -> ClientIndices:
    return ClientIndices(
        train=np.sort(np.concatenate([part.train for part in parts])),
        calibration=np.sort(np.concatenate([part.calibration for part in parts])),
        validation=np.sort(np.concatenate([part.validation for part in parts])),
    )
