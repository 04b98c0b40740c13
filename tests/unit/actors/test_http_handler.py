"""What a server answers to whom, without a server: requests go straight to the handler."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from actors.serving import http_handler
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


def test_a_failure_is_logged_and_not_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_handler.log, "handlers", [caplog.handler])  # Ray's loggers may not propagate

    async def fails(offload: Offload) -> np.ndarray[Any, Any]:
        raise RuntimeError("the GPU fell out")

    reply = ask(handler(fails))
    assert (reply.status, reply.content) == (
        500,
        {"error": "the server failed at this request; its log says why"},
    )
    assert "the GPU fell out" in caplog.text


# Senders that are slow, or many


def request_of(receive: Any) -> Request:
    scope = {"type": "http", "method": "POST", "path": "/answer", "query_string": b"", "headers": []}
    return Request(scope, receive)


def sender(pieces: Sequence[bytes], pause_s: float, then: float = 0.0) -> Any:
    """A body that comes in pieces with pauses, and ends after a last one."""
    left = list(pieces)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause_s if left else then)
        return {"type": "http.request", "body": left.pop(0) if left else b"", "more_body": bool(left) or then > 0}

    return receive


def test_a_slow_body_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_handler, "BODY_IDLE_S", 0.2)
    pieces = [BODY[begin : begin + 200] for begin in range(0, len(BODY), 200)]
    response = asyncio.run(handler()(request_of(sender(pieces, 0.05))))
    assert (response.status_code, bytes(response.body)) == (200, b'{"labels": [1, 1]}')


@pytest.mark.parametrize(("pieces", "pause_s", "then_s"), [([BODY[:4]], 0.0, 60.0), ([b"H"] * 1000, 0.02, 0.0)])
def test_silence_and_dripping_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, pieces: list[bytes], pause_s: float, then_s: float
) -> None:
    monkeypatch.setattr(http_handler, "BODY_IDLE_S", 0.2)
    response = asyncio.run(handler()(request_of(sender(pieces, pause_s, then_s))))
    assert response.status_code == 408
    assert json.loads(bytes(response.body)) == {"error": "the body stopped: less than 1024 bytes in 0.2 s"}


def test_who_sends_slowly_keeps_nobody_out() -> None:
    async def scene() -> None:
        asked = handler()
        slow = [asyncio.create_task(asked(request_of(sender([BODY[:4]], 0.0, 60.0)))) for _ in range(300)]
        await asyncio.sleep(0.05)
        good = await asked(request_of(sender([BODY], 0.0)))
        assert good.status_code == 200
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        assert (asked.free_places, asked.free_bytes) == (PLACES, PLACES * LIMIT)

    asyncio.run(scene())


def test_whole_bodies_beyond_the_places_are_told_to_come_again() -> None:
    async def scene() -> None:
        go_on = asyncio.Event()

        async def waits(offload: Offload) -> np.ndarray[Any, Any]:
            await go_on.wait()
            return await sample_counts(offload)

        asked = handler(waits)
        tasks = [asyncio.create_task(asked(request_of(sender([BODY], 0.0)))) for _ in range(PLACES + 1)]
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        assert [task.result().status_code for task in done] == [503]
        go_on.set()
        assert [response.status_code for response in await asyncio.gather(*waiting)] == [200] * PLACES
        assert (asked.free_places, asked.free_bytes) == (PLACES, PLACES * LIMIT)

    asyncio.run(scene())


def test_bodies_that_are_not_whole_have_a_bound_together() -> None:
    async def scene() -> None:
        asked = handler()
        large = [bytes(LIMIT - 1)]
        tasks = [asyncio.create_task(asked(request_of(sender(large, 0.0, 60.0)))) for _ in range(PLACES + 1)]
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        assert [task.result().status_code for task in done] == [503]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(scene())


@pytest.mark.long
@settings(max_examples=2000, deadline=None)
@given(
    st.lists(st.binary(max_size=80) | st.just(BODY) | st.just(BODY[:44]), max_size=4),
    st.sampled_from(["POST", "GET", "PUT", "\xff"]),
    st.sampled_from(["/answer", "/ready", "/", "/\udcff\n"]),
    st.dictionaries(
        st.sampled_from(["Content-Length", "Authorization", "X"]), st.text("0123456789-²\xff \n", max_size=9)
    ),
    st.booleans(),
)
def test_no_request_ends_in_a_traceback(
    pieces: list[bytes], method: str, path: str, headers: dict[str, str], disconnects: bool
) -> None:
    for token in (None, "secret"):
        reply = ask(handler(token=token), pieces, method=method, path=path, headers=headers, disconnects=disconnects)
        assert reply.status == 200 or 400 <= reply.status < 500
        assert reply.status == 200 or "\n" not in reply.content["error"]
