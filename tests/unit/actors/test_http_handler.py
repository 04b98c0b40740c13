"""What a server answers to whom, without a server: requests go straight to the handler."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from starlette.requests import Request

from actors.serving.http_handler import HttpHandler, token_digest
from hsee_ray.edge.protocol import HEADER_BYTES, BadRequest, Offload, SentFeatures, encode
from tests.exports import SHAPE, malformed_bodies

NETWORK = "5eed" * 16
LIMIT = 4096
PLACES = 2
SERVED = {0: SentFeatures(SHAPE), 1: SentFeatures(SHAPE)}
FEATURES = np.arange(2 * 256, dtype=np.float32).reshape(2, *SHAPE)
BODY = encode(1, NETWORK, FEATURES)


@dataclass(frozen=True)
class Reply:
    status: int
    content: Any
    headers: dict[str, str]
    pieces_read: int


async def sample_counts(offload: Offload) -> np.ndarray[Any, Any]:
    """In place of a network: each sample's label is the client's number."""
    return np.full(len(offload.features), offload.client)


def handler(answer: Any = sample_counts, token: str | None = None) -> HttpHandler:
    digest = None if token is None else token_digest(token)
    return HttpHandler(NETWORK, SERVED, answer, LIMIT, digest, PLACES)


def ask(
    asked: HttpHandler,
    pieces: Sequence[bytes] = (BODY,),
    *,
    method: str = "POST",
    path: str = "/answer",
    headers: dict[str, str] | None = None,
    disconnects: bool = False,
) -> Reply:
    """One request, whose body comes in pieces and ends, or whose connection does."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.disconnect"} if disconnects else {"type": "http.request", "body": b""})
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        return messages[read - 1]

    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": raw}
    response = asyncio.run(asked(Request(scope, receive)))
    assert response.headers["content-type"] == "application/json"
    return Reply(response.status_code, json.loads(bytes(response.body)), dict(response.headers), read)


def test_an_answer() -> None:
    reply = ask(handler())
    assert (reply.status, reply.content) == (200, {"labels": [1, 1]})


def test_a_body_in_pieces() -> None:
    assert ask(handler(), [BODY[:7], b"", BODY[7:100], BODY[100:]]).content == {"labels": [1, 1]}


def test_ready_says_what_is_served_and_asks_for_no_token() -> None:
    reply = ask(handler(token="secret"), [], method="GET", path="/ready")
    assert (reply.status, reply.content) == (200, {"network": NETWORK, "clients": [0, 1]})


@pytest.mark.parametrize("path", ["/", "/answers", "/answer/", "/metrics", "/" + "x" * 10_000])
def test_other_paths(path: str) -> None:
    reply = ask(handler(), path=path)
    assert reply.status == 404
    assert reply.content["error"].endswith("here; send to /answer")
    assert len(reply.content["error"]) < 150


@pytest.mark.parametrize(("method", "path", "allowed"), [("GET", "/answer", "POST"), ("POST", "/ready", "GET")])
def test_other_methods(method: str, path: str, allowed: str) -> None:
    reply = ask(handler(), method=method, path=path)
    assert reply.status == 405
    assert reply.headers["allow"] == allowed
    assert reply.content == {"error": f"{path} takes {allowed}, not {method}"}


# Token


@pytest.mark.parametrize("value", ["Bearer secret", "bearer secret", "Bearer  secret "])
def test_the_token(value: str) -> None:
    assert ask(handler(token="secret"), headers={"Authorization": value}).status == 200


@pytest.mark.parametrize("value", [None, "", "secret", "Bearer", "Bearer Secret", "Basic secret", "Bearer secrét"])
def test_a_wrong_token_is_refused_before_the_body_is_read(value: str | None) -> None:
    reply = ask(handler(token="secret"), headers={} if value is None else {"Authorization": value})
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert "wants its token" in reply.content["error"]
    assert reply.pieces_read == 0


def test_a_server_keeps_no_token() -> None:
    assert b"secret" not in token_digest("secret")


# Size


def test_a_length_above_the_limit_is_refused_before_the_body_is_read() -> None:
    reply = ask(handler(), headers={"Content-Length": str(LIMIT + 1)})
    assert reply.status == 413
    assert reply.content == {
        "error": f"the body has {LIMIT + 1} bytes, this server takes up to {LIMIT}: send fewer samples"
    }
    assert reply.pieces_read == 0


def test_a_body_without_a_length_is_read_up_to_the_limit() -> None:
    reply = ask(handler(), [bytes(1000)] * 100)
    assert reply.status == 413
    assert reply.content == {"error": f"the body has more than {LIMIT} bytes: send fewer samples"}
    assert reply.pieces_read == 5


def test_a_body_of_just_the_limit() -> None:
    samples = (LIMIT - HEADER_BYTES) // 1024
    body = encode(0, NETWORK, np.zeros((samples, *SHAPE), np.float32))
    exact = HttpHandler(NETWORK, {0: SentFeatures(SHAPE)}, sample_counts, len(body), None, PLACES)
    assert ask(exact, [body], headers={"Content-Length": str(len(body))}).status == 200


def test_a_connection_that_ends_early() -> None:
    assert ask(handler(), [BODY[:50]], disconnects=True).status == 400


# Wrong bodies


def test_malformed_bodies_get_one_sentence_each_and_reach_no_network() -> None:
    async def never(offload: Offload) -> np.ndarray[Any, Any]:
        raise AssertionError("reached the network")

    asked = handler(never)
    statuses = set()
    for body in malformed_bodies(NETWORK, 2000, seed=1):
        reply = ask(asked, [body])
        assert 400 <= reply.status < 500
        assert set(reply.content) == {"error"} and "\n" not in reply.content["error"]
        statuses.add(reply.status)
    assert statuses == {400, 404, 409, 415, 422}


def test_what_the_network_refuses() -> None:
    async def refuses(offload: Offload) -> np.ndarray[Any, Any]:
        raise BadRequest(422, "too large")

    reply = ask(handler(refuses))
    assert (reply.status, reply.content) == (422, {"error": "too large"})


def test_a_failure_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(offload: Offload) -> np.ndarray[Any, Any]:
        raise RuntimeError("the GPU fell out")

    reply = ask(handler(fails))
    assert (reply.status, reply.content) == (
        500,
        {"error": "the server failed at this request; its log says why"},
    )
    assert "the GPU fell out" in caplog.text


def request_of(receive: Any) -> Request:
    return Request({"type": "http", "method": "POST", "path": "/answer", "query_string": b"", "headers": []}, receive)


@pytest.mark.parametrize(
    ("piece", "pause_s", "status"),
    [(200, 0.06, 200), (0, 0.3, 408), (1, 0.03, 408)],
    ids=["slow", "silent", "drips"],
)
def test_a_body_may_be_slow_but_not_silent(
    piece: int, pause_s: float, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patience of 0.1 s, and 2 kB/s at least."""
    monkeypatch.setattr("actors.serving.http_handler.SILENCE_S", 0.1)
    monkeypatch.setattr("actors.serving.http_handler.LEAST_BYTES_PER_S", 2000)
    sent = 0

    async def receive() -> dict[str, Any]:
        nonlocal sent
        await asyncio.sleep(pause_s)
        first, sent = sent, sent + (piece or 1)
        return {"type": "http.request", "body": BODY[first:sent], "more_body": sent < len(BODY)}

    response = asyncio.run(handler()(request_of(receive)))
    assert response.status_code == status, bytes(response.body)


def test_those_who_wait_with_a_body_have_few_places_and_those_who_send_have_many() -> None:
    async def many() -> list[int]:
        begin = asyncio.Event()

        async def wait(offload: Offload) -> np.ndarray[Any, Any]:
            await begin.wait()
            return await sample_counts(offload)

        async def whole() -> dict[str, Any]:
            return {"type": "http.request", "body": BODY}

        async def never() -> dict[str, Any]:
            await asyncio.sleep(60)
            raise AssertionError

        asked = handler(wait)
        silent = [asyncio.create_task(asked(request_of(never))) for _ in range(50)]
        ready = [asyncio.create_task(asked(request_of(whole))) for _ in range(2 * PLACES + 1)]
        refused, _ = await asyncio.wait(ready, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        begin.set()
        responses = await asyncio.wait_for(asyncio.gather(*ready), 5)
        for task in silent:
            task.cancel()
        assert len(refused) == 1
        return sorted(response.status_code for response in responses)

    assert asyncio.run(many()) == [200] * 2 * PLACES + [503]
