"""Parts that a configuration names, over actors: they end in the reference's bits, after kills and a resume too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.run.driver import resume, run
from actors.workers.contract import ActorFactory
from hsee_ray.config.files import load_config
from hsee_ray.errors import Interrupted
from hsee_ray.training.interrupt import StopRequest
from hsee_ray.training.listener import Listener
from tests.ray.test_recovery import kills, reference_digest

NOISE = "tiers.0.stages=[{name: 'tests.extensions.noise:Noise', options: {share: 0.1}}]"
TOP2 = "evaluation.figures=[{name: 'tests.extensions.top5:TopK', options: {k: 2}}]"
LOOK_AHEAD = "training.look_ahead={units: 2}"
EXTENSIONS = {
    "noise": [NOISE, "tiers.0.codec=int8"],
    "noise_at_a_shared_server": [NOISE, "training.strategy=sequential", "training.interleave=batch"],
    "basics": [
        "data.augment={flip: true, shift: 0.25, border: mean, transforms: [{name: RandomErasing, options: {p: 0.7}}]}",
        "training.objective={name: cross_entropy, options: {label_smoothing: 0.1}}",
        "training.optimizer.clip_norm=0.5",
        "training.warmup_rounds=2",
        "exits.head=conv",
    ],
    "metric": [TOP2],
    "task": ["task={name: 'tests.extensions.grades:Grades', options: {within: 1}}"],
    "conv_exit": ["exits.head=tests.extensions.conv_exit:ConvExit", "model.options={width: 4}"],
    "focal": ["training.objective={name: 'tests.extensions.focal:Focal', options: {gamma: 1}}"],
    "proximal": ["training.objective={name: proximal, options: {mu: 0.1}}", LOOK_AHEAD],
    "momentum": [
        "training.average_step=momentum",
        "training.aggregate_weights=depth",
        "training.clients_per_round=0.67",
    ],
    "adam": [
        "training.average_step={name: adam, lr: 0.05}",
        "training.server_weight=0.5",
        "training.strategy=sequential",
    ],
    "splitfed": ["training.strategy=tests.extensions.splitfed:SplitFed"],
    "splitfed_shared": ["training.strategy=tests.extensions.splitfed:SplitFedShared"],
    "splitfed_by_batch": ["training.strategy=tests.extensions.splitfed:SplitFedShared", "training.interleave=batch"],
    "fedavg": ["training.strategy=fedavg", "training.aggregate_weights=samples"],
    "smallest": ["training.strategy=smallest", "training.clients_per_round=0.67", "tiers.0.codec=int8"],
    "per_tier": ["training.strategy=per_tier", "tiers.1.clients=2", LOOK_AHEAD],
    "depthfl": ["training.strategy={name: depthfl, options: {distillation: 0.5}}", "exits.head=conv"],
    "gradients": ["training.feedback=gradients", "training.exit_weight=0.3", "training.server_epochs=2"],
    "gradients_by_batch": ["training.feedback=gradients", "training.strategy=sequential", "training.interleave=batch"],
    "soft_labels": [
        "training.feedback=soft_labels",
        LOOK_AHEAD,
        "training.exit_weight=0.3",
        "pipeline.max_in_flight=4",
    ],
    "soft_labels_in_a_queue": ["training.feedback=soft_labels", "training.strategy=sequential", "tiers.0.codec=int8"],
    "look_ahead": [LOOK_AHEAD, "training.exit_weight=0", "training.clients_per_round=0.67"],
    "look_ahead_in_the_network": [
        "training.look_ahead={units: 1, copies: network}",
        "training.strategy=sequential",
        "training.interleave=batch",
        "training.feedback=soft_labels",
        "training.server_epochs=3",
    ],
    "tiny_vit": ["model.name=tests.extensions.tiny_vit:units", "tiers.0.cut=patches", "tiers.1.cut=block0"],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.smoke] if name == "soft_labels" else []) for name in EXTENSIONS]
)
def test_an_extension_survives_kills_and_a_resume(
    name: str, tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    config = load_config(tiny, [*EXTENSIONS[name], "failures.max_per_actor=9", "checkpoint.every=1"])
    injector = kills((1, "train", "client"), (2, "train", "server"))
    stop = StopRequest()
    listener = Listener(
        assembled=injector.assembled,
        entered=injector.entered,
        happened=injector.happened,
        finished_round=lambda report, *cost: report.round_number == 2 and stop.ask(2),
    )
    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", listener, stop, create=warm_actors)
    assert injector.hits

    finished = resume(tmp_path / "run", create=warm_actors)
    assert finished.summary["weights_sha256"] == reference_digest(config)
    assert finished.summary["strategy"] == config.training.strategy.name
    found = {row["metric"] for row in finished.metrics.to_pylist()}
    assert ({"client_top2", "server_top2"} <= found) == (name == "metric")


@pytest.mark.parametrize(
    "name",
    ["splitfed", "splitfed_by_batch", "gradients", "gradients_by_batch", "soft_labels", "look_ahead_in_the_network"],
)
def test_models_that_share_slots_wait_for_what_comes_back(
    name: str, tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    tiers = [{**tier, "clients": 2, "slots": 1} for tier in tiny["tiers"]]
    values = {**tiny, "tiers": tiers, "data": {**tiny["data"], "train_samples": 200}}
    config = load_config(values, [*EXTENSIONS[name], "server.slots=1", "training.rounds=2"])
    assert run(config, tmp_path / "run", create=warm_actors).summary["weights_sha256"] == reference_digest(config)
