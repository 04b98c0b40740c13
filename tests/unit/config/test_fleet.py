"""Who the clients are and where they cut, over a ResNet-like list of six units."""

from __future__ import annotations

from typing import Any

import pytest

from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import Fleet, resolve_cut
from hsee_ray.config.schema import ResourcesConfig
from hsee_ray.errors import ConfigError
from hsee_ray.method.strategies import build_fleet

UNITS = ("stem", "layer1.0", "layer1.1", "layer10.0", "layer2.0", "head")
CUTS = "1 stem, 2 layer1.0, 3 layer1.1, 4 layer10.0, 5 layer2.0, 6 head"


def fleet(tiers: list[dict[str, Any]], **training: Any) -> Fleet:
    return build_fleet(load_config({"tiers": tiers, "training": training}), UNITS)


@pytest.mark.parametrize(
    ("cut", "index"),
    [
        ("stem", 1),
        ("layer1.0", 2),
        ("layer1", 3),
        ("layer10", 4),
        ("layer2", 5),
        ("head", 6),
        (1, 1),
        (6, 6),
        ("1", 1),
        ("4", 4),
    ],
)
def test_a_cut_is_named_by_unit_stage_or_index(cut: str | int, index: int) -> None:
    assert resolve_cut(cut, UNITS) == index


@pytest.mark.parametrize("cut", ["layer3", "layer", "layer1.2", "Stem", "", "-1", 0, 7, "7", -1, "²", "٣"])
def test_a_cut_that_is_not_there_lists_those_that_are(cut: str | int) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_cut(cut, UNITS, where="tiers.1.cut")
    assert str(caught.value) == (f"tiers.1.cut is {cut!r}: the network has no such cut; it can be cut after {CUTS}")


def test_a_codec_is_that_of_clients_that_send() -> None:
    tiers = [{"name": cut, "clients": 1, "cut": cut, "codec": "int8"} for cut in ("stem", "head")]
    tiers.append({"name": "plain", "clients": 1, "cut": "stem"})
    assert [client.codec for client in fleet(tiers).clients] == ["int8", "none", "none"]
    assert [client.codec for client in fleet(tiers, strategy="centralized").clients] == ["none"]


def test_a_bad_cut_names_its_tier() -> None:
    with pytest.raises(ConfigError, match=r"^tiers\.1\.cut is 'layr2': "):
        fleet([{"name": "a", "clients": 1, "cut": "stem"}, {"name": "b", "clients": 1, "cut": "layr2"}])


def test_clients_are_numbered_over_the_tiers() -> None:
    built = fleet(
        [
            {"name": "sensor", "clients": 2, "cut": "layer1", "batch_size": 8, "resources": {"num_cpus": 0.5}},
            {"name": "phone", "clients": 1, "cut": 6},
            {"name": "hub", "clients": 1, "cut": "stem"},
        ],
        batch_size=32,
    )
    assert [(c.client_id, c.label, c.tier, c.cut, c.cut_name, c.has_server, c.batch_size) for c in built.clients] == [
        (0, "000", "sensor", 3, "layer1.1", True, 8),
        (1, "001", "sensor", 3, "layer1.1", True, 8),
        (2, "002", "phone", 6, "head", False, 32),
        (3, "003", "hub", 1, "stem", True, 32),
    ]
    assert built.clients[0].resources == ResourcesConfig(num_cpus=0.5)
    assert (built.clients[3].client_file, built.clients[3].server_file) == ("client-003", "server-003")
    assert built.tiers == ("sensor", "phone", "hub")
    assert built.unit_names == UNITS


def test_labels_have_as_many_digits_as_the_largest_number_needs() -> None:
    labels = [client.label for client in fleet([{"name": "a", "clients": 1001, "cut": 1}]).clients]
    assert (labels[0], labels[-1]) == ("0000", "1000")
    labels = [client.label for client in fleet([{"name": "a", "clients": 1000, "cut": 1}]).clients]
    assert (labels[0], labels[-1]) == ("000", "999")


def test_centralized_has_one_client_with_the_whole_network_on_the_servers_resources() -> None:
    config = load_config(
        {
            "tiers": [{"name": "sensor", "clients": 4, "cut": "no matter", "batch_size": 8}],
            "server": {"resources": {"num_cpus": 2}},
            "training": {"strategy": "centralized", "batch_size": 16},
        }
    )
    (central,) = build_fleet(config, UNITS).clients
    assert (central.client_id, central.label, central.tier) == (0, "central", "central")
    assert (central.cut, central.cut_name, central.has_server) == (6, "head", False)
    assert (central.batch_size, central.resources.num_cpus) == (16, 2.0)
    assert central.client_file == "client-central"
