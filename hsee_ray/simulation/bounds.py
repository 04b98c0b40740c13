"""Seconds that no simulated round is below, whatever the rest of the fleet does: what a search may leave out."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from hsee_ray.simulation.events import core_send_s
from hsee_ray.simulation.model import Batch, ClientLoad, OneMachine, Rules, ServerSite


def lower_bound_s(load: ClientLoad, context: ServerSite, one_machine: OneMachine | None = None) -> float:
    """Seconds that no round with this client is below, whoever else takes part.

    Its device, its link and its model at the server each take its batches one after the other, so each has all of its
    own work, and at least one batch's work at the two others.
    """
    sent = [batch for batch in load.batches if batch.server_s is not None]
    if one_machine is None:
        up_bytes_s = min(load.uplink_bytes_s, context.downlink_bytes_s)
        down_bytes_s = min(load.downlink_bytes_s, context.uplink_bytes_s)
        begin_s = load.delay_s + _message_s(load, load.fetch_bytes, down_bytes_s)
        exchange_s = _message_s(load, load.model_up_bytes, up_bytes_s)
        exchange_s += _message_s(load, load.model_down_bytes, down_bytes_s)
        device_s = [batch.compute_s + (batch.after_s or 0.0) for batch in sent]
        link_s, latency_s = [batch.sent_bytes / up_bytes_s for batch in sent], load.latency_s
        back_s = [_message_s(load, batch.returned_bytes, down_bytes_s) for batch in sent if batch.after_s is not None]
    else:
        begin_s = load.delay_s + (core_send_s(load, load.fetch_bytes) if load.fetch_bytes and load.batches else 0.0)
        exchange_s = sum(core_send_s(load, size) for size in (load.model_up_bytes, load.model_down_bytes) if size)
        # Sending keeps the client's core.
        device_s = [batch.compute_s + core_send_s(load, batch.sent_bytes) + (batch.after_s or 0.0) for batch in sent]
        link_s, latency_s = [0.0] * len(sent), 0.0
        returned = [batch.returned_bytes for batch in sent if batch.after_s is not None]
        back_s = [core_send_s(load, size) if size else 0.0 for size in returned]
    unsent_s = sum(batch.compute_s for batch in load.batches if batch.server_s is None)
    train_s = sum(device_s) + unsent_s
    if sent:
        server_s = [batch.server_s or 0.0 for batch in sent]
        train_s = max(
            train_s,
            sum(device_s) + link_s[-1] + latency_s + server_s[-1],
            device_s[0] + sum(link_s) + latency_s + server_s[-1],
            device_s[0] + link_s[0] + latency_s + sum(server_s),
        )
        if back_s:
            # A client that waits does one batch after the other.
            serial_s = sum(device_s) + sum(link_s) + len(sent) * latency_s + sum(server_s) + sum(back_s)
            train_s = max(train_s, unsent_s + serial_s)
    return begin_s + train_s + exchange_s


def server_bound_s(
    loads: Iterable[ClientLoad], context: ServerSite, rules: Rules, one_machine: OneMachine | None = None
) -> float:
    """Seconds that no round with these clients is below, by what they share: a machine's cores, or server and link.

    What holds for some of a fleet's clients holds for all of them.
    """
    loads = list(loads)
    if one_machine is not None:
        return sum(_core_s(load) for load in loads) / one_machine.cores
    sent_bytes = sum(batch.sent_bytes for load in loads for batch in load.batches if batch.server_s is not None)
    server_s = sum(batch.server_s for load in loads for batch in load.batches if batch.server_s is not None)
    cores = context.cores if rules.order == "parallel" else 1
    computed_s, arrived_s = inf, inf
    for load in loads:
        first = _first_sent(load)
        if first is not None:
            before_s, batch = first
            up_bytes_s = min(load.uplink_bytes_s, context.downlink_bytes_s)
            computed_s = min(computed_s, before_s)
            arrived_s = min(arrived_s, before_s + batch.sent_bytes / up_bytes_s + load.latency_s)
    train_s = 0.0
    if computed_s < inf:
        train_s = max(computed_s + sent_bytes / context.downlink_bytes_s, arrived_s + server_s / cores)
    model_up_bytes = sum(load.model_up_bytes for load in loads)
    model_down_bytes = sum(load.model_down_bytes for load in loads)
    return train_s + model_up_bytes / context.downlink_bytes_s + model_down_bytes / context.uplink_bytes_s


def _first_sent(load: ClientLoad) -> tuple[float, Batch] | None:
    """The first batch that is sent, and the second before which it is not computed."""
    before_s = load.delay_s
    for batch in load.batches:
        before_s += batch.compute_s
        if batch.server_s is not None:
            return before_s, batch
    return None


def _message_s(load: ClientLoad, size_bytes: int, rate_bytes_s: float) -> float:
    return size_bytes / rate_bytes_s + load.latency_s if size_bytes else 0.0


def _core_s(load: ClientLoad) -> float:
    """Seconds of a core for all that a client and its server do on one machine."""
    batches_s = sum(
        batch.compute_s
        + (batch.after_s or 0.0)
        + (0.0 if batch.server_s is None else batch.server_s + core_send_s(load, batch.sent_bytes))
        for batch in load.batches
    )
    messages = [load.model_up_bytes, load.model_down_bytes, *(batch.returned_bytes for batch in load.batches)]
    if load.batches:
        messages.append(load.fetch_bytes)
    return batches_s + sum(core_send_s(load, size) for size in messages if size)
