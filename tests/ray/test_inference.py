"""Trained models on the real path: what leaves a client, what its server computes, and what comes of it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.cluster.ray_internals import process_of
from actors.inference.trained import ActorExits, trained_actors
from actors.run.team import Team
from actors.workers.contract import ActorFactory, RunLeg, WorkerRequest
from hsee_ray.config.fleet import ModelId
from hsee_ray.data import open_images
from hsee_ray.deploy.export import export
from hsee_ray.deploy.server_models import ServerModels, find_bundles, sent_features
from hsee_ray.edge.codecs import Codec, FeatureCodec
from hsee_ray.edge.edge_client import EdgeClient
from hsee_ray.edge.gate import NEVER_SENDS, SENDS_ALL, Gate
from hsee_ray.edge.protocol import decode, encode
from hsee_ray.edge.task import Classification, Confidence
from hsee_ray.errors import ConfigError, DataError, UserError
from hsee_ray.evaluation.calibration import (
    Calibration,
    Target,
    TierCalibration,
    fit_temperature,
    save_calibration,
)
from hsee_ray.evaluation.evaluate import Plan, calibrate, costs, evaluate
from hsee_ray.evaluation.exits import ExitsHere
from hsee_ray.method.predictions import Answers
from hsee_ray.method.reports import EvaluationReport
from hsee_ray.method.setup import prepare_run
from hsee_ray.reference import Reference
from hsee_ray.rundir.run import MODELS_DIR, Run, load_run
from hsee_ray.training.listener import Event
from tests.run_directories import train_run, without_client

STRATEGIES = ("averaging", "sequential")
SENSOR, HUB, WHOLE = 0, 1, 2


@pytest.fixture(params=STRATEGIES)
def run(request: pytest.FixtureRequest, tiny: dict[str, Any], tmp_path: Path) -> Run:
    return train_run(tmp_path / "run", {**tiny, "training": {**tiny["training"], "strategy": request.param}})


@pytest.fixture
def averaging(tiny: dict[str, Any], tmp_path: Path) -> Run:
    return train_run(tmp_path / "run", tiny)


def gates(tau: float, temperature: float = 1.0) -> dict[int, Gate]:
    return dict.fromkeys(range(3), Gate("entropy", tau, temperature))


def in_training(run: Run) -> Mapping[int, EvaluationReport]:
    """What the evaluation after the last round of training counted."""
    *_, last = Reference(prepare_run(run.config)).run()
    return last.evaluation


def test_one_process_finds_the_same(averaging: Run, warm_actors: ActorFactory) -> None:
    target = Target("offload", 0.5)
    with trained_actors(averaging, [], unexpected, create=warm_actors) as exits:
        over_actors = calibrate(exits, averaging, target, "entropy")
    assert calibrate(ExitsHere(averaging, []), averaging, target, "entropy") == over_actors


def unexpected(event: Event) -> None:
    """Nothing happens but that actors start, which may take long enough for a line."""
    assert event.stage == "start", event


def between(answers: Answers, kind: Confidence = "entropy", temperature: float = 1.0) -> float:
    """A tau that parts these samples."""
    confidence_N = np.sort(Gate(kind, 1.0, temperature).confidence(answers.logits_NK, answers.task))
    middle = len(confidence_N) // 2
    return float(confidence_N[middle - 1 : middle + 1].mean())


def test_ends_are_exactly_the_exits_and_the_servers(run: Run, warm_actors: ActorFactory, monkeypatch: Any) -> None:
    called: list[str] = []
    submit = Team.submit

    def recorded(team: Team, model: ModelId, request: WorkerRequest, *objects: Any) -> Any:
        if isinstance(request, RunLeg):
            called.append(model.side)
        return submit(team, model, request, *objects)

    monkeypatch.setattr(Team, "submit", recorded)
    known = in_training(run)
    with trained_actors(run, [], unexpected, create=warm_actors) as exits:
        local = exits.ask("test", gates(NEVER_SENDS))
        assert "server" not in called, "nothing is sent, so no server is even asked"
        sent = exits.ask("test", gates(SENDS_ALL))

    for number in (SENSOR, HUB):
        assert local[number].stays_N.all() and local[number].server_samples == 0 == local[number].sent_bytes
        assert int(local[number].client_right_N.sum()) == known[number].client_correct
        assert not sent[number].stays_N.any() and sent[number].server_samples == 40
        assert int(sent[number].server_right_N.sum()) == known[number].server_correct
        assert sent[number].sent_bytes == known[number].sent_bytes
    # The client that holds the whole network never sends.
    assert sent[WHOLE].stays_N.all() and sent[WHOLE].server_samples == 0
    assert int(sent[WHOLE].client_right_N.sum()) == known[WHOLE].client_correct


def test_servers_compute_only_what_was_unsure(run: Run, warm_actors: ActorFactory) -> None:
    with trained_actors(run, [], unexpected, create=warm_actors) as exits:
        sent = exits.ask("test", gates(SENDS_ALL))
        tau = between(sent[HUB])
        some = exits.ask("test", gates(tau))

    for number in (SENSOR, HUB):
        own = some[number]
        stays_N = Gate("entropy", tau).confidence(sent[number].logits_NK, sent[number].task) > tau
        np.testing.assert_array_equal(own.stays_N, stays_N)
        assert own.server_samples == int((~stays_N).sum())
        assert own.sent_bytes == sent[number].sent_bytes * own.server_samples // 40
        assert (own.server_prediction_N[stays_N] == -1).all()
        np.testing.assert_array_equal(own.server_prediction_N[~stays_N], sent[number].server_prediction_N[~stays_N])
    assert 0 < some[HUB].server_samples < 40


def test_actors_are_those_that_a_reader_of_the_run_finds(run: Run, warm_actors: ActorFactory) -> None:
    with trained_actors(run, ["data.test_samples=8"], unexpected, create=warm_actors) as exits:
        sent = exits.ask("test", gates(SENDS_ALL))
        samples = prepare_run(exits.setup.config)
    images = open_images(samples.files.test).images_NHWC[samples.test_indices]
    with torch.no_grad():
        for number in (SENSOR, HUB):
            h = run.client(number)(run.preprocess(images))
            np.testing.assert_allclose(sent[number].logits_NK, run.exit(number)(h).numpy(), atol=1e-5)
            predicted = run.server(number)(h).argmax(dim=1).numpy()
            np.testing.assert_array_equal(sent[number].server_prediction_N, predicted)


def test_killed_actors_change_no_answer(averaging: Run, warm_actors: ActorFactory) -> None:
    events: list[Event] = []
    with trained_actors(averaging, [], events.append, create=warm_actors) as exits:
        before = exits.ask("test", gates(SENDS_ALL))
        for model in (ModelId("client", SENSOR), ModelId("server", HUB)):
            pid = process_of(exits.rounds.team.actors[model])
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        after = exits.ask("test", gates(SENDS_ALL))
    for number in range(3):
        np.testing.assert_array_equal(before[number].logits_NK, after[number].logits_NK)
        np.testing.assert_array_equal(before[number].server_prediction_N, after[number].server_prediction_N)
        assert after[number].server_samples == before[number].server_samples
    assert {event.who for event in events if event.is_back} == {"client 000", "server 001"}


def test_a_client_that_has_no_model_is_left_out(averaging: Run, warm_actors: ActorFactory) -> None:
    run = without_client(averaging, SENSOR)
    events: list[Event] = []
    with trained_actors(run, [], events.append, create=warm_actors) as exits:
        found, by_tier = evaluate(exits, run, Plan("test", (0.5,), "entropy", None))
    assert [(event.who, event.text) for event in events] == [("client 000", "was never trained: it is left out")]
    assert {row.name for row in found.gates if row.scope == "tier"} == {"hub", "whole"} and set(by_tier) == {"hub"}


def test_a_client_that_has_learnt_nothing_is_left_out(run: Run, warm_actors: ActorFactory) -> None:
    """It has a model, which is as it was initialised."""
    run.summary["clients"][SENSOR]["trained_rounds"] = 0
    events: list[Event] = []
    with trained_actors(run, [], events.append, create=warm_actors) as exits:
        assert SENSOR not in exits.ask("test", gates(SENDS_ALL))
    assert [(event.who, event.text) for event in events] == [("client 000", "was never trained: it is left out")]
    assert run.models.feature_path(SENSOR) is None


def test_calibration_sees_only_what_was_set_aside(run: Run, warm_actors: ActorFactory) -> None:
    with trained_actors(run, [], unexpected, create=warm_actors) as exits:
        found = calibrate(exits, run, Target("offload", 0.5), "margin")
        aside = {number: part.calibration for number, part in enumerate(exits.setup.parts)}
        plan = Plan("test", (0.2, 0.6), "margin", found)
        evaluation, _ = evaluate(exits, run, plan)
    assert set(found.tiers) == {"sensor", "hub"} and found.network == run.summary["weights_sha256"]
    train = open_images(prepare_run(run.config).files.train)
    for number, tier in ((SENSOR, "sensor"), (HUB, "hub")):
        images, labels = train.images_NHWC[aside[number]], train.labels_N[aside[number]]
        with torch.no_grad():
            h = run.client(number)(run.preprocess(images))
            logits = run.exit(number)(h).numpy()
            server_right = (run.server(number)(h).argmax(dim=1).numpy() == labels).mean()
        own = found.tiers[tier]
        assert own.samples == len(labels) > 0
        unsent = np.ones(len(labels), bool)
        answers = Answers(Classification(), labels, logits, unsent, np.full(len(labels), -1), 0, 0, 0.0, 0.0)
        assert own.temperature == pytest.approx(fit_temperature(answers), rel=1e-3)
        sends = Gate("margin", own.tau, own.temperature).confidence(logits, Classification()) <= own.tau
        assert sends.mean() == own.offload_ratio <= 0.5
        assert own.server_accuracy == server_right

    assert [row.gate for row in evaluation.of("overall")] == ["local", "grid", "grid", "calibrated", "sent"]
    calibrated = {row.name: row for row in evaluation.of("tier", "calibrated")}
    assert calibrated["hub"].tau == found.tiers["hub"].tau
    assert [each.tier for each in evaluation.distances] == ["sensor", "hub"]
    for distance in evaluation.distances:
        assert distance.measured == calibrated[distance.tier].offload_ratio
        assert distance.beyond == pytest.approx(distance.measured - 0.5)


def test_costs_are_counted_on_both_sides(averaging: Run) -> None:
    counted = costs(prepare_run(averaging.config))
    # conv_units, width 4: a stem from 3 channels and a block on 8 x 8, two blocks on 4 x 4, exits and head 4 x 3.
    stem, block, small, head = 64 * 4 * 27, 64 * 4 * 36, 16 * 4 * 36, 12
    assert (counted[SENSOR].client, counted[SENSOR].server) == (stem + head, block + 2 * small + head)
    assert (counted[HUB].client, counted[HUB].server) == (stem + block + small + head, small + head)
    assert (counted[WHOLE].client, counted[WHOLE].server) == (stem + block + 2 * small + head, 0)


def test_targets_that_cannot_be_met_say_what_can(averaging: Run, warm_actors: ActorFactory) -> None:
    reason = r"accuracy_drop<=-1 cannot be met .*sensor reaches -?\d.*nothing was stored"
    with (
        trained_actors(averaging, [], unexpected, create=warm_actors) as exits,
        pytest.raises(UserError, match=reason),
    ):
        calibrate(exits, averaging, Target("accuracy_drop", -1.0), "entropy")


def test_nothing_set_aside(tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", {**tiny, "data": {**tiny["data"], "calibration_fraction": 0.0}})
    with trained_actors(run, [], unexpected, create=warm_actors) as exits:
        with pytest.raises(ConfigError, match=r"sensor, hub: no samples are set aside .*calibration_fraction above 0"):
            calibrate(exits, run, Target("offload", 0.5), "entropy")
        with pytest.raises(ConfigError, match="--split calibration: no client has samples"):
            evaluate(exits, run, Plan("calibration", (), "entropy", None))
        found, _ = evaluate(exits, run, Plan("test", (0.5,), "entropy", None))
    assert all(row.temperature is None for row in found.exits)


def entered(run: Run, *overrides: str) -> ActorExits:
    with trained_actors(run, overrides, unexpected) as exits:
        return exits


def test_another_run_is_refused(averaging: Run) -> None:
    with pytest.raises(ConfigError, match=r"--set model.width, seed: the run was trained otherwise"):
        entered(averaging, "seed=4", "model.width=5")
    with pytest.raises(ConfigError, match=r"data.augment"):
        entered(averaging, "data.augment=false")


def test_other_images_are_refused(averaging: Run) -> None:
    path = averaging.path / "summary.json"
    path.write_text(path.read_text().replace('"class_names": [', '"class_names": ["surplus",'))
    with pytest.raises(DataError, match="another class_names than those of"):
        entered(load_run(averaging.path))


def test_damaged_models_are_refused(averaging: Run) -> None:
    models = averaging.path / MODELS_DIR
    shutil.copy(models / "client-001.safetensors", models / "client-000.safetensors")
    with pytest.raises(DataError, match=r"final: holds other models than those that were trained"):
        entered(averaging)
    (models / "client-000.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(DataError, match=r"client-000.safetensors: cannot be read"):
        entered(averaging)


def near_ties(
    run: Run, number: int, gate: Gate, answers: Answers, images: np.ndarray, codec: FeatureCodec
) -> np.ndarray:
    """Samples on whose decision rounding may have a say."""

    def gap_N(logits_NK: np.ndarray) -> np.ndarray:
        top_N2 = np.sort(logits_NK, axis=1)[:, -2:]
        return top_N2[:, 1] - top_N2[:, 0]

    if number == WHOLE:
        return gap_N(answers.logits_NK) < 2e-4
    with torch.no_grad():
        h = run.client(number)(run.preprocess(images)).numpy()
        server_logits = run.server(number)(torch.from_numpy(codec.decode(codec.encode(h)))).numpy()
    at_tau = np.abs(gate.confidence(answers.logits_NK, answers.task) - gate.tau) < 1e-5
    # A value between two codes may take either: some of them, and an answer moves by more than float32's rounding.
    tie = 2e-4 if codec.name == "none" else 2e-2
    return at_tau | (gap_N(answers.logits_NK) < 2e-4) | (~answers.stays_N & (gap_N(server_logits) < tie))


@pytest.mark.parametrize(
    ("kind", "codec"), [("entropy", "none"), ("max_prob", "int8"), ("margin", "fp16"), ("entropy", "int8")]
)
def test_exported_bundles_decide_as_the_actors_do(
    kind: Confidence,
    codec: Codec,
    tiny: dict[str, Any],
    warm_actors: ActorFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1,000 images through ONNX, the codec, the body that travels, and the served programs."""
    averaging = train_run(tmp_path / "run", {**tiny, "tiers": [{**tier, "codec": codec} for tier in tiny["tiers"]]})
    with trained_actors(averaging, ["data.test_samples=1000"], unexpected, create=warm_actors) as exits:
        setup = exits.setup
        sent = exits.ask("test", gates(SENDS_ALL))
        own = {number: Gate(kind, between(sent[number], kind, 1.5), 1.5) for number in range(3)}
        found = exits.ask("test", own)
    tiers = {name: TierCalibration(1.5, own[n].tau, *[1] * 7) for n, name in ((SENSOR, "sensor"), (HUB, "hub"))}
    network = averaging.summary["weights_sha256"]
    save_calibration(averaging.path, Calibration("offload<=0.5", kind, network, tiers))
    run = load_run(averaging.path)
    images = open_images(setup.files.test).images_NHWC[setup.test_indices]
    export(run, tmp_path / "bundles")
    bundles = find_bundles(tmp_path / "bundles")
    models = ServerModels(bundles, torch.device("cpu"))
    served = sent_features(bundles)

    def answer(edge: EdgeClient, url: str, features: np.ndarray) -> np.ndarray:
        body = encode(edge.bundle.client, edge.bundle.network, edge.bundle.codec.encode(features))
        offload = decode(body, run.summary["weights_sha256"], served)
        return models.answer(offload.client, offload.features)

    monkeypatch.setattr(EdgeClient, "_answer", answer)
    for number in range(3):
        with EdgeClient(tmp_path / "bundles" / f"client-{number:03d}", "http://in-this-process") as edge:
            predictions = edge.predict(images)
            own_codec = edge.bundle.codec
        answers = found[number]
        exits_N = np.array([prediction.exited for prediction in predictions])
        label_N = np.array([prediction.label for prediction in predictions])
        gated_N = np.where(answers.stays_N, answers.logits_NK.argmax(axis=1), answers.server_prediction_N)
        differs_N = (label_N != gated_N) | (exits_N != answers.stays_N)
        near_N = near_ties(run, number, own[number], answers, images, own_codec)
        assert (differs_N <= near_N).all(), f"client {number} decides otherwise where no rounding can"
        assert near_N.sum() < 50
        assert exits_N.all() if number == WHOLE else 400 < exits_N.sum() < 600
