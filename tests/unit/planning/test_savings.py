"""Savings by hand, and that every figure is what its own formula gives."""

from __future__ import annotations

import dataclasses

import pytest

from hsee_ray.devices.profiles import DeviceProfile
from hsee_ray.errors import ConfigError
from hsee_ray.planning.cost import Prices
from hsee_ray.planning.savings import WAYS, TierInputs, TierSavings, comparison, savings
from hsee_ray.planning.savings_tables import render_savings

SENSOR = TierInputs(
    tier="sensor",
    clients=3,
    cut="layer1.1",
    offload_ratio=0.25,
    sent_bytes=1000.0,
    image_bytes=3072.0,
    client_s=0.02,
    server_s=0.004,
    whole_device_s=0.1,
    whole_server_s=0.005,
    active_w=5.0,
    radio_w=1.0,
    uplink_bytes_s=100_000.0,
    link_bytes_s=50_000.0,
    latency_s=0.01,
    server_active_w=128.0,
    server_cores=64,
    whole_memory_bytes=2**20,
    memory_bytes=2**21,
    gated_accuracy=0.8,
    exit_accuracy=0.7,
    whole_accuracy=0.9,
)
HUB = dataclasses.replace(
    SENSOR, tier="hub", clients=1, offload_ratio=0.0, sent_bytes=0.0, memory_bytes=2**19, gated_accuracy=0.6
)
PRICES = Prices(per_kwh=0.3, per_gib=0.1, per_server_hour=2.0, currency="EUR")
SERVER = DeviceProfile(
    compute_gflops=6.0, memory_mib=1.0, uplink_mbit_s=1.0, downlink_mbit_s=1.0, active_w=128.0, radio_w=0.0, cores=64,
    source="made up",
)  # fmt: skip


def values(found: TierSavings, way: str) -> dict[str, float]:
    return {name: figure.value for name, figure in found.ways[way].figures.items()}  # type: ignore[index]


def test_a_tier_by_hand() -> None:
    sensor = savings([SENSOR], Prices())[0]
    # 1,000 bytes are 10 ms on the air at 1 W, and 20 ms on the link; a quarter is asked about, there and back. Of the
    # server's 128 W one of 64 cores is charged 2 W.
    assert values(sensor, "split") == pytest.approx(
        {
            "bytes": 1e9,
            "device_joules": 1e6 * (5 * 0.02 + 1 * 0.01),
            "server_joules": 1e6 * 0.25 * 0.004 * 2,
            "server_seconds": 1000.0,
            "milliseconds": 20 + 20 + 0.25 * (2 * 10 + 4),
            "joules": 110_000 + 2_000,
        }
    )
    assert values(sensor, "exit") == pytest.approx(
        {
            "bytes": 0,
            "device_joules": 1e6 * 5 * 0.02,
            "server_joules": 0,
            "server_seconds": 0,
            "milliseconds": 20,
            "joules": 100_000,
        }
    )
    assert values(sensor, "cloud") == pytest.approx(
        {
            "bytes": 3.072e9,
            "device_joules": 1e6 * 0.03072,
            "server_joules": 1e6 * 0.005 * 2,
            "server_seconds": 5000.0,
            "milliseconds": 61.44 + 20 + 5,
            "joules": 30_720 + 10_000,
        }
    )
    assert values(sensor, "device") == pytest.approx(
        {
            "bytes": 0,
            "device_joules": 500_000.0,
            "server_joules": 0,
            "server_seconds": 0,
            "milliseconds": 100,
            "joules": 500_000.0,
        }
    )
    assert {way: each.accuracy for way, each in sensor.ways.items()} == {
        "split": 0.8, "exit": 0.7, "cloud": 0.9, "device": 0.9,
    }  # fmt: skip
    assert sensor.saved("bytes", "cloud") == pytest.approx(1 - 1000 / 3072)
    assert sensor.saved("bytes", "device") is None
    assert sensor.saved("joules", "device") == pytest.approx(1 - 112 / 500)


def test_savings_are_told_in_words_and_with_their_sign() -> None:
    sensor = savings([SENSOR], Prices())[0]
    assert sensor.words("bytes", "cloud") == "saves 67.4 %", "1 - 1000 / 3072 = 0.6745"
    assert sensor.words("joules", "cloud") == "costs 2.8 times as much", "112,000 / 40,720 = 2.75"
    assert sensor.words("joules", "exit") == "costs 12.0 % more", "112,000 / 100,000"
    assert sensor.words("bytes", "device") == "more than 0"
    assert comparison(28.8, 1.0) == "costs 28.8 times as much"
    assert comparison(0.14, 1.0) == "saves 86.0 %"
    assert comparison(0.0, 0.0) == "the same"


def test_money_counts_what_is_priced_and_a_rented_hours_electricity_once() -> None:
    # A GiB is 1,073,741,824 bytes; 1,000 s of a core are 1000 / 3600 / 64 hours of the server.
    device, server = 0.3 * 110_000 / 3.6e6, 0.3 * 2_000 / 3.6e6
    traffic, hours = 0.1 * 1e9 / 1_073_741_824, 2.0 * 1000 / 3600 / 64

    def paid(prices: Prices) -> float:
        return values(savings([SENSOR], prices)[0], "split")["money"]

    assert paid(Prices(per_kwh=0.3)) == pytest.approx(device + server)
    assert paid(Prices(per_kwh=0.3, per_server_hour=2.0)) == pytest.approx(device + hours), "no electricity twice"
    assert paid(PRICES) == pytest.approx(device + traffic + hours)
    assert paid(Prices(per_gib=0.1)) == pytest.approx(traffic)
    assert "money" not in values(savings([SENSOR], Prices())[0], "split")


def test_a_month_is_shared_out_among_the_clients() -> None:
    sensor, hub, overall = savings([SENSOR, HUB], PRICES, a_month=40_000)
    # 3 of 4 clients are sensors: 30,000 images of 1,000 bytes. The hub sends nothing.
    assert values(sensor, "split")["bytes"] == pytest.approx(30e6)
    assert values(overall, "split")["bytes"] == pytest.approx(30e6)
    assert values(overall, "cloud")["bytes"] == pytest.approx(40_000 * 3072)
    # 30,000 * 0.11 J + 10,000 * 5 W * 0.02 s
    assert values(overall, "split")["device_joules"] == pytest.approx(3300 + 1000)
    assert values(hub, "split")["milliseconds"] == pytest.approx(20)
    assert values(overall, "split")["milliseconds"] == pytest.approx((3 * 46 + 20) / 4), "a mean, not a sum"


def test_the_table_says_what_it_counts_and_explains_where_asked() -> None:
    found = savings([SENSOR, HUB], PRICES)
    shown = render_savings(found, PRICES, ("rack", SERVER))
    legend, table, *_ = shown.split("\n\n")
    assert "Figures of 1,000,000 images of each tier, one at a time" in legend
    # 128 W / 64 = 2 W; 6 GFLOP/s / 2 W
    assert "Server rack: 128 W for 64 cores, so 2 W for each core at work, at 6 GFLOP/s: 3 GFLOP per joule." in legend
    assert "EUR: 0.3 per kWh of devices; 0.1 per GiB sent; 2 per hour of the whole server, electricity incl" in legend
    rows = [line.split() for line in table.splitlines()]
    assert rows[0][-2:] == ["EUR", "remark"]
    # By hand above: 46 ms; 1,000 s; 0.00917 + 0.0931 + 0.00868 = 0.111 EUR
    assert rows[2] == [
        "sensor", "gated", "80.0%", "1,000,000,000", "110,000", "2,000", "112,000", "46", "1,000", "0.111",
    ]  # fmt: skip
    # Overall accuracy: (3 * 0.8 + 0.6) / 4
    assert next(row for row in rows if row[:2] == ["overall", "gated"])[2] == "75.0%"
    words = next(line for line in shown.splitlines() if line.startswith("J together"))
    assert "costs 2.8 times as much" in words
    assert "10.0 points less" in shown, "0.8 beside 0.9"
    assert "active_w * device_s" not in shown and "n * (active_w * client_s" not in shown
    explained = render_savings(found, PRICES, ("rack", SERVER), explain=True)
    assert "gated: J on the device = n * (active_w * client_s + radio_w * sent_bytes / uplink_bytes_s)" in explained
    assert (
        "sensor: n 1e+06, active_w 5, client_s 0.02, radio_w 1, sent_bytes 1000, uplink_bytes_s 100000 -> 110000"
        in (explained)
    )
    month = render_savings(savings([SENSOR, HUB], Prices(), 40_000), Prices(), ("rack", SERVER), 40_000)
    assert "month in which all clients together answer 40,000 images, each client equally many" in month
    assert month.splitlines()[-1].startswith("In short, overall: gated takes ")
    assert month.count(" J a month at an accuracy of 75.0%") == 1
    assert shown.splitlines()[-1].startswith("In short, overall: gated takes ") and " EUR in a million images" in shown


def test_every_figure_is_what_its_formula_gives() -> None:
    for tier in savings([SENSOR, HUB], PRICES):
        for way in WAYS:
            for name, figure in tier.ways[way].figures.items():
                given = eval(figure.formula, {"__builtins__": {}}, dict(figure.inputs))
                assert given == pytest.approx(figure.value), f"{tier.tier} {way} {name}: {figure.formula}"


def test_overall_is_the_mean_over_clients() -> None:
    sensor, hub, overall = savings([SENSOR, HUB], PRICES)
    assert overall.tier == "overall"
    for way in WAYS:
        for name, value in values(overall, way).items():
            assert value == pytest.approx((3 * values(sensor, way)[name] + values(hub, way)[name]) / 4)


def test_a_network_that_does_not_fit_is_said() -> None:
    sensor, hub, overall = savings([SENSOR, HUB], Prices())
    assert sensor.ways["device"].obstacle is None
    assert hub.ways["device"].obstacle == "does not fit: needs 1.00 MiB, the device has 0.50 MiB"
    assert overall.ways["device"].obstacle == "does not fit on the devices of hub"
    assert overall.ways["split"].obstacle is None


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_a_price_that_is_none_is_refused(price: float) -> None:
    with pytest.raises(ConfigError, match=r"--price-per-server-hour .*: a price is 0 or more"):
        Prices(per_server_hour=price)
