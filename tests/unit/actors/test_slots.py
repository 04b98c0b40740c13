"""How many actors models share, and which model holds which slot."""

from __future__ import annotations

from typing import Any

import pytest

from actors.cluster.slots import (
    ACTOR_BYTES,
    SERVERS,
    Slots,
    plan_slots,
    pool_of,
    slots_of,
)
from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import ModelId
from hsee_ray.config.schema import Config
from hsee_ray.errors import ConfigError
from hsee_ray.method.strategies import build_fleet, models_of, strategy_of

UNITS = ("stem", "body", "head")


def config_of(clients: int, slots: int | None = None, servers: int | None = None, **other: Any) -> Config:
    return load_config(
        {
            "tiers": [
                {"name": "sensor", "clients": clients, "cut": "stem", "slots": slots},
                {"name": "whole", "clients": 1, "cut": "head"},
            ],
            "server": {"slots": servers},
            **other,
        }
    )


def counts(config: Config, room_bytes: int | None, at_once: int = 2) -> dict[str, int]:
    return dict(plan_slots(config, build_fleet(config, UNITS), room_bytes, at_once).slots)


def test_every_model_has_an_actor_while_they_fit() -> None:
    # 3 + 1 clients, 3 servers, the aggregator
    assert counts(config_of(3), 8 * ACTOR_BYTES) == {"sensor": 3, "whole": 1, SERVERS: 3}
    assert counts(config_of(3), 8 * ACTOR_BYTES - 1) == {"sensor": 2, "whole": 1, SERVERS: 2}
    assert counts(config_of(3), None) == {"sensor": 3, "whole": 1, SERVERS: 3}


def test_what_the_configuration_says_is_kept() -> None:
    assert counts(config_of(9, slots=4), None) == {"sensor": 4, "whole": 1, SERVERS: 9}
    assert counts(config_of(9, slots=4), 8 * ACTOR_BYTES) == {"sensor": 4, "whole": 1, SERVERS: 1}
    assert counts(config_of(3, slots=7, servers=1), None) == {"sensor": 3, "whole": 1, SERVERS: 1}
    assert counts(config_of(3, training={"strategy": "sequential"}), None) == {"sensor": 3, "whole": 1, SERVERS: 1}


def test_slots_are_as_many_as_there_is_room_for() -> None:
    # of 8 one is the aggregator's; tiers and servers get two each, and the lone client of `whole` needs one
    assert counts(config_of(99), 8 * ACTOR_BYTES, 64) == {"sensor": 2, "whole": 1, SERVERS: 2}
    assert counts(config_of(99), ACTOR_BYTES, 64) == {"sensor": 1, "whole": 1, SERVERS: 1}


def test_clients_that_may_be_left_out_have_actors_of_their_own() -> None:
    assert counts(config_of(9, failures={"on_lost_client": "drop"}), ACTOR_BYTES)["sensor"] == 9
    with pytest.raises(ConfigError, match=r"would be lost together with one: leave tiers\.\*\.slots out, or use wait"):
        config_of(9, slots=3, failures={"on_lost_client": "drop"})


def test_pairs_on_one_node_share_no_slots() -> None:
    colocated = config_of(9, cluster={"placement": "colocate"})
    assert counts(colocated, ACTOR_BYTES) == {"sensor": 9, "whole": 1, SERVERS: 9}
    with pytest.raises(ConfigError, match="in slots they share actors: leave slots out, or use pack or spread"):
        config_of(9, slots=3, cluster={"placement": "colocate"})


def test_a_line_says_which() -> None:
    config = config_of(999)
    fleet = build_fleet(config, UNITS)
    assert str(plan_slots(config, fleet, None, 2)) == (
        "2,000 actors: every client and every server has its own, and one averages"
    )
    assert str(plan_slots(config, fleet, 14 << 30, 2)) == (
        "6 actors, one of which averages; shared by models: 999 sensor in 2, 999 servers in 2 "
        "(one each would take about 781 GiB of 14 GiB)"
    )
    assert str(plan_slots(config_of(2, slots=1), fleet, None, 2)).endswith("shared by models: 999 sensor in 1")


def slots_for(config: Config) -> Slots:
    fleet = build_fleet(config, UNITS)
    slot_plan = plan_slots(config, fleet, None, 2)
    pools = {model: pool_of(fleet, model) for model in models_of(strategy_of(config), fleet)}
    return Slots(pools, slots_of(config, fleet, slot_plan))


CLIENTS = [ModelId("client", number) for number in range(5)]


def test_a_model_stays_until_another_one_needs_the_slot() -> None:
    slots = slots_for(config_of(4, slots=2))
    assert slots.of(CLIENTS[0]) == CLIENTS[0] and slots.of(CLIENTS[2]) is None
    assert not slots.take(CLIENTS[0], ()), "it holds the slot already"
    assert slots.take(CLIENTS[2], ()), "the other slot is free"
    assert slots.of(CLIENTS[2]) == CLIENTS[1] and slots.of(CLIENTS[1]) is None
    assert not slots.can_take(CLIENTS[3])
    with pytest.raises(ValueError):
        slots.take(CLIENTS[3], ())
    slots.leave(CLIENTS[0])
    assert slots.of(CLIENTS[0]) == CLIENTS[0], "nobody has come yet"
    assert slots.take(CLIENTS[3], ())
    assert slots.occupant(CLIENTS[0]) == CLIENTS[3]


def test_slots_that_are_there_are_taken_first() -> None:
    slots = slots_for(config_of(4, slots=2))
    slots.take(CLIENTS[3], {CLIENTS[1]})
    assert slots.of(CLIENTS[3]) == CLIENTS[1]


def test_tiers_keep_to_their_own_slots() -> None:
    slots = slots_for(config_of(4, slots=1))
    assert slots.takes_turns(CLIENTS[0]) and not slots.takes_turns(CLIENTS[4])
    slots.take(CLIENTS[0], ())
    assert not slots.can_take(CLIENTS[1]) and slots.can_take(CLIENTS[4])
    slots.release_all()
    assert slots.can_take(CLIENTS[1])
