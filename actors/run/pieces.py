"""The work of a round in pieces: what travels as one message, and what is repeated together after a failure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hsee_ray.config.fleet import ModelId
from hsee_ray.method.legs import Side, Work


@dataclass(frozen=True)
class Piece:
    """Work that travels as one message."""

    position: int
    """In the round's order, which a server follows."""
    work: Work
    server: int | None
    """The server model that takes it up."""

    @property
    def client(self) -> ModelId:
        return ModelId("client", self.work.client_id)

    @property
    def models(self) -> list[ModelId]:
        """Client ids."""
        return [self.client] if self.server is None else [self.client, self.model("server")]

    def model(self, side: Side) -> ModelId:
        """Model that computes a leg of this side."""
        if side == "client":
            return self.client
        assert self.server is not None
        return ModelId("server", self.server)


class RetryUnit:
    """Pieces that are repeated together after a failure, in the round's order."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.pieces = tuple(pieces)
        self.by_client: dict[int, list[Piece]] = {}
        self.last: dict[ModelId, Piece] = {}
        """The last piece of every model that takes part."""
        self.before: dict[int, int] = {}
        """Of a piece that goes to a server: the one before it there, both by position."""
        self.client_before: dict[int, int] = {}
        """Of a piece: the one before it of its client, both by position."""
        latest: dict[int, int] = {}
        for piece in self.pieces:
            of_client = self.by_client.setdefault(piece.work.client_id, [])
            if of_client:
                self.client_before[piece.position] = of_client[-1].position
            of_client.append(piece)
            self.last.update(dict.fromkeys(piece.models, piece))
            if piece.server is not None:
                if piece.server in latest:
                    self.before[piece.position] = latest[piece.server]
                latest[piece.server] = piece.position

    @property
    def has_several_clients(self) -> bool:
        return len(self.by_client) > 1
