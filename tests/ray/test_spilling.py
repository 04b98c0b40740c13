"""Object stores are large enough for what shipped configs keep in them: nothing is written to disk."""

from __future__ import annotations

from pathlib import Path

from actors.cluster.ray_internals import spilled_bytes
from actors.run.driver import run
from actors.workers.contract import ActorFactory
from hsee_ray.config.files import load_config


def test_the_quickstart_never_spills(warm_actors: ActorFactory, tmp_path: Path) -> None:
    before = spilled_bytes()
    overrides = [
        "training.rounds=2",
        *(f"tiers.{tier}.{key}" for tier in range(3) for key in ("resources.num_cpus=0.25", "slots=1")),
        "server.slots=3",
        f"data.cache={tmp_path / 'cache'}",
    ]
    run(load_config("jobs/configs/quickstart.yaml", overrides), tmp_path / "run", create=warm_actors)
    assert before is not None
    assert spilled_bytes() == before
