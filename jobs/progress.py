"""How a run shows itself: a live bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Any

from hsee_ray.method.figures import gathered
from hsee_ray.method.look import look
from hsee_ray.method.reports import RoundReport
from hsee_ray.method.schedule import participants
from hsee_ray.method.setup import Setup
from hsee_ray.simulation.prediction import RoundCost
from hsee_ray.training.listener import Event, Listener

IN_PROCESS = "all in this process, without Ray"


@contextmanager
def show_progress(place: str) -> Iterator[Listener]:
    """A listener that prints the run, which lives at `place`, on stdout for the length of the block."""
    if sys.stdout.isatty():
        with _live_bar(place) as listener:
            yield listener
    else:
        opening, rounds = _Opening(place), 0

        def started(setup: Setup, done: int) -> None:
            nonlocal rounds
            rounds = setup.config.training.rounds
            print(opening.text(setup, done), flush=True)

        yield Listener(
            assembled=opening.assembled,
            started=started,
            finished_round=lambda report, cost: print(round_line(report, rounds, cost), flush=True),
            happened=lambda event: print(event, flush=True),
        )


@contextmanager
def _live_bar(place: str) -> Iterator[Listener]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # Names that users give are text, not markup.
    console = Console(markup=False, emoji=False, highlight=False)
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("starting", total=None, speed="")
        opening, rounds = _Opening(place), 0

        def started(setup: Setup, done: int) -> None:
            nonlocal rounds
            rounds = setup.config.training.rounds
            console.print(opening.text(setup, done))
            progress.update(bar, description=f"round {done + 1}", total=_samples_after(setup, done))

        def trained(samples: int) -> None:
            speed = progress.tasks[bar].speed
            progress.update(bar, advance=samples, speed="" if speed is None else f"{speed:.0f} samples/s")

        def finished_round(report: RoundReport, cost: RoundCost | None) -> None:
            console.print(round_line(report, rounds, cost))
            progress.update(bar, description=f"round {min(report.round_number + 1, rounds)}")

        def happened(event: Event) -> None:
            console.print(str(event))

        yield Listener(
            assembled=opening.assembled,
            started=started,
            trained=trained,
            finished_round=finished_round,
            happened=happened,
        )


def round_line(report: RoundReport, rounds: int, cost: RoundCost | None = None) -> str:
    """`[round 3/50] loss client 1.83 server 1.60  accuracy client 31.2 % server 44.0 %  812 samples/s`."""
    clients = sorted({*report.client_training, *report.server_training, *report.evaluation})
    means = {name: fmean(values) for name, values in gathered(report, clients).items()}
    client_loss = f"{means['client_loss']:.3f}" if "client_loss" in means else "-"
    parts = [f"[round {report.round_number}/{rounds}] loss client {client_loss}"]
    if "server_loss" in means:
        parts.append(f"server {means['server_loss']:.3f}")
    if report.evaluation:
        parts.append(f" accuracy client {means['client_accuracy']:.1%}")
        if "server_accuracy" in means:
            parts.append(f"server {means['server_accuracy']:.1%}")
    parts.append(f" {report.samples / report.train_s:.0f} samples/s")
    if cost is not None:
        parts.append(f" {cost.round_s:.3g} s simulated")
    return " ".join(parts)


class _Opening:
    """The first lines about a run that lives at `place`: what it trains, and in how many processes."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.slot_plan = IN_PROCESS

    def assembled(self, team: Any) -> None:
        self.slot_plan = str(team.slot_plan)

    def text(self, setup: Setup, done: int) -> str:
        return f"{opening_lines(setup, done, self.place)}\n{self.slot_plan}"


def opening_lines(setup: Setup, done: int, place: str) -> str:
    """What a run at `place` trains, of which `done` rounds are trained, and on what."""
    tiers = []
    for tier in setup.fleet.tiers:
        clients = [client for client in setup.fleet.clients if client.tier == tier]
        tiers.append(f"{len(clients)} {tier} (cut {clients[0].cut_name})")
    training = setup.config.training
    resumed = f", {done} of them done" if done else ""
    return (
        f"{training.strategy}: {', '.join(tiers)}; {sum(setup.local_samples)} training images of "
        f"{setup.files.name}, {training.rounds} rounds{resumed} -> {place}"
        + "".join(f"\ndata: {line}" for line in look(setup))
    )


def _samples_after(setup: Setup, done: int) -> int | None:
    """Training samples of the rounds that are left; unknown where rounds are counted in steps."""
    training = setup.config.training
    if training.local_steps is not None:
        return None
    return training.local_epochs * sum(
        setup.local_samples[number]
        for round_number in range(done + 1, training.rounds + 1)
        for number in participants(setup.config, setup.fleet, round_number)
    )
