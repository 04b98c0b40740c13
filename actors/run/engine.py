"""Computes a run over Ray's actors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import ray

from actors.cluster.connection import ClusterContext, cluster_context
from actors.cluster.doctor import check_nodes
from actors.cluster.ray_internals import spilled_bytes
from actors.run.checkpoints import load_state, save_checkpoint, save_models
from actors.run.meters import Meters
from actors.run.recovery import Recovery
from actors.run.rounds import Rounds
from actors.run.run_state import RunState
from actors.run.team import AGGREGATOR, Member, RowRefs, Team, create_actor
from actors.workers.contract import ActorFactory
from actors.workers.origin import Origin, versions
from hsee_ray.method.reports import RoundReport
from hsee_ray.method.setup import Setup
from hsee_ray.rundir.checkpoint import Progress
from hsee_ray.rundir.location import RunLocation
from hsee_ray.rundir.run import CHECKPOINTS_DIR, MODELS_DIR
from hsee_ray.training.engine import Resumed, RunContext, Tell
from hsee_ray.training.listener import Event


class ActorEngine:
    """The team of a run, its rounds, and what is written of them."""

    def __init__(self, context: RunContext, cluster: ClusterContext, create: ActorFactory = create_actor) -> None:
        """`create` makes the actors."""
        self.context = context
        self.location = context.location
        self.spilled_bytes = spilled_bytes()
        """Bytes that Ray had spilled to disk before the run."""
        setup, place = context.setup, self.location.uri
        rows, origin = (
            (None, None) if cluster.local else (RowRefs.put(setup), Origin(versions(), place, self.location.token))
        )
        self.team = Team(setup, ray.put(setup), cluster.slot_plan, rows, origin, cluster.at_a_time, create)
        listener = context.listener
        listener.assembled(self.team)
        self.recovery = Recovery(self.team, context.history, listener.happened)
        # Nobody looks at the metrics of a Ray that ends with the run.
        self.meters = None if cluster.local else Meters(self.location.name, setup.fleet)
        self.rounds = Rounds(
            setup, self.team, self.recovery, context.stop, listener.trained, listener.entered, cluster, self._worked
        )

    @property
    def whole_round(self) -> int:
        return self.rounds.whole.round_number

    def run_round(self, round_number: int) -> RoundReport:
        report = self.rounds.run_round(round_number)
        if self.meters is not None:
            self.meters.update(report, self.recovery.replaced)
        return report

    def take_up(self, found: Resumed, again: bool) -> None:
        if again:
            # Reading a checkpoint must not depend on states that are lost.
            self.rounds.go_to(RunState())
        if found is not None:
            self.rounds.go_to(load_state(self.rounds, self.location.place(CHECKPOINTS_DIR), *found))

    def save_checkpoint(self, progress: Progress, spread: bool = True, after_failure: bool = False) -> None:
        if after_failure:
            # Whatever has failed, a new aggregator can write what the driver has references of.
            self.team.replace(AGGREGATOR)
        save_checkpoint(self.rounds, self.location, progress, spread)

    def save_models(self) -> list[str]:
        lines = save_models(self.rounds, self.location.place(MODELS_DIR))
        self._tell_spilling()
        return lines

    def close(self) -> None:
        """Gives back what outlives the actors on a cluster that goes on."""
        self.rounds.close()
        self.team.release()

    def _tell_spilling(self) -> None:
        """Says so when the cluster's object stores were full: disks are slow, and a run is meant to fit."""
        spilled = (spilled_bytes() or 0) - (self.spilled_bytes or 0)
        if spilled > 0:
            text = f"{spilled >> 20:,} MiB went to disk meanwhile: lower pipeline.max_in_flight_mib, or add memory"
            self.context.listener.happened(Event(self.whole_round, "end", "object store", text))

    def _worked(self, member: Member, stage: str, round_number: int, begin_s: float, end_s: float) -> None:
        row = self.team.label(self.team.slot_of(member))
        self.context.worked(row, self.team.label(member), stage, round_number, begin_s, end_s)


class Cluster:
    """The Ray that is connected."""

    def __init__(self, context: ClusterContext, create: ActorFactory) -> None:
        self.context = context
        self.create = create

    def check(self, setup: Setup, location: RunLocation, tell: Tell) -> None:
        """Raises UserError where a node cannot do its part; a Ray of the run's own is this machine."""
        if not self.context.local:
            check_nodes(setup, self.context, location, tell)

    def engine(self, context: RunContext) -> ActorEngine:
        return ActorEngine(context, self.context, self.create)


def over_actors(create: ActorFactory = create_actor) -> Callable[[Setup, Tell], AbstractContextManager[Cluster]]:
    """Opens the Ray of a run; `create` makes its actors."""

    @contextmanager
    def opened(setup: Setup, tell: Tell) -> Iterator[Cluster]:
        with cluster_context(setup.config, setup.fleet, tell) as context:
            yield Cluster(context, create)

    return opened
