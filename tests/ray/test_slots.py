"""Models that share a few actors end in the bits of models with an actor each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.inference.trained import trained_actors
from actors.run.driver import resume, run
from actors.run.team import Team
from actors.workers.contract import ActorFactory
from hsee_ray.config.files import load_config
from hsee_ray.config.schema import Config
from hsee_ray.edge.gate import Gate
from hsee_ray.errors import Interrupted
from hsee_ray.method.predictions import Answers
from hsee_ray.method.reports import RoundReport
from hsee_ray.training.interrupt import StopRequest
from hsee_ray.training.listener import Listener
from tests.ray.test_recovery import kills, reference_digest

STRATEGIES = {
    "averaging": ["training.optimizer.name=adamw", "training.clients_per_round=0.5"],
    "averaging_every_2": ["training.aggregate_every=2", "training.optimizer_state=average"],
    "sequential": ["training.strategy=sequential", "training.order=shuffled"],
    "round_robin": ["training.strategy=sequential", "training.interleave=batch", "training.optimizer_state=reset"],
    "distributed": ["training.strategy=distributed", "training.norm_statistics=shared"],
}
SLOTS = {"one": (1, 1, 1, 1), "two": (2, 2, 1, 2), "mixed": (1, 3, 2, 2)}
"""Of the tiers sensor, hub and whole, and of the servers."""


@pytest.fixture
def crowd(tiny: dict[str, Any]) -> dict[str, Any]:
    """Eight clients in three tiers."""
    tiers = [{**tier, "clients": clients} for tier, clients in zip(tiny["tiers"], (3, 3, 2), strict=True)]
    return {**tiny, "tiers": tiers, "data": {**tiny["data"], "train_samples": 240, "partition": {"kind": "iid"}}}


def in_slots(crowd: dict[str, Any], slots: tuple[int, int, int, int], overrides: list[str]) -> Config:
    keys = ["tiers.0.slots", "tiers.1.slots", "tiers.2.slots", "server.slots"]
    return load_config(crowd, [*(f"{key}={count}" for key, count in zip(keys, slots, strict=True)), *overrides])


@pytest.mark.parametrize(
    ("strategy", "slots", "window"),
    [
        ("averaging", "one", 8),
        ("averaging", "two", 1),
        ("averaging_every_2", "mixed", 2),
        ("sequential", "one", 1),
        ("sequential", "two", 8),
        ("round_robin", "one", 8),
        ("round_robin", "mixed", 2),
        ("distributed", "two", 8),
    ],
)
def test_runs_in_slots_equal_the_reference(
    strategy: str, slots: str, window: int, crowd: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    config = in_slots(crowd, SLOTS[slots], [*STRATEGIES[strategy], f"pipeline.max_in_flight={window}"])
    teams: list[Team] = []
    finished = run(config, tmp_path / "run", Listener(assembled=teams.append), create=warm_actors)
    assert finished.summary["weights_sha256"] == reference_digest(config)
    servers = 1 if config.training.strategy.name == "sequential" else SLOTS[slots][3]
    assert len(teams[0].actors) == sum(SLOTS[slots][:3]) + servers + 1
    said = f"{len(teams[0].actors)} actors, one of which averages; shared by models: 3 sensor in"
    assert str(teams[0].slot_plan).startswith(said)


@pytest.mark.parametrize("strategy", ["averaging_every_2", "round_robin"])
def test_kills_change_no_bit_in_slots(
    strategy: str, crowd: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    config = in_slots(crowd, SLOTS["two"], [*STRATEGIES[strategy], "failures.max_per_actor=9", "checkpoint.every=1"])
    injector = kills(
        (1, "train", "client"),
        (1, "aggregate", "server"),
        (2, "train", "server"),
        (2, "evaluate", "client"),
        (2, "checkpoint", "client"),
        (3, "train", "client"),
        (3, "save", "server"),
    )
    finished = run(config, tmp_path / "run", injector.listener(), create=warm_actors)
    assert injector.hits
    assert finished.summary["weights_sha256"] == reference_digest(config)


def test_a_run_goes_on_in_other_slots(crowd: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path) -> None:
    config = in_slots(crowd, SLOTS["one"], [])
    stop = StopRequest()

    def after_two(report: RoundReport, cost: object) -> None:
        if report.round_number == 2:
            stop.ask(15)

    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", Listener(finished_round=after_two), stop, create=warm_actors)
    resumed = resume(tmp_path / "run", ["tiers.0.slots=3", "tiers.1.slots=2", "server.slots=null"], create=warm_actors)
    assert resumed.summary["weights_sha256"] == reference_digest(config)


def test_answers_are_the_same_from_slots(crowd: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path) -> None:
    config = in_slots(crowd, SLOTS["one"], ["training.rounds=1"])
    finished = run(config, tmp_path / "run", create=warm_actors)
    everything = {number: Gate("entropy", 1.0, 1.0) for number in range(8)}

    def answers(*slots: str) -> dict[int, Answers]:
        with trained_actors(finished, slots, lambda event: None, create=warm_actors) as exits:
            return exits.ask("test", everything)

    in_one = answers()
    one_each = answers("tiers.0.slots=null", "tiers.1.slots=null", "tiers.2.slots=null", "server.slots=null")
    for number in range(8):
        np.testing.assert_array_equal(in_one[number].logits_NK, one_each[number].logits_NK)
        if number < 6:
            np.testing.assert_array_equal(in_one[number].server_prediction_N, one_each[number].server_prediction_N)
