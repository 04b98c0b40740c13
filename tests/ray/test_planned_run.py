"""A run whose cuts are left to the planner: it plans once, says what it picked, and never plans again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from actors.run.driver import resume, run
from actors.workers.contract import ActorFactory
from hsee_ray.config.files import load_config
from hsee_ray.planning import planner
from hsee_ray.training.listener import Listener
from tests.ray.test_simulated_run import with_devices


def test_a_run_plans_once(tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path) -> None:
    content = with_devices(tiny, tmp_path / "profiles.yaml")
    content["tiers"][0]["cut"] = "auto"
    config = load_config(content, ["training.rounds=1"])
    told: list[str] = []
    listener = Listener(happened=lambda event: told.append(str(event)))
    finished = run(config, tmp_path / "run", listener, create=warm_actors)

    planned = planner.planned(config)
    (said,) = [line for line in told if "plan" in line]
    assert planned.tiers[0].cut != "auto"
    assert said.startswith("[round 0] plan (start): cuts by the devices' profiles: ")
    assert f"{planned.tiers[0].cut} for {planned.tiers[0].name}" in said
    assert finished.config == planned
    assert finished.summary["tiers"][0]["cut"] == planned.tiers[0].cut

    # Another device would be another plan, if anybody planned.
    profiles = yaml.safe_load((tmp_path / "profiles.yaml").read_text())
    profiles["board"]["memory_mib"] = 0.001
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump(profiles))
    longer = resume(tmp_path / "run", ["training.rounds=2"], listener, create=warm_actors)
    assert longer.summary["rounds"] == 2
    assert [tier.cut for tier in longer.config.tiers] == [tier.cut for tier in planned.tiers]
    assert len([line for line in told if "plan" in line]) == 1
