"""Simulated rounds on cases that are worked out by hand; the first three are in docs/simulation.md."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hsee_ray.simulation.events import simulate_round
from hsee_ray.simulation.model import Batch, ClientLoad, Kind, OneMachine, RoundTiming, Rules, ServerSite

FAST = 1e9
"""Bytes per second of a link that is never in the way here."""
PARALLEL, SERIAL = Rules("parallel"), Rules("serial")


def load(client: int, *batches: Batch, uplink: float = 100.0, downlink: float = 100.0) -> ClientLoad:
    return ClientLoad(client, batches, uplink_bytes_s=uplink, downlink_bytes_s=downlink)


def context(cores: int = 4, downlink: float = FAST, uplink: float = FAST) -> ServerSite:
    return ServerSite(cores, downlink, uplink)


def times(timing: RoundTiming, client: int, kind: Kind) -> list[tuple[float, float]]:
    found = [(s.begin_s, s.end_s) for s in timing.spans if s.client == client and s.kind == kind]
    return sorted(found)


def test_one_client() -> None:
    """Computing 2 s, sending 100 bytes at 100 bytes/s and 0.5 s of latency, server 1 s; three batches.

    computed at 2, 4, 6; sent at 3, 5, 7; there at 3.5, 5.5, 7.5; served until 4.5, 6.5, 8.5.
    """
    client = replace(load(0, *[Batch(2.0, 100, 1.0)] * 3), latency_s=0.5)
    timing = simulate_round([client], context(), PARALLEL)
    assert times(timing, 0, "compute") == [(0, 2), (2, 4), (4, 6)]
    assert times(timing, 0, "upload") == [(2, 3), (4, 5), (6, 7)]
    assert times(timing, 0, "server") == [(3.5, 4.5), (5.5, 6.5), (7.5, 8.5)]
    assert timing.train_s == timing.end_s == 8.5


def test_two_in_parallel_share_the_link() -> None:
    """Server's link 150 bytes/s. Client 0: 1 s, 300 bytes at up to 100 bytes/s. Client 1: 2 s, 300 bytes, likewise.

    1..2: client 0 alone, 100 bytes/s: 200 bytes left. From 2 on each has 75 bytes/s: client 0 is through after
    200 / 75 = 8/3 s, at 14/3. By then client 1 has sent 200 bytes, and the other 100 go at its own 100 bytes/s: 17/3.
    Server 1 s each, on two cores: 17/3 and 20/3.
    """
    clients = [load(0, Batch(1.0, 300, 1.0)), load(1, Batch(2.0, 300, 1.0))]
    timing = simulate_round(clients, context(cores=2, downlink=150.0), PARALLEL)
    assert times(timing, 0, "upload") == [(1, pytest.approx(14 / 3))]
    assert times(timing, 1, "upload") == [(2, pytest.approx(17 / 3))]
    assert times(timing, 0, "server") == [(pytest.approx(14 / 3), pytest.approx(17 / 3))]
    assert timing.end_s == pytest.approx(20 / 3)


def test_a_sequential_queue() -> None:
    """Client 0 takes 3 s a batch, client 1 one; both send at once, in no time; server 2 s. Two batches each.

    Client 1 is ready at 1 and 2 and waits for client 0's turn: 3..5, 6..8, then its own 8..10 and 10..12.
    """
    slow, quick = load(0, *[Batch(3.0, 0, 2.0)] * 2), load(1, *[Batch(1.0, 0, 2.0)] * 2)
    timing = simulate_round([slow, quick], context(), SERIAL)
    assert times(timing, 0, "server") == [(3, 5), (6, 8)]
    assert times(timing, 1, "compute") == [(0, 1), (1, 2)]
    assert times(timing, 1, "server") == [(8, 10), (10, 12)]
    # The other way round: 1..3, 3..5, then 5..7 and 7..9.
    assert simulate_round([quick, slow], context(), SERIAL).end_s == 9


def test_a_queue_by_batch_takes_turns() -> None:
    """As above, round robin: 3..5 client 0, 5..7 client 1, 7..9 client 0 (ready at 6), 9..11 client 1."""
    slow, quick = load(0, *[Batch(3.0, 0, 2.0)] * 2), load(1, *[Batch(1.0, 0, 2.0)] * 2)
    timing = simulate_round([slow, quick], context(), Rules("serial", interleave="batch"))
    assert times(timing, 0, "server") == [(3, 5), (7, 9)]
    assert times(timing, 1, "server") == [(5, 7), (9, 11)]


def test_a_client_waits_when_its_window_is_full() -> None:
    """Computing 1 s, server 3 s, window 2: the third batch begins when the first is finished, at 4; then each 3 s."""
    client = load(0, *[Batch(1.0, 0, 3.0)] * 4)
    timing = simulate_round([client], context(), replace(PARALLEL, window=2))
    assert times(timing, 0, "compute") == [(0, 1), (1, 2), (4, 5), (7, 8)]
    assert times(timing, 0, "server") == [(1, 4), (4, 7), (7, 10), (10, 13)]


def test_a_client_that_is_away_begins_later() -> None:
    timing = simulate_round([replace(load(0, Batch(1.0, 0, 1.0)), delay_s=60.0)], context(), PARALLEL)
    assert times(timing, 0, "away") == [(0, 60)]
    assert times(timing, 0, "compute") == [(60, 61)]
    assert timing.end_s == 62


def test_a_client_with_the_whole_network_only_computes() -> None:
    timing = simulate_round([load(0, Batch(1.0), Batch(2.0))], context(), SERIAL)
    assert [span.kind for span in timing.spans] == ["compute", "compute"]
    assert timing.end_s == 3


def test_a_batch_that_was_skipped_is_not_sent() -> None:
    """Batches 0 and 2 are sent; the serial server goes from the one to the other."""
    client = load(0, Batch(1.0, 100, 1.0), Batch(1.0), Batch(1.0, 100, 1.0))
    timing = simulate_round([client], context(), SERIAL)
    assert times(timing, 0, "upload") == [(1, 2), (3, 4)]
    assert times(timing, 0, "server") == [(2, 3), (4, 5)]


def test_cores_of_the_server_go_to_who_has_waited_longest() -> None:
    """One core, 2 s each: client 1 comes at 1, clients 0 and 2 together at 2; of these the lower number is first."""
    clients = [load(0, Batch(2.0, 0, 2.0)), load(1, Batch(1.0, 0, 2.0)), load(2, Batch(2.0, 0, 2.0))]
    timing = simulate_round(list(reversed(clients)), context(cores=1), PARALLEL)
    assert [times(timing, number, "server") for number in range(3)] == [[(3, 5)], [(1, 3)], [(5, 7)]]
    assert simulate_round(clients, context(cores=3), PARALLEL).end_s == 4


def test_a_model_takes_one_batch_at_a_time_however_many_cores() -> None:
    timing = simulate_round([load(0, *[Batch(1.0, 0, 2.0)] * 2)], context(cores=8), PARALLEL)
    assert times(timing, 0, "server") == [(1, 3), (3, 5)]


def test_parameters_are_exchanged_when_all_have_trained() -> None:
    """Trained at 1 and 2. Up, from 2: 200 bytes each over 200 bytes/s shared: 2 s, and 0.5 s of latency: 4.5.

    Down, from 4.5: 100 bytes each over 400 bytes/s, at most 100 each: 5.5, there at 6.
    """
    clients = [
        replace(load(number, Batch(1.0 + number)), latency_s=0.5, model_up_bytes=200, model_down_bytes=100)
        for number in range(2)
    ]
    timing = simulate_round(clients, context(downlink=200.0, uplink=400.0), PARALLEL)
    assert timing.train_s == 2
    assert times(timing, 0, "exchange") == times(timing, 1, "exchange") == [(2, 4.5), (4.5, 6)]
    assert timing.end_s == 6


def test_missed_averages_are_fetched_first() -> None:
    """300 bytes at 100 bytes/s and 0.5 s of latency; then it computes for 1 s."""
    client = replace(load(0, Batch(1.0)), latency_s=0.5, fetch_bytes=300)
    timing = simulate_round([client], context(), PARALLEL)
    assert times(timing, 0, "fetch") == [(0, 3.5)]
    assert timing.end_s == 4.5


def test_one_machine_shares_its_cores() -> None:
    """One core. A batch: 1 s of computing and 0.25 + 75/100 = 1 s of sending, on the core; server 1 s, and first.

    Client 0: 0..2, its server 2..3; client 0 again 3..5, server 5..6; client 1 6..8, server 8..9.
    """
    two = replace(load(0, *[Batch(1.0, 75, 1.0)] * 2), latency_s=0.25)
    one = replace(load(1, Batch(1.0, 75, 1.0)), latency_s=0.25)
    timing = simulate_round([two, one], context(), PARALLEL, OneMachine(1))
    assert times(timing, 0, "compute") == [(0, 1), (3, 4)]
    assert times(timing, 0, "upload") == [(1, 2), (4, 5)]
    assert times(timing, 0, "server") == [(2, 3), (5, 6)]
    assert times(timing, 1, "server") == [(8, 9)]
    # Two cores: both clients 0..2, both servers 2..3, and client 0 again 3..5, its server 5..6.
    assert simulate_round([two, one], context(), PARALLEL, OneMachine(2)).end_s == 6


def test_one_machine_exchanges_on_its_cores() -> None:
    """Three messages up of 1 s on two cores: 2 s; then one down of 0.5 s."""
    clients = [load(number, Batch(0.0)) for number in range(3)]
    clients = [replace(client, model_up_bytes=100) for client in clients]
    clients[2] = replace(clients[2], model_down_bytes=50)
    timing = simulate_round(clients, context(), PARALLEL, OneMachine(2))
    assert (timing.train_s, timing.end_s) == (0, 2.5)


def test_nobody_is_no_time() -> None:
    assert simulate_round([], context(), PARALLEL) == RoundTiming((), 0.0, 0.0)
    assert simulate_round([], context(), SERIAL, OneMachine(1)).end_s == 0.0


def test_a_client_waits_for_the_gradient() -> None:
    """Forward 2 s, 100 bytes up in 1 s and 0.5 s, server 1 s, 200 bytes back in 2 s and 0.5 s, then 3 s: 10 s a batch.

    A window of many batches makes no difference.
    """
    client = replace(load(0, *[Batch(2.0, 100, 1.0, 200, 3.0)] * 2), latency_s=0.5)
    timing = simulate_round([client], context(), PARALLEL)
    assert times(timing, 0, "compute") == [(0, 2), (10, 12)]
    assert times(timing, 0, "download") == [(4.5, 7), (14.5, 17)]
    assert times(timing, 0, "step") == [(7, 10), (17, 20)]
    assert timing.end_s == 20


def test_nobody_waits_for_soft_labels_but_the_round() -> None:
    """Two batches computed at 2 and 4, served until 3 and 5; 400 bytes back take 4 s each, sharing the link from 5."""
    client = load(0, *[Batch(2.0, 0, 1.0, 400)] * 2)
    timing = simulate_round([client], context(uplink=100.0), PARALLEL)
    assert times(timing, 0, "compute") == [(0, 2), (2, 4)]
    assert times(timing, 0, "download") == [(3, 9), (5, 11)]
    assert timing.train_s == 11


def test_on_one_machine_the_end_of_a_step_takes_a_core() -> None:
    """One core: forward 1 s, server 1 s, back 1 s, end of the step 1 s, for each of two clients."""
    clients = [load(number, Batch(1.0, 0, 1.0, 100, 1.0)) for number in range(2)]
    timing = simulate_round(clients, context(), PARALLEL, OneMachine(1))
    assert timing.train_s == 8
    assert len(times(timing, 0, "step")) == len(times(timing, 1, "step")) == 1
