"""`python -m jobs.chaos --config FILE --kills N`: trains twice, the second time while actors are killed at random.

The weights must come out equal, bit for bit. Kills are SIGKILL and SIGSTOP; from six kills on, every stage
of a run is hit at least once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.options import add_config, add_overrides, user_path
from jobs.outcome import exit_code

if TYPE_CHECKING:
    from actors.run.team import Member, Team
    from hsee_ray.config.schema import Config
    from hsee_ray.training.listener import Event, Listener

START, TRAIN, AGGREGATE, EVALUATE, CHECKPOINT, SAVE = "start", "train", "aggregate", "evaluate", "checkpoint", "save"
LONGEST_DELAY_S = {START: 2.0, TRAIN: 1.0, EVALUATE: 0.2}
"""How long after the beginning of a stage an actor is hit at most; the other stages are short."""
SHORT_DELAY_S = 0.02
SHARE_OF_STOPS = 0.25


@dataclass(frozen=True)
class Fault:
    """A planned fault: one actor, one moment."""

    round_number: int
    stage: str
    delay_s: float
    """After the stage has begun."""
    stops: bool
    """SIGSTOP rather than SIGKILL."""
    target: str
    """`client`, `server` or `aggregator`."""


@dataclass
class InjectedFault:
    """An injected fault, and its outcome."""

    fault: Fault
    who: str
    at: float
    back_after_s: float | None = None


def plan_blows(config: Config, rounds: int, kills: int, targets: Sequence[str], seed: int) -> list[Fault]:
    """Blows for a run: every stage once, then as it comes; the same for the same seed."""
    from hsee_ray.method.schedule import evaluates_after
    from hsee_ray.method.strategies import strategy_of
    from hsee_ray.rng import generator

    everyone = range(1, rounds + 1)
    stages = {
        START: [0],
        TRAIN: list(everyone),
        AGGREGATE: [n for n in everyone if strategy_of(config).aggregates_after(config.training, n)],
        EVALUATE: [n for n in everyone if evaluates_after(config, n)],
        CHECKPOINT: [n for n in everyone if n % config.checkpoint.every == 0 or n == rounds],
        SAVE: [rounds],
    }
    possible = [stage for stage, numbers in stages.items() if numbers]
    rng = generator(seed, "chaos")
    often = [stage for stage in possible if stage in (TRAIN, TRAIN, AGGREGATE, EVALUATE)] + [TRAIN, TRAIN]
    faults: list[Fault] = []
    for index in range(kills):
        stage = possible[index] if index < len(possible) else often[int(rng.integers(len(often)))]
        number = stages[stage][int(rng.integers(len(stages[stage])))]
        delay_s = float(rng.random()) * LONGEST_DELAY_S.get(stage, SHORT_DELAY_S)
        # An actor that is stopped while it starts is noticed only when its placement times out.
        stops = stage != START and bool(rng.random() < SHARE_OF_STOPS)
        faults.append(Fault(number, stage, delay_s, stops, targets[int(rng.integers(len(targets)))]))
    return faults


@dataclass
class FaultInjector:
    """Deals the blows from threads of its own, and listens to what the run says."""

    faults: list[Fault]
    seed: int
    hits: list[InjectedFault] = field(default_factory=list)
    team: Team | None = None
    _timers: list[threading.Timer] = field(default_factory=list)

    def assembled(self, team: Team) -> None:
        self.team = team
        self.entered(0, START)

    def entered(self, round_number: int, stage: str) -> None:
        for fault in self.faults:
            if (fault.round_number, fault.stage) == (round_number, stage):
                timer = threading.Timer(fault.delay_s, self._deal, (fault,))
                timer.daemon = True
                timer.start()
                self._timers.append(timer)
        self.faults = [fault for fault in self.faults if (fault.round_number, fault.stage) != (round_number, stage)]

    def happened(self, event: Event) -> None:
        print(event, flush=True)
        if event.is_back:
            for hit in self.hits:
                if hit.who == event.who and hit.back_after_s is None:
                    hit.back_after_s = time.monotonic() - hit.at

    def _deal(self, fault: Fault) -> None:
        from actors.cluster.ray_internals import process_of
        from actors.run.team import AGGREGATOR
        from hsee_ray.rng import generator

        assert self.team is not None
        members: list[Member] = [model for model in self.team.models if model.side == fault.target]
        if fault.target == AGGREGATOR or not members:
            members = [AGGREGATOR]
        rng = generator(self.seed, "victim", fault.round_number, len(self.hits))
        for _ in range(100):
            member = members[int(rng.integers(len(members)))]
            if not isinstance(member, str) and self.team.slots.of(member) is None:
                continue  # it holds no slot now
            actor = self.team.actors.get(self.team.slot_of(member))
            pid = None if actor is None else process_of(actor)
            who = self.team.label(member)
            still_down = any(hit.who == who and hit.back_after_s is None for hit in self.hits)
            if pid is not None and not still_down:
                self.hits.append(InjectedFault(fault, who, time.monotonic()))
                os.kill(pid, signal.SIGSTOP if fault.stops else signal.SIGKILL)
                return
            time.sleep(0.1)

    def listener(self) -> Listener:
        from hsee_ray.training.listener import Listener

        return Listener(assembled=self.assembled, entered=self.entered, happened=self.happened)

    def table(self) -> str:
        """One line per hit."""
        from hsee_ray.rundir.tables import align

        rows = [["who", "round", "stage", "signal", "back after"]]
        for hit in self.hits:
            back = "not needed again" if hit.back_after_s is None else f"{hit.back_after_s:.1f} s"
            name = "SIGSTOP" if hit.fault.stops else "SIGKILL"
            rows.append([hit.who, str(hit.fault.round_number), hit.fault.stage, name, back])
        return align(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 when both runs end in the same weights, 1 when not."""
    options = _parser().parse_args(argv)
    return exit_code(lambda: _run_twice(options))


def _run_twice(options: argparse.Namespace) -> int:
    from actors.run.driver import run
    from hsee_ray.config.files import load_config
    from hsee_ray.errors import ConfigError

    targets = options.targets.split(",")
    if not set(targets) <= {"client", "server", "aggregator"}:
        raise ConfigError(f"--targets {options.targets}: give one or more of client,server,aggregator")
    if options.kills < 1:
        raise ConfigError(f"--kills {options.kills}: give at least 1")
    config = load_config(options.config, [*_budget(options.kills), *options.set])
    if config.cluster.address is not None or os.environ.get("RAY_ADDRESS"):
        raise ConfigError("jobs.chaos kills processes of this machine: set cluster.address=null and unset RAY_ADDRESS")
    directory = options.run_dir or Path("runs") / f"chaos-{Path(options.config).stem}-{datetime.now():%Y%m%d-%H%M%S}"

    print(f"undisturbed: {directory / 'undisturbed'}", flush=True)
    calm = run(config, directory / "undisturbed").summary
    faults = plan_blows(config, config.training.rounds, options.kills, targets, options.seed)
    injector = FaultInjector(faults, options.seed)
    print(f"with {len(faults)} kills: {directory / 'disturbed'}", flush=True)
    disturbed = run(config, directory / "disturbed", injector.listener()).summary

    equal = calm["weights_sha256"] == disturbed["weights_sha256"]
    print(f"\n{injector.table()}\n")
    print(f"undisturbed  {calm['weights_sha256']}  {calm['wall_s']:.1f} s")
    print(f"disturbed    {disturbed['weights_sha256']}  {disturbed['wall_s']:.1f} s")
    more_s = disturbed["wall_s"] - calm["wall_s"]
    verdict = "are equal" if equal else "DIFFER"
    print(f"{len(injector.hits)} of {len(faults)} kills, {more_s:.1f} s more; the weights {verdict}")
    return 0 if equal else 1


def _budget(kills: int) -> list[str]:
    """Room for every kill, and a short patience with actors that hang."""
    room = 10 * kills
    return [f"failures.max_per_actor={room}", f"failures.max_total={room}", "failures.step_timeout_s=15"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hsee chaos",
        description="Train twice on this machine, the second time while actors are killed at random moments. "
        "Prints what was hit and how long it took to be back, and exits with 1 if the weights differ.",
    )
    add_config(parser, required=True)
    parser.add_argument("--kills", type=int, required=True, metavar="N", help="how many actors are hit")
    add_overrides(parser)
    parser.add_argument("--targets", default="client,server,aggregator", help="whom to hit (default: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of moments and victims (default: 0)")
    parser.add_argument("--run-dir", type=user_path, metavar="DIR", help="for both runs (default: runs/chaos-...)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
