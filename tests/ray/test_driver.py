"""What the driver sees of a run, and what a run leaves behind."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from safetensors.numpy import load_file

from actors.cluster.node_report import NodeReport
from actors.cluster.slots import plan_slots
from actors.run.calls import Calls
from actors.run.driver import run
from actors.run.team import AGGREGATOR, RowRefs, Team
from actors.workers.actor_location import ActorLocation
from actors.workers.contract import ActorFactory, ObjectList, Outcome, RunLeg
from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import ModelId
from hsee_ray.data import open_images
from hsee_ray.errors import ConfigError, ResourceError, RunError
from hsee_ray.method.aggregation import plan_aggregation
from hsee_ray.method.legs import TRAINING, Work
from hsee_ray.method.reports import EvaluationReport, TrainReport
from hsee_ray.method.setup import Setup, prepare_run
from hsee_ray.models.weights import digest_lines, weights_sha256
from hsee_ray.rundir.checkpoint import FileEntry
from hsee_ray.training.listener import SILENT
from tests.ray.conftest import WarmActors


@pytest.fixture
def setup(tiny: dict[str, Any], local_ray: None) -> Setup:
    return prepare_run(load_config(tiny))


def in_a_store(ref: Any) -> bool:
    """Whether Ray keeps an object in a node's store; one that it passed through its owner is in none."""
    ray.wait([ref], timeout=60)
    return bool(ray.experimental.get_object_locations([ref])[ref]["node_ids"])


def test_no_tensor_passes_through_the_driver(setup: Setup) -> None:
    team = Team(setup, ray.put(setup), plan_slots(setup.config, setup.fleet, None, 1), None, None)
    client = ModelId("client", 0)
    work, (first, second) = Work(0, 1, 0, 1), TRAINING
    features, snapshot, outcome = team.submit(client, RunLeg(first, work, snapshot_after=True))
    request = RunLeg(second, work, snapshot_after=True, payload=0)
    _, server_snapshot, _ = team.submit(ModelId("server", 0), request, ObjectList([features]))
    snapshots = {client: snapshot, ModelId("server", 0): server_snapshot}
    plan = plan_aggregation(setup.config, setup.fleet, [0], setup.local_samples)
    average = team.actor(AGGREGATOR).average.options(num_returns=2)
    sources = {model: index for index, model in enumerate(snapshots)}
    averages, nothing = average.remote(plan.copies, sources, {}, *snapshots.values())

    # 8 images of 4x8x8 floats: 8 KiB of features, far below what Ray would inline.
    assert sum(batch.feature_bytes for batch in ray.get(features).payload) == 8 * 4 * 8 * 8 * 4
    assert in_a_store(features)
    assert all(in_a_store(snapshot) for snapshot in snapshots.values())
    assert in_a_store(averages)
    assert not in_a_store(outcome) and not in_a_store(nothing)


def test_driver_fetches_reports_only(
    tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path, monkeypatch: Any
) -> None:
    fetched: list[Any] = []
    real_get, real_result = ray.get, Calls.result

    def recording_get(refs: Any, **options: Any) -> Any:
        value = real_get(refs, **options)
        fetched.append(value)
        return value

    async def recording_result(calls: Calls, member: Any, ref: Any) -> Any:
        value = await real_result(calls, member, ref)
        fetched.append(value)
        return value

    monkeypatch.setattr(ray, "get", recording_get)
    monkeypatch.setattr(Calls, "result", recording_result)
    run(load_config(tiny), tmp_path / "run", create=warm_actors)

    outcomes = [value for value in fetched if isinstance(value, Outcome)]
    assert {type(outcome.report) for outcome in outcomes} == {TrainReport, EvaluationReport, type(None)}
    kinds = {type(value) for value in fetched}
    assert kinds == {Outcome, type(None), tuple, FileEntry, NodeReport, ActorLocation}
    lines = [value for value in fetched if type(value) is tuple]
    assert all(isinstance(line, str) for value in lines for line in value)
    assert max(len(pickle.dumps(value)) for value in fetched) < 10_000


def test_run_directory_is_complete(tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path) -> None:
    config = load_config(tiny)
    finished = run(config, tmp_path / "run", create=warm_actors)

    files = {str(path.relative_to(finished.path)) for path in finished.path.rglob("*") if path.is_file()}
    models = {"client-000", "client-001", "client-002", "server-000", "server-001"}
    assert {f"final/{stem}.safetensors" for stem in models} == {name for name in files if name.startswith("final/")}
    assert {"config.yaml", "metrics.parquet", "summary.json", "class_counts.png"} <= files
    assert finished.config == config
    lines = [
        line for stem in models for line in digest_lines(stem, load_file(finished.path / f"final/{stem}.safetensors"))
    ]
    assert finished.summary["weights_sha256"] == weights_sha256(lines)
    assert json.loads((finished.path / "summary.json").read_text()) == finished.summary


@pytest.mark.parametrize("strategy", ["averaging", "sequential", "centralized"])
def test_loaded_modules_answer_as_the_run_did(
    strategy: str, tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    config = load_config(tiny, [f"training.strategy={strategy}"])
    finished = run(config, tmp_path / "run", create=warm_actors)
    setup = prepare_run(config)
    test = open_images(setup.files.test)
    x = finished.preprocess(test.images_NHWC[setup.test_indices])
    labels = test.labels_N[setup.test_indices]
    for number, client in enumerate(finished.summary["clients"]):
        h = finished.client(number)(x)
        if client["server_accuracy"] is None:
            assert np.mean(h.argmax(1).numpy() == labels) == client["client_accuracy"]
        else:
            assert np.mean(finished.exit(number)(h).argmax(1).numpy() == labels) == client["client_accuracy"]
            assert np.mean(finished.server(number)(h).argmax(1).numpy() == labels) == client["server_accuracy"]


def test_clients_that_get_their_images_by_reference_train_the_same(
    tiny: dict[str, Any], warm_actors: ActorFactory, warm_pool: WarmActors, tmp_path: Path, monkeypatch: Any
) -> None:
    config = load_config(tiny)
    by_reference = run(config, tmp_path / "by_reference", create=warm_actors)
    warm_pool.take_back()
    monkeypatch.setattr(RowRefs, "put", lambda setup: None)
    mapped = run(config, tmp_path / "mapped", create=warm_actors)
    assert by_reference.summary["weights_sha256"] == mapped.summary["weights_sha256"]


@pytest.mark.parametrize(("fails_at", "who"), [("head", "server"), ("stem", "client")])
def test_failed_step_says_who_when_and_where(
    fails_at: str, who: str, tiny: dict[str, Any], local_ray: None, tmp_path: Path
) -> None:
    tiny["model"] = {"name": "tests.networks:failing_units", "options": {"fails_at": fails_at}}
    tiny["tiers"] = tiny["tiers"][:2]
    with pytest.raises(
        RunError, match=rf"{who} 00\d failed in round 1 while it did `train`: .*fails in training.*error\.log"
    ):
        run(load_config(tiny), tmp_path / "run")
    log = (tmp_path / "run" / "error.log").read_text()
    assert "Traceback" in log and "this unit fails in training" in log
    assert not (tmp_path / "run" / "summary.json").exists()


def test_resource_that_no_node_has_is_refused_before_anything_is_written(
    tiny: dict[str, Any], local_ray: None, tmp_path: Path
) -> None:
    tiny["tiers"][1]["resources"] = {"custom": {"gateway": 1}}
    with pytest.raises(ResourceError, match=r"client 001 of tier hub asks for .*1 gateway.*tiers\.1\.resources"):
        run(load_config(tiny), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_directory_that_holds_something_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0")
    with pytest.raises(ConfigError, match="is not empty"):
        run(load_config(tiny), tmp_path)


def test_progress_counts_every_sample(tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path) -> None:
    trained: list[int] = []
    listener = dataclasses.replace(SILENT, trained=trained.append)
    config = load_config(tiny)
    run(config, tmp_path / "run", listener, create=warm_actors)
    assert sum(trained) == config.training.rounds * sum(prepare_run(config).local_samples)
