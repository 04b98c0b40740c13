"""A device's side of a bundle: it answers alone where its exit is sure, and asks the server otherwise.

Needs numpy, onnxruntime and urllib3: neither torch nor Ray. Legend: B samples; H, W, C of an image; K classes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from random import random
from socket import SO_SNDBUF, SOL_SOCKET
from types import TracebackType
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import urllib3
from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError
from urllib3.exceptions import TimeoutError as TimeoutErrorOfHTTP

from hsee_ray.edge.bundle import CLIENT_MODEL, checked_file, load_bundle
from hsee_ray.edge.protocol import MEDIA_TYPE, PATH, decode_answer, encode, error_of
from hsee_ray.edge.stages import DeviceStage
from hsee_ray.edge.task import Task
from hsee_ray.errors import DataError, RunError, UserError

Array = np.ndarray[Any, Any]

_log = logging.getLogger(__name__)

_MOST_TIMEOUT_S = 86400.0
_SEND_BUFFER_BYTES = 64 << 10
_PIECE_BYTES = 64 << 10
_MOST_ERROR_BYTES = 64 << 10
_MOST_LABEL_BYTES = 24
"""Of a label in an answer, spaces included."""
_LEAST_BYTES_PER_S = 1000
"""Of an answer, in the mean."""
_BUSY = (408, 429, *range(500, 600))
"""Statuses that another try may mend: too late, too many, out of order."""
_FIRST_PAUSE_S = 0.2
"""Before the second retry; it doubles with each one after. The first retry is made at once."""
_CONNECTIONS = 8
"""Connections that are kept open, for so many threads."""


class ServerUnreachable(RunError):
    """No answer after all retries."""


class ServerRefused(UserError):
    """The server answered, and it will not be another time: bundle, token or URL are wrong."""


@dataclass(frozen=True)
class Prediction:
    """Answer for one image."""

    label: int
    """Index into the bundle's `class_names`."""
    confidence: float
    """Of the exit, in [0, 1]: what was compared with tau."""
    exited: bool
    """The exit was sure and answered alone."""
    latency_ms: float
    """From the call until this answer was known. `predict` returns all answers together, with the last one."""
    degraded: bool = False
    """The exit was not sure, but its answer stands: the server could not be reached, or there is none."""


class EdgeClient:
    """Answers images as one client of a run. Several threads may use it at once."""

    def __init__(
        self,
        bundle: str | Path,
        server_url: str | None = None,
        *,
        token: str | None = None,
        timeout_s: float = 10.0,
        retries: int = 3,
        on_unreachable: Literal["answer", "raise"] = "answer",
        threads: int | None = None,
    ) -> None:
        """`bundle` is the directory of one client. Without a URL the exit answers everything.

        A request is tried 1 + `retries` times, each until the link has been silent for `timeout_s`: a slow one may take
        longer. `on_unreachable` says what follows when all fail. `threads` are those of one inference, by default as
        many as there are cores. Raises DataError for a bundle that is missing or damaged or names parts that a device
        lacks, UserError for an argument that is none of these.
        """
        _check_arguments(token, timeout_s, retries, on_unreachable, threads)
        directory = Path(bundle)
        self.bundle = load_bundle(directory)
        self._stages: list[DeviceStage] = [stage.load(DeviceStage) for stage in self.bundle.stages]
        self._task: Task = self.bundle.task.load(Task)
        self._on_unreachable = on_unreachable
        self._url = None if server_url is None else _answer_url(server_url)
        self._session = _session(checked_file(directory, self.bundle, CLIENT_MODEL), threads)
        logits = self._session.get_outputs()[0].shape[1:]
        if len(logits) == 1 and logits != [len(self.bundle.class_names)]:
            named = len(self.bundle.class_names)
            raise DataError(f"{directory}: has {named} names of classes for {logits[0]} outputs; export it again")
        headers = {"Content-Type": MEDIA_TYPE}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._timeout_s, self._retries = timeout_s, retries
        self._http = urllib3.PoolManager(
            maxsize=_CONNECTIONS,
            headers=headers,
            timeout=urllib3.Timeout(connect=timeout_s, read=timeout_s),
            retries=False,
            # What the system has taken counts as sent: a large buffer would hide that a slow link still carries it.
            socket_options=[*HTTPConnection.default_socket_options, (SOL_SOCKET, SO_SNDBUF, _SEND_BUFFER_BYTES)],
        )

    def predict(self, images: Array | Sequence[Array]) -> list[Prediction]:
        """Answers of uint8 images (B, H, W, C), of one (H, W, C), or of a list of them, in their order.

        All unsure ones go to the server in one request. Raises UserError for images of another type or shape,
        ServerRefused, and ServerUnreachable where the client was told to raise it.
        """
        begin = time.perf_counter()
        images_BHWC = self._batch(images)
        if len(images_BHWC) == 0:
            return []
        logits_BK, *features = self._session.run(None, {"images": images_BHWC})
        label_B = self._task.predict(logits_BK)
        confidence_B = self.bundle.gate.confidence(logits_BK, self._task)
        exited_B = confidence_B > self.bundle.gate.tau
        latency_ms_B = np.full(len(images_BHWC), _ms_since(begin))
        degraded_B = np.zeros(len(images_BHWC), bool)
        if not exited_B.all():
            answer = self._ask(features[0][~exited_B])
            if answer is None:
                degraded_B = ~exited_B
            else:
                label_B[~exited_B] = answer
            latency_ms_B[~exited_B] = _ms_since(begin)
        columns = (label_B, confidence_B, exited_B, latency_ms_B, degraded_B)
        return [Prediction(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def close(self) -> None:
        """Closes the connections to the server."""
        self._http.clear()

    def __enter__(self) -> EdgeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _batch(self, images: Array | Sequence[Array]) -> Array:
        """One array (B, H, W, C) of what was given."""
        if images is None or isinstance(images, str | bytes):
            raise UserError(f"images are {type(images).__name__}: give uint8 arrays (height, width, channels)")
        given = [images] if isinstance(images, np.ndarray) and images.ndim == 3 else images
        shape = self.bundle.image_shape
        arrays = [given] if isinstance(given, np.ndarray) else [image[np.newaxis] for image in map(np.asarray, given)]
        for array in arrays:
            if array.dtype != np.uint8 or array.shape[1:] != shape:
                raise UserError(
                    f"images of type {array.dtype} and shape {array.shape[1:]} were given; "
                    f"this bundle takes uint8 and {shape} (height, width, channels)"
                )
        batch: Array = np.concatenate(arrays) if arrays else np.zeros((0, *shape), np.uint8)
        return batch

    def _ask(self, features: Array) -> Array | None:
        """The server's labels (B,), or None where there is no server or none that can be reached."""
        if self._url is None:
            return None
        try:
            return self._answer(self._url, features)
        except ServerUnreachable as error:
            if self._on_unreachable == "raise":
                raise
            _log.warning("%s; the exit answers", error)
            return None

    def _answer(self, url: str, features: Array) -> Array:
        sent = features
        for stage in self._stages:
            sent = stage(sent)
        body = encode(self.bundle.client, self.bundle.network, self.bundle.codec.encode(sent))
        status, content = self._post(url, body, len(features))
        if status == 413 and len(features) > 1:
            half = len(features) // 2
            return np.concatenate([self._answer(url, features[:half]), self._answer(url, features[half:])])
        if status == 401:
            raise ServerRefused(f"{url}: refuses the token ({error_of(content)}); give the server's own")
        if status != 200:
            raise ServerRefused(f"{url}: refuses the request (status {status}: {error_of(content)})")
        try:
            return decode_answer(content, len(features), len(self.bundle.class_names))
        except ValueError as error:
            raise ServerRefused(f"{url}: is no server of this project ({error}); check the URL") from None

    def _post(self, url: str, body: bytes, samples: int) -> tuple[int, bytes]:
        """Status and content of the first answer that another try would not mend. Raises ServerUnreachable."""
        most_bytes = _MOST_ERROR_BYTES + _MOST_LABEL_BYTES * samples
        trouble, pause_s = "", 0.0
        for attempt in range(1 + self._retries):
            time.sleep(pause_s)
            # Devices that failed together do not come back together.
            pause_s = (
                min(self._timeout_s, _FIRST_PAUSE_S * 2 ** (attempt - 1) + _FIRST_PAUSE_S * random()) if attempt else 0
            )
            try:
                response = self._http.urlopen(
                    "POST",
                    url,
                    body=BytesIO(body),  # piece by piece, each with the whole patience
                    headers={**self._http.headers, "Content-Length": str(len(body))},
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                )
                content = _read(response, most_bytes, self._timeout_s)
            except (HTTPError, OSError) as error:
                # "HTTPConnection(host='192.168.1.5', port=8000): Read timed out. ..."
                reason = str(error).partition("): ")[2] or str(error)
                silent = isinstance(error, TimeoutError | TimeoutErrorOfHTTP) and not isinstance(
                    error, ConnectTimeoutError
                )
                what = f"was silent for {self._timeout_s:g} s" if silent else f"cannot be reached ({reason})"
                trouble = f"{url}: {what}"
                continue
            if response.status not in _BUSY:
                return response.status, content
            trouble = f"{url}: cannot answer (status {response.status}: {error_of(content)})"
            asked = response.headers.get("Retry-After", "")
            if asked.isdecimal():
                pause_s = min(float(asked), self._timeout_s)
        raise ServerUnreachable(trouble)


def _read(response: BaseHTTPResponse, most_bytes: int, timeout_s: float) -> bytes:
    """The content of an answer. Raises HTTPError for one that is larger than any, or that comes by drops."""
    deadline = time.monotonic() + timeout_s + most_bytes / _LEAST_BYTES_PER_S
    content = b""
    try:
        while piece := response.read1(_PIECE_BYTES):
            content += piece
            if len(content) > most_bytes:
                raise HTTPError(f"its answer has more than {most_bytes} bytes")
            if time.monotonic() > deadline:
                raise HTTPError("its answer does not come to an end")
    except BaseException:
        response.close()
        raise
    response.release_conn()
    return content


def _check_arguments(
    token: object, timeout_s: object, retries: object, on_unreachable: object, threads: object
) -> None:
    """Raises UserError for what would fail later, or mean something else."""
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s <= _MOST_TIMEOUT_S:
        raise UserError(f"timeout_s is {timeout_s!r}: give seconds above 0, at most {_MOST_TIMEOUT_S:g}")
    for name, value, least in (("retries", retries, 0), ("threads", 1 if threads is None else threads, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{name} is {value!r}: give a whole number, {least} or more")
    if on_unreachable not in ("answer", "raise"):
        raise UserError(f"on_unreachable is {on_unreachable!r}: give 'answer' or 'raise'")
    if token is not None and not (isinstance(token, str) and token.isascii() and token.isprintable() and token.strip()):
        raise UserError("token: give one line of printable ASCII")


def _session(model: Path, threads: int | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    if threads is not None:
        options.intra_op_num_threads = threads
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _answer_url(server_url: str) -> str:
    try:
        url = urllib3.util.parse_url(server_url)
    except HTTPError:
        url = urllib3.util.Url()
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(f"server URL {server_url!r}: give one such as http://192.168.1.5:8000")
    return server_url.rstrip("/") + PATH


def _ms_since(begin: float) -> float:
    return 1000 * (time.perf_counter() - begin)
