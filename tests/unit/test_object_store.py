"""What shipped configs keep in Ray's object store fits there, so that nothing is written to disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.cluster.connection import ClusterContext
from actors.cluster.doctor import SPILLS_AT, object_store_bytes
from actors.cluster.slots import plan_slots
from hsee_ray.backbones import build_backbone, feature_shapes
from hsee_ray.config.files import load_config
from hsee_ray.data.known import known_shape
from hsee_ray.method.strategies import build_fleet

STORE_BYTES = int(0.3 * (16 << 30))
"""Of a machine with 16 GiB: Ray takes 30 % of the memory."""
CORES = 8
SHIPPED = sorted(file for file in Path("jobs/configs").glob("*.yaml") if not file.stem.startswith("cluster_"))
"""Those of a cluster have the stores of many nodes, and `hsee doctor` to hold them against."""


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_config_fits(file: Path) -> None:
    config = load_config(file)
    # The planner's choice is not known here; features are largest after the first stage.
    automatic = [f"tiers.{n}.cut=layer1" for n, tier in enumerate(config.tiers) if tier.cut == "auto"]
    config = load_config(file, automatic)
    shape = known_shape(config.data) or (32, 32, 3)
    backbone = build_backbone(config.model, shape, 10, config.seed)
    fleet = build_fleet(config, tuple(backbone.units))
    context = ClusterContext(True, plan_slots(config, fleet, None, CORES), CORES, CORES)
    needed = object_store_bytes(config, fleet, context, feature_shapes(backbone, shape), backbone)
    assert needed <= SPILLS_AT * STORE_BYTES
