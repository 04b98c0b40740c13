"""The timeline's file: what Perfetto needs of it, and that nothing stands there twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hsee_ray.config.files import load_config
from hsee_ray.method.strategies import build_fleet
from hsee_ray.simulation.model import Span
from hsee_ray.simulation.prediction import RoundCost
from hsee_ray.simulation.timeline import Timeline

TIERS = [{"name": "sensor", "clients": 2, "cut": "stem"}]
FLEET = build_fleet(load_config({"tiers": TIERS}), ["stem", "head"])
COST = RoundCost(
    train_s=3.0,
    exchange_s=1.0,
    evaluation_s=2.0,
    fleet=FLEET,
    clients={},
    spans=(
        Span(0, "compute", 0.0, 1.0, 0),
        Span(0, "upload", 1.0, 2.0, 0),
        Span(0, "server", 2.0, 3.0, 0),
        Span(1, "exchange", 3.0, 4.0),
    ),
    evaluation_spans=(Span(0, "compute", 0.0, 2.0, 0),),
)


def timeline_of(path: Path, done_rounds: int = 0, wall_s: float = 0.0, shared_server: bool = False) -> Timeline:
    return Timeline(path, 2, done_rounds, wall_s, shared_server)


def work(timeline: Timeline, round_number: int, begin_s: float, actor: str = "client 000") -> None:
    """A call that takes half a second, from that second of the run on."""
    begin_s += timeline.zero_s
    timeline.worked(actor, actor, "train", round_number, begin_s, begin_s + 0.5)


def rows(path: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Complete events by process and row; checks what the format asks for."""
    content = json.loads(path.read_text())
    assert set(content) == {"traceEvents", "displayTimeUnit"}
    names: dict[tuple[str, int, int], str] = {}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    last = 0.0
    for event in content["traceEvents"]:
        assert {"ph", "pid", "tid", "name", "args"} <= set(event)
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "M":
            key = (event["name"], event["pid"], event["tid"])
            assert key not in names
            names[key] = event["args"].get("name")
            continue
        assert event["ph"] == "X" and event["ts"] >= last and event["dur"] >= 0
        last = event["ts"]
        where = names["process_name", event["pid"], 0], names["thread_name", event["pid"], event["tid"]]
        found.setdefault(where, []).append(event)
    return found


def test_real_and_simulated_rows(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    timeline = timeline_of(path)
    work(timeline, 1, 2.0, "server 000")
    work(timeline, 1, 1.0)
    timeline.simulated(1, 10.0, COST)
    timeline.write()
    found = rows(path)
    assert [row for process, row in found if process == "real"] == ["client 000", "server 000"]
    event = found["real", "client 000"][0]
    assert (event["ts"], event["dur"]) == (pytest.approx(1e6), pytest.approx(5e5))
    assert event["args"] == {"round": 1, "model": "client 000"}
    simulated = {row: [(e["name"], e["ts"], e["dur"]) for e in each] for (_, row), each in found.items() if each}
    # The round begins at 10 s, its evaluation when training and exchange are over, at 14 s.
    own = [(e["name"], e["ts"], e["dur"], e["args"]["stage"]) for e in found["simulated", "client 000"]]
    assert own == [("compute", 10e6, 1e6, "train"), ("compute", 14e6, 2e6, "evaluate")]
    assert simulated["client 000 link"] == [("upload", 11e6, 1e6)]
    assert simulated["client 001 link"] == [("exchange", 13e6, 1e6)]
    assert found["simulated", "server 000"][0]["name"] == "server"


def test_rows_of_a_client_stand_together(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    timeline = timeline_of(path)
    for actor in ("aggregator", "server 001", "client 001", "server 000", "client 000"):
        work(timeline, 1, 1.0, actor)
    timeline.write()
    content = json.loads(path.read_text())["traceEvents"]
    order = {e["args"]["name"]: e["tid"] for e in content if e["name"] == "thread_name"}
    assert sorted(order, key=order.__getitem__) == [
        "client 000", "server 000", "client 001", "server 001", "aggregator"
    ]  # fmt: skip


def test_the_shared_server_has_one_row(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    timeline = timeline_of(path, shared_server=True)
    timeline.simulated(1, 0.0, COST)
    timeline.write()
    assert ("simulated", "shared server") in rows(path)


def test_only_the_first_rounds(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    timeline = timeline_of(path)
    work(timeline, 2, 1.0)
    work(timeline, 3, 2.0)
    timeline.simulated(3, 9.0, COST)
    timeline.write()
    assert [len(events) for events in rows(path).values()] == [1]
    Timeline(tmp_path / "none.json", 0, 0, 0.0, False).write()
    assert not (tmp_path / "none.json").exists()


def test_rounds_that_are_done_again_stand_there_once(tmp_path: Path) -> None:
    """Two rounds, of which the checkpoint has one: after a resume, round 2 is the new one, later than before."""
    path = tmp_path / "timeline.json"
    first = timeline_of(path)
    work(first, 1, 1.0)
    work(first, 2, 2.0)
    first.simulated(2, 6.0, COST)
    first.write()
    resumed = timeline_of(path, done_rounds=1, wall_s=1.75)
    work(resumed, 2, 3.0)
    resumed.simulated(2, 6.0, COST)
    resumed.write()
    found = rows(path)
    real = [(event["args"]["round"], event["ts"]) for event in found["real", "client 000"]]
    assert real == [(1, pytest.approx(1e6)), (2, pytest.approx(3e6))]
    assert len(found["simulated", "client 000"]) == 2


def test_a_file_that_somebody_has_spoilt_stops_no_run(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    path.write_text("{}")
    timeline = timeline_of(path, done_rounds=1)
    work(timeline, 2, 1.0)
    timeline.write()
    assert len(rows(path)) == 1
