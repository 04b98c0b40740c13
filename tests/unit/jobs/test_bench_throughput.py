"""A small run of the throughput benchmark: ours, the plain loop and one thread without Ray train the same models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.bench import main

SMALL = ["--width", "4", "--clients", "1", "--batches", "2", "--batch-size", "8", "--rounds", "2"]


@pytest.mark.parametrize(("strategy", "best"), [("averaging", "limit"), ("sequential", "bound")])
def test_all_end_in_the_same_weights(
    strategy: str, best: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "throughput.json"
    assert main(["throughput", *SMALL, "--strategy", strategy, "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    (case,) = result["cases"]
    assert case["weights"]["ours"] == case["weights"][best]
    # Another number of threads adds in another order; where a bias has hardly left zero, that is much of it.
    assert case["weights"]["plain_relative_difference"]["median"] < 0.01
    assert case["samples_per_round"] == 3 * 2 * 8
    assert [each["round"] for each in case["measured"]] == [1, 2]
    assert all(each[f"{name}_s"] > 0 for each in case["measured"] for name in ("ours", "ours_train", "plain", best))
    assert case["ratios"].keys() == {"ours/plain", f"ours/{best}"}
    assert case["ratios"][f"ours/{best}"].keys() == {"median", "low", "high"}
    assert strategy in capsys.readouterr().out
