"""What a stage of a round does for each piece of work: steps and snapshots, or the test images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ray import ObjectRef

from actors.pipeline import Work
from actors.placement import Member
from actors.recipe import Recipe
from hsee_ray.aggregation import ModelId
from hsee_ray.failures import Failure

if TYPE_CHECKING:
    from actors.rounds import Rounds


def with_ends(works: Iterable[Work]) -> list[Work]:
    """The same work with a piece at the end of every client's share of a turn, in which states are recorded.

    A server's state is recorded once, when its turn is over.
    """
    ordered: list[Work] = []
    by_turn: dict[int, list[Work]] = {}
    for work in works:
        by_turn.setdefault(work.turn, []).append(work)
    for turn, pieces in by_turn.items():
        ordered.extend(pieces)
        clients = dict.fromkeys(piece.client for piece in pieces)
        servers = {piece.client: piece.server for piece in pieces if piece.server is not None}
        last = max(servers, default=None)
        ordered.extend(Work(number, servers[number] if number == last else None, 0, 0, turn) for number in clients)
    return ordered


class RoundStage:
    """What training and evaluation have in common: failures are handled by the run's recovery."""

    name: str

    def __init__(self, rounds: Rounds, round_number: int) -> None:
        self.rounds = rounds
        self.team = rounds.team
        self.round_number = round_number

    def replace(self, member: Member, failure: Failure) -> bool:
        return self.rounds.replace(member, failure)

    def restore(self, model: ModelId) -> None:
        self.team.restore(model, self.rounds.state.recipe(model))

    def answered(self, member: Member) -> None:
        self.rounds.recovery.answered(member, self.round_number, self.name)


class TrainingStage(RoundStage):
    """Steps on both sides of the cut; at the end of a turn, snapshots of both."""

    name = "train"

    def __init__(self, rounds: Rounds, round_number: int) -> None:
        super().__init__(rounds, round_number)
        self.snapshots: dict[tuple[Work, ModelId], ObjectRef[Any]] = {}

    def client_call(self, work: Work) -> tuple[ObjectRef[Any], ObjectRef[Any]]:
        client = ModelId("client", work.client)
        if work.ends_turn:
            snapshot, nothing = self.team.submit(client, "snapshot", num_returns=2)
            self.snapshots[work, client] = snapshot
            return snapshot, nothing
        features, report = self.team.submit(client, "train", self.round_number, work.first, work.last, num_returns=2)
        return features, report

    def server_call(self, work: Work, features: ObjectRef[Any], client_report: Any) -> ObjectRef[Any]:
        assert work.server is not None
        server = ModelId("server", work.server)
        report: ObjectRef[Any]
        if work.ends_turn:
            self.snapshots[work, server], report = self.team.submit(server, "snapshot", num_returns=2)
        else:
            report = self.team.submit(server, "train", work.client, self.round_number, features)
        return report

    def commit(self, works: Iterable[Work]) -> None:
        """The turn is over: from now on its models go back to its end."""
        for work in works:
            if work.ends_turn:
                models = [ModelId("client", work.client)]
                if work.server is not None:
                    models.append(ModelId("server", work.server))
                for model in models:
                    self.rounds.state.recipes[model] = Recipe(self.snapshots.pop((work, model)))


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
