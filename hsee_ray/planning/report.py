"""A plan as it is shown: every cut of every tier with its figures, why it was not picked, and who is waited for."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from hsee_ray.planning.planner import CutOption, Planner, size_text
from hsee_ray.planning.search import COMPARED, Figures, Objective, meets, rounded
from hsee_ray.simulation.prediction import ClientCost

Resource = Literal["compute", "upload", "server"]
RESOURCES: tuple[Resource, ...] = ("compute", "upload", "server")
WORDS = {"seconds": "slower by {}", "joules": "more joules by {}", "sent_bytes": "more bytes by {}"}


@dataclass(frozen=True)
class CutRow:
    """One cut of one tier in a round in which the other tiers have the cuts of the plan.

    Figures are means over the tier's clients, but for `round_s`.
    """

    cut: int
    name: str
    need_bytes: float
    """Of a client's memory, in training."""
    compute_s: float
    upload_s: float
    server_s: float
    round_s: float
    joules: float
    sent_bytes: float
    """Sent and received."""
    rejected: str | None
    """Why it is not the plan's; None for the one that is."""
    exit_accuracy: float | None = None
    """Of the tier's exits after a probe (`planning.probe`); None without one."""
    server_accuracy: float | None = None


@dataclass(frozen=True)
class TierPlan:
    """One tier: its device, the cut that was picked, and all others."""

    tier: str
    device: str
    device_bytes: float
    clients: int
    batch_size: int
    codec: str
    samples: tuple[int, int]
    """Of the clients that train on the fewest and on the most."""
    cut: int
    cuts: tuple[CutRow, ...]


@dataclass(frozen=True)
class Straggler:
    """The client whose last batch is finished last, and what its round is made of."""

    client: int
    tier: str
    resource: Resource
    """Largest share of its time; the three overlap."""
    compute_s: float
    upload_s: float
    server_s: float
    end_s: float


@dataclass(frozen=True)
class Plan:
    """The best cuts of a fleet for an objective."""

    objective: Objective
    limit_s: float | None
    round: Figures
    """Of the whole fleet."""
    exchange_s: float
    """Of the round, for parameters."""
    configured: Figures | None
    """The same with the configuration's own cuts; None where it has some that are `auto`."""
    server: str
    server_need_bytes: float
    server_bytes: float
    straggler: Straggler
    tiers: tuple[TierPlan, ...]
    simulated: int
    """Rounds that were simulated."""
    plans: int
    """Combinations of cuts that fit the devices."""


def make_plan(planner: Planner, objective: Objective, limit_s: float | None = None) -> Plan:
    """The best plan for an objective, and all that there is to say about it. Raises ConfigError as `best` does."""
    cuts = planner.best(objective, limit_s)
    simulated = len(planner.simulated)
    cost, config = planner.round(cuts), planner.config
    configured = planner.configured()
    chosen = [options[cut - 1] for options, cut in zip(planner.tiers, cuts, strict=True)]
    plans = 1
    for options in planner.tiers:
        plans *= sum(option.fits for option in options[:-1])
    return Plan(
        objective=objective,
        limit_s=limit_s,
        round=planner.figures(cuts),
        exchange_s=cost.exchange_s,
        configured=None if configured is None else planner.figures(configured),
        server=str(config.simulation.server),
        server_need_bytes=planner.server_need_bytes(chosen),
        server_bytes=planner.server_bytes,
        straggler=find_straggler(planner, cuts),
        tiers=tuple(_tier_plan(planner, index, cuts, objective, limit_s) for index in range(len(cuts))),
        simulated=simulated,
        plans=plans,
    )


def find_straggler(planner: Planner, cuts: tuple[int, ...]) -> Straggler:
    """Bottleneck of a round with these cuts."""
    cost = planner.round(cuts)
    last = max(
        (span for span in cost.spans if span.kind in RESOURCES), key=lambda span: (rounded(span.end_s), -span.client)
    )
    used = cost.clients[last.client]
    parts: dict[Resource, float] = {"compute": used.compute_s, "upload": used.upload_s, "server": used.server_s}
    tier = planner.fleet(cuts).clients[last.client].tier
    resource = max(RESOURCES, key=lambda name: parts[name])
    return Straggler(last.client, tier, resource, used.compute_s, used.upload_s, used.server_s, last.end_s)


def same_cut_note(plan: Plan) -> str | None:
    """What to think of a plan that gives all of several tiers the same cut, and what to do; None for another plan."""
    cuts = {tier.cut for tier in plan.tiers}
    if len(plan.tiers) == 1 or len(cuts) > 1:
        return None
    first = plan.tiers[0]
    probed = first.cuts[0].exit_accuracy is not None
    why = {
        "time": f"a round waits for client {plan.straggler.client} ({plan.straggler.tier}), and what is cheap for "
        "the slowest is cheap for all",
        "energy": "what costs one device the least costs the others the least",
        "bytes": "what one tier sends at a cut, all send at it",
    }[plan.objective]
    look = "compare the exits' accuracies above" if probed else "--probe N trains each cut briefly and shows it"
    return (
        f"note: every tier has the same cut, {first.cuts[first.cut - 1].name}, as if all devices were alike: {why}. "
        f"Accuracy is not in the plan: {look}. For other cuts: another --objective with --round-time-s, or the cut by "
        "name in a tier whose exits must be good."
    )


def _tier_plan(
    planner: Planner, index: int, cuts: tuple[int, ...], objective: Objective, limit_s: float | None
) -> TierPlan:
    tier, options = planner.config.tiers[index], planner.tiers[index]
    members = [spec for spec in planner.fleet(cuts).clients if spec.tier == tier.name]
    samples = [planner.local_samples[spec.client_id] for spec in members]
    rows: list[CutRow] = []
    for option in options:
        there = (*cuts[:index], option.cut, *cuts[index + 1 :])
        used = [planner.round(there).clients[spec.client_id] for spec in members]
        reason = None if there == cuts else _reason(planner, index, option, there, cuts, objective, limit_s)
        rows.append(_cut_row(option, used, planner.figures(there).seconds, reason))
    return TierPlan(
        tier=tier.name,
        device=str(tier.device),
        device_bytes=options[0].device_bytes,
        clients=tier.clients,
        batch_size=members[0].batch_size,
        codec=tier.codec,
        samples=(min(samples), max(samples)),
        cut=cuts[index],
        cuts=tuple(rows),
    )


def _cut_row(option: CutOption, used: list[ClientCost], round_s: float, reason: str | None) -> CutRow:
    return CutRow(
        cut=option.cut,
        name=option.name,
        need_bytes=option.need_bytes,
        compute_s=fmean(cost.compute_s for cost in used),
        upload_s=fmean(cost.upload_s for cost in used),
        server_s=fmean(cost.server_s for cost in used),
        round_s=round_s,
        joules=fmean(cost.joules for cost in used),
        sent_bytes=fmean(cost.sent_bytes + cost.received_bytes for cost in used),
        rejected=reason,
    )


def _reason(
    planner: Planner,
    index: int,
    option: CutOption,
    there: tuple[int, ...],
    cuts: tuple[int, ...],
    objective: Objective,
    limit_s: float | None,
) -> str:
    """Why a tier's cut was not picked, the others being as in the plan."""
    if not option.fits:
        need, have = option.need_bytes, option.device_bytes
        return f"does not fit: needs {size_text(need)}, has {size_text(have)} ({size_text(need - have)} too much)"
    if option.cut == len(planner.unit_names):
        return "the whole network: no exit and no server, never picked by itself"
    needed = planner.server_need_bytes(
        options[cut - 1] for options, cut in zip(planner.tiers, there, strict=True)
    )  # fmt: skip
    if needed > planner.server_bytes:
        return f"too much for the server: its models need {size_text(needed)}, it has {size_text(planner.server_bytes)}"
    other, best = planner.figures(there), planner.figures(cuts)
    if not meets(other.seconds, limit_s):
        return f"round of {other.seconds:.4g} s, above {limit_s:g} s"
    for place, name in enumerate(COMPARED[objective]):
        more, less = getattr(other, name), getattr(best, name)
        if rounded(more) > rounded(less):
            words = WORDS[name].format(_percent_more(more, less))
            return f"no better, and {words}" if place else words
    return "no better, and more on the device"


def _percent_more(more: float, less: float) -> str:
    if less == 0:
        return "any"
    percent = 100 * (more / less - 1)
    return f"{percent:,.1f} %" if percent >= 0.05 else "less than 0.1 %"
