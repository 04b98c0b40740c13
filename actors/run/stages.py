"""What a stage of a round does for each piece of work: steps and snapshots, or the test images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray import ObjectRef

from actors.run.pipeline import Side, Work
from actors.run.run_state import Lineage
from actors.run.team import Member
from hsee_ray.method.aggregation import ModelId
from hsee_ray.rundir.failures import Failure

if TYPE_CHECKING:
    from actors.run.rounds import Rounds


def models_of(work: Work) -> list[ModelId]:
    """Who takes part in a piece of work."""
    client = ModelId("client", work.client)
    return [client] if work.server is None else [client, ModelId("server", work.server)]


def with_records(works: Sequence[Work]) -> list[Work]:
    """The same work; what is the last of a turn for a client, or for a server, records their states."""
    of_client = {(work.turn, work.client): index for index, work in enumerate(works)}
    of_server = {(work.turn, work.server): index for index, work in enumerate(works) if work.server is not None}
    ends: dict[int, set[Side]] = {}
    for index in of_client.values():
        ends.setdefault(index, set()).add("client")
    for index in of_server.values():
        ends.setdefault(index, set()).add("server")
    return [replace(work, records=frozenset(ends.get(index, ()))) for index, work in enumerate(works)]


class RoundStage:
    """What training and evaluation have in common: slots are the team's, failures are handled by its recovery."""

    name: str

    def __init__(self, rounds: Rounds, round_number: int) -> None:
        self.rounds = rounds
        self.team = rounds.team
        self.round_number = round_number
        self.team.slots.release_all()
        rounds.stage = self

    @property
    def references(self) -> set[ObjectRef[Any]]:
        """States that only this stage knows of."""
        return set()

    def queue(self, work: Work) -> str:
        return self.team.slots.pool(ModelId("client", work.client))

    def slot(self, work: Work) -> bool:
        return self.team.slot({model: self.rounds.state.lineage(model) for model in models_of(work)})

    def leave(self, model: ModelId) -> None:
        self.team.slots.leave(model)

    def replace(self, member: Member, failure: Failure) -> bool:
        return self.rounds.replace(member, failure)

    def restore(self, model: ModelId) -> None:
        self.team.restore(model, self.rounds.state.lineage(model))

    def answered(self, member: Member) -> None:
        self.rounds.recovery.answered(member, self.round_number, self.name)


class TrainingStage(RoundStage):
    """Steps on both sides of the cut; with the last ones of a turn, the states of both."""

    name = "train"

    def __init__(self, rounds: Rounds, round_number: int) -> None:
        super().__init__(rounds, round_number)
        self.recorded: dict[tuple[int, ModelId], ObjectRef[Any]] = {}
        """By turn: states at its end, until it is over for everyone in it."""
        self.midway: dict[ModelId, Lineage] = {}
        """Clients that have left their slot in the middle of a turn."""

    @property
    def references(self) -> set[ObjectRef[Any]]:
        return {*self.recorded.values(), *(ref for lineage in self.midway.values() for ref in lineage.references)}

    def slot(self, work: Work) -> bool:
        lineages = {model: self.midway.get(model, self.rounds.state.lineage(model)) for model in models_of(work)}
        return self.team.slot(lineages)

    def replace(self, member: Member, failure: Failure) -> bool:
        self._forget(member)
        return super().replace(member, failure)

    def restore(self, model: ModelId) -> None:
        self._forget(model)
        super().restore(model)

    def _forget(self, member: Member) -> None:
        """The turn is done anew from its beginning."""
        if not isinstance(member, str):
            self.midway.pop(member, None)

    def client_call(self, work: Work) -> tuple[ObjectRef[Any], ObjectRef[Any]]:
        client = ModelId("client", work.client)
        # In one turn of many, another one may need the slot before it is over.
        may_leave = self.rounds.one_turn and self.team.slots.takes_turns(client)
        record = may_leave or "client" in work.records
        steps = self.round_number, work.first, work.last
        features, state, report = self.team.submit(client, "train", *steps, record, num_returns=3)
        if may_leave:
            self.midway[client] = Lineage(state)
        if "client" in work.records:
            self.recorded[work.turn, client] = state
        return features, report

    def server_call(self, work: Work, features: ObjectRef[Any], client_report: Any) -> ObjectRef[Any]:
        assert work.server is not None
        server, record = ModelId("server", work.server), "server" in work.records
        report: ObjectRef[Any]
        steps = work.client, self.round_number, features
        state, report = self.team.submit(server, "train", *steps, record, num_returns=2)
        if record:
            self.recorded[work.turn, server] = state
        return report

    def commit(self, works: Iterable[Work]) -> None:
        """The turn is over: from now on its models go back to its end."""
        for work in works:
            for model in models_of(work):
                if model.side in work.records:
                    self.rounds.state.lineages[model] = Lineage(self.recorded.pop((work.turn, model)))
                    self.midway.pop(model, None)


class EvaluationStage(RoundStage):
    """The test images through both sides of the cut."""

    name = "evaluate"

    def client_call(self, work: Work) -> tuple[ObjectRef[Any], ObjectRef[Any]]:
        client = ModelId("client", work.client)
        features, report = self.team.submit(client, "evaluate", work.first, work.last, num_returns=2)
        return features, report

    def server_call(self, work: Work, features: ObjectRef[Any], client_report: Any) -> ObjectRef[Any]:
        assert work.server is not None
        report: ObjectRef[Any] = self.team.submit(ModelId("server", work.server), "evaluate", work.client, features)
        return report
