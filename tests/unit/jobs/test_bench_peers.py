"""The pure parts of `python -m jobs.bench peers`: what a side says, the figures of a run, and the table."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest

from hsee_ray.errors import RunError
from jobs.benches.peers import bench as peers
from jobs.benches.peers import flower_app
from jobs.benches.peers.bench import Measured, Round
from jobs.benches.watched import pss_mib


def line(**told: object) -> str:
    return flower_app.LINE + json.dumps(told)


def told(number: int, first_call_s: float, end_s: float, clients: int = 2, work_s: float = 0.0) -> str:
    return line(number=number, first_call_s=first_call_s, end_s=end_s, clients=clients, work_s=work_s)


def test_a_sides_lines_are_found_among_its_log_in_the_order_of_rounds() -> None:
    output = ["INFO: [ROUND 1/2]", line(versions={"ray": "2"}), told(2, 11, 12), "", told(1, 8, 9), "peers: 3"]
    rounds, versions = peers.parse(output)
    assert [each.number for each in rounds] == [1, 2]
    assert rounds[0] == Round(number=1, first_call_s=8, end_s=9, clients=2, work_s=0.0)
    assert versions == {"ray": "2"}


def test_both_sides_of_the_pipe_know_a_line_by_the_same_mark(capsys: pytest.CaptureFixture[str]) -> None:
    flower_app.tell(versions={"numpy": "2"})
    assert peers.parse(capsys.readouterr().out.splitlines()) == ([], {"numpy": "2"})


def test_the_first_round_is_start_up_and_work_is_no_overhead() -> None:
    rounds = [Round(1, 13.0, 14.0, 10, 0.0), Round(2, 14.1, 15.0, 10, 0.8), Round(3, 15.1, 16.5, 10, 1.0)]
    found = peers.measured(rounds, begin_s=10.0, slots=2, peak_mib=700.0)
    assert (found.start_s, found.round_s, found.peak_mib) == (3.0, (1.0, 1.5), 700.0)
    # (1 s - 0.8 s / 2) / 10 clients, and (1.5 s - 1 s / 2) / 10 clients
    assert found.overhead_ms == pytest.approx((60.0, 100.0))


def summary() -> peers.Result:
    flower = [Measured(6.0, (1.0, 3.0), (10.0, 30.0), 700.0), Measured(8.0, (2.0, 2.0), (20.0, 20.0), 710.0)]
    ours = [Measured(4.0, (1.0, 1.0), (10.0, 10.0), 500.0), Measured(5.0, (0.5, 0.5), (5.0, 5.0), 540.0)]
    return peers.summarised({"flower": flower, "ours": ours})


def test_spreads_are_over_all_rounds_and_ratios_of_runs_beside_each_other() -> None:
    case = summary()
    assert case["sides"]["flower"]["round_s"] == {"median": 2.0, "low": 1.75, "high": 2.25}
    assert case["sides"]["ours"]["peak_mib"]["median"] == 520.0
    assert case["overhead_ratio"] == {"median": 3.0, "low": 2.5, "high": 3.5}, "20 over 10, and 20 over 5"


def test_the_table_has_a_line_for_each_side_and_tells_versions() -> None:
    versions = {"flower": {"flwr": "1.41.0", "ray": "2.55.1"}, "ours": {"ray": "2.60.0"}}
    result = {"slots": 2, "versions": versions, "cases": [{"clients": 10, "work": "noop", **summary()}]}
    table = peers.render(json.loads(json.dumps(result))).splitlines()
    assert table[0].split()[:2] == ["clients", "work"]
    assert [table[2].split()[:3], table[3].split()[:3]] == [["10", "noop", "Flower"], ["10", "noop", "hsee-ray"]]
    assert "3.00 (2.50 to 3.50)" in table[3] and "3.00 (2.50" not in table[2]
    assert table[-1] == "Flower's side: flwr 1.41.0, ray 2.55.1"


def test_flowers_side_needs_nothing_of_ours_and_flower_only_where_it_is_used() -> None:
    tree = ast.parse(Path(flower_app.__file__).read_text(encoding="utf-8"))
    names = {name for node in ast.walk(tree) for name in _imported(node)}
    assert not names & {"hsee_ray", "actors", "jobs"}
    at_the_top = {name for node in tree.body for name in _imported(node)}
    assert "flwr" not in at_the_top


def _imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.ImportFrom):
        return {str(node.module).partition(".")[0]}
    return {alias.name.partition(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()


def test_the_tiny_client_works_and_the_other_one_does_not() -> None:
    assert flower_app.worked_s("tiny") > flower_app.worked_s("noop") >= 0


def test_a_process_has_memory_and_one_that_is_gone_has_none() -> None:
    assert pss_mib([os.getpid(), 2**30]) > 1


def test_an_environment_that_is_there_is_used_as_it_is(tmp_path: Path) -> None:
    place = tmp_path / "flower"
    place.mkdir()
    (place / "installed").write_text(peers.REQUIREMENT)
    assert peers.peer_python(tmp_path) == place / "bin" / "python"


def test_a_side_that_fails_says_so_with_the_end_of_its_log() -> None:
    def command(what: list[str], scratch: Path) -> list[str]:
        return ["sh", "-c", "echo no room; exit 3"]

    with pytest.raises(RunError, match=r"theirs: exit code 3: no room"):
        peers.run_side("theirs", command, clients=2, work="noop", rounds=3, slots=1)


def test_a_round_without_all_clients_is_no_figure() -> None:
    def command(what: list[str], scratch: Path) -> list[str]:
        return ["printf", f"{told(1, 1, 2)}\n{told(2, 2, 3, clients=1)}\n{told(3, 3, 4)}\n"]

    with pytest.raises(RunError, match="theirs: 3 rounds of 2 clients were asked for"):
        peers.run_side("theirs", command, clients=2, work="noop", rounds=3, slots=1)
