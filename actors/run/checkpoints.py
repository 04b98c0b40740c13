"""Checkpoints of a run over actors: these write and read the shards of models, the driver only what is no tensor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ray import ObjectRef

from actors.run.fanout import MemberCall
from actors.run.rounds import Rounds
from actors.run.run_state import Average, Lineage, RunState, average_refs
from actors.run.team import AGGREGATOR, Member, Team
from actors.workers.contract import ObjectList, ReadShard, SaveModel, WriteShard
from hsee_ray.config.fleet import ModelId
from hsee_ray.rundir.checkpoint import (
    AVERAGES_FILE,
    Manifest,
    Progress,
    directory_of,
    shard_file,
    write_checkpoint,
)
from hsee_ray.rundir.location import RunLocation
from hsee_ray.rundir.run import CHECKPOINTS_DIR

STAGE = "checkpoint"


def save_checkpoint(rounds: Rounds, location: RunLocation, progress: Progress, spread: bool) -> None:
    """Writes the state after the last whole round.

    `spread`: every model's file is written by an actor of its tier; else the aggregator writes all of them.
    """
    state = rounds.whole
    number = state.round_number
    progress.reach(number, state.ledger, state.trained, state.averages)
    uri, directory = location.place(CHECKPOINTS_DIR), directory_of(number)

    def write_averages() -> ObjectRef[Any]:
        objects = ObjectList()
        averages = average_refs(state.averages, objects)
        write: Any = rounds.team.actor(AGGREGATOR).write_averages
        ref: ObjectRef[Any] = write.remote(uri, f"{directory}/{AVERAGES_FILE}", averages, *objects.refs)
        return ref

    def write_shard(model: ModelId, lineage: Lineage) -> MemberCall:
        """An actor of the model's tier writes its file, or the aggregator."""
        objects = ObjectList()
        request = WriteShard(uri, f"{directory}/{shard_file(model)}", lineage.restore(model, objects))
        if not spread or rounds.team.is_left_out(model):
            return AGGREGATOR, partial(_first, rounds.team.submit_to_aggregator, request, objects)
        writer = neighbour(rounds.team, model)
        return writer, partial(_first, rounds.team.submit, writer, request, objects)

    def calls() -> dict[str, MemberCall]:
        made = {
            shard_file(model): write_shard(model, lineage)
            for model, lineage in state.lineages.items()
            if lineage.snapshot is not None
        }
        return {**made, AVERAGES_FILE: (AGGREGATOR, write_averages)} if state.averages else made

    write_checkpoint(location, progress, rounds.config.checkpoint.keep, lambda: rounds.all_of(calls, number, STAGE))


def save_models(rounds: Rounds, directory: str) -> list[str]:
    """Every model's final file is written in its actor; returns the digest lines of all of them.

    The aggregator writes that of a client that is left out.
    """

    def calls() -> dict[ModelId, MemberCall]:
        made: dict[ModelId, MemberCall] = {}
        for model in rounds.team.models:
            lineage, objects, stem = rounds.state.lineage(model), ObjectList(), rounds.stem(model)
            if not rounds.team.is_left_out(model):
                made[model] = model, partial(_first, rounds.team.submit, model, SaveModel(directory, stem))
            elif lineage.snapshot is not None:
                request = SaveModel(directory, stem, lineage.restore(model, objects))
                made[model] = AGGREGATOR, partial(_first, rounds.team.submit_to_aggregator, request, objects)
        return made

    lines = rounds.all_of(calls, rounds.state.round_number, "save")
    return [line for of_model in lines.values() for line in of_model]


def _first(submit: Callable[..., list[ObjectRef[Any]]], *args: Any) -> ObjectRef[Any]:
    return submit(*args)[0]


def load_state(rounds: Rounds, uri: str, manifest: Manifest, progress: Progress) -> RunState:
    """The state of a checkpoint: every shard is read in an actor of its model's tier."""
    directory = directory_of(manifest.round_number)
    snapshots: dict[ModelId, ObjectRef[Any]] = {}
    averages: dict[str, Average] = {}

    def reader(model: ModelId) -> Member:
        return AGGREGATOR if rounds.team.is_left_out(model) else neighbour(rounds.team, model)

    def read_shard(model: ModelId) -> ObjectRef[Any]:
        file, who = manifest.shards[model], reader(model)
        request = ReadShard(uri, f"{directory}/{file}", manifest.files[file])
        if isinstance(who, str):
            snapshots[model], nothing = rounds.team.submit_to_aggregator(request, ObjectList())
        else:
            snapshots[model], nothing = rounds.team.submit(who, request)
        return nothing

    def read_averages() -> ObjectRef[Any]:
        read: Any = rounds.team.actor(AGGREGATOR).read_averages.options(num_returns=2)
        ref, nothing = read.remote(uri, f"{directory}/{AVERAGES_FILE}", manifest.files[AVERAGES_FILE])
        averages.update({key: Average(ref, key) for key in progress.averages})
        return nothing

    def calls() -> dict[Member, MemberCall]:
        made: dict[Member, MemberCall] = {
            model: (reader(model), partial(read_shard, model)) for model in manifest.shards
        }
        return {**made, AGGREGATOR: (AGGREGATOR, read_averages)} if progress.averages else made

    rounds.all_of(calls, manifest.round_number, STAGE)
    return RunState(
        round_number=manifest.round_number,
        lineages={model: Lineage(snapshot) for model, snapshot in snapshots.items()},
        averages=averages,
        ledger=progress.ledger,
        trained=set(progress.trained),
    )


def neighbour(team: Team, model: ModelId) -> ModelId:
    """A model that holds a slot of the same pool, for work that any of them can do; the model itself if it has one."""
    slots = team.slots.of_pool(model)
    if team.slots.of(model) is not None:
        return model
    return team.slots.occupant(slots[model.client_id % len(slots)])
