"""The stages of a round: what is submitted for each leg of a piece, and how models go back when a unit is repeated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ray import ObjectRef

from actors.run.pieces import Piece, RetryUnit
from actors.run.pipeline import UnitReports
from actors.run.recovery import Recovery
from actors.run.run_state import Lineage, RunState
from actors.run.team import Team
from actors.workers.contract import ObjectList, RunLeg
from hsee_ray.config.fleet import ModelId
from hsee_ray.method.legs import Leg, Trip, legs_of
from hsee_ray.method.strategies import Strategy


class Stage:
    """A stage in which no model changes: slots are the team's, failures are handled by its recovery."""

    lockstep = False
    """Whether a client's next piece waits for the end of this one's trip."""

    def __init__(self, team: Team, recovery: Recovery, state: RunState, trip_of: Callable[[int], Trip]) -> None:
        """`trip_of` a client is that of its pieces."""
        self.team = team
        self.recovery = recovery
        self.state = state
        self._trip_of = trip_of
        self.team.slots.release_all()

    @property
    def references(self) -> set[ObjectRef[Any]]:
        """States that only this stage knows of."""
        return set()

    def trip_of(self, piece: Piece) -> Trip:
        return legs_of(self._trip_of(piece.work.client_id), piece.server is not None)

    def pool(self, piece: Piece) -> str:
        return self.team.slots.pool(piece.client)

    def take_slots(self, piece: Piece) -> bool:
        return self.team.slot({model: self.lineage(model) for model in piece.models})

    def leave_slot(self, model: ModelId) -> None:
        self.team.slots.leave(model)

    def lineage(self, model: ModelId) -> Lineage:
        """The state in which a model takes a slot."""
        return self.state.lineage(model)

    def submit(
        self, piece: Piece, leg: Leg, payload: ObjectRef[Any] | None, ends_piece: bool, ends_unit: bool
    ) -> tuple[ObjectRef[Any], ObjectRef[Any]]:
        sent, _, outcome = self._submit(piece, leg, payload, snapshot_after=False)
        return sent, outcome

    def _submit(
        self, piece: Piece, leg: Leg, payload: ObjectRef[Any] | None, snapshot_after: bool
    ) -> list[ObjectRef[Any]]:
        objects = ObjectList() if payload is None else ObjectList([payload])
        request = RunLeg(leg, piece.work, snapshot_after, None if payload is None else 0)
        return self.team.submit(piece.model(leg.side), request, objects)

    async def until_done(
        self, attempt: Callable[[], Awaitable[UnitReports]], rewind: Callable[[], None]
    ) -> UnitReports:
        return await self.recovery.until_done(attempt, self.state, rewind)

    def restore(self, model: ModelId) -> None:
        self.team.restore(model, self.state.lineage(model))

    def commit(self, unit: RetryUnit) -> None:
        """No model has changed."""


class TrainingStage(Stage):
    """Steps on both sides of the cut; with the last ones of a unit, the states of both."""

    def __init__(
        self, team: Team, recovery: Recovery, state: RunState, strategy: Strategy, one_unit: bool, snapshots: bool
    ) -> None:
        """`one_unit`: all clients are in one retry unit, so that each leaves its slot whenever it does not compute.

        Without `snapshots` no states are kept.
        """
        training = team.setup.config.training
        super().__init__(team, recovery, state, lambda client: strategy.trip_of(training))
        self.lockstep = strategy.lockstep(training)
        self.one_unit = one_unit
        self.snapshots = snapshots
        self.ended: dict[ModelId, ObjectRef[Any]] = {}
        """States at the end of units that are not over for everyone in them."""
        self.midway: dict[ModelId, Lineage] = {}
        """Clients that have left their slot in the middle of a unit."""

    @property
    def references(self) -> set[ObjectRef[Any]]:
        return {*self.ended.values(), *(ref for lineage in self.midway.values() for ref in lineage.references)}

    def lineage(self, model: ModelId) -> Lineage:
        return self.midway.get(model, self.state.lineage(model))

    def restore(self, model: ModelId) -> None:
        self.midway.pop(model, None)
        super().restore(model)

    def submit(
        self, piece: Piece, leg: Leg, payload: ObjectRef[Any] | None, ends_piece: bool, ends_unit: bool
    ) -> tuple[ObjectRef[Any], ObjectRef[Any]]:
        model = piece.model(leg.side)
        # In one unit of many, another client may need the slot before it is over.
        may_leave = self.one_unit and ends_piece and leg.side == "client" and self.team.slots.takes_turns(model)
        snapshot_after = self.snapshots and (ends_unit or may_leave)
        sent, snapshot, outcome = self._submit(piece, leg, payload, snapshot_after)
        if may_leave:
            self.midway[model] = Lineage(snapshot)
        if ends_unit and self.snapshots:
            self.ended[model] = snapshot
        return sent, outcome

    def commit(self, unit: RetryUnit) -> None:
        for model in unit.last if self.snapshots else ():
            self.state.lineages[model] = Lineage(self.ended.pop(model))
            self.midway.pop(model, None)
