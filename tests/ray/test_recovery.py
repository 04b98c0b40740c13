"""Actors that die, hang or find no place: the run ends in the bits of the undisturbed one, or says why not."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Container
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.run.driver import resume, run
from actors.run.team import Team, create_actor
from actors.workers.contract import ActorFactory
from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import ModelId
from hsee_ray.config.schema import Config
from hsee_ray.errors import ConfigError, DataError, Interrupted, RunError
from hsee_ray.evaluation.calibration import CALIBRATION_FILE, Calibration, calibration_of, save_calibration
from hsee_ray.method.reports import RoundReport
from hsee_ray.method.setup import prepare_run
from hsee_ray.reference import Reference
from hsee_ray.rundir.checkpoint import committed_rounds
from hsee_ray.rundir.failures import Action, Decision, Failure, decide
from hsee_ray.rundir.location import RunLocation
from hsee_ray.rundir.run import Run, load_run
from hsee_ray.storage import Storage
from hsee_ray.training import begin
from hsee_ray.training.in_process import in_process
from hsee_ray.training.interrupt import StopRequest
from hsee_ray.training.listener import Event, Listener
from jobs.chaos import Fault, FaultInjector
from tests.tiny_data import encode_png, make_images, write_folder

STRATEGIES = {
    "averaging": ["training.aggregate_every=2", "training.optimizer_state=average"],
    "sequential": ["training.strategy=sequential", "training.optimizer_state=reset"],
    "round_robin": ["training.strategy=sequential", "training.interleave=batch", "training.norm_statistics=shared"],
    "distributed": ["training.strategy=distributed", "training.clients_per_round=0.67"],
}


def reference_digest(config: Config) -> str:
    reference = Reference(prepare_run(config))
    for _ in reference.run():
        pass
    return reference.digest()


def kills(*faults: tuple[int, str, str]) -> FaultInjector:
    return FaultInjector([Fault(number, stage, 0.0, False, target) for number, stage, target in faults], seed=1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_kills_at_every_stage_change_no_bit(
    strategy: str, tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    config = load_config(tiny, [*STRATEGIES[strategy], "checkpoint.every=2", "failures.max_per_actor=9"])
    injector = kills(
        (0, "start", "client"),
        (1, "train", "client"),
        (1, "train", "server"),
        (2, "aggregate", "client"),
        (2, "aggregate", "aggregator"),
        (2, "evaluate", "server"),
        (2, "checkpoint", "client"),
        (3, "train", "server"),
        (3, "train", "client"),
        (3, "evaluate", "client"),
        (3, "save", "server"),
    )
    finished = run(config, tmp_path / "run", injector.listener(), create=warm_actors)

    assert finished.summary["weights_sha256"] == reference_digest(config)
    assert len(injector.hits) >= 7
    assert sum(finished.summary["failures"].values()) >= 4
    rounds = [row["round"] for row in finished.metrics.to_pylist() if row["metric"] == "wall_s"]
    assert rounds == [1, 2, 3]


@pytest.mark.parametrize(("every", "where"), [(1, "round 1"), (100, "the beginning")])
def test_a_lost_state_takes_the_run_back(
    every: int,
    where: str,
    tiny: dict[str, Any],
    warm_actors: ActorFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when a snapshot has gone with its node: the decision is put in the place of the real one, once."""
    config = load_config(
        tiny, [f"checkpoint.every={every}", "training.strategy=sequential", "training.interleave=batch"]
    )
    injector = kills((2, "train", "client"))
    went_back: list[Failure] = []

    def decide_to_go_back(failure: Failure, *policy: Any) -> Decision:
        if went_back:
            return decide(failure, *policy)
        went_back.append(failure)
        return Decision(Action.GO_BACK, "lost", counts=True)

    monkeypatch.setattr("actors.run.recovery.decide", decide_to_go_back)
    events: list[Event] = []
    listener = Listener(assembled=injector.assembled, entered=injector.entered, happened=events.append)
    finished = run(config, tmp_path / "run", listener, create=warm_actors)

    assert f"goes back to {where}" in [event.text for event in events]
    assert finished.summary["weights_sha256"] == reference_digest(config)
    check_each_round_once(finished, 3)


def test_an_actor_that_hangs_is_replaced(tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path) -> None:
    config = load_config(tiny, ["failures.step_timeout_s=4"])
    injector = FaultInjector([Fault(2, "train", 0.0, True, "server")], seed=0)
    events: list[Event] = []
    injector.happened = events.append  # type: ignore[method-assign]
    finished = run(config, tmp_path / "run", injector.listener(), create=warm_actors)

    assert finished.summary["weights_sha256"] == reference_digest(config)
    (hit,) = injector.hits
    assert hit.fault.stops
    assert (events[0].who, events[0].text.split(";")[0]) == (hit.who, "no answer within 4 s")


def test_a_spent_budget_ends_the_run_with_a_checkpoint_that_can_be_resumed(
    tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    config = load_config(tiny, ["failures.max_per_actor=0", "checkpoint.every=100"])
    injector = kills((2, "train", "client"))
    with pytest.raises(
        RunError, match=r"client 00\d failed in round 2 while it did `train`: .*max_per_actor=0"
    ) as told:
        run(config, tmp_path / "run", injector.listener(), create=warm_actors)
    assert injector.hits[0].who in str(told.value)
    assert committed_rounds(Storage.at(str(tmp_path / "run" / "checkpoints"))) == [1]

    finished = resume(tmp_path / "run", ["failures.max_per_actor=1"], create=warm_actors)
    assert finished.summary["weights_sha256"] == reference_digest(config)
    assert not (tmp_path / "run" / "error.log").exists()


@pytest.mark.parametrize(("grace_s", "kept"), [(60.0, 2), (0.0, 1)])
def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint(
    grace_s: float, kept: int, tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    """With time, at the end of the running round; without, of the last whole one."""
    config = load_config(tiny, [f"checkpoint.grace_s={grace_s}", "training.strategy=sequential"])
    stop = StopRequest()

    def entered(round_number: int, stage: str) -> None:
        if (round_number, stage) == (2, "train"):
            assert stop.ask(signal.SIGTERM)
            assert not stop.ask(signal.SIGTERM)

    with pytest.raises(Interrupted, match=f"round {kept} is in a checkpoint, continue with --resume"):
        run(config, tmp_path / "run", Listener(entered=entered), stop, create=warm_actors)
    assert committed_rounds(Storage.at(str(tmp_path / "run" / "checkpoints"))) == [kept]

    started: list[int] = []
    finished = resume(
        tmp_path / "run", [], Listener(started=lambda setup, done: started.append(done)), create=warm_actors
    )
    assert started == [kept]
    assert finished.summary["weights_sha256"] == reference_digest(config)
    assert [row["round"] for row in finished.metrics.to_pylist() if row["metric"] == "wall_s"] == [1, 2, 3]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_goes_on_where_it_was_not_begun(
    strategy: str, tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    """Over actors, then in this process, then over actors again."""
    config = load_config(tiny, STRATEGIES[strategy])
    place, stop = tmp_path / "run", StopRequest()
    with pytest.raises(Interrupted):
        run(config, place, Listener(entered=lambda number, stage: stop.ask(15)), stop, create=warm_actors)
    stop = StopRequest()
    with pytest.raises(Interrupted, match="round 2 is in a checkpoint"):
        begin.resume(place, in_process, [], Listener(entered=lambda number, stage: stop.ask(15)), stop)
    assert resume(place, create=warm_actors).summary["weights_sha256"] == reference_digest(config)


def test_a_client_without_a_place_is_left_out_and_comes_back(
    tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    config = load_config(
        tiny,
        [
            "failures.on_lost_client=drop",
            "failures.step_timeout_s=30",
            "cluster.placement_timeout_s=3",
            "training.rounds=4",
        ],
    )
    teams: list[Team] = []
    refused: list[Any] = []

    def sometimes_nowhere(actor_class: type, place: Any, *args: Any, **kwargs: Any) -> Any:
        """Once, a replaced client asks for what no node has."""
        if teams and actor_class.__name__ == "ClientActor" and not refused:
            refused.append(args)
            return create_actor(actor_class, {**place, "resources": {"nowhere": 1.0}}, *args, **kwargs)
        return warm_actors(actor_class, place, *args, **kwargs)

    injector = kills((2, "train", "client"))
    events: list[Event] = []

    def assembled(team: Team) -> None:
        teams.append(team)
        injector.assembled(team)

    def finished_round(report: RoundReport, cost: object) -> None:
        if report.round_number == 2:  # by the next round the client has found a place
            (victim,) = report.missing
            ready, _ = ray.wait([teams[0].locations[ModelId("client", victim)]], timeout=60, fetch_local=False)
            assert ready

    listener = Listener(
        assembled=assembled, entered=injector.entered, happened=events.append, finished_round=finished_round
    )
    finished = run(config, tmp_path / "run", listener, create=sometimes_nowhere)

    (hit,) = injector.hits
    number = int(hit.who.removeprefix("client "))
    assert finished.summary["clients"][number]["missed_rounds"] == [2]
    texts = [event.text for event in events if event.who == hit.who]
    assert len(texts) == 3, texts
    assert texts[0].startswith("its process died")
    assert "go on without the client" in texts[1]
    assert texts[2] == "takes part again"
    rows = finished.metrics.to_pylist()
    assert [row["round"] for row in rows if row["metric"] == "missing"] == [2]
    assert [row["round"] for row in rows if row["metric"] == "client_loss" and row["client"] == number] == [1, 3, 4]


class Crash(BaseException):
    """As SIGKILL: nobody handles it."""


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "rounds-000001-000002.parquet",
        "progress.json",
        "manifest.json",
        "metrics.parquet",
        "summary.json",
    ],
)
def test_a_driver_that_ends_before_any_of_its_files_is_there(
    name: str,
    tiny: dict[str, Any],
    warm_actors: ActorFactory,
    warm_pool: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load_config(tiny, ["checkpoint.every=2", "checkpoint.keep=1"])
    replace = os.replace

    def crashing(source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise Crash
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr("hsee_ray.storage.os.replace", crashing)
        run(config, tmp_path / "run", create=warm_actors)
    warm_pool.take_back()

    finished = (
        run(config, tmp_path / "run", create=warm_actors)
        if name == "config.yaml"
        else resume(tmp_path / "run", create=warm_actors)
    )
    assert finished.summary["weights_sha256"] == reference_digest(config)
    check_each_round_once(finished, 3)
    assert committed_rounds(Storage.at(str(tmp_path / "run" / "checkpoints"))) == [3]


def test_a_run_at_a_uri_goes_on_there_and_leaves_nothing_half(
    tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    uri = f"file://{tmp_path}/store/night-1"
    config = load_config(tiny, ["training.rounds=4", "checkpoint.every=2"])
    seen: list[list[str]] = []

    def after(report: RoundReport, cost: object) -> None:
        seen.append(Storage.at(uri).files("tensorboard"))
        if report.round_number == 3:
            raise RunError("ended here")

    kept_and_where = f"round 3 is in a checkpoint, continue with --resume {uri}; the traceback is in {uri}/error.log"
    with pytest.raises(RunError, match=f"ended here; {kept_and_where}"):
        run(config, uri, Listener(finished_round=after), create=warm_actors)
    kept = tmp_path / "store" / "night-1"
    assert "ended here" in (kept / "error.log").read_text()
    assert len(seen[2]) == 1, "curves are there while the run goes on"
    with pytest.raises(ConfigError, match=f"holds a run already; continue that with --resume {uri}"):
        run(config, uri, create=warm_actors)

    resume(uri, create=warm_actors)

    finished = load_run(kept)
    assert finished.summary["weights_sha256"] == reference_digest(config)
    finished.models.check()
    check_each_round_once(finished, 4)
    assert not (kept / "error.log").exists()
    assert {path.name for path in kept.iterdir()} == {
        ".owner",
        "checkpoints",
        "class_counts.png",
        "config.yaml",
        "curves.png",
        "final",
        "metrics",
        "metrics.parquet",
        "summary.json",
        "tensorboard",
        "timeline.json",
    }


def test_a_run_that_another_process_has_taken_over_ends(
    tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    uri = f"file://{tmp_path}/store/night-1"
    config = load_config(tiny, ["training.rounds=3", "checkpoint.every=1"])

    def after(report: RoundReport, cost: object) -> None:
        RunLocation(uri).claim()

    with pytest.raises(RunError, match="another process has taken this run over"):
        run(config, uri, Listener(finished_round=after), create=warm_actors)


def test_more_rounds_continue_a_finished_run(tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path) -> None:
    config = load_config(tiny, ["training.rounds=2", "training.lr_schedule={name: cosine, horizon_rounds: 5}"])
    first = run(config, tmp_path / "run", create=warm_actors)
    assert first.summary["weights_sha256"] == reference_digest(config)

    events: list[Event] = []
    again = resume(tmp_path / "run", [], Listener(happened=events.append), create=warm_actors)
    assert again.summary == first.summary
    assert [event.text for event in events] == ["has finished, nothing is left to do"]

    save_calibration(first.path, Calibration("offload<=1", "entropy", first.summary["weights_sha256"], {}))
    assert calibration_of(load_run(first.path)) is not None
    assert calibration_of(resume(tmp_path / "run", create=warm_actors)) is not None, "nothing was trained"
    longer = resume(tmp_path / "run", ["training.rounds=4"], create=warm_actors)
    assert calibration_of(longer) is None and not (first.path / CALIBRATION_FILE).exists()
    wanted = load_config(tiny, ["training.rounds=4", "training.lr_schedule={name: cosine, horizon_rounds: 5}"])
    assert longer.summary["weights_sha256"] == reference_digest(wanted)
    assert longer.summary["rounds"] == 4
    check_each_round_once(longer, 4)


def check_each_round_once(finished: Run, rounds: int) -> None:
    """In the metrics and in the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert [row["round"] for row in finished.metrics.to_pylist() if row["metric"] == "wall_s"] == [
        *range(1, rounds + 1)
    ]
    events = EventAccumulator(str(finished.path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("round/wall_s")] == [*range(1, rounds + 1)]


def drop_config(tiny: dict[str, Any], *overrides: str) -> Config:
    """Two tiers, one of them of two clients, which do without whoever has no place."""
    tiers = [{**tiny["tiers"][0], "clients": 2}, tiny["tiers"][1]]
    return load_config(
        {**tiny, "tiers": tiers},
        [
            "failures.on_lost_client=drop",
            "failures.step_timeout_s=30",
            "cluster.placement_timeout_s=3",
            "training.rounds=4",
            *overrides,
        ],
    )


class Nowhere:
    """A factory under which replaced clients ask for what no node has, until it is told to `end`."""

    def __init__(self, create: ActorFactory, who: Container[int]) -> None:
        self.create = create
        self.who = who
        self.ready = self.over = False
        self.refused: list[int] = []

    def __call__(self, actor_class: type, place: Any, *args: Any, **kwargs: Any) -> Any:
        if self.ready and not self.over and actor_class.__name__ == "ClientActor" and args[1] in self.who:
            self.refused.append(args[1])
            return create_actor(actor_class, {**place, "resources": {"nowhere": 1.0}}, *args, **kwargs)
        return self.create(actor_class, place, *args, **kwargs)


@pytest.mark.parametrize("aggregate_every", [1, 2])
def test_a_lost_client_is_out_alone_and_stalls_no_round_of_its_tier(
    aggregate_every: int, tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    """Its neighbour in the tier is there all the time, and says nothing about whether it has a place."""
    config = drop_config(tiny, f"training.aggregate_every={aggregate_every}")
    nowhere = Nowhere(warm_actors, {0})
    events: list[Event] = []
    missing: list[tuple[int, ...]] = []

    def entered(round_number: int, stage: str) -> None:
        if (round_number, stage) == (2, "train") and not nowhere.ready:
            nowhere.ready = True
            ray.kill(teams[0].actors[ModelId("client", 0)])

    teams: list[Team] = []
    listener = Listener(
        assembled=teams.append,
        entered=entered,
        happened=events.append,
        finished_round=lambda report, cost: missing.append(report.missing),
    )
    run(config, tmp_path / "run", listener, create=nowhere)
    assert missing == [(), (0,), (0,), (0,)]
    texts = [event.text for event in events if event.who.startswith("client")]
    assert len(texts) == 2 and "died" in texts[0] and "go on without the client" in texts[1], texts
    assert nowhere.refused == [0, 0], "replaced once, and left out with an actor that goes on waiting"


def test_a_run_with_nobody_left_waits_and_then_fails(
    tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    config = drop_config(tiny)
    nowhere = Nowhere(warm_actors, range(3))
    teams: list[Team] = []

    def entered(round_number: int, stage: str) -> None:
        if (round_number, stage) == (2, "train") and not nowhere.ready:
            nowhere.ready = True
            for client_id in range(3):
                ray.kill(teams[0].actors[ModelId("client", client_id)])

    with pytest.raises(RunError, match="round 2: none of its 3 clients has had a place within 3 s"):
        run(config, tmp_path / "run", Listener(assembled=teams.append, entered=entered), create=nowhere)
    assert committed_rounds(Storage.at(str(tmp_path / "run" / "checkpoints"))) == [1]


def test_a_run_with_nobody_left_goes_on_when_somebody_comes_back(
    tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    config = drop_config(tiny, "cluster.placement_timeout_s=6")
    nowhere = Nowhere(warm_actors, range(3))
    teams: list[Team] = []
    missing: list[tuple[int, ...]] = []

    def entered(round_number: int, stage: str) -> None:
        if (round_number, stage) == (2, "train") and not nowhere.ready:
            nowhere.ready = True
            for client_id in range(3):
                ray.kill(teams[0].actors[ModelId("client", client_id)])

    class Looks(StopRequest):
        """Asked while the run waits: then there is room for everyone."""

        def check(self) -> None:
            super().check()
            if teams and len(teams[0].left_out) == 3 and not nowhere.over:
                nowhere.over = True
                for client_id in range(3):
                    teams[0].replace(ModelId("client", client_id))

    listener = Listener(
        assembled=teams.append,
        entered=entered,
        finished_round=lambda report, cost: missing.append(report.missing),
    )
    run(config, tmp_path / "run", listener, Looks(), create=nowhere)
    assert nowhere.over and len(missing) == 4 and missing[0] == missing[-1] == ()


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(
    finished: bool, tiny: dict[str, Any], warm_actors: ActorFactory, tmp_path: Path
) -> None:
    """As when the disk that holds them is not mounted: nothing of the run is touched."""
    config = load_config(tiny, ["checkpoint.every=1"])
    run(config, tmp_path / "run", create=warm_actors)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    if not finished:
        (tmp_path / "run" / "summary.json").unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=r"checkpoints: holds no checkpoint of a run that has trained rounds"):
        resume(tmp_path / "run", ["training.rounds=5"], create=warm_actors)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_resume_begins_with_the_data_that_the_run_began_with(
    tiny: dict[str, Any], tmp_path: Path, warm_actors: ActorFactory
) -> None:
    """Other images are refused by name; the same images elsewhere go on."""
    for place in ("here", "there"):
        for split, count in (("train", 30), ("test", 4)):
            classes = {name: make_images(count, seed=seed) for seed, name in enumerate(("cat", "dog", "owl"))}
            write_folder(tmp_path / place, split, classes)
    tiny["data"] = {"name": "folder", "root": str(tmp_path / "here"), "cache": str(tmp_path / "cache")}
    tiny["training"]["rounds"] = 1
    run(load_config(tiny), tmp_path / "run", create=warm_actors)
    longer = ["training.rounds=2", f"data.root={tmp_path / 'there'}"]
    changed = tmp_path / "there" / "train" / "cat" / "0.png"
    as_it_was = changed.read_bytes()
    changed.write_bytes(encode_png(make_images(1, seed=9)[0]))
    with pytest.raises(DataError, match=r"^training images: not the same as when the run began; .*data\.root"):
        resume(tmp_path / "run", longer, create=warm_actors)
    changed.unlink()
    with pytest.raises(DataError, match=r"^training images, partition: not the same"):
        resume(tmp_path / "run", longer, create=warm_actors)
    changed.write_bytes(as_it_was)
    assert resume(tmp_path / "run", longer, create=warm_actors).summary["rounds"] == 2


def test_a_resume_verifies_before_it_changes_anything(
    tiny: dict[str, Any], tmp_path: Path, warm_actors: ActorFactory
) -> None:
    """A damaged part of the metrics: an older whole checkpoint is used. Directories of others are left alone."""
    config = load_config(tiny, ["checkpoint.every=1", "checkpoint.keep=3", "training.rounds=2"])
    run(config, tmp_path / "run", create=warm_actors)
    for directory in ("tensorboard", "metrics"):
        (tmp_path / "run" / directory / "mine").mkdir()
        (tmp_path / "run" / directory / "mine" / "notes.txt").write_text("keep")
    newest = sorted((tmp_path / "run" / "metrics").glob("*.parquet"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    events: list[Event] = []
    finished = resume(tmp_path / "run", ["training.rounds=3"], Listener(happened=events.append), create=warm_actors)
    assert any(f"{newest.name}: is damaged" in event.text and "not used" in event.text for event in events)
    assert finished.summary["weights_sha256"] == reference_digest(load_config(tiny, ["training.rounds=3"]))
    assert len(list((tmp_path / "run").glob("*/mine/notes.txt"))) == 2


def test_a_full_disk_leaves_no_half_checkpoint(
    tiny: dict[str, Any], tmp_path: Path, warm_actors: ActorFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Storage.write

    def full(storage: Storage, name: str, content: bytes) -> None:
        if name.startswith("round-000002"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(storage, name, content)

    monkeypatch.setattr(Storage, "write", full)
    with pytest.raises(RunError, match=r"No space left.*round 1 is in a checkpoint, continue with --resume .*/run;"):
        run(load_config(tiny, ["checkpoint.every=1"]), tmp_path / "run", create=warm_actors)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["round-000001"]
    monkeypatch.undo()
    assert resume(tmp_path / "run", create=warm_actors).summary["rounds"] == 3
