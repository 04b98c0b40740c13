"""The legs of a batch's trip over the cut: what each side does with a message, and what it sends on.

A trip is a tuple of legs, and the same trip runs in one process (hsee_ray.reference) and over actors (actors.run).
A leg's function is pickled by its name, so it is a function of a module, or an instance of a class of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from hsee_ray.edge.gate import Gate
from hsee_ray.method.predictions import Part

Side = Literal["client", "server"]


@dataclass(frozen=True)
class Work:
    """Steps, or samples, first..last-1 of one client in a round."""

    client_id: int
    round_number: int
    first: int
    last: int
    ends_round: bool = False
    """Whether these are the client's last steps in the round."""


LegFunction = Callable[[Any, Work, Any], tuple[Any, Any]]
"""Computes one leg: of a Client or a Server, the work, and what has been sent, gives what goes on and a report.

What goes on is None where the trip ends: there is nothing to send.
"""


@dataclass(frozen=True)
class Leg:
    """One stop of a trip."""

    side: Side
    run: LegFunction


Trip = tuple[Leg, ...]


def legs_of(trip: Trip, has_server: bool) -> Trip:
    """The legs that a client's batch takes; at cut L it goes nowhere."""
    return trip if has_server else trip[:1]


def train_client(client: Any, work: Work, payload: None) -> tuple[Any, Any]:
    return client.train(work.round_number, work.first, work.last)  # type: ignore[no-any-return]


def train_server(server: Any, work: Work, packet: Any) -> tuple[Any, Any]:
    return server.train(work.client_id, work.round_number, packet, work.ends_round)  # type: ignore[no-any-return]


def send_features(client: Any, work: Work, payload: None) -> tuple[Any, Any]:
    step = client.send if client.spec.has_server else client.train
    return step(work.round_number, work.first, work.last)  # type: ignore[no-any-return]


def take_gradients(client: Any, work: Work, packet: Any) -> tuple[None, Any]:
    return None, client.take_gradients(work.round_number, packet)


def take_soft_labels(client: Any, work: Work, packet: Any) -> tuple[None, Any]:
    return None, client.take_soft_labels(work.round_number, packet)


@dataclass(frozen=True)
class EvaluateClient:
    """The exit answers all samples, and the features of all are sent on."""

    part: Part

    def __call__(self, client: Any, work: Work, payload: None) -> tuple[Any, Any]:
        return client.evaluate(self.part, work.first, work.last)  # type: ignore[no-any-return]


def evaluate_server(server: Any, work: Work, packet: Any) -> tuple[None, Any]:
    return None, server.evaluate(work.client_id, packet)


@dataclass(frozen=True)
class AnswerClient:
    """The exit answers the samples that it is sure of; the features of the others are sent on."""

    part: Part
    gate: Gate

    def __call__(self, client: Any, work: Work, payload: None) -> tuple[Any, Any]:
        packet, answers = client.answer(self.part, work.first, work.last, self.gate)
        return packet or None, answers


def answer_server(server: Any, work: Work, packet: Any) -> tuple[None, Any]:
    return None, server.answer(work.client_id, packet)


TRAINING: Trip = (Leg("client", train_client), Leg("server", train_server))
"""Nothing comes back over the cut."""
WITH_SOFT_LABELS: Trip = (*TRAINING, Leg("client", take_soft_labels))
"""The server's logits come back, for the next round: nobody waits for them."""
WITH_GRADIENTS: Trip = (
    Leg("client", send_features),
    Leg("server", train_server),
    Leg("client", take_gradients),
)
"""The server's gradient comes back, and the client waits for it (SplitFed, Thapa et al. 2022, arXiv:2004.12088)."""


def evaluating(part: Part) -> Trip:
    """Samples through their client, and all of them through its server."""
    return Leg("client", EvaluateClient(part)), Leg("server", evaluate_server)


def answering(part: Part, gate: Gate) -> Trip:
    """Samples through the gate of their client's exit."""
    return Leg("client", AnswerClient(part, gate)), Leg("server", answer_server)
