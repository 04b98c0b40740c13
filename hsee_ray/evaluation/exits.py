"""The trained exits and servers of a finished run, whatever computes them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import ModelId
from hsee_ray.config.schema import Config
from hsee_ray.edge.gate import Gate
from hsee_ray.errors import ConfigError, DataError, RunError
from hsee_ray.method.legs import Work, answering
from hsee_ray.method.predictions import Answers, ExitPredictions, Part, ServerPredictions, join
from hsee_ray.method.setup import Setup, prepare_run
from hsee_ray.method.strategies import label_of, models_of
from hsee_ray.method.task import task_of
from hsee_ray.models.torch_device import computing_device
from hsee_ray.models.weights import read_model
from hsee_ray.reference import Reference
from hsee_ray.rundir.checkpoint import changed_keys
from hsee_ray.rundir.run import CONFIG_FILE, MODELS_DIR, Run, without_training

MAY_CHANGE = frozenset({"data.test_samples", "evaluation.batch_size", "exits.taus", "training.device"})
"""Keys of a trained run that answering may change, beside those that a resume may."""

Gates = Mapping[int, Gate]
"""By client number; without a server there is nothing to decide."""


class Exits(Protocol):
    """The trained models of a run, which answer samples."""

    setup: Setup

    @property
    def left_out(self) -> set[int]:
        """Clients that answer nothing: they have learnt nothing, or have no place."""

    def ask(self, part: Part, gates: Gates, most: int | None = None) -> dict[int, Answers]:
        """The answers of every client that has samples, and of its server to those that the gate lets through.

        `most` samples of each client, or all. Raises RunError where an exit gives values that are NaN or infinite.
        """


class ExitsHere:
    """The trained models of a run in this process."""

    def __init__(self, run: Run, overrides: Iterable[str]) -> None:
        """Raises as `prepare_trained` does, and RunError where the device is not there."""
        self.setup = prepare_trained(run, overrides)
        strategy, fleet = self.setup.strategy, self.setup.fleet
        self.models = Reference(self.setup, partial(computing_device, self.setup.config.training))
        self.left_out = {spec.client_id for spec in fleet.clients if not run.models.has_learnt(spec.client_id)}
        for model in models_of(strategy, fleet):
            if model.side == "server" or model.client_id not in self.left_out:
                path = model_file(run, self.setup, model)
                self.models.side_of(model).take_tensors(read_model(path))

    def ask(self, part: Part, gates: Gates, most: int | None = None) -> dict[int, Answers]:
        """As `Exits.ask`."""
        size = self.setup.config.evaluation.batch_size
        pieces: dict[int, list[tuple[ExitPredictions, ServerPredictions | None]]] = {}
        for client_id, samples in asked_samples(self.setup, part, most).items():
            if client_id in self.left_out:
                continue
            for first in range(0, samples, size):
                work = Work(client_id, 0, first, min(first + size, samples))
                reports = self.models.trip("answer", answering(part, gates[client_id]), work)
                pieces.setdefault(client_id, []).append((reports["client"], reports.get("server")))
        return joined(self.setup, pieces)


def asked_samples(setup: Setup, part: Part, most: int | None) -> dict[int, int]:
    """How many samples of a part each client is asked about: all of them, or `most`."""
    return {client_id: min(samples, most or sys.maxsize) for client_id, samples in setup.samples_of(part).items()}


def joined(
    setup: Setup, pieces: Mapping[int, Sequence[tuple[ExitPredictions, ServerPredictions | None]]]
) -> dict[int, Answers]:
    """The answers of every client, of its messages in their order. Raises RunError where they are not finite."""
    task = task_of(setup.config)
    answers = {client_id: join(task, pieces[client_id]) for client_id in sorted(pieces)}
    for client_id, own in answers.items():
        if not np.isfinite(own.logits_NK).all():
            who = label_of(setup.strategy, setup.fleet, ModelId("client", client_id))
            raise RunError(f"{who}: its exit gives values that are NaN or infinite; its training has diverged")
    return answers


def prepare_trained(run: Run, overrides: Iterable[str]) -> Setup:
    """The setup of a finished run whose models are to answer.

    Raises ConfigError for an override that would make it another run, DataError when its data or its models are not
    there or are not its own.
    """
    config = _config_of(run, overrides)
    run.models.check()
    setup = prepare_run(config)
    _check_same_data(run, setup)
    return setup


def model_file(run: Run, setup: Setup, model: ModelId) -> Path:
    return (run.path / MODELS_DIR).absolute() / f"{setup.strategy.file_of(setup.fleet, model)}.safetensors"


def _config_of(run: Run, overrides: Iterable[str]) -> Config:
    config = load_config(run.path / CONFIG_FILE, overrides)
    trained, wanted = run.config.model_dump(mode="json"), config.model_dump(mode="json")
    changed = [key for key in changed_keys(trained, wanted) if key not in MAY_CHANGE]
    if changed:
        raise ConfigError(f"--set {', '.join(changed)}: the run was trained otherwise; change only where it computes")
    return without_training(config)


def _check_same_data(run: Run, setup: Setup) -> None:
    """Raises DataError when the images are not those that the run was trained on."""
    trained = run.summary["data"]
    found = {"class_names": list(setup.files.class_names), "mean": list(setup.mean_C), "std": list(setup.std_C)}
    for name, value in found.items():
        if value != trained[name]:
            raise DataError(f"the images have another {name} than those of {run.path}; point data.root to its own data")
