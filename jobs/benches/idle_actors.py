"""Clients and servers that compute nothing, for what the driver itself takes. numpy only: they start at once."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from actors.workers.actor_location import ActorLocation, location_here
from actors.workers.contract import ActorFactory, Objects, Outcome, Restore, RunLeg, Worker, WorkerRequest
from actors.workers.store_resident import store_resident
from hsee_ray.method.reports import TrainReport


def idle_factory(
    client: type[Worker], server: type[Worker], client_args: tuple[Any, ...], server_args: tuple[Any, ...] = ()
) -> ActorFactory:
    """Creates actors of these classes where a run wants clients and servers."""
    from actors.run.team import create_actor
    from actors.workers.aggregator import Aggregator
    from actors.workers.model_actor import ClientActor

    def create(actor_class: type[Any], place: Any, *args: Any, **kwargs: Any) -> Any:
        if actor_class is Aggregator:
            return create_actor(actor_class, place, *args, **kwargs)
        # They are not given the setup: to read it, they would load torch.
        if actor_class is ClientActor:
            return create_actor(client, place, *client_args)
        return create_actor(server, place, *server_args)

    return create


class IdleActor(Worker):
    """Answers the requests of a round without computing anything."""

    def location(self) -> ActorLocation:
        return location_here("cpu")

    def restore(self, state: Restore, objects: Objects) -> None:
        """There is no state."""

    def answer(self, request: WorkerRequest, objects: Objects) -> tuple[Any, ...]:
        if not isinstance(request, RunLeg):
            return (None,)
        sent, report = self.leg(request, None if request.payload is None else objects[request.payload].payload)
        state = store_resident(self.state()) if request.snapshot_after else None
        return None if sent is None else store_resident(sent), state, Outcome(report, sent is not None)

    def state(self) -> Any:
        """Stand-in for a snapshot."""
        return None

    @abstractmethod
    def leg(self, request: RunLeg, payload: Any) -> tuple[Any, TrainReport]:
        """The payload sent on, and the report."""


class IdleClient(IdleActor):
    """Hands out features that were made once: Ray copies them into its store, as it does with those of a step."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        """`sizes` are bytes of a batch's features; rounds have them in turn."""
        self.features = [np.ones(size, np.uint8) for size in sizes]

    def leg(self, request: RunLeg, payload: None) -> tuple[Any, TrainReport]:
        batch = self.features[request.work.round_number % len(self.features)]
        steps = request.work.last - request.work.first
        return (batch,) * steps, TrainReport(steps, (0.0,) * steps, steps * batch.nbytes)


class IdleServer(IdleActor):
    """Touches the first byte of every batch."""

    def leg(self, request: RunLeg, payload: Any) -> tuple[None, TrainReport]:
        return None, TrainReport(len(payload), tuple(float(batch[0]) for batch in payload))
