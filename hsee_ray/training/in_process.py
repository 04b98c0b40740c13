"""Computes a run in this process: one batch after the other, without Ray. The bits are those of a run over actors."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hsee_ray.config.fleet import ModelId
from hsee_ray.errors import ClientError, first_line
from hsee_ray.method.aggregation import Ledger
from hsee_ray.method.legs import Leg, Work
from hsee_ray.method.reports import RoundReport
from hsee_ray.method.setup import Setup
from hsee_ray.method.strategies import label_of, models_of
from hsee_ray.models.snapshot import Snapshot
from hsee_ray.models.state import UnitState
from hsee_ray.models.torch_device import computing_device
from hsee_ray.models.weights import write_model
from hsee_ray.process import keep_freed_memory
from hsee_ray.reference import Reference
from hsee_ray.rundir.checkpoint import AVERAGES_FILE, FileEntry, Progress, directory_of, shard_file, write_checkpoint
from hsee_ray.rundir.location import RunLocation
from hsee_ray.rundir.run import CHECKPOINTS_DIR, MODELS_DIR
from hsee_ray.rundir.shards import read_snapshot, write_snapshot
from hsee_ray.training.engine import Resumed, RunContext, Tell


@dataclass(frozen=True)
class Whole:
    """Everything that decides the rest of a run, after a whole round."""

    round_number: int = 0
    snapshots: Mapping[ModelId, Snapshot] = field(default_factory=dict)
    averages: Mapping[str, UnitState] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    trained: tuple[int, ...] = ()


class InProcess(Reference):
    """The reference with what a run needs beside the steps: progress, requests to stop, checkpoints, files."""

    def __init__(self, context: RunContext) -> None:
        setup = context.setup
        super().__init__(setup, partial(computing_device, setup.config.training))
        self.context = context
        self.location = context.location
        self.models = models_of(setup.strategy, setup.fleet)
        self.whole = Whole()

    @property
    def whole_round(self) -> int:
        return self.whole.round_number

    def run_round(self, round_number: int) -> RoundReport:
        self.context.listener.entered(round_number, "train")
        report = super().run_round(round_number)
        self.whole = Whole(
            round_number=round_number,
            snapshots={model: self.side_of(model).snapshot() for model in self.models},
            averages=dict(self.averages),
            ledger=self.ledger.copy(),
            trained=tuple(sorted(self.trained)),
        )
        return report

    def perform(self, stage: str, leg: Leg, work: Work, payload: Any) -> tuple[Any, Any]:
        """Computes one leg. Raises ClientError, and GraceOver."""
        self.context.stop.check()
        begin_s = time.monotonic()
        who = label_of(self.strategy, self.setup.fleet, self.model_of(leg.side, work.client_id))
        try:
            result = super().perform(stage, leg, work, payload)
        except Exception as error:  # of the user's parts it may be any
            raise ClientError(who, work.round_number, stage, first_line(error)) from error
        self.context.worked("this process", who, stage, work.round_number, begin_s, time.monotonic())
        if stage == "train" and leg.side == "client":
            self.context.listener.trained(result[1].samples)
        return result

    def take_up(self, found: Resumed, again: bool) -> None:
        if found is None:
            return
        manifest, progress = found
        place, directory = self.location.place(CHECKPOINTS_DIR), directory_of(manifest.round_number)

        def read(name: str) -> Snapshot:
            return read_snapshot(place, f"{directory}/{name}", manifest.files[name])

        snapshots = {model: read(file) for model, file in manifest.shards.items()}
        for model, snapshot in snapshots.items():
            self.side_of(model).restore(snapshot)
        self.averages = dict(read(AVERAGES_FILE).units) if progress.averages else {}
        self.ledger, self.trained = progress.ledger.copy(), set(progress.trained)
        self.whole = Whole(
            manifest.round_number, snapshots, dict(self.averages), self.ledger.copy(), tuple(progress.trained)
        )

    def save_checkpoint(self, progress: Progress, spread: bool = True, after_failure: bool = False) -> None:
        whole = self.whole
        progress.reach(whole.round_number, whole.ledger, whole.trained, whole.averages)
        place, directory = self.location.place(CHECKPOINTS_DIR), directory_of(whole.round_number)

        def write_files() -> dict[str, FileEntry]:
            files = {shard_file(model): snapshot for model, snapshot in whole.snapshots.items()}
            if whole.averages:
                files[AVERAGES_FILE] = Snapshot(dict(whole.averages))
            return {name: write_snapshot(place, f"{directory}/{name}", each) for name, each in files.items()}

        write_checkpoint(self.location, progress, self.config.checkpoint.keep, write_files)

    def save_models(self) -> list[str]:
        place = self.location.place(MODELS_DIR)
        return [line for stem, tensors in self.files().items() for line in write_model(place, stem, tensors)]

    def close(self) -> None:
        """Nothing outlives the run."""


class ThisProcess:
    """Where an InProcess computes."""

    def check(self, setup: Setup, location: RunLocation, tell: Tell) -> None:
        """There is nothing to ask of other machines."""

    def engine(self, context: RunContext) -> InProcess:
        return InProcess(context)


@contextmanager
def in_process(setup: Setup, tell: Tell) -> Iterator[ThisProcess]:
    """Opens this process for a run."""
    keep_freed_memory()
    yield ThisProcess()
