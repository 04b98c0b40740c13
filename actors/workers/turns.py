"""How a model takes its place in an actor: put back to a state by the first call that needs it there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from actors.workers.contract import Takes
from actors.workers.store_resident import StoreResident
from hsee_ray.models.snapshot import Snapshot
from hsee_ray.models.state import ModelState


class TakesTurns(ABC):
    """An actor in which models take turns. A call that finds another state there than it needs brings that along."""

    @abstractmethod
    def restore(
        self,
        client_id: int,
        snapshot: StoreResident[Snapshot] | None,
        takes: Takes,
        *averages: StoreResident[ModelState],
        **data: Any,
    ) -> None:
        """Client `client_id`'s model goes back to a snapshot (None: to the beginning) and takes the averages since.

        `data` is what a client computes on, where it cannot be mapped.
        """

    def restore_and(
        self,
        method: str,
        several: bool,
        n_args: int,
        client_id: int,
        snapshot: StoreResident[Snapshot] | None,
        takes: Takes,
        *args_and_averages: Any,
        **data: Any,
    ) -> tuple[Any, ...]:
        """Restores, then calls a method with the first `n_args` of the arguments: one call of Ray's in place of two.

        Gives what the method gives, as `several` results or as one, and None behind that: later calls that build on
        the state depend on it.
        """
        args, averages = args_and_averages[:n_args], args_and_averages[n_args:]
        self.restore(client_id, snapshot, takes, *averages, **data)
        result = getattr(self, method)(*args)
        return (*result, None) if several else (result, None)
