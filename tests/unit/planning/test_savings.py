"""Savings by hand, and that every figure is what its own formula gives."""

from __future__ import annotations

import dataclasses

import pytest

from hsee_ray.errors import ConfigError
from hsee_ray.planning.savings import WAYS, Prices, TierInputs, TierSavings, savings

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
    server_active_w=100.0,
    server_cores=4,
    whole_memory_bytes=2**20,
    memory_bytes=2**21,
)
HUB = dataclasses.replace(SENSOR, tier="hub", clients=1, offload_ratio=0.0, sent_bytes=0.0, memory_bytes=2**19)
PRICES = Prices(per_kwh=0.3, per_gib=0.1, per_server_hour=2.0)


def values(found: TierSavings, way: str) -> dict[str, float]:
    return {name: figure.value for name, figure in found.ways[way].figures.items()}  # type: ignore[index]


def test_a_tier_by_hand() -> None:
    sensor = savings([SENSOR], Prices())[0]
    # 1,000 bytes are 10 ms on the air at 1 W, and 20 ms on the link; a quarter is asked about, there and back.
    assert values(sensor, "split") == pytest.approx(
        {
            "bytes": 1e9,
            "device_joules": 1e6 * (5 * 0.02 + 1 * 0.01),
            "server_joules": 1e6 * 0.25 * 0.004 * 100,
            "server_seconds": 1000.0,
            "milliseconds": 1e6 * (20 + 20 + 0.25 * (2 * 10 + 4)),
            "joules": 110_000 + 100_000,
        }
    )
    assert values(sensor, "cloud") == pytest.approx(
        {
            "bytes": 3.072e9,
            "device_joules": 1e6 * 0.03072,
            "server_joules": 500_000.0,
            "server_seconds": 5000.0,
            "milliseconds": 1e6 * (61.44 + 20 + 5),
            "joules": 530_720.0,
        }
    )
    assert values(sensor, "device") == pytest.approx(
        {
            "bytes": 0,
            "device_joules": 500_000.0,
            "server_joules": 0,
            "server_seconds": 0,
            "milliseconds": 1e8,
            "joules": 500_000.0,
        }
    )
    assert sensor.saved("bytes", "cloud") == pytest.approx(1 - 1000 / 3072)
    assert sensor.saved("bytes", "device") is None
    assert sensor.saved("joules", "device") == pytest.approx(1 - 210 / 500)


def test_money_counts_what_is_priced() -> None:
    energy = 0.3 * 210_000 / 3.6e6
    traffic, hours = 0.1 * 1e9 / 2**30, 2.0 * 1000 / 3600 / 4
    assert values(savings([SENSOR], PRICES)[0], "split")["money"] == pytest.approx(energy + traffic + hours)
    assert values(savings([SENSOR], Prices(per_gib=0.1))[0], "split")["money"] == pytest.approx(traffic)
    assert "money" not in values(savings([SENSOR], Prices())[0], "split")


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
