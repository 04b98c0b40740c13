"""What rounds cost on devices that can be reckoned with by hand, as they are foreseen and as they were."""

from __future__ import annotations

from typing import Any

import pytest

from hsee_ray.config.schema import Config
from hsee_ray.errors import ConfigError
from hsee_ray.method.reports import EvaluationReport, RoundReport, TrainReport
from hsee_ray.simulation.clock import Clock, dropouts
from hsee_ray.simulation.loads import Loads
from hsee_ray.simulation.prediction import ClientCost, Predictor, RoundCost
from tests.fake_costs import PROFILES, FakeCosts, config_of, device, fleet_of

COSTS: Any = FakeCosts()
DISTRIBUTED = "training.strategy=distributed"
SAMPLES = (4, 4, 4)


def predict(config: Config, samples: tuple[int, ...] = SAMPLES) -> RoundCost:
    return Predictor(config, COSTS, PROFILES).round(fleet_of(config), samples, 4)


def clock_of(config: Config, samples: tuple[int, ...] = SAMPLES) -> Clock:
    return Clock(config, fleet_of(config), samples, 4, COSTS, PROFILES)


def report(number: int, trained: dict[int, TrainReport], evaluation: dict[int, EvaluationReport] | None = None) -> Any:
    return RoundReport(number, 0.1, 1.0, 1.0, trained, {}, evaluation or {})


def trained(sent_bytes: int = 400, skipped: int = 0) -> TrainReport:
    return TrainReport(4, (1.0,) * (2 - skipped), sent_bytes, skipped)


def test_a_round_by_hand() -> None:
    """Two batches of 2 samples each. A sensor: 3 * 1 * 2 = 6 s a batch; 200 bytes at 100 bytes/s: 2 s.

    Its server: 3 * 2 * 2 / 10 = 1.2 s. So 6, 12 computed, 14 sent, 15.2 served. The phone: 3 * 2 * 2 / 2 = 6 s as well,
    200 bytes at 200 bytes/s: 1 s, server 0.6 s: there at 7 and 13. The link carries all, and the two cores too: at 14
    both sensors' servers begin, when the phone's is done.
    """
    config = config_of(DISTRIBUTED)
    cost = predict(config)
    assert cost.train_s == pytest.approx(15.2)
    assert cost.exchange_s == 0
    # Evaluation of 4 samples at once. Sensor: 4 s, 400 bytes 4 s, server 2 * 4 / 10 = 0.8 s. Phone: 4, 2, 0.4 s.
    assert cost.evaluation_s == pytest.approx(8.8)
    assert cost.round_s == pytest.approx(24.0)
    sensor, phone = cost.clients[0], cost.clients[2]
    # 2 W for 12 s, and 10 W for the 4 s in which 400 bytes are on the air; the phone's 400 bytes take 2 s.
    assert sensor == ClientCost(12.0, pytest.approx(4.0), pytest.approx(2.4), 400, 0, pytest.approx(64.0))
    assert phone == ClientCost(12.0, pytest.approx(2.0), pytest.approx(1.2), 400, 0, pytest.approx(44.0))
    assert cost.tiers()["sensor"].joules == pytest.approx(128.0)
    assert cost.evaluated_tiers()["sensor"].sent_bytes == 800


def test_a_last_batch_of_another_size() -> None:
    """5 samples in batches of 2 and 3 (one sample joins): 6 s and 9 s; all figures are straight lines over samples."""
    load = Predictor(config_of(DISTRIBUTED), COSTS, PROFILES).loads.training(fleet_of(config_of()).clients[0], 5)
    assert [batch.compute_s for batch in load.batches] == pytest.approx([6.0, 9.0])
    assert [batch.sent_bytes for batch in load.batches] == [200, 300]
    assert [batch.server_s for batch in load.batches] == pytest.approx([1.2, 1.8])


def test_a_server_that_learns_again_does_so_behind_the_last_batch() -> None:
    loads = Loads(config_of("training.server_epochs=3"), FakeCosts(), PROFILES)  # type: ignore[arg-type]
    once = Loads(config_of(), FakeCosts(), PROFILES)  # type: ignore[arg-type]
    spec = fleet_of(config_of()).clients[0]
    again, plain = loads.training(spec, 5).batches, once.training(spec, 5).batches
    whole_s = sum(batch.server_s or 0.0 for batch in plain)
    assert again[:-1] == plain[:-1]
    assert (again[-1].server_s or 0.0) - (plain[-1].server_s or 0.0) == pytest.approx(2 * whole_s)


def test_codecs_send_less() -> None:
    config = config_of(DISTRIBUTED, "tiers.0.codec=int8")
    assert predict(config).clients[0].sent_bytes == 2 * 58


def test_a_client_with_the_whole_network_sends_nothing() -> None:
    """3 * 3 * 2 / 2 = 9 s a batch on the phone."""
    cost = predict(config_of(DISTRIBUTED, "tiers.1.cut=head"))
    assert cost.clients[2] == ClientCost(18.0, 0.0, 0.0, 0, 0, 36.0)
    assert cost.evaluated[2].sent_bytes == 0


def test_a_sequential_round_by_hand() -> None:
    """Batches of sensors take 1.2 s, of the phone 0.6 s. Sensor 0's are there at 8 and 14: 14 + 1.2 = 15.2.

    Then sensor 1's two, which are both there: 17.6; then the phone's: 18.8.
    """
    assert predict(config_of("training.strategy=sequential", "training.aggregate=server")).train_s == pytest.approx(
        18.8
    )


@pytest.mark.parametrize(
    ("overrides", "sensor", "phone"),
    [
        # stem and exit, 15 parameters; stem, layer1 and the phone's exit: the only one of its cut, not averaged.
        (["training.aggregate=all"], 4 * 15, 4 * 20),
        # layer1 is on one client only.
        (["training.aggregate=both"], 4 * 15, 4 * 10),
        (["training.aggregate=server"], 0, 0),
        (["training.aggregate=all", "training.optimizer_state=average"], 2 * 4 * 15, 2 * 4 * 20),
        (
            ["training.aggregate=all", "training.optimizer_state=average", "training.optimizer.name=adamw"],
            3 * 4 * 15,
            3 * 4 * 20,
        ),
        (["training.strategy=sequential"], 4 * 15, 4 * 20),
        (["training.aggregate_every=2"], 0, 0),
    ],
)
def test_parameters_are_exchanged_as_they_are_averaged(overrides: list[str], sensor: int, phone: int) -> None:
    cost = predict(config_of(*overrides, "training.rounds=4"))
    for number, size in ((0, sensor), (1, sensor), (2, phone)):
        assert (cost.clients[number].sent_bytes, cost.clients[number].received_bytes) == (400 + size, size)
    # The sensors' 60 bytes take 0.6 s and the phone's 80 take 0.4 s; once up and once down.
    if overrides == ["training.aggregate=all"]:
        assert cost.exchange_s == pytest.approx(1.2)
        assert cost.clients[0].joules == pytest.approx(64 + 10 * 1.2)


@pytest.mark.parametrize(
    ("strategy", "sensor", "phone"),
    # The whole network has 30 parameters; stem and exit 15; the phone is alone in its tier.
    [("fedavg", 4 * 30, 4 * 30), ("smallest", 4 * 15, 4 * 15), ("per_tier", 4 * 15, 0), ("depthfl", 4 * 15, 4 * 15)],
)
def test_without_servers_only_parameters_travel(strategy: str, sensor: int, phone: int) -> None:
    cost = predict(config_of(f"training.strategy={strategy}", "tiers.0.codec=int8"))
    for number, size in ((0, sensor), (1, sensor), (2, phone)):
        assert (cost.clients[number].sent_bytes, cost.clients[number].received_bytes) == (size, size)
        assert cost.clients[number].server_s == cost.evaluated[number].server_s == 0
        assert cost.evaluated[number].sent_bytes == 0
    # 4 samples, 3 s a unit and sample: the sensor through 3 units or 1; the phone is twice as quick.
    units = 3 if strategy == "fedavg" else 1
    assert cost.clients[0].compute_s == pytest.approx(12 * units)
    assert cost.clients[2].compute_s == pytest.approx(6 * (2 if strategy in ("per_tier", "depthfl") else units))


def test_centralized_trains_on_the_server() -> None:
    """6 batches of 2 samples through 3 units: 3 * 3 * 2 / 10 = 1.8 s each."""
    config = config_of("training.strategy=centralized")
    cost = predict(config, samples=(12,))
    assert cost.train_s == pytest.approx(10.8)
    assert cost.clients[0].sent_bytes == 0
    assert cost.tiers()["central"].joules == pytest.approx(10.8 * 2 / 2), "2 W over 2 cores"


def test_one_machine_computes_everything_at_the_servers_speed() -> None:
    """A client's 4 samples travel in one message, if that is small: 2 * 0.6 s, and 400 / 1000 = 0.4 s of sending.

    Servers 2 * 1.2 s, the phone's 2 * 0.6 s, and the phone itself 2 * 1.2 s. On two cores: both sensors until 1.6,
    both servers until 4.0; the phone 4.0 to 6.8, its server until 8.0.
    """
    config = config_of(DISTRIBUTED, "simulation.one_machine=true", "pipeline.max_in_flight=32")
    cost = predict(config)
    assert cost.train_s == pytest.approx(8.0)
    # Everything at one core's half of 2 W, sending too.
    assert cost.clients[0].joules == pytest.approx(1 * (1.2 + 0.4))
    # A window of 2 batches leaves messages of one: each pays the latency.
    slow = {**PROFILES, "cloud": device(10.0, 1000.0, cores=2, latency_ms=100.0)}
    narrow = config_of(DISTRIBUTED, "simulation.one_machine=true", "pipeline.max_in_flight=2")
    joules = [
        Predictor(each, COSTS, slow).round(fleet_of(each), SAMPLES, 4).clients[0].joules for each in (config, narrow)
    ]
    assert joules == pytest.approx([1.6 + 1 * 0.1, 1.6 + 1 * 0.2])


def test_a_round_as_it_was_costs_what_was_foreseen() -> None:
    config = config_of("training.rounds=3")
    cost = clock_of(config).advance(report(1, dict.fromkeys(range(3), trained())))
    foreseen = Predictor(config, COSTS, PROFILES).round(fleet_of(config), SAMPLES, 4, evaluates=False)
    assert cost == foreseen


def test_what_was_skipped_or_missing_costs_nothing_more() -> None:
    """Sensor 0 skipped a batch: computed, not sent. Sensor 1 took no part. The phone's labels were counted too."""
    config = config_of(DISTRIBUTED)
    cost = clock_of(config).advance(report(1, {0: trained(200, skipped=1), 2: trained(432)}))
    assert set(cost.clients) == {0, 2}
    assert (cost.clients[0].compute_s, cost.clients[0].sent_bytes) == (12.0, 200)
    assert cost.clients[0].server_s == pytest.approx(1.2)
    assert cost.clients[2].sent_bytes == 432
    # The last batch to be sent is sensor 0's first, at 8; the phone's second is there at 13.08, and done at 13.68.
    assert cost.train_s == pytest.approx(13.68)


def test_evaluations_cost_what_was_sent() -> None:
    evaluated = EvaluationReport(4, 2, 3, (2,), (1,), 440, (2, 2), (4,))
    cost = clock_of(config_of(DISTRIBUTED)).advance(report(1, {0: trained()}, {0: evaluated, 1: evaluated}))
    assert {number: spent.sent_bytes for number, spent in cost.evaluated.items()} == {0: 440, 1: 440}
    assert cost.evaluation_s == pytest.approx(4 + 4.4 + 0.8)


def test_who_sat_out_fetches_the_newest_averages() -> None:
    """Client 1 is not in round 1, after which averages are made; in round 2 it fetches its 15 parameters first.

    It sends all 15 after that round, and takes the stem's average; its exit is the only one of round 2.
    """
    clock = clock_of(config_of("training.rounds=3"))
    clock.advance(report(1, {0: trained(), 2: trained()}))
    cost = clock.advance(report(2, {1: trained(), 2: trained()}))
    fetches = [span for span in cost.spans if span.kind == "fetch"]
    assert [(span.client, span.begin_s, span.end_s) for span in fetches] == [(1, 0.0, pytest.approx(0.6))]
    assert (cost.clients[1].sent_bytes, cost.clients[1].received_bytes) == (400 + 60, 60 + 40)


def test_a_clock_goes_on_from_a_checkpoint() -> None:
    config = config_of("training.rounds=5", "training.aggregate_every=2")
    rounds = [{0: trained(), 2: trained()}, {1: trained()}, {0: trained()}, {1: trained(), 2: trained()}]
    whole, costs = clock_of(config), []
    ledgers = []
    for number, who in enumerate(rounds, start=1):
        ledgers.append((whole.ledger.newest.copy(), whole.ledger.seen.copy(), set(whole.trained)))
        costs.append(whole.advance(report(number, who)))
    for done, (newest, seen, since) in enumerate(ledgers):
        resumed = clock_of(config)
        resumed.set(type(whole.ledger)(newest, seen), since)
        assert [resumed.advance(report(n, rounds[n - 1])) for n in range(done + 1, 5)] == costs[done:]
        # What a checkpoint holds has not been touched.
        assert (newest, seen, since) == ledgers[done]


def test_dropouts_are_drawn_by_seed_client_and_round() -> None:
    config = config_of("simulation.dropout_probability=0.5", "simulation.dropout_s=30", DISTRIBUTED)
    drawn = [dropouts(config, range(50), number) for number in (1, 2)]
    assert drawn == [dropouts(config, range(50), number) for number in (1, 2)]
    assert drawn[0] != drawn[1] and 10 < len(drawn[0]) < 40
    assert set(drawn[0].values()) == {30.0}
    # A client draws the same, whoever else takes part.
    assert dropouts(config, [7], 1) == {number: s for number, s in drawn[0].items() if number == 7}
    assert dropouts(config_of(DISTRIBUTED), range(50), 1) == {}
    who = dict.fromkeys(range(3), trained())
    number = next(n for n in range(1, 99) if dropouts(config, range(3), n).keys() == {0, 1, 2})
    assert clock_of(config).advance(report(number, who)).train_s == pytest.approx(45.2)


@pytest.mark.parametrize("strategy", ["distributed", "averaging", "sequential"])
@pytest.mark.parametrize("one_machine", ["true", "false"])
@pytest.mark.parametrize("samples", [(4, 4, 4), (40, 6, 100)])
def test_no_round_is_below_its_bound(strategy: str, one_machine: str, samples: tuple[int, ...]) -> None:
    config = config_of(f"training.strategy={strategy}", f"simulation.one_machine={one_machine}")
    slow = {**PROFILES, "cloud": device(10.0, 100.0, cores=2, latency_ms=500.0)}
    predictor, fleet = Predictor(config, COSTS, slow), fleet_of(config)
    cost = predictor.round(fleet, samples, 4)
    for some in ([0], [0, 1], [2], [0, 1, 2]):
        bound_s = predictor.bound_s([fleet.clients[number] for number in some], [samples[n] for n in some])
        assert 0 < bound_s <= cost.train_s * (1 + 1e-9)


@pytest.mark.parametrize(
    ("override", "where"), [("simulation.server=clud", "simulation.server"), ("tiers.1.device=fone", "tiers.1.device")]
)
def test_a_device_without_a_profile_is_named(override: str, where: str) -> None:
    with pytest.raises(ConfigError, match=rf"{where} is .*there is no such device"):
        predict(config_of(override))
