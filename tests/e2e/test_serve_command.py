"""`python -m jobs.serve` with devices that ask it, with whoever else does, and with a replica that dies."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3

from hsee_ray.edge.edge_client import EdgeClient
from hsee_ray.edge.gate import SENDS_ALL
from hsee_ray.edge.protocol import encode, error_of
from hsee_ray.rundir.run import Run
from tests.e2e.conftest import Command, marked_processes
from tests.exports import SHAPE, coded_features, labels_of, malformed_bodies, stored_again, tiny_export

Start = Callable[..., Command]
TOKEN = "a-token-of-this-test"
THREADS = 8
LIMIT = 1 << 20
TIMEOUT_S = 60
GROWTH_MIB = 16


@dataclass
class Server:
    command: Command
    run: Run
    export: Path
    http: urllib3.HTTPConnectionPool

    @property
    def url(self) -> str:
        return f"http://{self.http.host}:{self.http.port}"

    @property
    def network(self) -> str:
        return str(self.run.summary["weights_sha256"])

    def send(
        self, body: Any, token: str | None = TOKEN, method: str = "POST", path: str = "/answer"
    ) -> tuple[int, str]:
        """Status, and what was wrong, of one request that is not tried again."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        chunked = not isinstance(body, bytes)
        reply = self.http.urlopen(method, path, body=body, headers=headers, retries=False, chunked=chunked)
        return reply.status, error_of(reply.data)

    def edge(self, client: int) -> EdgeClient:
        """A device that sends every image."""
        edge = EdgeClient(
            self.export / f"client-{client:03}", self.url, token=TOKEN, threads=1, on_unreachable="raise", timeout_s=30
        )
        edge.bundle = replace(edge.bundle, gate=replace(edge.bundle.gate, tau=SENDS_ALL))
        return edge

    def processes(self, title: str) -> list[int]:
        return [pid for pid, line in marked_processes(self.command.mark).items() if line.startswith(title)]


@pytest.fixture(scope="module")
def server(start_for_module: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("serve")
    run, export = tiny_export(directory)
    (directory / "token").write_text(f"{TOKEN}\n", encoding="ascii")
    options = ["--port", "0", "--replicas", "2", "--max-body-mib", "1", "--token-file", directory / "token"]
    command = start_for_module("jobs.serve", "--bundle", export, *options)
    command.wait_for_line("serving clients 0, 1, 2 of run on http://127.0.0.1:")
    match = re.search(r" on http://127\.0\.0\.1:(\d+)", "".join(command.lines))
    assert match is not None
    with urllib3.HTTPConnectionPool("127.0.0.1", int(match[1]), maxsize=THREADS, timeout=TIMEOUT_S) as http:
        yield Server(command, run, export, http)


def images(seed: int, count: int = 16) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)


def expected(server: Server, client: int, images_BHWC: np.ndarray[Any, Any]) -> list[int]:
    """Labels by the trained modules."""
    codes = coded_features(server.run, server.export, client, images_BHWC)
    return labels_of(server.run, server.export, client, codes)


def all_at_once(work: Callable[[int], int]) -> int:
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(work, range(THREADS), timeout=TIMEOUT_S))


# Devices


@pytest.mark.smoke
@pytest.mark.parametrize("client", [0, 1, 2])
def test_a_device_gets_the_answers_of_the_trained_network(server: Server, client: int) -> None:
    batch = images(client, 40)
    with server.edge(client) as edge:
        predictions = edge.predict(batch)
    assert [prediction.label for prediction in predictions] == expected(server, client, batch)
    assert not any(prediction.exited or prediction.degraded for prediction in predictions)


def test_ready_and_healthy(server: Server) -> None:
    ready = server.http.request("GET", "/ready")
    assert (ready.status, json.loads(ready.data)) == (200, {"network": server.network, "clients": [0, 1, 2]})
    assert server.http.request("GET", "/-/healthz").status == 200


def test_concurrent_devices(server: Server) -> None:
    def answered(number: int) -> int:
        client, batch = number % 3, images(number)
        labels = expected(server, client, batch)
        with server.edge(client) as edge:
            return sum(edge.predict(batch[i % 16])[0].label == labels[i % 16] for i in range(50))

    assert all_at_once(answered) == 400


# Whoever else asks


def body(server: Server, samples: int = 1) -> bytes:
    return encode(0, server.network, np.zeros((samples, *SHAPE), np.float32))


def test_wrong_requests(server: Server) -> None:
    good = body(server)
    assert server.send(good)[0] == 200
    cases: list[tuple[int, str, tuple[int, str]]] = [
        (404, "there is no '/other' here", server.send(good, path="/other")),
        (405, "/answer takes POST, not PUT", server.send(good, method="PUT")),
        (401, "wants its token", server.send(good, token=None)),
        (401, "wants its token", server.send(good, token="another")),
        (400, "the body has 0 bytes", server.send(b"")),
        (400, "begins with b'HTTP'", server.send(stored_again(good, 0, b"HTTP"))),
        (400, "format version 7", server.send(stored_again(good, 4, b"\7"))),
        (415, "type 2", server.send(stored_again(good, 6, b"\2"))),
        (404, "client 3 is not served here", server.send(stored_again(good, 8, b"\3"))),
        (409, "the device has a network", server.send(stored_again(good, 32, bytes(8)))),
        (422, "the features have shape", server.send(stored_again(good, 16, b"\7"))),
        (400, "its header announces", server.send(good[:-4])),
        (400, "damaged on its way", server.send(good[:-1] + b"\1")),
        (422, "NaN or infinite", server.send(stored_again(good, 44, b"\0\0\xc0\x7f"))),
        (422, "no finite numbers", server.send(encode(0, server.network, np.full((1, *SHAPE), 3e38, np.float32)))),
    ]
    for status, sentence, (found_status, found) in cases:
        assert found_status == status, found
        assert sentence in found and "\n" not in found
    assert server.send(good)[0] == 200


def test_too_large_a_body(server: Server) -> None:
    large = body(server, 1 + LIMIT // 1024)
    status, sentence = server.send(large)
    assert (status, sentence.split(":")[0]) == (
        413,
        f"the body has {len(large)} bytes, this server takes up to {LIMIT}",
    )

    def pieces() -> Iterable[bytes]:
        for begin in range(0, len(large), 1 << 16):
            yield large[begin : begin + (1 << 16)]

    assert server.send(pieces()) == (413, f"the body has more than {LIMIT} bytes: send fewer samples")
    assert server.send(iter([body(server)]))[0] == 200


def test_malformed_bodies_take_no_memory(server: Server) -> None:
    processes = server.processes("ray::ServeReplica") + server.processes("ray::ProxyActor")
    assert len(processes) == 3

    def refused(number: int, count: int = 250) -> int:
        replies = [server.send(wrong) for wrong in malformed_bodies(server.network, count, seed=number)]
        assert all(sentence and "\n" not in sentence for _, sentence in replies)
        return sum(400 <= status < 500 for status, _ in replies)

    assert all_at_once(lambda number: refused(100 + number, 50)) == 400
    before = [memory_mib(pid) for pid in processes]
    assert all_at_once(refused) == 2000
    after = [memory_mib(pid) for pid in processes]
    print(f"MiB before {before}, after {after}")
    assert all(late - early < GROWTH_MIB for early, late in zip(before, after, strict=True)), (before, after)
    assert server.send(body(server))[0] == 200


def memory_mib(pid: int) -> float:
    """Memory that is a process's own."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    match = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    assert match is not None
    return int(match[1]) / 1024


STILL = 300


def test_connections_that_stand_still_keep_nobody_out(server: Server) -> None:
    good = body(server)
    head = f"POST /answer HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(good)}\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(STILL):
            still = stack.enter_context(socket.create_connection((server.http.host, server.http.port), TIMEOUT_S))
            still.sendall(head.encode() + good[:4])
        for _ in range(20):
            assert server.http.request("GET", "/ready").status == 200
            assert server.send(good)[0] == 200
        still.sendall(good[4:])
        assert still.recv(4096).startswith(b"HTTP/1.1 200 ")


UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
SHAKE = UPGRADE + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"


@pytest.mark.parametrize("path", [b"/answer", b"/ready", b"/-/healthz"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [(SHAKE, 403), (UPGRADE, 400)]
    + [(name + b": \xff\xfe\r\n", 200) for name in (b"X-Request-ID", b"X-Session-ID", b"Serve-Multiplexed-Model-ID")],
)
def test_what_is_no_request_of_a_device_gets_a_proper_answer(
    server: Server, path: bytes, headers: bytes, status: int
) -> None:
    expected_status = 405 if (path, status) == (b"/answer", 200) else status
    with socket.create_connection((server.http.host, server.http.port), TIMEOUT_S) as connection:
        connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 %d " % expected_status)


# Failures and the end


def test_a_killed_replica_loses_no_request(server: Server) -> None:
    killed = threading.Event()
    begun = threading.Barrier(THREADS + 1)

    def answered(number: int) -> int:
        client, batch = number % 3, images(number)
        labels = expected(server, client, batch)
        right = sent = 0
        with server.edge(client) as edge:
            begun.wait(TIMEOUT_S)
            # On and on until it has been killed, and a while after.
            while sent < 40 or not killed.is_set():
                right += edge.predict(batch[sent % 16])[0].label == labels[sent % 16]
                sent += 1
        assert right == sent
        return 1

    def kill() -> None:
        begun.wait(TIMEOUT_S)
        time.sleep(0.5)
        os.kill(server.processes("ray::ServeReplica")[0], signal.SIGKILL)
        time.sleep(1.0)
        killed.set()

    injector = threading.Thread(target=kill)
    injector.start()
    assert all_at_once(answered) == THREADS
    injector.join(TIMEOUT_S)


def test_metrics_of_queue_batches_and_latency(server: Server) -> None:
    url = next(line.split()[-1] for line in server.command.lines if line.startswith("metrics"))
    deadline = time.monotonic() + TIMEOUT_S
    wanted = {
        "ray_serve_deployment_queued_queries",
        "ray_serve_batch_queue_length",
        "ray_serve_actual_batch_size_bucket",
        "ray_serve_deployment_processing_latency_ms_bucket",
        "ray_serve_http_request_latency_ms_bucket",
    }
    while True:
        text = urllib3.request("GET", url, timeout=TIMEOUT_S).data.decode()
        missing = wanted - set(re.findall(r"^(\w+)\{", text, re.MULTILINE))
        if not missing:
            return
        assert time.monotonic() < deadline, missing
        time.sleep(1.0)


def test_ctrl_c_ends_it_and_leaves_no_process(server: Server) -> None:
    server.command.process.send_signal(signal.SIGINT)
    out, err = server.command.finish(TIMEOUT_S)
    assert (server.command.process.returncode, err) == (130, "the server has ended\n")
    assert len(out.splitlines()) == 2
    assert server.command.left_behind() == []


def test_a_killed_command_leaves_no_process(start: Start, server: Server) -> None:
    command = start("jobs.serve", "--bundle", server.export / "client-002", "--port", "0")
    command.wait_for_line("serving clients 2 of run on http://127.0.0.1:")
    command.process.kill()
    command.finish(TIMEOUT_S)
    assert command.left_behind() == []
