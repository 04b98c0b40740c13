"""A run on several nodes of one machine, one of which is taken back with notice: run by test_node_loss.py."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray._private.state import state
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from actors.run.driver import run
from actors.run.team import Team
from hsee_ray.config.files import load_config
from hsee_ray.method.reports import RoundReport
from hsee_ray.training.listener import Listener

NOTICE_S = 30.0


def main(config_file: str, run_dir: str, drain_in_round: int) -> None:
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.add_node(num_cpus=4, resources={"stays": 4})
    doomed = cluster.add_node(num_cpus=4, resources={"goes": 4})
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    events: list[str] = []
    teams: list[Team] = []

    def finished_round(report: RoundReport, cost: object) -> None:
        if report.round_number == drain_in_round:
            cluster.add_node(num_cpus=4, resources={"goes": 4})
            gcs: Any = ray._private.worker.global_worker.gcs_client  # type: ignore[attr-defined]
            reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
            deadline_ms = int((time.time() + NOTICE_S) * 1000)
            accepted = gcs.drain_node(doomed.node_id, reason, "taken back", deadline_ms)
            assert accepted, "Ray drains the node"
            assert doomed.node_id in state.get_draining_nodes()
            time.sleep(1.5)  # longer than between two looks of the driver
        if report.round_number == drain_in_round + 2:
            found = ray.get([teams[0].locations[member] for member in teams[0].models], timeout=60)
            assert doomed.node_id not in {location.node_id for location in found}, "everyone has moved in time"
            cluster.remove_node(doomed, allow_graceful=False)

    try:
        listener = Listener(
            assembled=teams.append,
            finished_round=finished_round,
            happened=lambda event: events.append(str(event)),
        )
        finished = run(load_config(config_file), Path(run_dir), listener)
        said = {
            "digest": finished.summary["weights_sha256"],
            "events": events,
            "failures": finished.summary["failures"],
        }
        print(json.dumps(said))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
