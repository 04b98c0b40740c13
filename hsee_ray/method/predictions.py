"""Predictions for a set of samples: those of a client's exit, and those of its server for the samples it was sent.

Legend: B consecutive samples of one message, N all samples, K classes. Needs numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hsee_ray.edge.task import Task

Array = np.ndarray[Any, Any]
Part = Literal["test", "calibration", "validation"]
"""Which of its samples a client is asked about: the test images, or those it has set aside."""


@dataclass(frozen=True)
class ExitPredictions:
    """Exit predictions of consecutive samples, and which of them were offloaded."""

    labels_B: Array
    logits_BK: Array
    exited_B: Array
    """Whether the client answered the sample alone."""
    sent_bytes: int
    """Features of the others."""
    seconds: float
    """From the images to the message."""


@dataclass(frozen=True)
class ServerPredictions:
    """Server predictions of the offloaded samples, in their order."""

    prediction_B: Array
    samples: int
    """As counted where its network was run."""
    seconds: float


@dataclass(frozen=True)
class Answers:
    """All answers of one client and its server over a set of samples, at one gate."""

    task: Task
    labels_N: Array
    logits_NK: Array
    """Of the exit."""
    stays_N: Array
    server_prediction_N: Array
    """-1 where the server was not asked."""
    server_samples: int
    """Samples that the server's network was run on, as it counted them."""
    sent_bytes: int
    client_s: float
    server_s: float

    @property
    def samples(self) -> int:
        return len(self.labels_N)

    @property
    def client_right_N(self) -> Array:
        return self.task.right(self.task.predict(self.logits_NK), self.labels_N)

    @property
    def prediction_N(self) -> Array:
        """Of who answered."""
        answer_N: Array = np.where(self.stays_N, self.task.predict(self.logits_NK), self.server_prediction_N)
        return answer_N

    @property
    def right_N(self) -> Array:
        """Of who answered."""
        right_N: Array = np.where(self.stays_N, self.client_right_N, self.server_right_N)
        return right_N

    @property
    def server_right_N(self) -> Array:
        """False where the server was not asked."""
        return self.task.right(self.server_prediction_N, self.labels_N)


def join(task: Task, pieces: Sequence[tuple[ExitPredictions, ServerPredictions | None]]) -> Answers:
    """The answers to consecutive messages; there is no server's where nothing was sent."""
    return pooled([_answers(task, exits, server) for exits, server in pieces])


def _answers(task: Task, exits: ExitPredictions, server: ServerPredictions | None) -> Answers:
    prediction_B = np.full(len(exits.labels_B), -1, np.int64)
    if server is not None:
        prediction_B[~exits.exited_B] = server.prediction_B
    return Answers(
        task=task,
        labels_N=exits.labels_B,
        logits_NK=exits.logits_BK,
        stays_N=exits.exited_B,
        server_prediction_N=prediction_B,
        server_samples=0 if server is None else server.samples,
        sent_bytes=exits.sent_bytes,
        client_s=exits.seconds,
        server_s=0.0 if server is None else server.seconds,
    )


def pooled(answers: Sequence[Answers]) -> Answers:
    """Answers to several sets of samples together, in their order."""
    return Answers(
        task=answers[0].task,
        labels_N=np.concatenate([each.labels_N for each in answers]),
        logits_NK=np.concatenate([each.logits_NK for each in answers]),
        stays_N=np.concatenate([each.stays_N for each in answers]),
        server_prediction_N=np.concatenate([each.server_prediction_N for each in answers]),
        server_samples=sum(each.server_samples for each in answers),
        sent_bytes=sum(each.sent_bytes for each in answers),
        client_s=sum(each.client_s for each in answers),
        server_s=sum(each.server_s for each in answers),
    )
