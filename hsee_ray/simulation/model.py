"""Value types of the event simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["away", "fetch", "compute", "upload", "server", "download", "step", "exchange"]


class Batch(NamedTuple):
    """One step of a client, and of its server on the features."""

    compute_s: float
    sent_bytes: int = 0
    server_s: float | None = None
    """None: nothing is sent, the client's part is all."""
    returned_bytes: int = 0
    """What the server sends back."""
    after_s: float | None = None
    """Of the client, when that is there. None: it waits for nothing."""


class Span(NamedTuple):
    """Something that a client, its link or its model at the server does without a pause."""

    client: int
    kind: Kind
    begin_s: float
    end_s: float
    batch: int = 0
    """The batch's place in its client's load; 0 where the kind has none."""


@dataclass(frozen=True)
class ClientLoad:
    """One client's load in a round, and its link."""

    client: int
    batches: Sequence[Batch]
    uplink_bytes_s: float
    downlink_bytes_s: float
    latency_s: float = 0.0
    """One way, for each message."""
    delay_s: float = 0.0
    """Seconds for which it is away at the beginning."""
    model_up_bytes: int = 0
    """Its part of the model, sent when everybody has trained."""
    model_down_bytes: int = 0
    """Averages, taken when everybody has sent."""
    fetch_bytes: int = 0
    """Averages of earlier rounds that it has missed, taken before it computes."""


@dataclass(frozen=True)
class ServerSite:
    """The machine with all servers; its link is shared by all clients, max-min fairly."""

    cores: int
    downlink_bytes_s: float
    uplink_bytes_s: float


@dataclass(frozen=True)
class Rules:
    """How batches pass the servers."""

    order: Literal["parallel", "serial"]
    """parallel: a model for each client. serial: one for all, which takes batches in the order of the queue."""
    interleave: Literal["client", "batch"] = "client"
    """Of a serial server: whole turns, or round robin by batch. On one machine, also who computes first."""
    window: int = 32
    """A client begins a batch when fewer of its earlier ones than this are sent and not finished by the server."""


@dataclass(frozen=True)
class OneMachine:
    """All clients and servers share the cores of one machine, and sending takes a core's time too."""

    cores: int


@dataclass(frozen=True)
class RoundTiming:
    """Timing of a round, from its second 0."""

    spans: tuple[Span, ...]
    """By their end."""
    train_s: float
    """Until the last batch is finished."""
    end_s: float
    """Until the last average has arrived as well."""
