"""A run under kills on several nodes of one machine, of which a tier's goes away: run by test_node_loss.py."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from actors.run.driver import run
from actors.run.listener import Event, Listener
from hsee_ray.config.files import load_config
from hsee_ray.method.reports import RoundReport
from jobs.chaos import FaultInjector, plan_blows


def main(config_file: str, run_dir: str, kills: int, goes_after: int, comes_after: int) -> None:
    config = load_config(config_file)
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "resources": {"head": 1}})
    cluster.add_node(num_cpus=4, resources={"stays": 8})
    doomed = cluster.add_node(num_cpus=4, resources={"goes": 8})
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    events: list[str] = []
    took_part: dict[int, list[int]] = {}
    injector = FaultInjector(
        plan_blows(config, config.training.rounds, kills, ["client", "server", "aggregator"], 0), 0
    )

    def finished_round(report: RoundReport, cost: object) -> None:
        took_part[report.round_number] = sorted(report.client_training)
        if report.round_number == goes_after:
            cluster.remove_node(doomed, allow_graceful=False)
        if report.round_number == comes_after:
            cluster.add_node(num_cpus=4, resources={"goes": 8})

    def happened(event: Event) -> None:
        events.append(str(event))
        injector.happened(event)

    try:
        listener = Listener(
            assembled=injector.assembled, entered=injector.entered, finished_round=finished_round, happened=happened
        )
        finished = run(config, Path(run_dir), listener)
        said = {"summary": finished.summary, "events": events, "took_part": took_part, "hits": len(injector.hits)}
        print(json.dumps(said))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
