"""The best round over actors is that of one process, also of a run that one of them begins and the other ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.run.engine import over_actors
from actors.workers.contract import ActorFactory
from hsee_ray.config.files import load_config
from hsee_ray.errors import Interrupted
from hsee_ray.method.reports import RoundReport
from hsee_ray.training.begin import resume, run
from hsee_ray.training.in_process import in_process
from hsee_ray.training.interrupt import StopRequest
from hsee_ray.training.listener import Listener

BEST = ["data.validation_fraction=0.2", "training.keep=best", "evaluation.every=1"]
OPTIONS = [*BEST, "training.rounds=6", "checkpoint.keep=1"]


@pytest.mark.parametrize(("strategy", "lr"), [("averaging", 0.2), ("sequential", 0.1)])
def test_the_best_round(
    strategy: str, lr: float, tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    config = load_config(tiny, [*OPTIONS, f"training.strategy={strategy}", f"training.optimizer.lr={lr}"])
    here = run(config, tmp_path / "here", in_process)
    over = over_actors(create=warm_actors)
    assert run(config, tmp_path / "actors", over).summary["weights_sha256"] == here.summary["weights_sha256"]

    stop = StopRequest()

    def after_the_best(report: RoundReport, cost: object) -> None:
        if report.round_number == here.summary["best_round"]:
            stop.ask(15)

    with pytest.raises(Interrupted):
        run(config, tmp_path / "both", in_process, Listener(finished_round=after_the_best), stop)
    both = resume(tmp_path / "both", over)
    for key in ("best_round", "weights_sha256", "overall"):
        assert both.summary[key] == here.summary[key]
    assert both.summary["best_round"] < 6
