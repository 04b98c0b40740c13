"""The server parts of a run's bundles in one process: each parameter once, each client's statistics its own.

Legend: B samples, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from hsee_ray.deploy.program import Program
from hsee_ray.edge.bundle import BUNDLE_FILE, Bundle, checked_file, load_bundle
from hsee_ray.edge.codecs import FeatureCodec
from hsee_ray.edge.protocol import BadRequest, Offload, SentFeatures
from hsee_ray.edge.task import Task
from hsee_ray.errors import DataError

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, torch.Tensor]
Bundles = Mapping[Path, Bundle]
"""Bundles with a server part, by the directories of their clients."""

PASS_SAMPLES = 256
"""Samples of one forward pass: however large a request is, its activations have a bound."""


def find_bundles(directory: Path) -> Bundles:
    """Bundles of a whole export, or of the one client whose directory it is; their files are as they name them.

    Raises DataError when there is nothing to serve, a file is missing or damaged, or the bundles are not of one run.
    """
    alone = (directory / BUNDLE_FILE).is_file()
    directories = [directory] if alone else sorted(path.parent for path in directory.glob(f"*/{BUNDLE_FILE}"))
    bundles = {path.resolve(): load_bundle(path) for path in directories}
    if not bundles:
        raise DataError(f"{directory}: holds no {BUNDLE_FILE}, and no client's directory; give that of an export")
    networks = {bundle.network for bundle in bundles.values()}
    if len(networks) > 1:
        raise DataError(f"{directory}: holds bundles of {len(networks)} networks; serve each run's export by itself")
    if len({bundle.client for bundle in bundles.values()}) < len(bundles):
        raise DataError(f"{directory}: holds two bundles of one client; remove the copy")
    served = {path: bundle for path, bundle in bundles.items() if bundle.server is not None}
    if not served:
        raise DataError(f"{directory}: no client has a server part: each answers everything itself")
    files = _Files()
    for path, bundle in served.items():
        files.program_and_weights(path, bundle)
    return served


def sent_features(bundles: Bundles) -> dict[int, SentFeatures]:
    """Shape and codec of each client's features, by client id."""
    return {bundle.client: SentFeatures(bundle.feature_shape or (), bundle.codec.name) for bundle in bundles.values()}


class ServerModels:
    """Answers the clients of one run."""

    def __init__(self, bundles: Bundles, device: torch.device) -> None:
        """Raises DataError when a file is missing or is not what its bundle says."""
        self.device = device
        self._parts: dict[int, tuple[Program, Tensors, FeatureCodec, Task]] = {}
        files = _Files()
        programs: dict[Path, Program] = {}
        weights: dict[Path, dict[str, torch.Tensor]] = {}
        for directory, bundle in bundles.items():
            assert bundle.server is not None and bundle.feature_shape is not None
            program_file, weights_file = files.program_and_weights(directory, bundle)
            if program_file not in programs:
                programs[program_file] = Program(program_file)
            if weights_file not in weights:
                weights[weights_file] = load_file(weights_file, str(device))
            tensors = {name: weights[weights_file][stored] for name, stored in bundle.server.tensors.items()}
            self._parts[bundle.client] = programs[program_file], tensors, bundle.codec, bundle.task.load(Task)
            # The first pass through a program takes longer than the others: no request has to wait for it.
            self.answer(bundle.client, np.zeros((1, *bundle.feature_shape), bundle.codec.dtype))

    def tensors(self, client: int) -> Tensors:
        """The tensors of a client's server part: shared ones are the same objects for all clients."""
        return self._parts[client][1]

    def answer(self, client: int, features: Array) -> Array:
        """Labels (B,) int64 of features (B, ...), coded as the client sends them.

        Raises BadRequest when the network makes no finite numbers of them.
        """
        return self._labels(client, self._logits(client, features))

    def answer_all(self, requests: Sequence[Offload]) -> list[Array | Exception]:
        """Labels (B,) of each request, or why it has none. Those of one client go through its network together."""
        answers: dict[int, Array | Exception] = {}
        for client in dict.fromkeys(request.client for request in requests):
            mine = {index: request.features for index, request in enumerate(requests) if request.client == client}
            answers.update(zip(mine, self._answer_together(client, list(mine.values())), strict=True))
        return [answers[index] for index in range(len(requests))]

    def _answer_together(self, client: int, features: list[Array]) -> list[Array | Exception]:
        together = features[0] if len(features) == 1 else np.concatenate(features)
        try:
            logits_BK = self._logits(client, together)
        except Exception as error:  # such as too little memory: the other clients get their answers all the same
            return [error] * len(features)
        answers: list[Array | Exception] = []
        for own_BK in torch.split(logits_BK, [len(part) for part in features]):
            try:
                answers.append(self._labels(client, own_BK))
            except BadRequest as error:
                answers.append(error)
        return answers

    @torch.inference_mode()
    def _logits(self, client: int, features: Array) -> torch.Tensor:
        """Logits (B, K) in the CPU's memory."""
        program, tensors, codec, _ = self._parts[client]
        # torch wants an array that it could write to.
        h = torch.from_numpy(np.require(codec.decode(features), np.float32, ["C", "W"]))
        return torch.cat([program(part.to(self.device), tensors).cpu() for part in torch.split(h, PASS_SAMPLES)])

    def _labels(self, client: int, logits_BK: torch.Tensor) -> Array:
        if not bool(torch.isfinite(logits_BK).all()):
            raise BadRequest(422, "the features are so large that the network makes no finite numbers of them")
        *_, task = self._parts[client]
        return task.predict(logits_BK.numpy())


class _Files:
    """Files that bundles share, each read and checked once."""

    def __init__(self) -> None:
        self._checked: set[tuple[Path, str | None]] = set()

    def program_and_weights(self, directory: Path, bundle: Bundle) -> tuple[Path, Path]:
        assert bundle.server is not None
        return self._path(directory, bundle, bundle.server.program), self._path(
            directory, bundle, bundle.server.weights
        )

    def _path(self, directory: Path, bundle: Bundle, name: str) -> Path:
        path = (directory / name).resolve()
        if (path, bundle.files.get(name)) not in self._checked:
            checked_file(directory, bundle, name)
            self._checked.add((path, bundle.files.get(name)))
        return path
