"""A run over actors ends in the bits of the one-process reference, whatever the options."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from actors.run.driver import run
from actors.workers.contract import ActorFactory
from hsee_ray.config.files import load_config
from hsee_ray.method.setup import prepare_run
from hsee_ray.reference import Reference

STRATEGIES: dict[str, dict[str, Any]] = {
    "sequential": {"training.strategy": "sequential"},
    "round_robin": {"training.strategy": "sequential", "training.interleave": "batch"},
    "averaging": {"training.strategy": "averaging"},
    "averaging_every_2": {"training.strategy": "averaging", "training.aggregate_every": 2},
}
OPTIONS: dict[str, list[Any]] = {
    "strategy": list(STRATEGIES),
    "training.aggregate": ["all", "both", "server"],
    "training.norm_statistics": ["per_client", "shared"],
    "training.aggregate_weights": ["uniform", "samples"],
    "training.optimizer_state": ["local", "average", "reset"],
    "training.optimizer.name": ["sgd", "adamw"],
    "training.clients_per_round": [1.0, 0.67],
    "training.order": ["listed", "shuffled"],
    "training.memory_format": ["channels_last", "contiguous"],
    "pipeline.max_in_flight": [1, 8],
}


def pairwise(options: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Rows in which every two values of different options stand together at least once; greedy, deterministic."""
    names = list(options)
    missing = {
        (a, x, b, y) for a, b in combinations(names, 2) for x in range(len(options[a])) for y in range(len(options[b]))
    }
    rows: list[dict[str, Any]] = []
    while missing:
        a, x, b, y = min(missing)
        chosen = {a: x, b: y}
        for name in names:
            if name not in chosen:
                chosen[name] = max(
                    range(len(options[name])),
                    key=lambda value: len(_pairs({**chosen, name: value}, names) & missing),
                )
        missing -= _pairs(chosen, names)
        rows.append({name: options[name][chosen[name]] for name in names})
    return rows


def _pairs(chosen: dict[str, int], names: list[str]) -> set[tuple[str, int, str, int]]:
    return {(a, chosen[a], b, chosen[b]) for a, b in combinations(names, 2) if a in chosen and b in chosen}


SMOKE = [{"strategy": "averaging"}, {"strategy": "sequential"}, {"training.strategy": "distributed"}]
CASES = [
    *(pytest.param(case, marks=pytest.mark.smoke) for case in SMOKE),
    *pairwise(OPTIONS),
    {"training.strategy": "distributed", "training.clients_per_round": 0.34, "training.local_epochs": 2},
    pytest.param({"training.strategy": "centralized", "training.local_steps": 3}, marks=pytest.mark.smoke),
    {"training.strategy": "depthfl", "training.norm_statistics": "shared", "training.clients_per_round": 0.67},
    {"training.strategy": "averaging", "training.autocast": "bfloat16", "cluster.placement": "spread"},
    {"training.strategy": "averaging", "cluster.placement": "colocate"},
    {"training.strategy": "averaging", "tiers.0.codec": "int8", "tiers.1.codec": "fp16"},
    {"training.strategy": "sequential", "tiers.0.codec": "fp16", "tiers.1.codec": "int8"},
]


def _id(case: dict[str, Any]) -> str:
    return "-".join(str(value) for value in case.values())


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_run_over_actors_equals_reference(
    case: dict[str, Any], tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    settings = {key: value for key, value in case.items() if key != "strategy"}
    settings.update(STRATEGIES.get(case.get("strategy", ""), {}))
    config = load_config(tiny, [f"{key}={value}" for key, value in settings.items()])

    finished = run(config, tmp_path / "run", create=warm_actors)

    reference = Reference(prepare_run(config))
    reports = list(reference.run())
    assert finished.summary["weights_sha256"] == reference.digest()
    last = reports[-1].evaluation
    for client in finished.summary["clients"]:
        number = 0 if client["id"] == "central" else client["id"]
        assert client["client_accuracy"] == last[number].client_correct / last[number].samples
        if last[number].server_correct is None:
            assert client["server_accuracy"] is None
        else:
            assert client["server_accuracy"] == last[number].server_correct / last[number].samples
    losses = {
        (row["round"], row["client"]): row["value"]
        for row in finished.metrics.to_pylist()
        if row["metric"] == "server_loss"
    }
    assert losses == {
        (report.round_number, number): trained.mean_loss
        for report in reports
        for number, trained in report.server_training.items()
    }


def test_pairs_are_all_there() -> None:
    rows = pairwise({"a": [1, 2], "b": [1, 2, 3], "c": [1, 2]})
    for first, second in combinations("abc", 2):
        values = {(row[first], row[second]) for row in rows}
        assert len(values) == (6 if "b" in (first, second) else 4)
