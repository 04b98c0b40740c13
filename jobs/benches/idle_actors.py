"""Clients and servers that compute nothing, for what the driver itself takes. numpy only: they start at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from actors.workers.actor_location import ActorLocation, location_here
from actors.workers.store_resident import StoreResident, store_resident
from actors.workers.turns import TakesTurns
from hsee_ray.method.reports import TrainReport

Array = np.ndarray[Any, Any]
Features = tuple[Array, ...]


@contextmanager
def idle_actors(
    client: type[Any], server: type[Any], client_args: tuple[Any, ...], server_args: tuple[Any, ...] = ()
) -> Iterator[None]:
    """In the block, Ray gets actors of these classes where a run wants clients and servers."""
    from actors.run import team as placement
    from actors.workers.aggregator import Aggregator
    from actors.workers.client_actor import ClientActor

    create = placement._actor

    def idle(actor_class: type[Any], place: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        if actor_class is Aggregator:
            return create(actor_class, place, *args, **kwargs)
        # They are not given the setup: to read it, they would load torch.
        if actor_class is ClientActor:
            return create(client, place, *client_args)
        return create(server, place, *server_args)

    with patch("actors.run.team._actor", idle):
        yield


class IdleActor(TakesTurns):
    """What the driver asks of every model's actor in a round."""

    def location(self) -> ActorLocation:
        return location_here("cpu")

    def load(self, takes: object, *averages: object, after: object = None) -> None:
        pass

    def restore(self, client_id: int, snapshot: object, takes: object, *averages: object, **data: object) -> None:
        pass


class IdleClient(IdleActor):
    """Hands out features that were made once: Ray copies them into its store, as it does with those of a step."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        """`sizes` are bytes of a batch's features; rounds have them in turn."""
        self.features = [np.ones(size, np.uint8) for size in sizes]

    def train(
        self, round_number: int, first: int, last: int, record: bool, after: object = None
    ) -> tuple[StoreResident[Features], StoreResident[None] | None, TrainReport]:
        batch = self.features[round_number % len(self.features)]
        steps = last - first
        state = store_resident(None) if record else None
        return store_resident((batch,) * steps), state, TrainReport(steps, (0.0,) * steps, steps * batch.nbytes)


class IdleServer(IdleActor):
    """Touches the first byte of every batch."""

    def train(
        self, client: int, round_number: int, packet: StoreResident[Features], record: bool, after: object = None
    ) -> tuple[StoreResident[None] | None, TrainReport]:
        state = store_resident(None) if record else None
        return state, TrainReport(len(packet.payload), tuple(float(batch[0]) for batch in packet.payload))
