"""The trained models of a run over actors: sure exits answer, the rest goes up in smaller batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef

from actors.cluster.connection import cluster_context, starts_own_ray
from actors.run.fanout import MemberCall
from actors.run.recovery import Recovery
from actors.run.rounds import Rounds
from actors.run.run_state import Lineage, RunState
from actors.run.stages import Stage
from actors.run.team import RowRefs, Team, create_actor
from actors.workers.contract import ActorFactory, ReadModel
from actors.workers.origin import Origin, versions
from hsee_ray.config.fleet import ModelId
from hsee_ray.config.schema import Config
from hsee_ray.errors import RunError
from hsee_ray.evaluation.exits import Gates, asked_samples, joined, model_file, prepare_trained
from hsee_ray.method.legs import answering
from hsee_ray.method.predictions import Answers, ExitPredictions, Part, ServerPredictions
from hsee_ray.process import cores
from hsee_ray.rundir.failures import History
from hsee_ray.rundir.run import Run
from hsee_ray.training.engine import StateLost
from hsee_ray.training.interrupt import StopRequest
from hsee_ray.training.listener import SILENT, Event


class ActorExits:
    """The trained models of a run over actors."""

    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds
        self.setup = rounds.setup

    @property
    def left_out(self) -> set[int]:
        return self.rounds.team.left_out

    def ask(self, part: Part, gates: Gates, most: int | None = None) -> dict[int, Answers]:
        """As `Exits.ask`."""
        rounds, round_number = self.rounds, self.rounds.state.round_number
        stage = Stage(rounds.team, rounds.recovery, rounds.state, lambda client: answering(part, gates[client]))
        units = rounds.sample_units(asked_samples(self.setup, part, most), round_number)
        pieces: dict[int, list[tuple[ExitPredictions, ServerPredictions | None]]] = {}
        for piece, reports in rounds.run_stage(stage, units, round_number, "answer", rounds.evaluation_window):
            pieces.setdefault(piece.work.client_id, []).append((reports["client"], reports.get("server")))
        return joined(self.setup, {number: own for number, own in pieces.items() if number not in self.left_out})


@contextmanager
def trained_actors(
    run: Run, overrides: Iterable[str], tell: Callable[[Event], None], create: ActorFactory = create_actor
) -> Iterator[ActorExits]:
    """The actors of a finished run with its final models, for the length of the block.

    Raises as `prepare_trained` does, ResourceError when the cluster cannot hold it, and RunError when it fails.
    """
    setup = prepare_trained(run, overrides)
    config = setup.config
    if starts_own_ray(config.cluster):
        config = _in_few_actors(config)
        setup = replace(setup, config=config)

    def waits(who: str, text: str) -> None:
        tell(Event(config.training.rounds, "start", who, text))

    with cluster_context(config, setup.fleet, waits) as context:
        if context.slot_plan.shared and not context.local:
            waits("run", str(context.slot_plan))
        rows, origin = (None, None) if context.local else (RowRefs.put(setup), Origin(versions(), None))
        team = Team(setup, ray.put(setup), context.slot_plan, rows, origin, context.at_a_time, create)
        recovery = Recovery(team, History(), tell)
        rounds = Rounds(setup, team, recovery, StopRequest(), SILENT.trained, SILENT.entered, context)
        try:
            _take_models(rounds, run)
            yield ActorExits(rounds)
        except StateLost as lost:
            raise RunError(f"{lost.failure.who}: {lost.failure.reason}; nothing was written, start again") from None
        finally:
            rounds.close()
            team.release()


def _in_few_actors(config: Config) -> Config:
    """The configuration with as few slots as keep this machine's cores busy: every actor takes a second to start.

    Nobody is lost, or placed, on a Ray that is this machine's.
    """
    most = math.ceil(cores() / (len(config.tiers) + 1))

    def few(slots: int | None) -> int:
        return min(slots or most, most)

    return config.model_copy(
        update={
            "tiers": tuple(tier.model_copy(update={"slots": few(tier.slots)}) for tier in config.tiers),
            "server": config.server.model_copy(update={"slots": few(config.server.slots)}),
            "cluster": config.cluster.model_copy(update={"placement": "pack"}),
            "failures": config.failures.model_copy(update={"on_lost_client": "wait"}),
        }
    )


def _take_models(rounds: Rounds, run: Run) -> None:
    """Every actor reads its model file; a client that has learnt nothing is left out."""
    snapshots: dict[ModelId, ObjectRef[Any]] = {}

    def read(model: ModelId, path: Path) -> ObjectRef[Any]:
        nothing: ObjectRef[Any]
        snapshots[model], nothing = rounds.team.submit(model, ReadModel(str(path)))
        return nothing

    calls: dict[ModelId, MemberCall] = {}
    for model in rounds.team.models:
        if model.side == "client" and not run.models.has_learnt(model.client_id):
            rounds.team.left_out.add(model.client_id)
            told = "was never trained: it is left out"
            rounds.recovery.tell(Event(run.config.training.rounds, "answer", rounds.team.label(model), told))
            continue
        calls[model] = model, partial(read, model, model_file(run, rounds.setup, model))
    rounds.all(calls, run.config.training.rounds, "start")
    lineages = {model: Lineage(snapshot) for model, snapshot in snapshots.items()}
    rounds.go_to(RunState(round_number=run.config.training.rounds, lineages=lineages))
