"""A run on several nodes of one machine, one of which is lost in the middle: run by test_node_loss.py."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from actors.run.driver import run
from hsee_ray.config.files import load_config
from hsee_ray.training.listener import Event, Listener


def main(config_file: str, run_dir: str, lose_in_round: int) -> None:
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "resources": {"head": 1}})
    cluster.add_node(num_cpus=4, resources={"stays": 4})
    doomed = cluster.add_node(num_cpus=4, resources={"goes": 4})
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    state = {"round": 0, "lost": 0}
    events: list[str] = []

    def entered(round_number: int, stage: str) -> None:
        if stage == "train":
            state["round"] = round_number

    def trained(samples: int) -> None:
        if state["round"] == lose_in_round and not state["lost"]:
            state["lost"] = lose_in_round
            cluster.remove_node(doomed, allow_graceful=False)
            cluster.add_node(num_cpus=4, resources={"goes": 4})

    def happened(event: Event) -> None:
        events.append(str(event))

    try:
        listener = Listener(entered=entered, trained=trained, happened=happened)
        finished = run(load_config(config_file), Path(run_dir), listener)
        print(json.dumps({"digest": finished.summary["weights_sha256"], "events": events, "lost": state["lost"]}))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
