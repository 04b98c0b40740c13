"""HTTP requests of devices and what is answered: labels, or a status and one sentence why there are none."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from hsee_ray.edge.protocol import (
    PATH,
    READY_PATH,
    BadRequest,
    Offload,
    SentFeatures,
    decode,
    encode_answer,
    encode_error,
)

Array = np.ndarray[Any, Any]

METHODS = {PATH: "POST", READY_PATH: "GET"}
BODY_IDLE_S = 60.0
"""Longest silence within a body. After the first two, each must bring `BODY_LEAST_BYTES`."""
BODY_LEAST_BYTES = 1024
_SHOWN = 80
"""Characters of a wrong path that the answer repeats."""

log = logging.getLogger("ray.serve")


def token_digest(token: str) -> bytes:
    """Digest of the server's token: it recognises the token and does not reveal it."""
    return hashlib.sha256(token.encode()).digest()


class HttpHandler:
    """Answers the requests for one network; `answer` gives the labels of samples that have been checked."""

    def __init__(
        self,
        network: str,
        served: Mapping[int, SentFeatures],
        answer: Callable[[Offload], Awaitable[Array]],
        max_body_bytes: int,
        digest: bytes | None,
        places: int,
    ) -> None:
        """`served` says what every client sends; `digest` is the token's, None to serve anyone.

        As many whole bodies as there are `places` are answered at once, and no more bytes are held than those can have.
        A body takes its place when it is whole: whoever sends slowly keeps nobody out.
        """
        self.network = network
        self.served = served
        self.answer = answer
        self.max_body_bytes = max_body_bytes
        self.digest = digest
        self.free_places = places
        self.free_bytes = places * max_body_bytes

    async def __call__(self, request: Request) -> Response:
        """Never raises: whatever is wrong with one request, the next one is answered."""
        path: str = request.scope["path"]
        try:
            return _json(200, await self._content(path, request))
        except BadRequest as error:
            headers = {401: {"WWW-Authenticate": "Bearer"}, 405: {"Allow": METHODS.get(path, "")}}
            return _json(error.status, encode_error(str(error)), headers.get(error.status))
        except Exception:
            log.exception("a request could not be answered")
            return _json(500, encode_error("the server failed at this request; its log says why"))

    async def _content(self, path: str, request: Request) -> bytes:
        if path not in METHODS:
            raise BadRequest(404, f"there is no {path[:_SHOWN]!r} here; send to {PATH}")
        if request.method != METHODS[path]:
            raise BadRequest(405, f"{path} takes {METHODS[path]}, not {request.method}")
        if path == READY_PATH:
            return json.dumps({"network": self.network, "clients": sorted(self.served)}).encode()
        self._check_token(request.headers.get("authorization", ""))
        body = bytearray()
        try:
            await self._read(request, body)
            if self.free_places == 0:
                raise BadRequest(503, "too many requests are here already; come again later")
            self.free_places -= 1
            try:
                # Checking a large body takes as long as computing it, and others are waiting to be received.
                offload = await asyncio.to_thread(decode, memoryview(body), self.network, self.served)
                return encode_answer(await self.answer(offload))
            finally:
                self.free_places += 1
        finally:
            self.free_bytes += len(body)

    def _check_token(self, authorization: str) -> None:
        if self.digest is None:
            return
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token_digest(token.strip()), self.digest):
            raise BadRequest(401, "this server wants its token, in a header `Authorization: Bearer <token>`")

    async def _read(self, request: Request, body: bytearray) -> None:
        """Adds the request's body, whose bytes are then no longer free; no more than the limit is ever held."""
        limit = self.max_body_bytes
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise BadRequest(
                413, f"the body has {announced} bytes, this server takes up to {limit}: send fewer samples"
            )
        clock = asyncio.get_running_loop().time
        begun_s = clock()
        try:
            async with asyncio.timeout(BODY_IDLE_S) as patience:
                async for piece in request.stream():
                    if len(body) + len(piece) > limit:
                        raise BadRequest(413, f"the body has more than {limit} bytes: send fewer samples")
                    if len(piece) > self.free_bytes:
                        raise BadRequest(503, "too many bodies are here already; come again later")
                    body += piece
                    self.free_bytes -= len(piece)
                    paid_s = BODY_IDLE_S * (2 + len(body) / BODY_LEAST_BYTES)
                    patience.reschedule(min(clock() + BODY_IDLE_S, begun_s + paid_s))
        except TimeoutError:
            raise BadRequest(
                408, f"the body stopped: less than {BODY_LEAST_BYTES} bytes in {BODY_IDLE_S:g} s"
            ) from None
        except ClientDisconnect:
            raise BadRequest(400, "the connection ended before the body did") from None


def _json(status: int, content: bytes, headers: Mapping[str, str] | None = None) -> Response:
    return Response(content, status, headers, "application/json")
