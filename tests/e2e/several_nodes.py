"""A run on four nodes of one machine: who is where, and which way features go. Run by test_several_nodes.py."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.cluster_utils import Cluster

from actors.run.driver import run
from actors.run.pieces import Piece
from actors.run.stages import TrainingStage
from actors.run.team import Team
from hsee_ray.config.files import load_config
from hsee_ray.method.legs import Leg
from hsee_ray.training.listener import Listener

NODES = ("sensor", "gateway", "server")


def main(config_file: str, run_dir: str) -> None:
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for name in NODES:
        cluster.add_node(num_cpus=4, resources={name: 8}, labels={"kind": name})
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    names = {node["NodeID"]: next((n for n in NODES if n in node["Resources"]), "head") for node in ray.nodes()}
    teams: list[Team] = []
    features: list[tuple[int, ObjectRef[Any]]] = []
    paths: set[tuple[int, tuple[str, ...]]] = set()
    submit = TrainingStage.submit

    def recorded(stage: TrainingStage, piece: Piece, leg: Leg, payload: ObjectRef[Any] | None, *ends: bool) -> Any:
        if payload is not None:
            features.append((piece.work.client_id, payload))
        return submit(stage, piece, leg, payload, *ends)

    TrainingStage.submit = recorded  # type: ignore[method-assign]
    where: dict[str, str] = {}

    def finished_round(report: Any, cost: object) -> None:
        """All features of the round have been where they were to go."""
        found = ray.experimental.get_object_locations([ref for _, ref in features])
        paths.update(
            (client, tuple(sorted(names[node] for node in found[ref]["node_ids"]))) for client, ref in features
        )
        features.clear()
        team = teams[0]
        present = ray.get([team.locations[member] for member in team.models], timeout=60)
        where.update({team.label(member): names[one.node_id] for member, one in zip(team.models, present, strict=True)})

    try:
        listener = Listener(assembled=teams.append, finished_round=finished_round)
        finished = run(load_config(config_file), Path(run_dir), listener)
        digest = finished.summary["weights_sha256"]
        print(json.dumps({"digest": digest, "where": where, "paths": sorted(paths)}))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
