"""How many actors models share, and who sits where."""

from __future__ import annotations

from typing import Any

import pytest

from actors.cluster.slots import (
    ACTOR_BYTES,
    SERVERS,
    Seats,
    decide_seating,
    models_of,
    pool_of,
    seats_of,
)
from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import build_fleet
from hsee_ray.config.schema import Config
from hsee_ray.errors import ConfigError
from hsee_ray.method.aggregation import ModelId

UNITS = ("stem", "body", "head")


def config_of(clients: int, seats: int | None = None, servers: int | None = None, **other: Any) -> Config:
    return load_config(
        {
            "tiers": [
                {"name": "sensor", "clients": clients, "cut": "stem", "seats": seats},
                {"name": "whole", "clients": 1, "cut": "head"},
            ],
            "server": {"seats": servers},
            **other,
        }
    )


def counts(config: Config, room_bytes: int | None, at_once: int = 2) -> dict[str, int]:
    return dict(decide_seating(config, build_fleet(config, UNITS), room_bytes, at_once).seats)


def test_every_model_has_an_actor_while_they_fit() -> None:
    # 3 + 1 clients, 3 servers, the aggregator
    assert counts(config_of(3), 8 * ACTOR_BYTES) == {"sensor": 3, "whole": 1, SERVERS: 3}
    assert counts(config_of(3), 8 * ACTOR_BYTES - 1) == {"sensor": 2, "whole": 1, SERVERS: 2}
    assert counts(config_of(3), None) == {"sensor": 3, "whole": 1, SERVERS: 3}


def test_what_the_configuration_says_is_kept() -> None:
    assert counts(config_of(9, seats=4), None) == {"sensor": 4, "whole": 1, SERVERS: 9}
    assert counts(config_of(9, seats=4), 8 * ACTOR_BYTES) == {"sensor": 4, "whole": 1, SERVERS: 1}
    assert counts(config_of(3, seats=7, servers=1), None) == {"sensor": 3, "whole": 1, SERVERS: 1}
    assert counts(config_of(3, training={"strategy": "sequential"}), None) == {"sensor": 3, "whole": 1, SERVERS: 1}


def test_seats_are_as_many_as_there_is_room_for() -> None:
    # of 8 one is the aggregator's; tiers and servers get two each, and the lone client of `whole` needs one
    assert counts(config_of(99), 8 * ACTOR_BYTES, 64) == {"sensor": 2, "whole": 1, SERVERS: 2}
    assert counts(config_of(99), ACTOR_BYTES, 64) == {"sensor": 1, "whole": 1, SERVERS: 1}


def test_clients_that_may_be_left_out_have_actors_of_their_own() -> None:
    assert counts(config_of(9, failures={"on_lost_client": "drop"}), ACTOR_BYTES)["sensor"] == 9
    with pytest.raises(ConfigError, match=r"would be lost together with one: leave tiers\.\*\.seats out, or use wait"):
        config_of(9, seats=3, failures={"on_lost_client": "drop"})


def test_pairs_on_one_node_share_no_seats() -> None:
    colocated = config_of(9, cluster={"placement": "colocate"})
    assert counts(colocated, ACTOR_BYTES) == {"sensor": 9, "whole": 1, SERVERS: 9}
    with pytest.raises(ConfigError, match="in seats they take turns: leave seats out, or use pack or spread"):
        config_of(9, seats=3, cluster={"placement": "colocate"})


def test_a_line_says_which() -> None:
    config = config_of(999)
    fleet = build_fleet(config, UNITS)
    assert str(decide_seating(config, fleet, None, 2)) == ("1,999 actors: every client and every server has its own")
    assert str(decide_seating(config, fleet, 14 << 30, 2)) == (
        "5 actors, in which models take turns: 999 sensor in 2, 999 servers in 2 "
        "(one each would take about 781 GiB of 14 GiB)"
    )
    assert str(decide_seating(config_of(2, seats=1), fleet, None, 2)).endswith(
        "in which models take turns: 999 sensor in 1"
    )


def seats_for(config: Config) -> Seats:
    fleet = build_fleet(config, UNITS)
    seating = decide_seating(config, fleet, None, 2)
    pools = {model: pool_of(fleet, model) for model in models_of(config, fleet)}
    return Seats(pools, seats_of(config, fleet, seating))


CLIENTS = [ModelId("client", number) for number in range(5)]


def test_a_model_stays_until_another_one_needs_the_seat() -> None:
    seats = seats_for(config_of(4, seats=2))
    assert seats.of(CLIENTS[0]) == CLIENTS[0] and seats.of(CLIENTS[2]) is None
    assert not seats.take(CLIENTS[0], ()), "it sits there already"
    assert seats.take(CLIENTS[2], ()), "the other seat is free"
    assert seats.of(CLIENTS[2]) == CLIENTS[1] and seats.of(CLIENTS[1]) is None
    assert not seats.can_take(CLIENTS[3])
    with pytest.raises(ValueError):
        seats.take(CLIENTS[3], ())
    seats.leave(CLIENTS[0])
    assert seats.of(CLIENTS[0]) == CLIENTS[0], "nobody has come yet"
    assert seats.take(CLIENTS[3], ())
    assert seats.sitter(CLIENTS[0]) == CLIENTS[3]


def test_seats_that_are_there_are_taken_first() -> None:
    seats = seats_for(config_of(4, seats=2))
    seats.take(CLIENTS[3], {CLIENTS[1]})
    assert seats.of(CLIENTS[3]) == CLIENTS[1]


def test_tiers_keep_to_their_own_seats() -> None:
    seats = seats_for(config_of(4, seats=1))
    assert seats.takes_turns(CLIENTS[0]) and not seats.takes_turns(CLIENTS[4])
    seats.take(CLIENTS[0], ())
    assert not seats.can_take(CLIENTS[1]) and seats.can_take(CLIENTS[4])
    seats.rise()
    assert seats.can_take(CLIENTS[1])
