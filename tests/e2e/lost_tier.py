"""A run under kills on several nodes of one machine; the node of a tier goes away and comes back.

Run by test_node_loss.py, and by hand: `python -m tests.e2e.lost_tier CONFIG RUN_DIR KILLS GOES_IN COMES_AFTER SEED`.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from actors.run.driver import run
from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import ModelId
from hsee_ray.method.reports import RoundReport
from hsee_ray.rundir.tables import render_summary
from hsee_ray.training.listener import Event, Listener
from jobs.chaos import FaultInjector, plan_blows

BACK_S = 120.0
"""Patience with actors that start on the node that has come back."""


def main(config_file: str, run_dir: str, kills: int, goes_in: int, comes_after: int, seed: int) -> None:
    config = load_config(config_file)
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.add_node(num_cpus=8, resources={"stays": 16})
    doomed = cluster.add_node(num_cpus=8, resources={"goes": 16})
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    faults = plan_blows(config, config.training.rounds, kills, ["client", "server", "aggregator"], seed)
    # A stopped actor would cost step_timeout_s, and that must be longer than a start on a busy machine.
    injector = FaultInjector([replace(fault, stops=False) for fault in faults], seed)
    events: list[str] = []
    took_part: dict[int, list[int]] = {}
    done = {"round": 0, "gone": False, "back": False}

    def entered(round_number: int, stage: str) -> None:
        done["round"] = round_number
        injector.entered(round_number, stage)

    def trained(samples: int) -> None:
        if done["round"] == goes_in and not done["gone"]:
            done["gone"] = True
            cluster.remove_node(doomed, allow_graceful=False)

    def finished_round(report: RoundReport, cost: object) -> None:
        took_part[report.round_number] = sorted(report.client_training)
        print(f"round {report.round_number}: {took_part[report.round_number]} {report.wall_s:.1f} s", flush=True)
        if report.round_number == comes_after and not done["back"]:
            done["back"] = True
            cluster.add_node(num_cpus=8, resources={"goes": 16})
            assert injector.team is not None
            starting = [injector.team.locations[ModelId("client", number)] for number in injector.team.left_out]
            assert starting, "the tier is left out"
            ray.wait(starting, num_returns=len(starting), timeout=BACK_S, fetch_local=False)

    def happened(event: Event) -> None:
        events.append(str(event))
        injector.happened(event)

    try:
        listener = Listener(
            assembled=injector.assembled,
            entered=entered,
            trained=trained,
            finished_round=finished_round,
            happened=happened,
        )
        summary = run(config, Path(run_dir), listener).summary
        print(injector.table())
        print(render_summary(summary))
        print(json.dumps({"summary": summary, "events": events, "took_part": took_part, "hits": len(injector.hits)}))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
