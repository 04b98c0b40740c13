"""Checkpoints of a run over actors: these write and read the shards of models, the driver only what is no tensor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ray import ObjectRef

from actors.run.rounds import MemberCall, Rounds
from actors.run.run_state import Average, Lineage, RunState, taken
from actors.run.team import AGGREGATOR, Member
from hsee_ray.method.aggregation import ModelId
from hsee_ray.rundir.checkpoint import (
    AVERAGES_FILE,
    PROGRESS_FILE,
    FileEntry,
    Manifest,
    Progress,
    commit,
    committed_rounds,
    directory_of,
    entry_of,
    shard_file,
)
from hsee_ray.storage import Storage

STAGE = "checkpoint"


def save_checkpoint(
    rounds: Rounds,
    storage: Storage,
    uri: str,
    keep: int,
    progress: Progress,
    spread: bool,
    check_owner: Callable[[], None],
) -> None:
    """Writes the state after the last whole round. It counts when everything else is there: the manifest is last.

    `spread`: every model's file is written by an actor of its tier; else the aggregator writes all of them.
    `check_owner` raises when the run is another process's by then.
    """
    state = rounds.whole
    number = state.round_number
    if number == 0 or number in committed_rounds(storage):
        return
    directory = directory_of(number)
    keys = tuple(state.averages)
    takes, averages = taken(state.averages)

    def write_averages() -> ObjectRef[Any]:
        write: Any = rounds.team.actor(AGGREGATOR).write_averages
        ref: ObjectRef[Any] = write.remote(uri, f"{directory}/{AVERAGES_FILE}", takes, *averages)
        return ref

    def calls() -> dict[str, MemberCall]:
        made: dict[str, MemberCall] = {
            shard_file(model): rounds.write_shard(model, lineage, uri, f"{directory}/{shard_file(model)}", spread)
            for model, lineage in state.lineages.items()
            if lineage.snapshot is not None
        }
        return {**made, AVERAGES_FILE: (AGGREGATOR, write_averages)} if keys else made

    files: dict[str, FileEntry] = rounds.all_of(calls, number, STAGE)
    check_owner()
    progress.round_number = number
    progress.ledger = state.ledger
    progress.trained = tuple(sorted(state.trained))
    progress.averages = keys
    content = progress.to_json()
    storage.write(f"{directory}/{PROGRESS_FILE}", content)
    commit(storage, Manifest(number, {**files, PROGRESS_FILE: entry_of(content)}), keep)


def load_state(rounds: Rounds, uri: str, manifest: Manifest, progress: Progress) -> RunState:
    """The state of a checkpoint: every shard is read in an actor of its model's tier."""
    directory = directory_of(manifest.round_number)
    snapshots: dict[ModelId, ObjectRef[Any]] = {}
    averages: dict[str, Average] = {}

    def reader(model: ModelId) -> Member:
        return AGGREGATOR if rounds.is_missing(model) else rounds.neighbour(model)

    def read_shard(model: ModelId) -> ObjectRef[Any]:
        file = manifest.shards[model]
        actor = rounds.team.actor(rounds.team.slot_of(reader(model)))
        read: Any = actor.read_shard.options(num_returns=2)
        snapshots[model], nothing = read.remote(uri, f"{directory}/{file}", manifest.files[file])
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
