"""The planner picks what trying every plan in the simulator picks, and nothing that a device cannot hold."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import with_cuts
from hsee_ray.devices.cost import Memory, OpCounts, SideCost, UnitCost
from hsee_ray.devices.profiles import DeviceProfile
from hsee_ray.errors import ConfigError
from hsee_ray.method.strategies import build_fleet, strategy_of
from hsee_ray.planning.planner import MIB, Planner, check_devices
from hsee_ray.planning.report import make_plan
from hsee_ray.planning.search import COMPARED, Figures, meets, plan_key
from hsee_ray.simulation.prediction import Predictor

FLEETS = 60
"""Some of which nothing fits; of 50 and more there is a plan."""
OPERATORS = 3
"""Of every unit."""


class Costs:
    """A made-up network in the place of a counted one: every unit has its own figures per sample."""

    def __init__(self, multiply_adds: list[int], parameters: list[int], values: list[int]) -> None:
        self.units = [
            UnitCost(f"u{index}", p, m, 2 * m, 4 * v, (v,))
            for index, (m, p, v) in enumerate(zip(multiply_adds, parameters, values, strict=True), start=1)
        ]

    def client(self, cut: int, batch_size: int, with_exit: bool = True, inner_exits: tuple[int, ...] = ()) -> SideCost:
        return self._side(self.units[:cut], batch_size, extra=100 if with_exit else 0)

    def server(self, cut: int, batch_size: int) -> SideCost:
        return self._side(self.units[cut:], batch_size, extra=0)

    def feature_bytes(self, cut: int, codec: str, batch_size: int) -> int:
        width = {"none": 4, "fp16": 2, "int8": 1}[codec]
        return batch_size * (width * self.units[cut - 1].feature_shape[0] + 8)

    def _side(self, units: list[UnitCost], batch_size: int, extra: int) -> SideCost:
        multiply_adds = batch_size * (sum(unit.multiply_adds for unit in units) + extra)
        traffic, operators = 40 * multiply_adds // 100, OPERATORS * len(units)
        parameters = sum(unit.parameters for unit in units) + extra
        kept = batch_size * sum(unit.activation_bytes for unit in units)
        return SideCost(
            train=OpCounts(3 * multiply_adds, 3 * traffic, 3 * operators),
            infer=OpCounts(multiply_adds, traffic, operators),
            parameters={**{unit.name: unit.parameters for unit in units}, **({"exit": extra} if extra else {})},
            memory=Memory(4 * parameters, 4 * parameters, 4 * parameters, kept, 4 * batch_size),
            returned=OpCounts(2 * multiply_adds, 2 * traffic, 2 * operators),
        )


def profile(**figures: Any) -> DeviceProfile:
    usual = {
        "compute_gflops": 1.0, "memory_mib": 100.0, "uplink_mbit_s": 10.0, "downlink_mbit_s": 10.0, "active_w": 5.0,
        "radio_w": 1.0, "source": "made up",
    }  # fmt: skip
    return DeviceProfile(**{**usual, **figures})


class RandomFleet:
    """A fleet of very unequal devices over a made-up network, with everything that a plan depends on."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)

        def spread(low: float, high: float) -> float:
            return float(np.exp(rng.uniform(np.log(low), np.log(high))))

        units = int(rng.integers(3, 6))
        self.costs = Costs(
            [int(spread(1e4, 1e7)) for _ in range(units)],
            [int(spread(10, 1e5)) for _ in range(units)],
            [int(spread(10, 1e4)) for _ in range(units)],
        )
        n_tiers = int(rng.integers(1, 4))
        tiers = [
            {
                "name": f"t{index}",
                "clients": int(rng.integers(1, 4)),
                "cut": "auto",
                "batch_size": int(rng.integers(4, 33)),
                "codec": str(rng.choice(["none", "fp16", "int8"])),
                "device": f"d{index}",
            }
            for index in range(n_tiers)
        ]
        self.profiles = {
            f"d{index}": profile(
                compute_gflops=spread(0.01, 10), memory_mib=spread(0.2, 50), uplink_mbit_s=spread(0.1, 1000),
                downlink_mbit_s=spread(0.1, 1000), latency_ms=spread(0.1, 100), active_w=spread(0.1, 50),
                radio_w=spread(0.1, 5), memory_gib_s=spread(0.1, 10), operator_us=spread(1, 1000),
            )
            for index in range(n_tiers)
        }  # fmt: skip
        self.profiles["cloud"] = profile(
            compute_gflops=spread(1, 100), memory_mib=spread(5, 500), uplink_mbit_s=spread(1, 1000),
            downlink_mbit_s=spread(1, 1000), cores=int(rng.integers(1, 5)), active_w=100.0,
        )  # fmt: skip
        self.config = load_config(
            {
                "tiers": tiers,
                "simulation": {"server": "cloud", "one_machine": seed % 10 == 9, "dropout_probability": 0.5},
                "training": {
                    "strategy": str(rng.choice(["averaging", "sequential", "distributed"])),
                    "aggregate": str(rng.choice(["all", "both", "server"])),
                    "interleave": str(rng.choice(["client", "batch"])),
                    "order": str(rng.choice(["listed", "shuffled"])),
                    "clients_per_round": float(rng.choice([0.5, 1.0])),
                },
                "pipeline": {"max_in_flight": int(rng.integers(1, 5))},
            }
        )
        self.samples = [int(rng.integers(2, 60)) for _ in range(self.config.n_clients)]

    def planner(self) -> Planner:
        return Planner(self.config, self.costs, self.profiles, self.samples)  # type: ignore[arg-type]

    def plans(self) -> Mapping[tuple[int, ...], Figures]:
        """Every plan that devices and server can hold, with what the simulator says of it."""
        length, found = len(self.costs.units), {}
        training = self.config.training.model_copy(update={"clients_per_round": 1.0})
        everyone = self.config.model_copy(update={"training": training})
        for cuts in product(range(1, length), repeat=len(self.config.tiers)):
            if not self.holds(cuts):
                continue
            fleet = build_fleet(with_cuts(everyone, cuts), [unit.name for unit in self.costs.units])
            # The last round, for it always aggregates where the strategy does.
            training, strategy = everyone.training, strategy_of(everyone)
            assert strategy.aggregates_after(training, training.rounds) is strategy.aggregates_after(training, 1)
            predictor = Predictor(everyone, self.costs, self.profiles)  # type: ignore[arg-type]
            cost = predictor.round(fleet, self.samples, 1)
            clients = cost.clients.values()
            found[cuts] = Figures(
                cost.train_s + cost.exchange_s,
                sum(client.joules for client in clients),
                sum(client.sent_bytes + client.received_bytes for client in clients),
            )
        return found

    def holds(self, cuts: tuple[int, ...]) -> bool:
        kept, work, samples = 0, [], iter(self.samples)
        for cut, tier in zip(cuts, self.config.tiers, strict=True):
            assert tier.batch_size is not None and tier.device is not None
            batch = max(largest_batch(next(samples), tier.batch_size) for _ in range(tier.clients))
            if self.costs.client(cut, batch).memory.total_bytes > self.profiles[tier.device].memory_mib * MIB:
                return False
            memory = self.costs.server(cut, batch).memory
            states = memory.parameter_bytes + memory.gradient_bytes + memory.optimizer_bytes
            if self.config.training.strategy == "sequential":
                kept = max(kept, states)
            else:
                kept += tier.clients * states
            work += [memory.activation_bytes + memory.batch_bytes] * tier.clients
        cores = 1 if self.config.training.strategy == "sequential" else self.profiles["cloud"].cores
        return kept + sum(sorted(work)[-cores:]) <= self.profiles["cloud"].memory_mib * MIB


def largest_batch(samples: int, batch_size: int) -> int:
    """A last sample alone joins the batch before it."""
    return min(samples, batch_size + (samples % batch_size == 1))


@pytest.mark.parametrize("seed", range(FLEETS))
def test_the_plan_is_what_trying_all_plans_gives(seed: int) -> None:
    fleet = RandomFleet(seed)
    plans = fleet.plans()
    if not plans:
        with pytest.raises(ConfigError, match=r"no cut fits on|its models need"):
            fleet.planner().best()
        return
    seconds = sorted(figures.seconds for figures in plans.values())
    planner = fleet.planner()
    for limit_s in (None, seconds[0], seconds[len(seconds) // 3], seconds[-1]):
        for objective in COMPARED:
            allowed = {cuts: figures for cuts, figures in plans.items() if meets(figures.seconds, limit_s)}
            best = min(allowed, key=lambda cuts: plan_key(objective, plans[cuts], cuts))
            assert planner.best(objective, limit_s) == best, f"{objective}, limit {limit_s}"
            assert planner.figures(best) == plans[best]
    with pytest.raises(ConfigError, match="no plan has rounds so short; the fastest takes"):
        planner.best("energy", 0.99 * seconds[0])


def small_planner(training: Mapping[str, Any] | None = None, **figures: Any) -> Planner:
    """Two unequal tiers over four units; `figures` change the profile of the second, `slow`.

    A batch of 8 takes `fast` 0.24 s per million multiply-adds and unit.
    """
    costs = Costs([1_000_000] * 4, [1000, 1000, 50_000, 10], [1000, 1000, 100, 10])
    config = load_config(
        {
            "tiers": [
                {"name": "fast", "clients": 1, "cut": "u1", "device": "fast"},
                {"name": "slow", "clients": 2, "cut": "u2", "device": "slow"},
            ],
            "simulation": {"server": "cloud"},
            "training": {"batch_size": 8, "strategy": "distributed", **(training or {})},
        }
    )
    profiles = {
        "fast": profile(compute_gflops=0.2),
        "slow": profile(compute_gflops=0.2, **figures),
        "cloud": profile(compute_gflops=100.0, uplink_mbit_s=1000.0, downlink_mbit_s=1000.0, cores=4, active_w=100.0),
    }
    return Planner(config, costs, profiles, [16, 16, 16])  # type: ignore[arg-type]


def test_seconds_joules_and_bytes_by_hand() -> None:
    planner = small_planner()
    plan = make_plan(planner, "bytes")
    # Two batches of 8: u3 has 100 values, so 8 x (4 x 100 + 8) bytes each, at 1.25 MB/s.
    row = plan.tiers[0].cuts[2]
    assert (row.name, row.rejected) == ("u3", None)
    assert row.sent_bytes == 2 * 8 * 408
    compute_s = 2 * 3 * 2 * 8 * 3_000_100 / 0.2e9
    assert row.compute_s == pytest.approx(compute_s)
    assert row.upload_s == pytest.approx(2 * 8 * 408 / 1.25e6)
    assert row.joules == pytest.approx(5 * compute_s + 1 * 2 * 8 * 408 / 1.25e6)
    assert plan.round.sent_bytes == 3 * row.sent_bytes
    assert plan.round.joules == pytest.approx(3 * row.joules)


def test_equal_plans_go_to_the_lower_cut() -> None:
    # u1 and u2 have as many values; the least computing has u1.
    plan = make_plan(small_planner(), "energy")
    assert [tier.cut for tier in plan.tiers] == [1, 1]
    best = min([(1, 2), (2, 1), (1, 1)], key=lambda cuts: plan_key("bytes", Figures(3.0, 2.0, 1.0), cuts))
    assert best == (1, 1)


def test_why_other_cuts_were_rejected() -> None:
    planner = small_planner(memory_mib=0.1)
    reasons = {row.name: row.rejected for row in make_plan(planner, "time").tiers[1].cuts}
    # u3: 12 bytes for each of 52,100 parameters, 8 x 4 x 2,100 of activations, 32 of the batch.
    assert reasons["u2"] is not None and reasons["u2"].startswith("slower by ")
    assert reasons["u3"] == "does not fit: needs 676.2 KiB, has 102.4 KiB (573.8 KiB too much)"
    assert reasons["u4"] is not None and reasons["u4"].startswith("does not fit: ")
    assert reasons["u1"] is None
    reasons = {row.name: row.rejected for row in make_plan(small_planner(), "time").tiers[1].cuts}
    assert reasons["u4"] == "the whole network: no exit and no server, never picked by itself"


def test_a_bound_rejects_what_is_too_slow() -> None:
    planner = small_planner()
    seconds = planner.figures((2, 2)).seconds
    plan = make_plan(planner, "bytes", limit_s=seconds)
    assert [tier.cut for tier in plan.tiers] != [3, 3]
    assert plan.round.seconds <= seconds
    reason = plan.tiers[0].cuts[2].rejected
    assert reason == f"round of {planner.figures((3, plan.tiers[1].cut)).seconds:.4g} s, above {seconds:g} s"


@pytest.mark.parametrize(
    ("figures", "resource"), [({"uplink_mbit_s": 0.01}, "upload"), ({"memory_gib_s": 0.01}, "compute")]
)
def test_who_is_waited_for(figures: dict[str, Any], resource: str) -> None:
    straggler = make_plan(small_planner(**figures), "time").straggler
    assert (straggler.tier, straggler.resource) == ("slow", resource)
    assert straggler.client == 1, "of two that end at once, the first"


def test_the_configs_own_cuts_stand_beside_the_plan() -> None:
    planner = small_planner()
    plan = make_plan(planner, "time")
    assert plan.configured == planner.figures((1, 2))
    assert plan.configured.seconds >= plan.round.seconds


def test_a_fixed_tier_keeps_its_cut() -> None:
    assert small_planner().best("time", fixed={1: 3})[1] == 3


def test_nothing_fits_on_a_device() -> None:
    with pytest.raises(
        ConfigError, match=r"tiers\.1 \(slow\): no cut fits on slow: the smallest, u1, needs 44\.2 KiB"
    ) as told:
        small_planner(memory_mib=0.001).best()
    assert "use a smaller tiers.1.batch_size" in str(told.value) and "\n" not in str(told.value)


def test_the_servers_models_must_fit() -> None:
    # At best the head is left: 120 bytes of state for each of three models, and 352 of the one that computes.
    server = profile(memory_mib=600 / MIB)
    planner = small_planner()
    planner.profiles = {**planner.profiles, "cloud": server}
    with pytest.raises(
        ConfigError, match=r"simulation\.server \(cloud\): its models need 712 B at least \(u3 for f"
    ) as told:
        planner.best()
    assert "training.strategy=sequential" in str(told.value) and "\n" not in str(told.value)
    shared = small_planner({"strategy": "sequential"})
    shared.profiles = {**shared.profiles, "cloud": server}
    assert shared.best() == (3, 3), "one model for all"
    reason = make_plan(shared, "time").tiers[0].cuts[0].rejected
    assert reason is not None and reason.startswith("too much for the server: its models need 632.5 KiB")


def test_a_plan_needs_devices_and_something_to_cut() -> None:
    config = load_config({"tiers": [{"name": "a", "clients": 2, "cut": "u1"}]})
    with pytest.raises(ConfigError, match=r"tiers\.0\.device, simulation\.server: missing, .*known: big, small"):
        check_devices(config, {"small": profile(), "big": profile()})
    for strategy in ("centralized", "fedavg", "smallest", "per_tier"):
        with pytest.raises(ConfigError, match=rf"^training\.strategy is '{strategy}': no server .* nothing to plan"):
            check_devices(load_config(config.model_dump(), [f"training.strategy={strategy}"]), {})


def test_the_picture_has_a_panel_for_every_tier(tmp_path: Path) -> None:
    from hsee_ray.planning.plots import draw_plan

    figure = draw_plan(make_plan(small_planner(memory_mib=0.1), "time"))
    assert [axes.get_title() for axes in figure.axes] == ["fast: 1 x fast", "slow: 2 x slow"]
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["u1", "u2", "u3", "u4"]
        assert len(axes.patches) >= 12, "three bars for each cut"
        assert axes.get_legend() is None
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "does not fit the device" in names and "the plan's cut (in its tier's colour)" in names
    figure.savefig(tmp_path / "plan.png")
