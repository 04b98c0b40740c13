"""A brief training at every cut, in this process: what a plan, which knows nothing of accuracy, leaves open.

The first N rounds of the configuration as it is, with all tiers at the same cut, of a smaller fleet on fewer images:
bounded by CLIENTS, IMAGES and the N that is asked for, whatever the fleet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean

from hsee_ray.config.fleet import with_cuts
from hsee_ray.config.schema import Config
from hsee_ray.data import open_images, prepare
from hsee_ray.method.setup import prepare_run
from hsee_ray.planning.report import Plan
from hsee_ray.reference import Reference

CLIENTS = 2
"""Of each tier, at most."""
IMAGES = 2_000
"""Of training, at most, for all clients together."""
TEST_IMAGES = 1_000


@dataclass(frozen=True)
class Probe:
    """Accuracies after a brief training of every cut."""

    rounds: int
    train_images: int
    test_images: int
    """On which every accuracy was measured."""
    majority_rate: float
    """Accuracy of always answering the most common class of the test images."""
    accuracies: Mapping[str, Mapping[int, tuple[float, float]]]
    """By tier and cut, 1 to L - 1: of its clients' exits and of the server, with everything sent."""


def probe_cuts(config: Config, unit_names: tuple[str, ...], rounds: int, tell: Callable[[str], None]) -> Probe:
    """Trains every cut below L for the configuration's first `rounds` rounds. `tell` hears of each cut.

    Raises DataError when the images are not there, ConfigError when they are too few, RunError when training diverges.
    """
    small = smaller(config, rounds)
    found: dict[str, dict[int, tuple[float, float]]] = {tier.name: {} for tier in config.tiers}
    majority_rate, test_images = 0.0, 0
    for cut, name in enumerate(unit_names[:-1], start=1):
        tell(f"probe: {name}, cut {cut} of {len(unit_names) - 1}, {_rounds(rounds)}")
        setup = prepare_run(with_cuts(small, [cut] * len(small.tiers)))
        *_, last = Reference(setup).run()
        for tier in small.tiers:
            own = [last.evaluation[s.client_id] for s in setup.fleet.clients if s.tier == tier.name]
            exits = fmean(report.client_correct / report.samples for report in own)
            found[tier.name][cut] = exits, fmean((report.server_correct or 0) / report.samples for report in own)
        first = next(iter(last.evaluation.values()))
        test_images, majority_rate = first.samples, max(first.label_counts) / first.samples
    assert small.data.train_samples is not None
    return Probe(rounds, small.data.train_samples, test_images, majority_rate, found)


def smaller(config: Config, rounds: int) -> Config:
    """The configuration of a probe: at most CLIENTS clients a tier, IMAGES and TEST_IMAGES images."""
    files = prepare(config.data)
    counts = {"train_samples": (files.train, IMAGES), "test_samples": (files.test, TEST_IMAGES)}
    sizes = {
        name: min(getattr(config.data, name) or most, len(open_images(path).labels_N), most)
        for name, (path, most) in counts.items()
    }
    # The schedule of the learning rate keeps its own horizon.
    training = config.training.model_copy(update={"rounds": rounds, "clients_per_round": 1.0})
    evaluation = config.evaluation.model_copy(update={"every": rounds, "figures": ()})
    tiers = [tier.model_copy(update={"clients": min(tier.clients, CLIENTS), "slots": None}) for tier in config.tiers]
    update = {"data": config.data.model_copy(update=sizes), "training": training, "evaluation": evaluation}
    return config.model_copy(update={**update, "tiers": tuple(tiers)})


def with_accuracies(plan: Plan, probe: Probe) -> Plan:
    """The plan with the accuracies of a probe beside its cuts."""
    tiers = []
    for tier in plan.tiers:
        of = probe.accuracies[tier.tier]
        rows = [
            replace(row, exit_accuracy=of[row.cut][0], server_accuracy=of[row.cut][1]) if row.cut in of else row
            for row in tier.cuts
        ]
        tiers.append(replace(tier, cuts=tuple(rows)))
    return replace(plan, tiers=tuple(tiers))


def probe_lines(probe: Probe) -> str:
    """What the accuracies are worth, in words."""
    lines = [
        f"exit and server: accuracy of the exits, of the server with everything sent, on {probe.test_images:,} "
        f"test images after {_rounds(probe.rounds)} (--probe), all tiers at that cut, {CLIENTS} clients a tier or "
        f"less, {probe.train_images:,} training images in all; the most common class alone: {probe.majority_rate:.1%}"
    ]
    best = max(share for of in probe.accuracies.values() for pair in of.values() for share in pair)
    if best <= probe.majority_rate:
        lines.append("No cut is better than answering the most common class: it says nothing yet; probe more rounds.")
    return "\n".join(lines)


def _rounds(number: int) -> str:
    return f"{number} round{'' if number == 1 else 's'}"
