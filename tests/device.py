"""A device's bundle made by hand, and the server that it asks.

An image has four pixels: the first three are the logits of its three classes, the fourth is what the server answers.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from hsee_ray.edge.bundle import Bundle, ServerPart, write_bundle
from hsee_ray.edge.codecs import UNCODED, ChannelRange, FeatureCodec
from hsee_ray.edge.gate import NEVER_SENDS, Gate
from hsee_ray.edge.protocol import BadRequest, SentFeatures, decode, encode_answer, encode_error

NETWORK = "5eed" * 16
SHAPE = (1, 2, 2)
HALVES = FeatureCodec("int8", ChannelRange(np.float32([0]), np.float32([127.5])))
"""Steps of a half: the pixels of the tests come through whole."""
CODECS = {3: UNCODED, 4: HALVES}
SERVED = {client: SentFeatures(SHAPE, codec.name) for client, codec in CODECS.items()}
SURE = [[[90], [0]], [[0], [1]]]
"""Class 0, and the server would say 1."""
UNSURE = [[[10], [12]], [[10], [2]]]
"""Class 1, and the server says 2."""
DROP, HANG = "drop", "hang"
HANG_S = 2.0


def write_client(directory: Path, whole_network: bool = False, client: int = 3) -> Path:
    """A bundle whose exit's logits are the first three pixels / 10; that of client 4 sends codes."""
    weights = np.eye(4, 3, dtype=np.float32) / 10
    nodes = [
        helper.make_node("Cast", ["images"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["values"], ["features"], perm=[0, 3, 1, 2]),
        helper.make_node("Flatten", ["features"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])]
    if not whole_network:
        outputs.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 1, 2, 2]))
    graph = helper.make_graph(
        nodes,
        "client",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 2, 2, 1])],
        outputs,
        [helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    directory.mkdir()
    content = model.SerializeToString()
    (directory / "client.onnx").write_bytes(content)
    bundle = Bundle(
        network=NETWORK,
        run="by-hand",
        client=client,
        tier="sensor",
        image_shape=(2, 2, 1),
        class_names=("ant", "bee", "cat"),
        cut="stem",
        cut_index=1,
        gate=Gate("max_prob", 0.9),
        calibrated_for=None,
        feature_shape=SHAPE,
        server=ServerPart("unused", "unused", "unused", {}),
        network_file="unused",
        files={"client.onnx": hashlib.sha256(content).hexdigest()},
        codec=CODECS[client],
    )
    if whole_network:
        bundle = replace(bundle, gate=Gate("max_prob", NEVER_SENDS), feature_shape=None, server=None)
    write_bundle(directory, bundle)
    return directory


def images_of(*kinds: Any) -> np.ndarray:
    return np.array(kinds, np.uint8)


class Server:
    """Answers the fourth pixel, but for what is scripted for its first requests: a status, DROP or HANG."""

    def __init__(self) -> None:
        self.script: list[int | str] = []
        self.body: bytes | None = None
        """What is answered in the place of labels."""
        self.headers: dict[str, str] = {}
        """Of scripted answers."""
        self.delay_s = 0.0
        self.most_samples = 1 << 30
        """Larger requests get a 413."""
        self.samples: list[int] = []
        """Of each request that could be read."""
        self.tokens: list[str | None] = []
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20

            def do_POST(self) -> None:
                server.handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        with self._lock:
            self.tokens.append(request.headers["Authorization"])
            todo = self.script.pop(0) if self.script else 200
        if todo == DROP:
            request.close_connection = True
            return
        time.sleep(HANG_S if todo == HANG else self.delay_s)
        status, answer, headers = 200, b"", {}
        try:
            arrived = decode(body, NETWORK, SERVED)
            with self._lock:
                self.samples.append(len(arrived.features))
            if len(arrived.features) > self.most_samples:
                raise BadRequest(413, "too many samples")
            features = CODECS[arrived.client].decode(arrived.features)
            answer = encode_answer(features[:, 0, 1, 1].astype(int)) if self.body is None else self.body
        except BadRequest as error:
            status, answer = error.status, encode_error(str(error))
        if isinstance(todo, int) and todo != 200:
            status, answer, headers = todo, encode_error(f"scripted {todo}"), self.headers
        try:
            request.send_response(status)
            for name, value in {"Content-Length": str(len(answer)), **headers}.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(answer)
        except OSError:
            request.close_connection = True  # the client has lost its patience


@contextmanager
def running_server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join(timeout=10)
