"""The plan of what is killed when."""

from __future__ import annotations

from typing import Any

import pytest

from hsee_ray.config.files import load_config
from jobs.chaos import main, plan_blows

TINY: dict[str, Any] = {"tiers": [{"name": "a", "clients": 2, "cut": 1}], "training": {"rounds": 6}}


def test_every_stage_is_hit_and_the_seed_decides() -> None:
    config = load_config(TINY, ["evaluation.every=4", "checkpoint.every=3"])
    faults = plan_blows(config, 6, 20, ["client", "server"], seed=3)
    assert len(faults) == 20
    assert {fault.stage for fault in faults} == {"start", "train", "aggregate", "evaluate", "checkpoint", "save"}
    assert {fault.round_number for fault in faults if fault.stage == "evaluate"} <= {4, 6}
    assert {fault.round_number for fault in faults if fault.stage == "checkpoint"} <= {3, 6}
    assert {fault.target for fault in faults} == {"client", "server"}
    assert {fault.stops for fault in faults} == {True, False}
    assert not any(fault.stops for fault in faults if fault.stage == "start")
    assert plan_blows(config, 6, 20, ["client", "server"], seed=3) == faults
    assert plan_blows(config, 6, 20, ["client", "server"], seed=4) != faults


def test_a_strategy_that_never_aggregates_is_not_hit_there() -> None:
    config = load_config(TINY, ["training.strategy=distributed"])
    assert "aggregate" not in {fault.stage for fault in plan_blows(config, 6, 30, ["client"], seed=0)}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--kills", "0"], "--kills 0: give at least 1"),
        (["--kills", "3", "--targets", "driver"], "--targets driver: give one or more of client,server,aggregator"),
        (["--kills", "3", "--set", "cluster.address=auto"], "set cluster.address=null"),
    ],
)
def test_bad_arguments(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "jobs/configs/quickstart.yaml", *arguments]) == 2
    assert told in capsys.readouterr().err
