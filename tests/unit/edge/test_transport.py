"""What a device waits for, and what it reads: links that are slow, servers that are silent, drip, or never end."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsee_ray.edge.edge_client import EdgeClient, Prediction, ServerRefused, ServerSilent, ServerUnreachable
from tests.device import SURE, UNSURE, images_of, write_client

Answer = Callable[[socket.socket], None]
MIB = 1 << 20
PATIENCE_S = 10.0
"""After so long a server of these tests gives the right answer, if anyone is there still."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_client(tmp_path_factory.mktemp("bundles") / "client-003")


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """URL of a server that hands each connection to `answer`, and closes it then."""
    ended = threading.Event()

    def handle(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(PATIENCE_S)
            with suppress(OSError):  # the device has gone
                answer(connection)

    def accept() -> None:
        while not ended.is_set():
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            threading.Thread(target=handle, args=[connection], daemon=True).start()

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        listening.settimeout(0.05)
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            ended.set()
            thread.join(PATIENCE_S)


def read_request(connection: socket.socket, piece_bytes: int = MIB, pause_s: float = 0.0) -> int:
    """Length of the body that was read."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(piece_bytes)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    got = len(body)
    while got < length:
        time.sleep(pause_s)
        got += len(connection.recv(piece_bytes))
    return got


def reply(content: bytes, headers: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n{headers}\r\n".encode() + content


def labels(count: int) -> bytes:
    return reply(json.dumps({"labels": [2] * count}).encode())


def ask(bundle: Path, answer: Answer, unsure: int = 1, timeout_s: float = 1.0) -> list[Prediction]:
    images = np.repeat(images_of(UNSURE), unsure, axis=0)
    with (
        answering(answer) as url,
        EdgeClient(bundle, url, timeout_s=timeout_s, retries=0, on_unreachable="raise") as client,
    ):
        return client.predict(images)


def test_a_slow_link_succeeds_slowly(bundle: Path) -> None:
    """A body of 2 MB in 130 pieces, 20 ms each: many times the time of silence."""

    def slowly(connection: socket.socket) -> None:
        read_request(connection, 16 << 10, 0.02)
        connection.sendall(labels(130_000))

    answers = ask(bundle, slowly, 130_000)
    assert {answer.label for answer in answers} == {2}


def test_an_answer_may_come_slowly(bundle: Path) -> None:
    def slowly(connection: socket.socket) -> None:
        read_request(connection)
        answer = labels(2000)
        for begin in range(0, len(answer), 600):
            time.sleep(0.2)
            connection.sendall(answer[begin : begin + 600])

    assert len(ask(bundle, slowly, 2000)) == 2000


@pytest.mark.parametrize("reads", [False, True])
def test_silence_is_told_from_a_server_that_cannot_be_reached(bundle: Path, reads: bool) -> None:
    def silent(connection: socket.socket) -> None:
        if reads:
            read_request(connection)
        time.sleep(2.0)

    what = "has said nothing" if reads else r"has not taken the last \d+ bytes"
    with pytest.raises(ServerSilent, match=rf"answer: was reached, and it {what} for .* s: the link is too slow, or"):
        ask(bundle, silent, 1 if reads else 400_000, timeout_s=0.3)
    with (
        EdgeClient(bundle, "http://127.0.0.1:9", retries=0, on_unreachable="raise") as client,
        pytest.raises(ServerUnreachable, match="cannot be reached") as raised,
    ):
        client.predict(images_of(UNSURE))
    assert not isinstance(raised.value, ServerSilent)


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\n", b'HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"'])
def test_a_server_that_drips_does_not_hold_a_device(bundle: Path, begin: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(begin)
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            connection.sendall(b"H")
            time.sleep(0.05)

    with pytest.raises(ServerSilent, match=r"less than 1024 bytes have moved in each 0\.3 s"):
        ask(bundle, drip, timeout_s=0.3)


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4000000\r\n",
    ],
)
def test_an_endless_answer_is_not_read(bundle: Path, begin: bytes) -> None:
    pushed = 0

    def endless(connection: socket.socket) -> None:
        nonlocal pushed
        read_request(connection)
        connection.sendall(begin)
        while pushed < 64 * MIB:
            pushed += connection.send(b"0" * 65536)

    with pytest.raises((ServerRefused, ServerUnreachable), match="answer"):
        ask(bundle, endless)
    assert pushed < 32 * MIB, "what buffers on the way take, and no more"


def test_endless_interim_answers_are_not_read(bundle: Path) -> None:
    def endless(connection: socket.socket) -> None:
        read_request(connection)
        while True:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    with pytest.raises(ServerRefused, match=r"is no server of this project \(its answer has more than \d+ bytes\)"):
        ask(bundle, endless)


def test_a_compressed_answer_that_nobody_asked_for_is_not_unpacked(bundle: Path) -> None:
    packed = reply(gzip.compress(bytes(32 * MIB), 1), "Content-Encoding: gzip\r\n")

    def bomb(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(packed)

    with pytest.raises(ServerRefused, match="is no server of this project") as raised:
        ask(bundle, bomb)
    assert "\n" not in str(raised.value)


HEADERS = st.sampled_from(
    [
        b"Content-Length: 5",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: -1",
        b"Content-Length: x",
        b"Transfer-Encoding: chunked",
        b"Content-Encoding: gzip",
        b"Content-Encoding: br",
        b"Retry-After: x",
        b"Retry-After: -1",
        b"Retry-After: Fri, 31 Dec 99999 23:59:59 GMT",
        b"Retry-After: 1e9",
        b"Location: http://[",
        b"Connection: upgrade",
        b"\xff: \xff",
        b": ",
    ]
)
STATUSES = st.sampled_from(
    [b"200", b"204", b"100", b"101", b"302", b"401", b"413", b"429", b"500", b"999", b"-1", b"x"]
)
CONTENTS = st.binary(max_size=60) | st.sampled_from(
    [b'{"labels": [2]}', b'{"labels": [1' + b"0" * 5000 + b"]}", b"[" * 5000, b'{"error": {}}', b'{"labels": [NaN]}']
)
ANSWERS = st.binary(max_size=80) | st.builds(
    lambda status, headers, content: b"HTTP/1.1 " + status + b" X\r\n" + b"\r\n".join([*headers, b"", b""]) + content,
    STATUSES,
    st.lists(HEADERS, max_size=3),
    CONTENTS,
)


@pytest.mark.long
def test_no_answer_ends_in_a_traceback(bundle: Path) -> None:
    answer = b""

    def given_answer(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer)

    @settings(max_examples=2000, deadline=None)
    @given(ANSWERS)
    def any_answer(content: bytes) -> None:
        nonlocal answer
        answer = content
        try:
            sure, unsure = client.predict(images_of(SURE, UNSURE))
            assert (sure.label, unsure.label) == (0, 2)
        except (ServerRefused, ServerUnreachable) as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            assert [prediction.label for prediction in error.predictions] == [0, 1]

    with (
        answering(given_answer) as url,
        EdgeClient(bundle, url, timeout_s=5.0, retries=0, on_unreachable="raise") as client,
    ):
        any_answer()
