"""Object stores are large enough for what shipped configs keep in them: nothing is written to disk."""

from __future__ import annotations

from pathlib import Path

from actors.driver import run
from actors.whereabouts import spilled_bytes
from hsee_ray.config_files import load_config


def test_the_quickstart_never_spills(local_ray: None, tmp_path: Path) -> None:
    before = spilled_bytes()
    overrides = ["training.rounds=2", "server.resources.num_cpus=0.5", f"data.cache={tmp_path / 'cache'}"]
    run(load_config("jobs/configs/quickstart.yaml", overrides), tmp_path / "run")
    assert spilled_bytes() == before
