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
from actors.run.fanout import MemberCall
from actors.run.interrupt import StopRequest
from actors.run.listener import SILENT, Event
from actors.run.recovery import Recovery, StateLost
from actors.run.rounds import Rounds
from actors.run.run_state import Lineage, RunState
from actors.run.stages import Stage
from actors.run.team import RowRefs, Team, create_actor
from actors.workers.contract import ActorFactory, ReadModel
from actors.workers.origin import Origin, versions
from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import ModelId
from hsee_ray.config.schema import Config
from hsee_ray.edge.gate import Gate
from hsee_ray.errors import ConfigError, DataError, RunError
from hsee_ray.method.legs import answering
from hsee_ray.method.predictions import Answers, ExitPredictions, Part, ServerPredictions, join
from hsee_ray.method.setup import Setup, prepare_run
from hsee_ray.method.task import task_of
from hsee_ray.rundir.checkpoint import changed_keys
from hsee_ray.rundir.failures import History
from hsee_ray.rundir.run import CONFIG_FILE, MODELS_DIR, Run, without_training

MAY_CHANGE = frozenset({"data.test_samples", "evaluation.batch_size", "exits.taus", "training.device"})
"""Keys of a trained run that answering may change, beside those that a resume may."""

Gates = Mapping[int, Gate]
"""By client number; at cut L there is nothing to decide."""


def ask(rounds: Rounds, part: Part, gates: Gates, most: int | None = None) -> dict[int, Answers]:
    """The answers of every client that has samples, and of its server to those that the gate lets through.

    `most` samples of each client, or all. Raises RunError where an exit gives values that are NaN or infinite.
    """
    setup, round_number = rounds.setup, rounds.state.round_number
    n_samples = {
        spec.client_id: min(samples_of(setup, part, spec.client_id), most or sys.maxsize)
        for spec in setup.fleet.clients
    }
    stage = Stage(rounds.team, rounds.recovery, rounds.state, lambda client: answering(part, gates[client]))
    units = rounds.sample_units(n_samples, round_number)
    task = task_of(setup.config)
    pieces: dict[int, list[tuple[ExitPredictions, ServerPredictions | None]]] = {}
    for piece, reports in rounds.run_stage(stage, units, round_number, "answer", rounds.evaluation_window):
        pieces.setdefault(piece.work.client_id, []).append((reports["client"], reports.get("server")))
    answers = {client_id: join(task, pieces[client_id]) for client_id in sorted(pieces.keys() - rounds.team.left_out)}
    for client_id, own in answers.items():
        if not np.isfinite(own.logits_NK).all():
            who = rounds.team.label(ModelId("client", client_id))
            raise RunError(f"{who}: its exit gives values that are NaN or infinite; its training has diverged")
    return answers


def samples_of(setup: Setup, part: Part, client_id: int) -> int:
    """How many samples a client has in a part of the data."""
    return len(setup.test_indices) if part == "test" else len(setup.parts[client_id].calibration)


@contextmanager
def trained_actors(
    run: Run, overrides: Iterable[str], tell: Callable[[Event], None], create: ActorFactory = create_actor
) -> Iterator[Rounds]:
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
        team = Team(setup, ray.put(setup), context.slot_plan, rows, origin, context.at_a_time, create)
        recovery = Recovery(team, History(), tell)
        rounds = Rounds(setup, team, recovery, StopRequest(), SILENT.trained, SILENT.entered, context)
        try:
            _take_models(rounds, run)
            yield rounds
        except StateLost as lost:
            raise RunError(f"{lost.failure.who}: {lost.failure.reason}; nothing was written, start again") from None
        finally:
            rounds.close()
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
    """Every actor reads its model file; a client that has learnt nothing is left out."""
    directory = (run.path / MODELS_DIR).absolute()
    snapshots: dict[ModelId, ObjectRef[Any]] = {}

    def read(model: ModelId, path: Path) -> ObjectRef[Any]:
        nothing: ObjectRef[Any]
        snapshots[model], nothing = rounds.team.submit(model, ReadModel(str(path)))
        return nothing

    calls: dict[ModelId, MemberCall] = {}
    for model in rounds.team.models:
        path = directory / f"{rounds.stem(model)}.safetensors"
        if model.side == "client" and not run.models.has_learnt(model.client_id):
            rounds.team.left_out.add(model.client_id)
            told = "was never trained: it is left out"
            rounds.recovery.tell(Event(run.config.training.rounds, "answer", rounds.team.label(model), told))
            continue
        calls[model] = model, partial(read, model, path)
    rounds.all(calls, run.config.training.rounds, "start")
    lineages = {model: Lineage(snapshot) for model, snapshot in snapshots.items()}
    rounds.go_to(RunState(round_number=run.config.training.rounds, lineages=lineages))
