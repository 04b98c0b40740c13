"""The benchmark of many clients: its arithmetic by hand, one small run, and the picture."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from hsee_ray.errors import ConfigError
from jobs.benches import picture
from jobs.benches.scale import bench as scale


def options(**given: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    scale.add_options(parser)
    return argparse.Namespace(**{**vars(parser.parse_args([])), **given})


def test_figures_by_hand() -> None:
    rounds = [
        {"end_s": 10.0, "resumed_s": 10.0, "first_step_s": 8.0},
        {"end_s": 12.0, "resumed_s": 12.0, "first_step_s": 8.0},
        {"end_s": 15.0, "resumed_s": 16.0, "first_step_s": 8.0, "pss_mib": 100.0},
        {"end_s": 17.0, "resumed_s": 17.0, "first_step_s": 8.0, "pss_mib": 101.0},
    ]
    found = scale.summarised(10, [{"begin_s": 3.0, "peak_mib": 120.0, "rounds": rounds}])
    # 2 s, 3 s, and 1 s after a second's look at the memory
    assert found["ms_per_client_round"] == {"median": 200.0, "low": 150.0, "high": 250.0}
    assert found["start_s"]["median"] == 5.0
    assert (found["early_mib"]["median"], found["late_mib"]["median"]) == (100.0, 101.0)


def test_what_others_print_is_passed_over() -> None:
    assert scale.parse(["[round 1/5] loss", 'scale: {"number": 1}', ""]) == [{"number": 1}]


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(ConfigError, match="--rounds: give at least 4"):
        scale.measure(options(rounds=3))


def test_a_small_run_and_its_picture(tmp_path: Path) -> None:
    result = scale.measure(options(clients=[2, 4], slots=1, rounds=4, images=4))
    assert [case["clients"] for case in result["cases"]] == [2, 4]
    assert all(case["late_mib"]["median"] > 0 for case in result["cases"])
    assert "1 + 1 slots" in scale.render(result)
    picture.draw([{"what": "scale", **result}]).savefig(tmp_path / "scale.png")
    assert (tmp_path / "scale.png").stat().st_size > 1000
