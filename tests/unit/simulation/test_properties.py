"""What holds for every simulated round: nothing ends below its bounds, nothing is used beyond its capacity or lost."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsee_ray.simulation.bounds import lower_bound_s, server_bound_s
from hsee_ray.simulation.events import simulate_round
from hsee_ray.simulation.links import Transfer, transfer_ends
from hsee_ray.simulation.model import Batch, ClientLoad, OneMachine, RoundTiming, Rules, ServerSite

SLACK = 1 + 1e-9
"""For what rounding may do."""

SECONDS = st.integers(0, 40).map(lambda quarters: quarters / 4)
RATES = st.integers(1, 400).map(float)
BATCHES = st.builds(
    Batch, SECONDS, st.integers(0, 500), st.none() | SECONDS, st.sampled_from([0, 0, 90]), st.none() | SECONDS
).map(lambda batch: Batch(batch.compute_s) if batch.server_s is None else batch)
LOADS = st.lists(
    st.builds(
        ClientLoad,
        client=st.just(0),
        batches=st.lists(BATCHES, max_size=5).map(tuple),
        uplink_bytes_s=RATES,
        downlink_bytes_s=RATES,
        latency_s=st.sampled_from([0.0, 0.25, 3.0]),
        delay_s=st.sampled_from([0.0, 0.0, 10.0]),
        model_up_bytes=st.integers(0, 300),
        model_down_bytes=st.integers(0, 300),
        fetch_bytes=st.sampled_from([0, 0, 200]),
    ),
    max_size=6,
).map(lambda loads: [replace(load, client=number) for number, load in enumerate(loads)])
SITES = st.builds(ServerSite, st.integers(1, 4), RATES, RATES)
RULES = st.builds(
    Rules, st.sampled_from(["parallel", "serial"]), st.sampled_from(["client", "batch"]), st.integers(1, 4)
)
MACHINES = st.none() | st.integers(1, 4).map(OneMachine)


@given(LOADS, SITES, RULES, MACHINES)
def test_everything_is_done_once_and_in_order(
    loads: list[ClientLoad], context: ServerSite, rules: Rules, machine: OneMachine | None
) -> None:
    timing = simulate_round(loads, context, rules, machine)
    for load in loads:
        sent = [place for place, batch in enumerate(load.batches) if batch.server_s is not None]
        of_kind = defaultdict(list)
        for span in sorted(timing.spans, key=lambda span: (span.begin_s, span.batch)):
            if span.client == load.client:
                of_kind[span.kind].append(span)
        waits = any(batch.after_s is not None for batch in load.batches)
        assert [span.batch for span in of_kind["compute"]] == list(range(len(load.batches)))
        assert [span.batch for span in of_kind["step"]] == [p for p in sent if load.batches[p].after_s is not None]
        for step in of_kind["step"]:
            before = [span for span in (*of_kind["server"], *of_kind["download"]) if span.batch == step.batch]
            assert max(span.end_s for span in before) <= step.begin_s + 1e-9
            assert all(later.begin_s >= step.end_s for later in of_kind["compute"][step.batch + 1 :])
        assert [span.batch for span in of_kind["upload"]] == [span.batch for span in of_kind["server"]] == sent
        for upload, server in zip(of_kind["upload"], of_kind["server"], strict=True):
            assert of_kind["compute"][upload.batch].end_s <= upload.begin_s <= upload.end_s <= server.begin_s
        for place, span in enumerate(of_kind["compute"]):
            open_then = [s for s in of_kind["server"] if s.batch < place and s.end_s > span.begin_s]
            assert load.batches[place].server_s is None or len(open_then) < (1 if waits else rules.window)
        for kind in ("compute", "upload", "server", "step"):
            assert _most_at_once([(s.begin_s, s.end_s) for s in of_kind[kind]]) <= 1
        for span in (*of_kind["compute"], *of_kind["server"], *of_kind["step"]):
            batch = load.batches[span.batch]
            seconds = {"compute": batch.compute_s, "server": batch.server_s, "step": batch.after_s}[span.kind]
            assert span.end_s - span.begin_s == pytest.approx(seconds)


@given(LOADS, SITES, RULES)
def test_shared_resources_are_not_used_beyond_their_capacity(
    loads: list[ClientLoad], context: ServerSite, rules: Rules
) -> None:
    timing = simulate_round(loads, context, rules)
    served = [(span.begin_s, span.end_s) for span in timing.spans if span.kind == "server"]
    assert _most_at_once(served) <= (context.cores if rules.order == "parallel" else 1)
    uploads = [span for span in timing.spans if span.kind == "upload"]
    by_number = {load.client: load for load in loads}
    for span in uploads:
        sent_bytes, load = by_number[span.client].batches[span.batch].sent_bytes, by_number[span.client]
        assert sent_bytes <= (span.end_s - span.begin_s) * load.uplink_bytes_s * SLACK + 1e-6
    # All bytes pass the server's link: between any two moments not more than it carries.
    for first in uploads:
        for last in uploads:
            inside = [s for s in uploads if s.begin_s >= first.begin_s and s.end_s <= last.end_s]
            carried = sum(by_number[s.client].batches[s.batch].sent_bytes for s in inside)
            assert carried <= max(0.0, last.end_s - first.begin_s) * context.downlink_bytes_s * SLACK + 1e-6


@given(LOADS, st.integers(1, 4), RULES)
def test_one_machine_has_only_its_cores(loads: list[ClientLoad], cores: int, rules: Rules) -> None:
    timing = simulate_round(loads, ServerSite(1, 1.0, 1.0), rules, OneMachine(cores))
    busy = [(span.begin_s, span.end_s) for span in timing.spans if span.kind != "away"]
    assert _most_at_once(busy) <= cores


@given(LOADS, SITES, RULES, MACHINES)
def test_no_round_ends_below_its_bounds(
    loads: list[ClientLoad], context: ServerSite, rules: Rules, machine: OneMachine | None
) -> None:
    end_s = simulate_round(loads, context, rules, machine).end_s * SLACK
    for load in loads:
        assert lower_bound_s(load, context, machine) <= end_s
    assert server_bound_s(loads, context, rules, machine) <= end_s
    assert server_bound_s(loads[: len(loads) // 2], context, rules, machine) <= end_s


@given(LOADS, SITES, RULES)
def test_faster_devices_never_end_later_where_no_link_and_no_core_is_fought_for(
    loads: list[ClientLoad], context: ServerSite, rules: Rules
) -> None:
    """Then every piece of work waits for others only in a fixed order. Elsewhere it is not true.

    Who computes or sends earlier may get in the way of the one that all have to wait for.
    """
    up_bytes_s = sum(load.uplink_bytes_s for load in loads) + 1.0
    roomy = ServerSite(len(loads) + 1, up_bytes_s, sum(load.downlink_bytes_s for load in loads) + 1.0)
    end_s = simulate_round(loads, roomy, rules).end_s * SLACK

    def quicker(batch: Batch) -> Batch:
        after_s = None if batch.after_s is None else batch.after_s / 2
        return batch._replace(compute_s=batch.compute_s / 2, after_s=after_s)

    faster = [replace(load, batches=tuple(map(quicker, load.batches))) for load in loads]
    assert simulate_round(faster, roomy, rules).end_s <= end_s
    more = ServerSite(roomy.cores + 1, 2 * roomy.downlink_bytes_s, 2 * roomy.uplink_bytes_s)
    wider = [
        replace(load, uplink_bytes_s=2 * load.uplink_bytes_s, downlink_bytes_s=2 * load.downlink_bytes_s)
        for load in loads
    ]
    assert simulate_round(wider, more, rules).end_s <= end_s


@given(LOADS, SITES, RULES, MACHINES)
def test_the_same_round_takes_the_same_time(
    loads: list[ClientLoad], context: ServerSite, rules: Rules, machine: OneMachine | None
) -> None:
    timing: RoundTiming = simulate_round(loads, context, rules, machine)
    assert simulate_round(loads, context, rules, machine) == timing
    assert timing.train_s <= timing.end_s
    assert all(0 <= span.begin_s <= span.end_s <= timing.end_s for span in timing.spans)
    assert [span.end_s for span in timing.spans] == sorted(span.end_s for span in timing.spans)


TRANSFERS = st.lists(st.builds(Transfer, SECONDS, st.integers(1, 500), st.sampled_from([1.0, 7.0, 50.0])), max_size=8)


@given(TRANSFERS, RATES)
def test_a_link_is_shared_max_min_fairly(transfers: list[Transfer], capacity: float) -> None:
    """The groups of a link give what a plain calculation gives, which fills all flows again at every event."""
    assert transfer_ends(transfers, capacity) == pytest.approx(_plain_ends(transfers, capacity))


def _plain_ends(transfers: list[Transfer], capacity: float) -> list[float]:
    left = [float(transfer.size_bytes) for transfer in transfers]
    ends = [0.0] * len(transfers)
    now, pending = 0.0, set(range(len(transfers)))
    while pending:
        active = [i for i in pending if transfers[i].begin_s <= now]
        rates: dict[int, float] = {}
        share_left = capacity
        for place, i in enumerate(sorted(active, key=lambda i: transfers[i].limit_bytes_s)):
            rates[i] = min(transfers[i].limit_bytes_s, share_left / (len(active) - place))
            share_left -= rates[i]
        steps = [left[i] / rates[i] for i in active]
        steps += [transfers[i].begin_s - now for i in pending if transfers[i].begin_s > now]
        step = min(steps)
        now += step
        for i in active:
            left[i] -= rates[i] * step
            if left[i] <= 1e-9:
                ends[i] = now
                pending.discard(i)
    return ends


def _most_at_once(pieces: list[tuple[float, float]]) -> int:
    """How many pieces of work overlap at most; those that take no time, or only rounding, do not count."""
    moments = [(begin, 1) for begin, end in pieces if end - begin > 1e-9]
    moments += [(end - 1e-9, -1) for begin, end in pieces if end - begin > 1e-9]
    most = now = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most
