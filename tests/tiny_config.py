"""A configuration that trains within a second, with all that a method can do wrong in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def tiny_config(cache: Path) -> dict[str, Any]:
    """Three clients with three cuts, one of them the whole network, on synthetic images."""
    quarter = {"num_cpus": 0.25}
    return {
        "seed": 3,
        "model": {"name": "tests.networks:conv_units"},
        "data": {
            "name": "synthetic",
            "image_size": 8,
            "classes": 3,
            "train_samples": 99,
            "test_samples": 40,
            "augment": True,
            "cache": str(cache),
            "calibration_fraction": 0.1,
            "partition": {"kind": "dirichlet", "alpha": 1.0, "min_samples": 20},
        },
        "tiers": [
            {"name": "sensor", "clients": 1, "cut": "stem", "batch_size": 8, "resources": quarter},
            {"name": "hub", "clients": 1, "cut": "body.1", "resources": quarter},
            {"name": "whole", "clients": 1, "cut": "head", "resources": quarter},
        ],
        "server": {"resources": quarter},
        "training": {"rounds": 3, "batch_size": 16, "optimizer": {"lr": 0.05}},
        "evaluation": {"batch_size": 16, "every": 2},
    }
