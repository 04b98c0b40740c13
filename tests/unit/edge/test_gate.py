"""Confidences and the gate, worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hsee_ray.edge.gate import Gate
from hsee_ray.edge.task import Classification, Confidence
from hsee_ray.method.reports import CONFIDENCE_BINS, EvaluationReport, evaluation_report

TASK = Classification()
KINDS: tuple[Confidence, ...] = ("entropy", "max_prob", "margin")


def of(logits: list[float], kind: Confidence) -> float:
    (value,) = TASK.confidence(np.array([logits], np.float32), kind).tolist()
    return float(value)


@pytest.mark.parametrize(("kind", "value"), [("entropy", 0.0), ("max_prob", 0.25), ("margin", 0.0)])
@pytest.mark.parametrize("logit", [0.0, -3.0, 5000.0])
def test_equal_logits(kind: Confidence, value: float, logit: float) -> None:
    assert of([logit] * 4, kind) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_one_certain_class(kind: Confidence) -> None:
    assert of([0.0, 1000.0, 0.0], kind) == 1.0


def test_two_classes_by_hand() -> None:
    # p = (3/4, 1/4): H = 2 ln 2 - (3/4) ln 3 nats.
    logits = [math.log(3.0), 0.0]
    assert of(logits, "max_prob") == pytest.approx(0.75, abs=1e-7)
    assert of(logits, "margin") == pytest.approx(0.5, abs=1e-7)
    entropy_nats = 2 * math.log(2) - 0.75 * math.log(3)
    assert of(logits, "entropy") == pytest.approx(1 - entropy_nats / math.log(2), abs=1e-7)


def test_four_classes_by_hand() -> None:
    # p = (1/2, 1/4, 1/8, 1/8): H = 7/4 bits of at most 2.
    logits = [math.log(8.0), math.log(4.0), math.log(2.0), math.log(2.0)]
    assert of(logits, "entropy") == pytest.approx(1 / 8, abs=1e-7)
    assert of(logits, "max_prob") == pytest.approx(1 / 2, abs=1e-7)
    assert of(logits, "margin") == pytest.approx(1 / 4, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_always_between_zero_and_one(kind: Confidence) -> None:
    scales = np.repeat(np.array([0.0, 1e-30, 1e-8, 1.0, 30.0, 700.0, 1e30, 3e38], np.float32), 50)
    drawn_BK = np.random.default_rng(0).standard_normal((400, 7)).astype(np.float32)
    logits_BK = drawn_BK.clip(-1, 1) * scales[:, None]
    value_B = TASK.confidence(logits_BK, kind)
    assert value_B.shape == (400,)
    assert value_B.dtype == np.float64
    assert bool(((value_B >= 0) & (value_B <= 1)).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_never_sure(kind: Confidence, odd: float) -> None:
    value_B = TASK.confidence(np.array([[odd, 0.0, 1.0], [0.0, 0.0, 99.0]], np.float32), kind)
    assert value_B.tolist() == [0.0, pytest.approx(1.0)]
    assert Gate(kind, 0.5).exits_B(np.array([[odd, 0.0, 1.0]], np.float32), TASK).tolist() == [False]


@pytest.mark.parametrize("wrong", [{"kind": "hope"}, {"tau": 1.1}, {"tau": math.nan}, {"temperature": 0.0}])
def test_no_such_gate(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Gate(**{"kind": "entropy", "tau": 0.5, **wrong})


def test_each_sample_is_its_own() -> None:
    logits_BK = np.array([[0.0, 0.0], [0.0, 900.0]])
    assert TASK.confidence(logits_BK, "entropy").tolist() == pytest.approx([0.0, 1.0], abs=1e-12)


# The gate: labels 0 1 2 1; the client is right on samples 0 and 1, the server on 1, 2 and 3.
LABELS = np.array([0, 1, 2, 1])
CLIENT = np.array([0, 1, 0, 0]) == LABELS
SERVER = np.array([2, 1, 2, 1]) == LABELS
CONFIDENCE = np.array([0.9, 0.5, 0.25, 1.0])


def test_counts_at_every_tau() -> None:
    report = evaluation_report(LABELS, 4, CLIENT, CONFIDENCE, SERVER, taus=(0.0, 0.25, 0.5, 0.95, 1.0), sent_bytes=64)
    assert (report.samples, report.client_correct, report.server_correct) == (4, 2, 3)
    # Who goes: nobody; sample 2; 1 and 2 (a confidence of just tau goes); 0, 1 and 2; everyone.
    assert report.offloaded == (0, 1, 2, 3, 4)
    # The client is right on 0 and 1; the server, on what it gets, as above.
    assert report.gated_correct == (2, 3, 3, 2, 3)
    assert report.sent_bytes == 64
    assert report.label_counts == (1, 2, 1, 0)


def test_confidences_are_counted_in_equal_bins_with_one_in_the_last() -> None:
    report = evaluation_report(LABELS, 3, CLIENT, CONFIDENCE, SERVER, taus=(0.5,), sent_bytes=0)
    counts = dict(enumerate(report.confidence_counts))
    assert len(counts) == CONFIDENCE_BINS == 20
    assert {index: count for index, count in counts.items() if count} == {18: 1, 10: 1, 5: 1, 19: 1}


def test_a_client_with_the_whole_network_answers_everything() -> None:
    report = evaluation_report(LABELS, 3, CLIENT, CONFIDENCE, None, taus=(0.0, 0.5, 1.0), sent_bytes=0)
    assert (report.client_correct, report.server_correct) == (2, None)
    assert report.gated_correct == (2, 2, 2)
    assert report.offloaded == (0, 0, 0)


def test_counts_do_not_depend_on_how_the_samples_were_split() -> None:
    def report(first: int, last: int) -> EvaluationReport:
        rows = slice(first, last)
        return evaluation_report(
            LABELS[rows],
            3,
            CLIENT[rows],
            CONFIDENCE[rows],
            SERVER[rows],
            taus=(0.25, 0.5),
            sent_bytes=16 * (last - first),
        )

    assert report(0, 3) + report(3, 4) == report(0, 4)
