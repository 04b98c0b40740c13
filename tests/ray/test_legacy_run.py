"""A run of release 0.1.0, with its old keys, goes on and can be read."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from actors.run.driver import resume
from actors.workers.contract import ActorFactory
from hsee_ray import load_run
from hsee_ray.models.weights import read_model

LEGACY = Path(__file__).parents[1] / "data" / "legacy"


def test_a_run_of_the_release_before_is_resumed(
    warm_actors: ActorFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "run"
    shutil.copytree(LEGACY / "run", place)
    with caplog.at_level(logging.WARNING):
        begun = load_run(place)
        assert begun.config.tiers[0].slots == 1 and begun.config.training.interleave == "batch"
    assert "tiers.0.seats is called slots now" in caplog.text

    assert begun.client(0) is not None and begun.exit(2) is not None and begun.server(2) is not None

    finished = resume(place, ["training.rounds=3"], create=warm_actors)
    assert finished.summary["rounds"] == 3
    # On the machine that 0.1.0 trained it on, its bits; on another kind of CPU, nearly.
    found = read_model(place / "final" / "server.safetensors")
    wanted = read_model(LEGACY / "finished" / "server.safetensors")
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-3, atol=1e-3, err_msg=name)
