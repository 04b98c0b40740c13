"""A device's side of a bundle: it answers alone where its exit is sure, and asks the server otherwise.

Needs numpy, onnxruntime and urllib3: neither torch nor Ray. Legend: B samples; H, W, C of an image; K classes.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal

import numpy as np
import onnxruntime as ort
import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError

from hsee_ray.edge.bundle import BUNDLE_FILE, CLIENT_MODEL, Bundle, checked_file, load_bundle
from hsee_ray.edge.protocol import MEDIA_TYPE, PATH, decode_answer, encode, error_of, is_token, most_answer_bytes
from hsee_ray.edge.stages import DeviceStage
from hsee_ray.edge.task import Task
from hsee_ray.edge.transport import Question, Silence, TooLong, connections
from hsee_ray.errors import DataError, RunError, UserError

Array = np.ndarray[Any, Any]

_log = logging.getLogger(__name__)

_BUSY = (408, 429, *range(500, 600))
"""Statuses that another try may mend: too late, too many, out of order."""
_FIRST_PAUSE_S = 0.2
"""Before the second retry; it doubles with each one after. The first retry is made at once."""
_CONNECTIONS = 8
"""Connections that are kept open, for so many threads."""


MOST_TIMEOUT_S = 86_400.0
_MOST_REASON = 200
"""Characters of a reason that another program has given."""


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
    """The exit was not sure, but its answer stands: the server has not answered, or there is none."""
    reason: str = ""
    """Why it is degraded: `no server`, `server unreachable`, `server silent`, `server busy`, `server refused`."""


class ServerUnreachable(RunError):
    """No answer after all retries."""

    reason: ClassVar = "server unreachable"
    predictions: Sequence[Prediction] = ()
    """Of the whole call: who was sure or has been answered is not lost, the others are degraded."""


class ServerSilent(ServerUnreachable):
    """The server was reached, and then nothing moved: a link that is too slow, or a server that hangs."""

    reason: ClassVar = "server silent"


class ServerBusy(ServerUnreachable):
    """The server answered each time that it cannot answer now."""

    reason: ClassVar = "server busy"


class ServerRefused(UserError):
    """The server answered, and it will not be another time: bundle, token or URL are wrong."""

    reason: ClassVar = "server refused"
    predictions: Sequence[Prediction] = ()
    """As those of ServerUnreachable."""


class _BodyTooLarge(ServerRefused):
    """The server, or a proxy before it, takes smaller requests only."""


class _Retry(urllib3.Retry):
    def parse_retry_after(self, retry_after: str) -> float:
        """Seconds; 0 where the header makes no sense."""
        try:
            return super().parse_retry_after(retry_after)
        except (HTTPError, ValueError, OverflowError):
            return 0.0


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

        A request is tried 1 + `retries` times, each until nothing has come or gone for `timeout_s`: a slow link takes
        longer. `on_unreachable` says what follows when all fail. `threads` are those of one inference, by default as
        many as there are cores. Raises DataError for a bundle that is missing or damaged or names parts that this
        device lacks, UserError for other arguments that cannot be meant.
        """
        if not isinstance(bundle, (str, PathLike)):
            raise UserError(f"bundle is {bundle!r}; give the directory of one client")
        _check_arguments(token, timeout_s, retries, on_unreachable, threads)
        directory = Path(bundle)
        self.bundle = load_bundle(directory)
        self._stages: list[DeviceStage] = [stage.load(DeviceStage) for stage in self.bundle.stages]
        self._task: Task = self.bundle.task.load(Task)
        self._on_unreachable = on_unreachable
        self._url = None if server_url is None else _answer_url(server_url)
        self._session = _session(checked_file(directory, self.bundle, CLIENT_MODEL), threads)
        _check_model(directory, self._session, self.bundle)
        self._most_samples = sys.maxsize
        """Of one request, as far as is known of what server and proxies take."""
        headers = {"Content-Type": MEDIA_TYPE}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._http = connections(
            maxsize=_CONNECTIONS,
            headers=headers,
            timeout=urllib3.Timeout(timeout_s),
            retries=_Retry(
                total=retries,
                redirect=False,
                status_forcelist=_BUSY,
                allowed_methods=None,  # an answer changes nothing on the server, so POST may be repeated too
                backoff_factor=_FIRST_PAUSE_S / 2,
                backoff_max=timeout_s,
                backoff_jitter=_FIRST_PAUSE_S,  # devices that failed together do not come back together
                retry_after_max=max(1, int(timeout_s)),
                raise_on_status=False,
            ),
        )

    def predict(self, images: Array | Sequence[Array]) -> list[Prediction]:
        """Answers of uint8 images (B, H, W, C), of one (H, W, C), or of a list of them, in their order.

        All unsure ones go to the server in one request, or in smaller ones where it takes no larger. Raises UserError
        for images of another type or shape, ServerRefused, and ServerUnreachable where the client was told to raise it;
        the last two hold the answers that there are.
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
        error: ServerUnreachable | ServerRefused | None = None
        if not exited_B.all():
            unsure = np.flatnonzero(~exited_B)
            answers, error = self._ask(features[0][unsure])
            label_B[unsure[: len(answers)]] = answers
            degraded_B[unsure[len(answers) :]] = True
            latency_ms_B[unsure] = _ms_since(begin)
        reason = "no server" if error is None else error.reason
        columns = (label_B, confidence_B, exited_B, latency_ms_B, degraded_B, np.where(degraded_B, reason, ""))
        predictions = [Prediction(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
        if isinstance(error, ServerRefused) or (error is not None and self._on_unreachable == "raise"):
            error.predictions = predictions
            raise error
        if error is not None:
            _log.warning("%s; the exit answers", error)
        return predictions

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
        shape = self.bundle.image_shape
        try:
            if isinstance(images, np.ndarray):
                arrays = [images[np.newaxis] if images.ndim == 3 else images]
            else:
                arrays = [np.asarray(image)[np.newaxis] for image in images]
        except (TypeError, ValueError):
            raise UserError(
                f"images as {type(images).__name__} cannot be read; give arrays of uint8 and {shape}"
            ) from None
        for array in arrays:
            if array.dtype != np.uint8 or array.shape[1:] != shape:
                raise UserError(
                    f"images of type {array.dtype} and shape {array.shape[1:]} were given; "
                    f"this bundle takes uint8 and {shape} (height, width, channels)"
                )
        batch: Array = np.concatenate(arrays) if arrays else np.zeros((0, *shape), np.uint8)
        return batch

    def _ask(self, features: Array) -> tuple[Array, ServerUnreachable | ServerRefused | None]:
        """The server's labels of the first samples, int64, and why the others have none.

        Without a server no sample has one, and that is no error.
        """
        labels = [np.zeros(0, np.int64)]
        done = 0
        try:
            while self._url is not None and done < len(features):
                piece = features[done : done + self._most_samples]
                try:
                    labels.append(self._answer(self._url, piece))
                except _BodyTooLarge:
                    if len(piece) == 1:
                        raise
                    self._most_samples = min(self._most_samples, (len(piece) + 1) // 2)
                    continue
                done += len(piece)
        except (ServerUnreachable, ServerRefused) as error:
            return np.concatenate(labels), error
        return np.concatenate(labels), None

    def _answer(self, url: str, features: Array) -> Array:
        for stage in self._stages:
            features = stage(features)
        n_classes = len(self.bundle.class_names)
        body = Question(encode(self.bundle.client, self.bundle.network, self.bundle.codec.encode(features)))
        body.answer_bytes = most_answer_bytes(len(features), n_classes)
        try:
            response = self._http.urlopen(
                "POST", url, body=body, headers=self._http.headers, redirect=False, decode_content=False
            )
        except TooLong as error:
            raise ServerRefused(f"{url}: is no server of this project ({error}); check the URL") from None
        except HTTPError as error:
            cause = error.reason if isinstance(error, MaxRetryError) and error.reason is not None else error
            if isinstance(cause, Silence):
                raise ServerSilent(
                    f"{url}: was reached, and {cause}: the link is too slow, or the server hangs; a longer timeout_s "
                    "waits longer"
                ) from error
            # "HTTPConnection(host='192.168.1.5', port=8000): Failed to establish a new connection ..."
            reason = (str(cause).partition("): ")[2] or str(cause))[:_MOST_REASON]
            raise ServerUnreachable(f"{url}: cannot be reached ({reason})") from error
        said = f"(status {response.status}: {error_of(response.data)})"
        if response.status in _BUSY:
            raise ServerBusy(f"{url}: cannot answer {said}")
        if response.status == 401:
            raise ServerRefused(f"{url}: refuses the token ({error_of(response.data)}); give the server's own")
        if response.status == 413:
            raise _BodyTooLarge(
                f"{url}: refuses the request {said}: one sample has {len(body)} bytes; raise the limit of the server, "
                "or of the proxy before it"
            )
        if response.status != 200:
            raise ServerRefused(f"{url}: refuses the request {said}")
        try:
            return decode_answer(response.data, len(features), n_classes)
        except ValueError as error:
            raise ServerRefused(f"{url}: is no server of this project ({error}); check the URL") from None


def _check_arguments(token: Any, timeout_s: Any, retries: Any, on_unreachable: Any, threads: Any) -> None:
    """Raises UserError for the first of them that cannot be meant. The token is a secret, and is not shown."""
    if token is not None and not is_token(token):
        raise UserError("token: give one word of printable ASCII characters")
    if not _is_number(timeout_s, (int, float)) or not 0 < timeout_s <= MOST_TIMEOUT_S:
        raise UserError(f"timeout_s is {timeout_s!r}; give seconds, above 0 and up to {MOST_TIMEOUT_S:g}")
    if not _is_number(retries, int) or retries < 0:
        raise UserError(f"retries is {retries!r}; give a whole number from 0")
    if on_unreachable not in ("answer", "raise"):
        raise UserError(f"on_unreachable is {on_unreachable!r}; give 'answer' or 'raise'")
    if threads is not None and (not _is_number(threads, int) or threads < 1):
        raise UserError(f"threads is {threads!r}; give a whole number from 1, or None")


def _is_number(value: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _check_model(directory: Path, session: ort.InferenceSession, bundle: Bundle) -> None:
    """Raises DataError where the model is none of this bundle."""
    given = [tuple(each.shape[1:]) for each in (*session.get_inputs(), *session.get_outputs())]
    features = [] if bundle.feature_shape is None else [bundle.feature_shape]
    named = [bundle.image_shape, (len(bundle.class_names),), *features]
    if given != named:
        raise DataError(
            f"{directory}: {CLIENT_MODEL} has shapes {given}, and {BUNDLE_FILE} names {named} "
            "(images, classes, features); export it again"
        )


def _session(model: Path, threads: int | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    if threads is not None:
        options.intra_op_num_threads = threads
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _answer_url(server_url: str) -> str:
    try:
        url = urllib3.util.parse_url(server_url if isinstance(server_url, str) and server_url.isprintable() else "")
    except HTTPError:
        url = urllib3.util.Url()
    if url.scheme not in ("http", "https") or not url.host or url.query is not None or url.fragment is not None:
        raise UserError(f"server URL {server_url!r}: give one such as http://192.168.1.5:8000")
    return server_url.rstrip("/") + PATH


def _ms_since(begin: float) -> float:
    return 1000 * (time.perf_counter() - begin)
