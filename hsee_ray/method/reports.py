"""Reports of a run: plain counts that actors return and the driver adds up.

Counts and sums are integers or per-step values in a fixed order, so a report is the same however the work was split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from hsee_ray.errors import NonFiniteError
from hsee_ray.method.legs import Side

CONFIDENCE_BINS = 20
"""Bins of the confidence histogram, equal in width over [0, 1]."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TrainReport:
    """One client's training in one round, on one side of the cut."""

    samples: int
    losses: tuple[float, ...]
    """Mean cross-entropy of each step in nats."""
    sent_bytes: int = 0
    """Features and labels that left the client; 0 on the server's side."""
    skipped: int = 0
    """Batches without an update, because their loss was not finite."""
    received_bytes: int = 0
    """Gradients or soft labels that have come back to the client; 0 on the server's side."""

    def __add__(self, other: TrainReport) -> TrainReport:
        return TrainReport(
            self.samples + other.samples,
            self.losses + other.losses,
            self.sent_bytes + other.sent_bytes,
            self.skipped + other.skipped,
            self.received_bytes + other.received_bytes,
        )

    @property
    def stepped(self) -> bool:
        """Whether the model made any step."""
        return bool(self.losses)

    @property
    def mean_loss(self) -> float:
        return sum(self.losses) / len(self.losses) if self.losses else float("nan")


@dataclass(frozen=True)
class EvaluationReport:
    """One client's answers over a set of samples: alone, all offloaded, and gated at every tau."""

    samples: int
    client_correct: int
    server_correct: int | None
    """None where the client has no server."""
    gated_correct: tuple[int, ...]
    """Correct answers of client and server together, one count per tau of the grid."""
    offloaded: tuple[int, ...]
    """Samples sent to the server, one count per tau of the grid."""
    sent_bytes: int
    """Bytes that left the client to offload every sample of the set."""
    label_counts: tuple[int, ...]
    """Samples of each class."""
    confidence_counts: tuple[int, ...]
    """Histogram of the exit's confidence, CONFIDENCE_BINS bins over [0, 1]."""
    counts: Mapping[Side, Mapping[str, float]] = field(default_factory=dict)
    """Counts of the metrics in `evaluation.figures`, by the side whose logits they saw."""

    @property
    def mean_accuracy(self) -> float:
        """Of exit and server, in [0, 1]; the client's own without a server."""
        sides = [self.client_correct] if self.server_correct is None else [self.client_correct, self.server_correct]
        return fmean(sides) / self.samples

    def __add__(self, other: EvaluationReport) -> EvaluationReport:
        def add(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(x + y for x, y in zip(a, b, strict=True))

        both = self.server_correct is not None and other.server_correct is not None
        return EvaluationReport(
            samples=self.samples + other.samples,
            client_correct=self.client_correct + other.client_correct,
            server_correct=(self.server_correct or 0) + (other.server_correct or 0) if both else None,
            gated_correct=add(self.gated_correct, other.gated_correct),
            offloaded=add(self.offloaded, other.offloaded),
            sent_bytes=self.sent_bytes + other.sent_bytes,
            label_counts=add(self.label_counts, other.label_counts),
            confidence_counts=add(self.confidence_counts, other.confidence_counts),
            counts={
                side: {
                    name: own.get(name, 0) + other.counts[side].get(name, 0) for name in {**own, **other.counts[side]}
                }
                for side, own in self.counts.items()
                if side in other.counts
            },
        )


@dataclass(frozen=True)
class RoundReport:
    """One round: who trained, what it cost, and what the models can do after it."""

    round_number: int
    """From 1 to `training.rounds`."""
    learning_rate: float
    wall_s: float
    train_s: float
    """Seconds of training alone, without aggregation and evaluation."""
    client_training: Mapping[int, TrainReport]
    """By client number; only the round's participants."""
    server_training: Mapping[int, TrainReport]
    """By the number of the client whose features were learnt from; none for a client without a server."""
    evaluation: Mapping[int, EvaluationReport] = field(default_factory=dict)
    """By client number, every client that is there; empty in rounds that are not evaluated."""
    validation: Mapping[int, EvaluationReport] = field(default_factory=dict)
    """The same of the samples that clients have set aside for it (`data.validation_fraction`)."""
    starting: bool = False
    """Whether actors started in it, so that its time says nothing about speed."""
    missing: tuple[int, ...] = ()
    """Clients that had no place on the cluster."""

    @property
    def samples(self) -> int:
        return sum(report.samples for report in self.client_training.values())

    @property
    def validation_accuracy(self) -> float | None:
        """Mean over the clients by which rounds are compared (`training.keep`); None where nothing was validated."""
        return fmean(each.mean_accuracy for each in self.validation.values()) if self.validation else None


def learnt(training: Mapping[Side, Mapping[int, TrainReport]], round_number: int) -> set[int]:
    """Clients that made a step in a round, and whose servers did: their copies count in the next average.

    Raises NonFiniteError when there is none: a round in which nobody learns is no round.
    """
    reports = [(client_id, report) for of_side in training.values() for client_id, report in of_side.items()]
    found = {client_id for client_id, _ in reports} - {client_id for client_id, report in reports if not report.stepped}
    if not found:
        raise NonFiniteError(
            f"round {round_number}: no batch has a finite loss and gradient: lower training.optimizer.lr"
        )
    return found


def evaluation_report(
    labels_B: Array,
    n_classes: int,
    client_right_B: Array,
    confidence_B: Array,
    server_right_B: Array | None,
    taus: Sequence[float],
    sent_bytes: int,
    counts: Mapping[Side, Mapping[str, float]] | None = None,
) -> EvaluationReport:
    """Counts of right answers: client alone, server alone, and gated at every tau; `counts` are the metrics'.

    Without a server the client answers everything: nothing is offloaded at any tau.
    """
    if server_right_B is None:
        gated = tuple(int(client_right_B.sum()) for _ in taus)
        offloaded = tuple(0 for _ in taus)
    else:
        exited_TB = [confidence_B > tau for tau in taus]
        gated = tuple(int(np.where(exited_B, client_right_B, server_right_B).sum()) for exited_B in exited_TB)
        offloaded = tuple(int((~exited_B).sum()) for exited_B in exited_TB)
    bins_B = np.minimum((confidence_B * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
    return EvaluationReport(
        samples=len(labels_B),
        client_correct=int(client_right_B.sum()),
        server_correct=None if server_right_B is None else int(server_right_B.sum()),
        gated_correct=gated,
        offloaded=offloaded,
        sent_bytes=sent_bytes,
        label_counts=tuple(np.bincount(labels_B, minlength=n_classes).tolist()),
        confidence_counts=tuple(np.bincount(bins_B, minlength=CONFIDENCE_BINS).tolist()),
        counts=counts or {},
    )
