"""Targets, thresholds and temperatures, worked out by hand or against their definitions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsee_ray.edge.gate import Gate
from hsee_ray.edge.task import Classification, Confidence, log_softmax
from hsee_ray.errors import ConfigError, DataError
from hsee_ray.evaluation import calibration
from hsee_ray.evaluation.calibration import (
    CALIBRATION_FILE,
    Calibration,
    Target,
    TierCalibration,
    calibration_error,
    fit_temperature,
    gate_curve,
    load_calibration,
    parse_target,
    pick,
    reliability,
    save_calibration,
    tier_calibration,
)
from hsee_ray.method.predictions import Answers

# Four samples. The client is right on the second and the last, the server on all but the last.
CONFIDENCE = np.array([0.2, 0.4, 0.4, 0.9])
CLIENT = np.array([False, True, False, True])
SERVER = np.array([True, True, True, False])


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("offload<=0.3", Target("offload", 0.3)),
        (" accuracy_drop <= 1e-2 ", Target("accuracy_drop", 0.01)),
        ("accuracy_drop<=-0.02", Target("accuracy_drop", -0.02)),
        ("offload<=0", Target("offload", 0.0)),
        ("offload<=0.12345678", Target("offload", 0.12345678)),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text",
    ["", "offload", "offload<0.3", "offload<=", "offload<=x", "offload<=1.5", "offload<=-0.1", "accuracy_drop<=2",
     "accuracy<=0.1", "offload<=nan", "offload<=1e999", "offload<=0.3 or so", "offload<=--1"],
)  # fmt: skip
def test_wrong_targets_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--target"):
        parse_target(text)


def test_curve_by_hand() -> None:
    curve = gate_curve(CONFIDENCE, CLIENT, SERVER)
    # Equal confidences go together; between neighbours tau lies in the middle.
    assert curve.tau_M.tolist() == [-1.0, pytest.approx(0.3), pytest.approx(0.65), 1.0]
    assert curve.offload_M.tolist() == [0.0, 0.25, 0.75, 1.0]
    assert curve.accuracy_M.tolist() == [0.5, 0.75, 1.0, 0.75]
    assert curve.drop_M.tolist() == [0.25, 0.0, -0.25, 0.0]


@pytest.mark.parametrize(
    ("target", "index"),
    [
        ("offload<=0", 0),
        ("offload<=0.3", 1),
        ("offload<=0.75", 2),
        ("offload<=0.9", 2),
        ("offload<=1", 2),
        ("accuracy_drop<=0.3", 0),
        ("accuracy_drop<=0.01", 1),
        ("accuracy_drop<=-0.2", 2),
        ("accuracy_drop<=-0.3", None),
    ],
)
def test_what_is_picked(target: str, index: int | None) -> None:
    assert pick(gate_curve(CONFIDENCE, CLIENT, SERVER), parse_target(target)) == index


def test_a_share_is_not_sent_where_that_loses_and_is_used_up_where_it_makes_no_difference() -> None:
    better_exit = gate_curve(np.array([0.1, 0.2, 0.3]), np.array([True] * 3), np.array([False, False, True]))
    assert pick(better_exit, parse_target("offload<=0.7")) == 0
    equal = gate_curve(np.array([0.1, 0.2, 0.3]), np.array([True] * 3), np.array([True] * 3))
    assert pick(equal, parse_target("offload<=0.7")) == 2


def test_a_lucky_dip_is_not_taken() -> None:
    # The lowest threshold that loses nothing is followed by worse ones: only the last holds from there on.
    client, server = np.array([True, True, False, False]), np.array([True, False, True, True])
    curve = gate_curve(np.array([0.1, 0.2, 0.3, 0.4]), client, server)
    assert curve.drop_M.tolist() == [0.25, 0.25, 0.5, 0.25, 0.0]
    assert pick(curve, parse_target("accuracy_drop<=0.3")) == 3
    assert pick(curve, parse_target("accuracy_drop<=0.2")) == 4


@given(st.integers(1, 40), st.integers(0, 10_000), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_every_threshold_does_what_the_curve_says_also_after_rounding(samples: int, seed: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, values + 1, samples) / values
    client, server = rng.random(samples) < 0.5, rng.random(samples) < 0.7
    curve = gate_curve(confidence, client, server)
    for tau, offload, accuracy in zip(curve.tau_M, curve.offload_M, curve.accuracy_M, strict=True):
        for nudge in (0.0, 1e-6, -1e-6):
            exits_B = (confidence + nudge).clip(0, 1) > tau
            assert (~exits_B).mean() == offload
            assert np.where(exits_B, client, server).mean() == accuracy


@given(
    st.lists(
        st.sampled_from([0.0, 1e-9, 0.5, 0.5 + 1e-7, 1 - 1e-16, 1 - 1e-15, 1 - 3e-7, 1.0]), min_size=1, max_size=30
    )
)
@settings(max_examples=200, deadline=None)
def test_confidences_that_rounding_cannot_tell_apart_go_together(values: list[float]) -> None:
    confidence = np.array(values)
    curve = gate_curve(confidence, confidence > 0.4, confidence > 0.6)
    for tau, offload in zip(curve.tau_M, curve.offload_M, strict=True):
        for nudge in (0.0, 1e-7, -1e-7):
            assert ((confidence + nudge).clip(0, 1) <= tau).mean() == offload


def answers_of(logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Answers:
    """Everything sent to a server that is always right."""
    return Answers(Classification(), labels, logits, np.zeros(len(labels), bool), labels, len(labels), 0, 0.1, 0.1)


def test_an_exit_that_is_always_sure_sends_no_more_than_was_promised() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    logits = (np.eye(4)[labels] * rng.uniform(2, 9, (200, 1))).astype(np.float32)
    answers = answers_of(logits, labels)
    temperature = fit_temperature(answers)
    for kind in get_args(Confidence):
        gate = Gate(kind, 1.0, temperature)
        curve = gate_curve(gate.confidence(logits, answers.task), answers.client_right_N, answers.server_right_N)
        index = pick(curve, parse_target("offload<=0.3"))
        assert index is not None
        found = tier_calibration(Gate(kind, float(curve.tau_M[index]), temperature), curve, answers)
        assert found.offload_ratio == curve.offload_M[index] <= 0.3


def test_temperature_undoes_a_factor() -> None:
    rng = np.random.default_rng(0)
    honest = rng.standard_normal((20_000, 5)) * 2
    p = np.exp(log_softmax(honest))
    labels = (p.cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    for factor in (0.3, 1.0, 4.0):
        assert fit_temperature(answers_of((factor * honest).astype(np.float32), labels)) == pytest.approx(
            factor, rel=0.04
        )


def test_temperature_of_an_exit_that_is_always_right_stays_finite() -> None:
    logits, labels = np.array([[2.0, 0.0], [0.0, 2.0]], np.float32), np.array([0, 1])
    assert 0.05 <= fit_temperature(answers_of(logits, labels)) < 0.06


def test_calibration_error_by_hand() -> None:
    # p = 3/4 for class 0, four times.
    logits = np.tile(np.array([math.log(3.0), 0.0]), (4, 1))
    assert calibration_error(answers_of(logits, np.array([0, 0, 0, 1])), 1.0) == pytest.approx(0.0, abs=1e-12)
    assert calibration_error(answers_of(logits, np.array([0, 0, 0, 0])), 1.0) == pytest.approx(0.25)
    assert calibration_error(answers_of(logits, np.array([1, 1, 1, 1])), 1.0) == pytest.approx(0.75)
    # At half the temperature p is 9/10.
    assert calibration_error(answers_of(logits, np.array([0, 0, 0, 0])), 0.5) == pytest.approx(0.1)
    counts, means, accuracies = reliability(answers_of(logits, np.array([0, 0, 1, 1])), 1.0)
    assert counts.tolist() == [0] * 11 + [4] + [0] * 3
    assert (means[11], accuracies[11]) == (pytest.approx(0.75), 0.5)


def test_tier_calibration_counts_what_its_gate_does() -> None:
    logits = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.0, 9.0]], np.float32)
    labels, server = np.array([0, 0, 0, 1]), np.array([0, 1, 0, 1])
    answers = Answers(Classification(), labels, logits, np.zeros(4, bool), server, 4, 400, 0.1, 0.1)
    kind = "max_prob"
    curve = gate_curve(Gate(kind, 1.0).confidence(logits, answers.task), answers.client_right_N, answers.server_right_N)
    found = tier_calibration(Gate(kind, float(curve.tau_M[1])), curve, answers)
    # Only the first sample is unsure. The client then is right on all but the third, the server on all but the second.
    assert (found.samples, found.offload_ratio, found.accuracy, found.server_accuracy) == (4, 0.25, 0.75, 0.75)
    assert (found.client_accuracy, found.accuracy_drop, found.sent_bytes) == (0.75, 0.0, 25.0)
    # One sample lost, one won: the differences are 0, -1, 1, 0.
    # With one more of each kind, and n + 2: p = 2/6 for both, and their difference is 0.
    assert found.drop_half_width == pytest.approx(1.96 * math.sqrt((4 / 6) / 6))


@pytest.mark.parametrize("samples", [10, 30, 100])
@pytest.mark.parametrize("shares", [(0.0, 0.02), (0.05, 0.05), (0.2, 0.1), (0.4, 0.0)])
def test_the_interval_of_the_drop_holds_what_it_promises(shares: tuple[float, float], samples: int) -> None:
    """Samples are lost with one probability, won with the other; the true drop is the difference."""
    lost, won = shares
    rng = np.random.default_rng(0)
    draws = rng.multinomial(samples, [lost, won, 1 - lost - won], 2000)
    held = [
        abs((a - b) / samples - (lost - won)) <= calibration._half_width(int(a), int(b), samples) for a, b, _ in draws
    ]
    assert np.mean(held) >= 0.93


TIER = TierCalibration(1.5, 0.25, 100, 0.3, 0.5, 0.4, 0.6, 0.02, 1024.0)


def test_stored_calibration_comes_back(tmp_path: Path) -> None:
    assert load_calibration(tmp_path) is None
    stored = Calibration("offload<=0.3", "margin", "ab" * 32, {"sensor": TIER})
    save_calibration(tmp_path, stored)
    found = load_calibration(tmp_path)
    assert found == stored
    assert found is not None and found.gate("sensor") == Gate("margin", 0.25, 1.5)
    assert found.gate("whole") is None


WRONG_TYPES = '{"target": 3, "confidence": "entropy", "network": "ab", "tiers": {}}'
NO_CONFIDENCE = '{"target": "offload<=1", "confidence": "hope", "network": "ab", "tiers": {}}'


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"tiers": {"a": {}}}', WRONG_TYPES, NO_CONFIDENCE])
def test_damaged_calibration_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / CALIBRATION_FILE).write_text(content)
    with pytest.raises(DataError, match=r"calibration\.json: is damaged .* run hsee calibrate again"):
        load_calibration(tmp_path)
