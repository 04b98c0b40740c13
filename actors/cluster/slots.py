"""Which model holds which slot: clients of a tier, and servers, share resident actors. Nothing here acts.

A slot is an actor. It is named after its first model, so that where every model has an actor of its
own, a slot and its model bear one name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hsee_ray.config.fleet import Fleet, ModelId
from hsee_ray.config.schema import Config
from hsee_ray.method.strategies import models_of, strategy_of

SERVERS = "servers"
"""Name of the servers among the tiers of a run."""
ACTOR_BYTES = 400 << 20
"""Memory counted per actor: 315 MiB unshared, as measured, and some for a model."""

Slot = ModelId


@dataclass(frozen=True)
class SlotPlan:
    """How many actors each tier's clients, and the servers, share."""

    models: Mapping[str, int]
    """Clients by tier, and servers."""
    slots: Mapping[str, int]
    """Actors for them."""
    room_bytes: int | None = None
    """Memory that there is for actors; None: not known, or it can grow."""

    @property
    def shared(self) -> bool:
        return self.slots != self.models

    def __str__(self) -> str:
        total = sum(self.models.values())
        if not self.shared:
            return f"{total + 1:,} actors: every client and every server has its own, and one averages"
        listed = ", ".join(
            f"{count:,} {pool} in {self.slots[pool]}" for pool, count in self.models.items() if self.slots[pool] < count
        )
        text = f"{sum(self.slots.values()) + 1:,} actors, one of which averages; shared by models: {listed}"
        if self.room_bytes is not None and (total + 1) * ACTOR_BYTES > self.room_bytes:
            return f"{text} (one each would take about {_gib((total + 1) * ACTOR_BYTES)} of {_gib(self.room_bytes)})"
        return text


def plan_slots(config: Config, fleet: Fleet, room_bytes: int | None, per_pool: int) -> SlotPlan:
    """As many slots as the configuration says. Where it says nothing: one for each model while that fits in memory.

    Where it does not fit, up to `per_pool` slots for each tier and for the servers, as far as there is room. Pairs that
    are kept together, and clients that may be left out of a run, always have actors of their own.
    """
    models = Counter(pool_of(fleet, model) for model in models_of(strategy_of(config), fleet))
    asked = {tier.name: tier.slots for tier in config.tiers} | {SERVERS: config.server.slots}
    slots = {pool: min(asked.get(pool) or count, count) for pool, count in models.items()}
    fits = room_bytes is None or (sum(slots.values()) + 1) * ACTOR_BYTES <= room_bytes
    may_share = config.cluster.placement != "colocate" and config.failures.on_lost_client != "drop"
    if room_bytes is not None and not fits and may_share:
        free = [pool for pool in models if asked.get(pool) is None]
        left = room_bytes // ACTOR_BYTES - 1 - sum(slots[pool] for pool in models if pool not in free)
        each = max(1, min(per_pool, left // max(1, len(free))))
        slots |= {pool: min(each, models[pool]) for pool in free}
    return SlotPlan(models, slots, room_bytes)


def pool_of(fleet: Fleet, model: ModelId) -> str:
    """Models of one pool may take each other's slots: clients of a tier, and servers."""
    return SERVERS if model.side == "server" else fleet.clients[model.client_id].tier


def slots_of(config: Config, fleet: Fleet, slot_plan: SlotPlan) -> list[Slot]:
    """The slots of a run in the order in which their actors start."""
    left = dict(slot_plan.slots)
    slots: list[Slot] = []
    for model in models_of(strategy_of(config), fleet):
        pool = pool_of(fleet, model)
        if left[pool] > 0:
            left[pool] -= 1
            slots.append(model)
    return slots


class Slots:
    """Which model holds which slot at this moment. A model stays until another one of its pool needs the slot.

    In the beginning every slot has the model that it is named after.
    """

    def __init__(self, pools: Mapping[ModelId, str], slots: Iterable[Slot]) -> None:
        """`pools` of all models."""
        self._pools = dict(pools)
        self._by_pool: dict[str, list[Slot]] = {}
        for slot in slots:
            self._by_pool.setdefault(pools[slot], []).append(slot)
        self._slot: dict[ModelId, Slot] = {slot: slot for each in self._by_pool.values() for slot in each}
        self._occupant: dict[Slot, ModelId] = dict(self._slot)
        self._free: dict[str, dict[Slot, None]] = {}
        """Of each pool the slots that nobody holds, those first that were left first; kept, as a search would take
        longer the more slots there are."""
        self.release_all()
        counts = list(self._pools.values())
        self._crowded = {pool for pool, each in self._by_pool.items() if len(each) < counts.count(pool)}

    def pool(self, model: ModelId) -> str:
        return self._pools[model]

    def of_pool(self, model: ModelId) -> Sequence[Slot]:
        """The slots that a model may take."""
        return self._by_pool[self._pools[model]]

    def takes_turns(self, model: ModelId) -> bool:
        """Whether its pool has fewer slots than models."""
        return self._pools[model] in self._crowded

    def of(self, model: ModelId) -> Slot | None:
        """The slot that a model holds."""
        return self._slot.get(model)

    def occupant(self, slot: Slot) -> ModelId:
        return self._occupant[slot]

    def can_take(self, model: ModelId) -> bool:
        """Whether the model holds a slot, or there is a slot for it that nobody holds."""
        return model in self._slot or bool(self._free[self._pools[model]])

    def take(self, model: ModelId, started: Container[object]) -> bool:
        """Has a model hold a slot until it leaves; whether it has moved in. One that has `started` before others.

        Raises ValueError when all are held.
        """
        moves = model not in self._slot
        free = self._free[self._pools[model]]
        if moves:
            if not free:
                raise ValueError(f"{model}: all slots are held")
            slot = next((slot for slot in free if slot in started), next(iter(free)))
            del self._slot[self._occupant[slot]]
            self._slot[model], self._occupant[slot] = slot, model
        free.pop(self._slot[model], None)
        return moves

    def leave(self, model: ModelId) -> None:
        """The model has nothing to do for now: another one may have its slot."""
        if model in self._slot:
            self._free[self._pools[model]][self._slot[model]] = None

    def release_all(self) -> None:
        """Nobody has anything to do."""
        self._free = {pool: dict.fromkeys(slots) for pool, slots in self._by_pool.items()}


def _gib(amount: int) -> str:
    return f"{amount / (1 << 30):,.0f} GiB"
