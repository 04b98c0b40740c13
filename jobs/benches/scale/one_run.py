"""One run of `scale` as a command of its own: says a line about every round."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.benches.common import NEVER
from jobs.benches.scale.bench import EARLY_ROUND, LINE
from jobs.benches.short_run import run_rounds
from jobs.benches.watched import own_pss_mib

if TYPE_CHECKING:
    from hsee_ray.config.schema import Config
    from hsee_ray.method.reports import RoundReport


def configuration(clients: int, slots: int, rounds: int, images: int) -> Config:
    """A small network over clients with a few images each; the last round, which evaluates, is not reached."""
    from hsee_ray.config.schema import Config

    return Config.model_validate(
        {
            "model": {"width": 4},
            "data": {
                "name": "synthetic",
                "train_samples": images * clients,
                "test_samples": 2,
                "image_size": 16,
                "augment": True,
                "calibration_fraction": 0,
            },
            "tiers": [{"name": "device", "clients": clients, "cut": "layer1", "slots": slots}],
            "server": {"slots": slots},
            "training": {"strategy": "averaging", "rounds": rounds + 1, "batch_size": images},
            "evaluation": {"every": NEVER},
            "checkpoint": {"every": NEVER},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("clients", "slots", "rounds", "images"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    options = parser.parse_args()

    def finished(report: RoundReport, first_step_s: float) -> None:
        told = {"number": report.round_number, "end_s": time.monotonic(), "first_step_s": first_step_s}
        if report.round_number in (EARLY_ROUND, options.rounds):
            told["pss_mib"] = own_pss_mib()
        # Looking at the memory is not a part of the next round.
        print(LINE + json.dumps({**told, "resumed_s": time.monotonic()}), flush=True)

    config = configuration(options.clients, options.slots, options.rounds, options.images)
    run_rounds(config, options.run_dir, finished)


if __name__ == "__main__":
    main()
