"""Links that are slow, silent or wrong: a device is patient with all but silence, and reads no more than an answer."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from hsee_ray.edge.edge_client import EdgeClient, ServerRefused, ServerUnreachable
from hsee_ray.errors import DataError, UserError
from tests.device import SURE, UNSURE, images_of, running_server, write_client

PATIENCE_S = 0.5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_client(tmp_path_factory.mktemp("bundles") / "client-003")


@contextmanager
def peer(talk: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """A server that does to each connection what `talk` does, until the block is over."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
    listener.settimeout(0.2)

    def accept() -> None:
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(30)
                with suppress(OSError):
                    talk(connection, over)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        thread.join(timeout=40)
        listener.close()


def receive(connection: socket.socket, pause_s: float = 0.0, piece: int = 1 << 16) -> None:
    """Reads a whole request."""
    content = b""
    while b"\r\n\r\n" not in content:
        content += connection.recv(piece)
    head, _, body = content.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    left = length - len(body)
    while left > 0:
        time.sleep(pause_s)
        got = 0
        while got < min(piece, left):
            got += len(connection.recv(piece - got))
        left -= got


def answer(content: bytes, *headers: bytes, length: int | None = None) -> bytes:
    lines = [b"HTTP/1.1 200 OK", *headers]
    if length is not None:
        lines.append(b"Content-Length: %d" % length)
    return b"\r\n".join([*lines, b"", content])


def test_a_slow_link_succeeds_slowly(bundle: Path) -> None:
    """4.8 MB at 128 KiB in 0.1 s: longer than the patience, which no silence exceeds."""
    images = np.repeat(images_of(UNSURE), 300_000, axis=0)

    def slowly(connection: socket.socket, over: threading.Event) -> None:
        receive(connection, pause_s=0.1, piece=1 << 17)
        content = b'{"labels": [%s]}' % b",".join([b"2"] * len(images))
        connection.sendall(answer(content, b"Connection: close", length=len(content)))

    with (
        peer(slowly) as url,
        EdgeClient(bundle, url, timeout_s=2.0, retries=0, on_unreachable="raise") as client,
    ):
        begin = time.monotonic()
        predictions = client.predict(images)
    assert {prediction.label for prediction in predictions} == {2}
    assert time.monotonic() - begin > 2.0


def test_a_silent_link_is_called_so(bundle: Path) -> None:
    def silent(connection: socket.socket, over: threading.Event) -> None:
        over.wait(20)

    with (
        peer(silent) as url,
        EdgeClient(bundle, url, timeout_s=PATIENCE_S, retries=0, on_unreachable="raise") as client,
        pytest.raises(ServerUnreachable, match=r"/answer: was silent for 0\.5 s"),
    ):
        client.predict(images_of(UNSURE))


def test_an_endless_answer_is_given_up(bundle: Path) -> None:
    def endless(connection: socket.socket, over: threading.Event) -> None:
        receive(connection)
        connection.sendall(answer(b""))
        while not over.is_set():
            connection.sendall(b" " * 65536)

    with (
        peer(endless) as url,
        EdgeClient(bundle, url, retries=0, on_unreachable="raise") as client,
        pytest.raises(ServerUnreachable, match="its answer has more than 65560 bytes"),
    ):
        client.predict(images_of(UNSURE))


def test_an_answer_that_drips_does_not_hold_a_device_for_ever(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(connection: socket.socket, over: threading.Event) -> None:
        receive(connection)
        connection.sendall(answer(b""))
        while not over.wait(0.05):
            connection.sendall(b" ")

    monkeypatch.setattr("hsee_ray.edge.edge_client._LEAST_BYTES_PER_S", 1e9)
    with (
        peer(drip) as url,
        EdgeClient(bundle, url, timeout_s=PATIENCE_S, retries=0, on_unreachable="raise") as client,
        pytest.raises(ServerUnreachable, match="its answer does not come to an end"),
    ):
        client.predict(images_of(UNSURE))


def test_a_compressed_answer_is_not_unpacked(bundle: Path) -> None:
    bomb = gzip.compress(b" " * (40 << 20))

    def pack(connection: socket.socket, over: threading.Event) -> None:
        receive(connection)
        connection.sendall(answer(bomb, b"Content-Encoding: gzip", b"Connection: close", length=len(bomb)))

    with (
        peer(pack) as url,
        EdgeClient(bundle, url, retries=0) as client,
        pytest.raises(ServerRefused, match="no server of"),
    ):
        client.predict(images_of(UNSURE))


def test_a_request_that_is_too_large_goes_in_pieces(bundle: Path) -> None:
    with running_server() as server, EdgeClient(bundle, server.url) as client:
        server.script = [413, 413]
        predictions = client.predict(images_of(UNSURE, SURE, UNSURE, UNSURE, UNSURE, UNSURE))
    assert [prediction.label for prediction in predictions] == [2, 0, 2, 2, 2, 2]
    assert server.samples[-3:] == [1, 1, 3]


WRONG = [
    {"on_unreachable": "blah"},
    {"retries": -1},
    {"retries": 1.5},
    {"retries": True},
    {"timeout_s": 0},
    {"timeout_s": float("nan")},
    {"timeout_s": float("inf")},
    {"timeout_s": -1},
    {"timeout_s": "10"},
    {"token": "a\nb"},
    {"token": ""},
    {"token": "\u00fc"},
    {"token": b"secret"},
    {"threads": 0},
]


@pytest.mark.parametrize("arguments", WRONG)
def test_an_argument_that_is_wrong(bundle: Path, arguments: dict[str, object]) -> None:
    with pytest.raises(UserError) as caught:
        EdgeClient(bundle, "http://127.0.0.1:9", **arguments)  # type: ignore[arg-type]
    assert str(caught.value).startswith(next(iter(arguments)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("images", [None, "picture.png", b"bytes"])
def test_images_that_are_none(bundle: Path, images: object) -> None:
    with EdgeClient(bundle) as client, pytest.raises(UserError, match="give uint8 arrays"):
        client.predict(images)  # type: ignore[arg-type]


def test_fewer_names_than_outputs(tmp_path: Path) -> None:
    import json

    directory = write_client(tmp_path / "client-003")
    content = json.loads((directory / "bundle.json").read_text())
    (directory / "bundle.json").write_text(json.dumps(content | {"class_names": ["ant", "bee"]}))
    with pytest.raises(DataError, match="has 2 names of classes for 3 outputs; export it again"):
        EdgeClient(directory)
