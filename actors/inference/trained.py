"""The trained models of a run over actors: sure exits answer, the rest goes up in smaller batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import ObjectRef

from actors.cluster.connection import cluster_context
from actors.run.calls import Calls
from actors.run.interrupt import StopRequest
from actors.run.listener import SILENT, Event
from actors.run.pipeline import Work
from actors.run.recovery import Recovery, StateLost
from actors.run.rounds import MemberCall, Rounds
from actors.run.run_state import Lineage, RunState
from actors.run.stages import RoundStage
from actors.run.team import RowRefs, Team
from actors.workers.origin import Origin, versions
from hsee_ray.config.files import load_config
from hsee_ray.config.schema import Config
from hsee_ray.edge.gate import Gate
from hsee_ray.errors import ConfigError, DataError, RunError
from hsee_ray.method.aggregation import ModelId
from hsee_ray.method.predictions import Answers, ExitPredictions, Part, ServerPredictions, join
from hsee_ray.method.setup import Setup, prepare_run
from hsee_ray.rundir.checkpoint import changed_keys
from hsee_ray.rundir.failures import History
from hsee_ray.rundir.run import CONFIG_FILE, MODELS_DIR, Run, without_training

MAY_CHANGE = frozenset({"data.test_samples", "evaluation.batch_size", "exits.taus", "training.device"})
"""Keys of a trained run that answering may change, beside those that a resume may."""

Gates = Mapping[int, Gate]
"""By client number; at cut L there is nothing to decide."""


class AnsweringStage(RoundStage):
    """A part of the data through the real path: exit, compact, send, answer."""

    name = "answer"

    def __init__(self, rounds: Rounds, part: Part, gates: Gates) -> None:
        super().__init__(rounds, rounds.state.round_number)
        self.part = part
        self.gates = gates

    def client_call(self, work: Work) -> tuple[ObjectRef[Any], ObjectRef[Any]]:
        client, gate = ModelId("client", work.client), self.gates[work.client]
        features, answers = self.team.submit(client, "answer", self.part, work.first, work.last, gate, num_returns=2)
        return features, answers

    def server_call(
        self, work: Work, features: ObjectRef[Any], client_report: ExitPredictions
    ) -> ObjectRef[ServerPredictions] | None:
        if client_report.exited_B.all():
            return None
        assert work.server is not None
        answers: ObjectRef[Any] = self.team.submit(ModelId("server", work.server), "answer", work.client, features)
        return answers


def ask(rounds: Rounds, part: Part, gates: Gates, most: int | None = None) -> dict[int, Answers]:
    """The answers of every client that has samples, and of its server to those that the gate lets through.

    `most` samples of each client, or all. Raises RunError where an exit gives values that are no numbers.
    """
    setup, size = rounds.setup, rounds.config.evaluation.batch_size
    works = [
        Work(spec.client_id, rounds.team.server_of(spec), first, min(first + size, n_samples), turn=spec.client_id)
        for spec in setup.fleet.clients
        if spec.client_id not in rounds.missing
        for n_samples in [min(samples_of(setup, part, spec.client_id), most or sys.maxsize)]
        for first in range(0, n_samples, size)
    ]
    stage = AnsweringStage(rounds, part, gates)
    rounds.tell_entered(stage.round_number, stage.name)
    calls: Calls[Any] = rounds.calls(stage.round_number, stage.name)
    pipeline = rounds.pipeline(works, stage, calls, rounds.evaluation_window)
    pieces: dict[int, dict[int, tuple[ExitPredictions, ServerPredictions | None]]] = {}
    for done in pipeline.run():
        pieces.setdefault(done.work.client, {})[done.work.first] = done.client_report, done.server_report
    answers = {
        n: join([piece for _, piece in sorted(pieces[n].items())]) for n in sorted(pieces.keys() - rounds.missing)
    }
    for client_id, own in answers.items():
        if not np.isfinite(own.logits_NK).all():
            who = rounds.team.label(ModelId("client", client_id))
            raise RunError(f"{who}: its exit gives values that are no numbers; its training has diverged")
    return answers


def samples_of(setup: Setup, part: Part, client_id: int) -> int:
    """How many samples a client has in a part of the data."""
    return len(setup.test_indices) if part == "test" else len(setup.parts[client_id].calibration)


@contextmanager
def trained_actors(run: Run, overrides: Iterable[str], tell: Callable[[Event], None]) -> Iterator[Rounds]:
    """The actors of a finished run with its final models, for the length of the block.

    Raises ConfigError for an override that would make it another run, DataError when its data or its models are not
    there or are not its own, ResourceError when the cluster cannot hold it, and RunError when it fails.
    """
    config = _config_of(run, overrides)
    run.models.check()
    setup = prepare_run(config)
    _check_same_data(run, setup)

    def waits(who: str, text: str) -> None:
        tell(Event(config.training.rounds, "start", who, text))

    with cluster_context(config, setup.fleet, waits) as context:
        if context.slot_plan.shared:
            waits("run", str(context.slot_plan))
        rows, origin = (None, None) if context.local else (RowRefs.put(setup), Origin(versions(), None))
        team = Team(setup, ray.put(setup), context.slot_plan, rows, origin, context.at_a_time)
        recovery = Recovery(team, History(), tell)
        rounds = Rounds(setup, team, recovery, StopRequest(), SILENT.trained, SILENT.entered, context)
        try:
            _take_models(rounds, run)
            yield rounds
        except StateLost as lost:
            raise RunError(f"{lost.failure.who}: {lost.failure.reason}; nothing was written, start again") from None
        finally:
            team.release()


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


def _take_models(rounds: Rounds, run: Run) -> None:
    """Every actor reads its model file; a client that was never there has none, and is left out."""
    directory = (run.path / MODELS_DIR).absolute()
    snapshots: dict[ModelId, ObjectRef[Any]] = {}

    def read(model: ModelId, path: Path) -> ObjectRef[Any]:
        nothing: ObjectRef[Any]
        snapshots[model], nothing = rounds.team.submit(model, "read_model", str(path), num_returns=2)
        return nothing

    calls: dict[ModelId, MemberCall] = {}
    for model in rounds.team.models:
        path = directory / f"{rounds.stem(model)}.safetensors"
        if model.side == "client" and not path.is_file():
            rounds.missing.add(model.client_id)
            rounds.recovery.tell(Event(run.config.training.rounds, "answer", rounds.team.label(model), "has no model"))
            continue
        calls[model] = model, partial(read, model, path)
    rounds.all(calls, run.config.training.rounds, "start")
    lineages = {model: Lineage(snapshot) for model, snapshot in snapshots.items()}
    rounds.go_to(RunState(round_number=run.config.training.rounds, lineages=lineages))
