"""Status of actors: placed, waiting for a place, or on a node that is about to go.

The driver looks here every second while it waits for answers.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Set
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from actors.cluster.ray_internals import draining_nodes, placed_actors
from actors.run.team import Member, Team
from actors.workers.actor_location import ActorLocation
from hsee_ray.training.listener import Event

LOOK_S = 1.0
GLANCE_S = 0.02
TELL_S = 10.0
"""Seconds between two lines about who waits."""


class ActorStatus:
    """The actors of a run as they come to their places and leave them."""

    def __init__(self, team: Team, tell: Callable[[Event], None]) -> None:
        self.team = team
        self.tell = tell
        self.present: dict[Member, ActorLocation] = {}
        self._asked: dict[Member, ObjectRef[Any]] = {}
        """The presences that `present` is the answer to."""
        self._next_tell = time.monotonic() + TELL_S
        self._told = ""
        self._leaving: dict[str, int] = {}
        self._on_cpu: set[str] = set()

    def look(self, round_number: int) -> Set[str]:
        """Takes notice of who has come and which nodes go, and tells of it.

        Gives the nodes that are about to go if one of them has only now been told to.
        """
        now = time.monotonic()
        self._take_arrivals(round_number)
        self.team.start_more(len(self.present))
        leaving = self._take_leavings(round_number)
        if self.waiting and now >= self._next_tell:
            self._next_tell = now + TELL_S
            text = self.status_line()
            if text != self._told or "waiting" in text:  # processes that start need no second line
                self.tell(Event(round_number, "start", "run", text))
            self._told = text
        return leaving

    @property
    def waiting(self) -> list[Member]:
        """Actors that the run needs and of which no word has come yet."""
        return [
            member for member in self.team.members() if member not in self.present and not self.team.is_left_out(member)
        ]

    def is_leaving(self, member: Member) -> bool:
        """Whether an actor is on a node that is about to go."""
        location = self.present.get(member)
        return (
            location is not None
            and location.node_id in self._leaving
            and self._asked[member] is self.team.locations.get(member)
        )

    def has_place(self, member: Member) -> bool:
        """Whether an actor has a node, also while it starts there."""
        return member in self.present or member in placed_actors(self.team.actors)

    def status_line(self) -> str:
        """Status line: how many actors are there, starting, or waiting for a place."""
        placed = placed_actors(self.team.actors)
        waiting = self.waiting
        starting = sum(member in placed for member in waiting)
        asked = self.team.actors.keys() - placed
        pending = Counter(self._group(m) for m in waiting if m in asked and not isinstance(m, str))
        of = Counter(self._group(member) for member in self.team.members())
        later = len(waiting) - starting - len(asked & set(waiting))
        text = f"{len(self.present)} of {len(self.team.members())} actors are here, {starting} starting"
        text += f", {later} to follow" if later else ""
        listed = ", ".join(f"{n} of {of[group]} {group[0]} ({group[1]})" for group, n in pending.items())
        return f"{text}; waiting for a place: {listed}" if listed else text

    def _group(self, member: Member) -> tuple[str, str]:
        return self.team.tier(member), self.team.asked(member)

    def _take_arrivals(self, round_number: int) -> None:
        refs = self.team.locations
        for member in [m for m, ref in self._asked.items() if refs.get(m) is not ref]:
            self.present.pop(member, None)
            del self._asked[member]
        unknown = {ref: member for member, ref in refs.items() if member not in self._asked}
        if not unknown:
            return
        # Without a moment's patience Ray overlooks answers that are there.
        ready, _ = ray.wait(list(unknown), num_returns=len(unknown), timeout=GLANCE_S)
        for ref in ready:
            member = unknown[ref]
            try:
                location: ActorLocation = ray.get(ref, timeout=LOOK_S)
            except RayError:
                continue  # whoever waits for an answer of this actor is told why
            self.present[member] = location
            self._asked[member] = ref
            self._tell_device(member, location, round_number)

    def _tell_device(self, member: Member, location: ActorLocation, round_number: int) -> None:
        """A tier that has asked for a GPU and computes without one says so, once."""
        if isinstance(member, str) or self.team.setup.config.training.device != "auto":
            return
        request = self.team.requests[member]
        if request.resources["GPU"] > 0 and location.device == "cpu" and request.tier not in self._on_cpu:
            self._on_cpu.add(request.tier)
            gpus = request.resources["GPU"]
            text = f"has {gpus:g} GPU of Ray's and no CUDA on node {location.node}: it computes on the CPU"
            self.tell(Event(round_number, "start", request.tier, text))

    def _take_leavings(self, round_number: int) -> Set[str]:
        draining = draining_nodes()
        came = draining.keys() - self._leaving.keys()
        self._leaving = draining
        for node in came:
            members = [member for member, location in self.present.items() if location.node_id == node]
            if members:
                deadline_s = draining[node] / 1000 - time.time()
                within = f" within {deadline_s:.0f} s" if draining[node] else ""
                text = f"goes{within}: its {len(members)} actors move"
                self.tell(Event(round_number, "leave", f"node {self.present[members[0]].node}", text))
        return draining.keys() if came else set()
