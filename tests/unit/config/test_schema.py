"""Configurations: what is read back, what is overridden, and what every bad value is told in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hsee_ray.config.files import dump_config, load_config
from hsee_ray.config.schema import AugmentConfig, Config, ConstantSchedule, CosineSchedule
from hsee_ray.errors import ConfigError

SENSOR = {"name": "sensor", "clients": 2, "cut": "layer1"}
HUB = {"name": "hub", "clients": 3, "cut": 4}
BASE: dict[str, Any] = {"tiers": [SENSOR, HUB]}


def message(values: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(values, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def file_message(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Round trip


def test_a_dumped_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(
        {
            "seed": 7,
            "data": {"name": "parquet", "root": "somewhere", "partition": {"kind": "dirichlet", "alpha": 0.3}},
            "tiers": [{**SENSOR, "resources": {"num_cpus": 0.5, "custom": {"jetson": 1}}}, {**HUB, "cut": "3"}],
            "training": {"lr_schedule": {"name": "step", "every": 2}, "optimizer": {"betas": [0.8, 0.95]}},
            "exits": {"taus": [0.9, 0.2]},
        }
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    assert dump_config(load_config(path)) == dump_config(config)


def test_a_dump_spells_every_default_out() -> None:
    dumped = yaml.safe_load(dump_config(load_config(BASE)))
    assert set(dumped) == set(Config.model_fields)
    assert dumped["training"]["optimizer"]["weight_decay"] == 5e-4
    assert dumped["tiers"][1]["resources"] == {
        "num_cpus": 1.0,
        "num_gpus": 0.0,
        "memory": None,
        "custom": {},
        "label_selector": {},
        "accelerator_type": None,
    }


def test_clients_add_up_over_tiers() -> None:
    assert load_config(BASE).n_clients == 5


def test_taus_are_sorted_and_without_repetition() -> None:
    assert load_config({**BASE, "exits": {"taus": [0.9, 0, 0.5, 0.9]}}).exits.taus == (0.0, 0.5, 0.9)


def test_a_number_that_yaml_reads_as_text_is_a_number() -> None:
    # YAML 1.1 wants a dot in a float, so `5e-4` arrives as text.
    assert yaml.safe_load("5e-4") == "5e-4"
    assert load_config(BASE, ["training.optimizer.lr=5e-4"]).training.optimizer.lr == 0.0005


# Cosine


def test_the_cosine_ends_with_the_rounds_and_stays_there_when_rounds_are_raised() -> None:
    cosine = ["training.rounds=12", "training.lr_schedule.name=cosine"]
    started = load_config(BASE, cosine)
    assert started.training.lr_schedule == CosineSchedule(name="cosine", horizon_rounds=12)
    resumed = load_config(yaml.safe_load(dump_config(started)), ["training.rounds=20"])
    assert resumed.training.rounds == 20
    assert resumed.training.lr_schedule == CosineSchedule(name="cosine", horizon_rounds=12)


def test_a_given_horizon_stays() -> None:
    config = load_config(BASE, ["training.lr_schedule={name: cosine, horizon_rounds: 3}"])
    assert config.training.lr_schedule == CosineSchedule(name="cosine", horizon_rounds=3)


# Overrides


def test_overrides_are_yaml_values_at_dotted_keys() -> None:
    config = load_config(
        BASE,
        [
            "seed=3",
            "training.norm_statistics=shared",
            "training.optimizer.momentum=0.5",
            "data.augment=true",
            "data.train_samples=null",
            "data.partition={kind: shards, shards_per_client: 4}",
            "exits.taus=[0.25, 0.75]",
            "tiers.1.clients=9",
            "tiers.0.resources.custom.jetson=1",
        ],
    )
    assert config.seed == 3
    assert config.training.norm_statistics == "shared"
    assert config.training.optimizer.momentum == 0.5
    assert config.data.augment == AugmentConfig(flip=True, shift=0.125)
    assert config.data.train_samples is None
    assert config.data.partition.model_dump() == {"kind": "shards", "shards_per_client": 4}
    assert config.exits.taus == (0.25, 0.75)
    assert [tier.clients for tier in config.tiers] == [2, 9]
    assert config.tiers[0].resources.custom == {"jetson": 1.0}


def test_a_whole_item_of_a_list_is_replaced() -> None:
    config = load_config(BASE, ["tiers.0={name: phone, clients: 1, cut: stem}"])
    assert [(tier.name, tier.clients, tier.cut) for tier in config.tiers] == [("phone", 1, "stem"), ("hub", 3, 4)]


def test_the_last_override_wins_and_the_mapping_is_left_as_it_was() -> None:
    values = {"tiers": [dict(SENSOR)]}
    assert load_config(values, ["tiers.0.clients=5", "tiers.0.clients=6"]).n_clients == 6
    assert values == {"tiers": [SENSOR]}


def test_a_value_may_hold_an_equals_sign() -> None:
    assert load_config(BASE, ["data.name=folder", "data.root=/images/size=32"]).data.root == "/images/size=32"


@pytest.mark.parametrize("override", ["training.rounds", "=3", "training..rounds=3", ".rounds=3"])
def test_an_override_that_is_no_assignment(override: str) -> None:
    assert message(BASE, override) == (
        f"--set {override}: write it as a.b.c=value, for instance --set training.rounds=5"
    )


def test_an_override_with_a_broken_value() -> None:
    assert (
        message(BASE, "seed=[1")
        == "--set seed=[1: is not valid YAML in line 1, column 3: expected ',' or ']', but got '<stream end>'"
    )


@pytest.mark.parametrize("index", ["2", "-1", "first"])
def test_an_override_of_an_item_that_is_not_there(index: str) -> None:
    assert f"{index} is no index of a list of 2 (0 to 1)" in message(BASE, f"tiers.{index}.cut=stem")


def test_an_override_below_a_plain_value() -> None:
    assert message({**BASE, "seed": 4}, "seed.low=1") == "--set seed.low=1: seed is 4, which has no key low"


def test_an_override_with_an_unknown_key_is_told_like_one_in_the_file() -> None:
    assert "training.round: unknown key; did you mean rounds?" in message(BASE, "training.round=3")


# Bad values


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"trainig": {}}, "trainig: unknown key; did you mean training?"),
        ({"training": {"optimizer": {"momentun": 0.5}}}, "training.optimizer.momentun: unknown key; did you mean mom"),
        ({"tiers": [{**SENSOR, "clinets": 3}]}, "tiers.0.clinets: unknown key; did you mean clients?"),
        ({"data": {"xyz": 1}}, "data.xyz: unknown key (known here: augment, bits, cache,"),
        ({"training": {"rounds": "many"}}, "training.rounds is 'many': should be a valid integer"),
        ({"training": {"rounds": 2.5}}, "training.rounds is 2.5: should be a valid integer"),
        ({"training": {"rounds": True}}, "training: rounds is True: YAML reads yes, no"),
        ({"tiers": [{**SENSOR, "cut": True}]}, "tiers.0: cut is True: YAML reads yes, no"),
        ({"data": 3}, "data is 3: should be a valid dictionary"),
        ({"tiers": [{**SENSOR, "clients": 0}]}, "tiers.0.clients is 0: should be greater than or equal to 1"),
        ({"tiers": [SENSOR, {**HUB, "clients": 0}]}, "tiers.1.clients is 0: should be greater than or equal to 1"),
        ({"tiers": []}, "tiers is empty: give at least one"),
        ({"tiers": [{"name": "sensor", "clients": 1}]}, "tiers.0.cut: is missing"),
        ({"tiers": [SENSOR, {**HUB, "name": "sensor"}]}, "sensor is given more than once; give each tier a name"),
        ({"tiers": [{**SENSOR, "name": "overall"}]}, "`overall` is the name of the mean over all clients; call the"),
        ({"data": {"name": "mnist"}}, "data.name is 'mnist': should be 'digits', 'cifar10'"),
        ({"data": {"name": "folder"}}, "data: root is missing: say where the folder data set lies (--set data.root="),
        ({"data": {"partition": {"kind": "dirichlet", "alpha": 0}}}, "data.partition.alpha is 0: should be greater"),
        ({"data": {"partition": {"kind": "dirichlet", "alpha": -1}}}, "data.partition.alpha is -1: should be greater"),
        ({"data": {"partition": {"kind": "skewed"}}}, "does not match any of the expected tags: 'iid', 'dirichlet', "),
        ({"data": {"partition": {"alpha": 1}}}, "data.partition: say which with the key 'kind'"),
        ({"exits": {"taus": []}}, "exits.taus is empty: give at least one"),
        ({"exits": {"taus": [0.5, 1.5]}}, "exits.taus.1 is 1.5: should be less than or equal to 1"),
        ({"exits": {"taus": [-0.1]}}, "exits.taus.0 is -0.1: should be greater than or equal to 0"),
        ({"training": {"batch_size": 1}}, "training.batch_size is 1: should be greater than or equal to 2"),
        ({"tiers": [{**SENSOR, "batch_size": 1}]}, "tiers.0.batch_size is 1: should be greater than or equal to 2"),
        ({"server": {"resources": {"num_gpus": 1.5}}}, "num_gpus is 1.5: Ray takes a fraction up to 1, or a whole"),
        ({"training": {"warmup_rounds": -1}}, "training.warmup_rounds is -1: should be greater than or equal to 0"),
        ({"training": {"optimizer": {"clip_norm": 0}}}, "training.optimizer.clip_norm is 0: should be greater than 0"),
        ({"model": {"init": "zeros"}}, "model.init is 'zeros': should be 'kaiming' or 'torch'"),
        ({"training": {"lr_schedule": {"name": "step"}}}, "training.lr_schedule.every: is missing"),
    ],
)
def test_a_bad_value_is_one_line(change: dict[str, Any], told: str) -> None:
    assert told in message({**BASE, **change})


def test_a_key_of_another_variant_is_not_suggested_again() -> None:
    told = message({**BASE, "data": {"partition": {"kind": "iid", "alpha": 1}}})
    assert told.startswith("config: data.partition.alpha: unknown key")
    assert "did you mean alpha" not in told


def test_a_cut_that_is_neither_text_nor_a_whole_number() -> None:
    assert message({"tiers": [{**SENSOR, "cut": 1.5}]}).startswith("config: tiers.0.cut is 1.5: ")


def test_an_infinite_learning_rate() -> None:
    assert "training.optimizer.lr is inf" in message(BASE, "training.optimizer.lr=.inf")


def test_missing_tiers() -> None:
    assert message({"seed": 1}).startswith("config: tiers: is missing; see jobs/configs/reference.yaml")


def test_one_of_several_mistakes_is_told_with_the_number_of_the_others() -> None:
    told = message({**BASE, "seed": -1, "training": {"rounds": 0, "batch_size": 1}})
    assert told == "config: seed is -1: should be greater than or equal to 0 (and 2 more)"


@pytest.mark.parametrize("num_gpus", [0, 0.25, 1, 2])
def test_gpus_are_fractions_up_to_one_or_whole(num_gpus: float) -> None:
    config = load_config({**BASE, "server": {"resources": {"num_gpus": num_gpus}}})
    assert config.server.resources.num_gpus == num_gpus


def test_defaults() -> None:
    training = load_config(BASE).training
    assert (training.strategy.name, training.aggregate, training.norm_statistics) == ("averaging", "all", "per_client")
    assert training.lr_schedule == ConstantSchedule()


# Files


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "missing.yaml"
    assert file_message(path) == (f"{path}: cannot be read (No such file or directory); give a YAML file with --config")


def test_a_directory_in_place_of_a_file(tmp_path: Path) -> None:
    assert "cannot be read (Is a directory)" in file_message(tmp_path)


def test_a_file_that_is_not_yaml(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("tiers: [1, 2\nseed: {", encoding="utf-8")
    assert file_message(path).startswith(f"{path}: is not valid YAML in line ")


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "just text"])
def test_a_file_without_keys(tmp_path: Path, text: str) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(text, encoding="utf-8")
    assert file_message(path).startswith(f"{path}: holds no keys; see jobs/configs/reference.yaml")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "image.yaml"
    path.write_bytes(b"\x89PNG\xff\xfe")
    assert file_message(path) == f"{path}: is not a text file; give a YAML file with --config"


def test_a_bad_value_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("tiers: [{name: a, clients: 0, cut: stem}]", encoding="utf-8")
    assert file_message(path) == f"{path}: tiers.0.clients is 0: should be greater than or equal to 1"


@pytest.mark.parametrize("selector", ["a b", "in(a", "!", "in()", "-a"])
def test_a_label_selector_that_ray_cannot_read(selector: str) -> None:
    tier = {"name": "a", "clients": 1, "cut": 1, "resources": {"label_selector": {"zone": selector}}}
    with pytest.raises(ConfigError, match=r"label_selector has zone: "):
        load_config({"tiers": [tier]})


@pytest.mark.parametrize("selector", ["a", "!a", "in(a,b)", "!in(a, b)", "eu-west.1_x"])
def test_a_label_selector_that_ray_can_read(selector: str) -> None:
    tier = {"name": "a", "clients": 1, "cut": 1, "resources": {"label_selector": {"hsee.io/zone": selector}}}
    assert load_config({"tiers": [tier]}).tiers[0].resources.label_selector == {"hsee.io/zone": selector}


@pytest.mark.parametrize("name", ["servers", "aggregator"])
def test_a_tier_is_not_called_like_the_runs_own_actors(name: str) -> None:
    with pytest.raises(ConfigError, match="is what the run itself calls actors"):
        load_config({"tiers": [{"name": name, "clients": 1, "cut": 1}]})


def test_a_dropped_client_cannot_leave_its_server_behind() -> None:
    with pytest.raises(ConfigError, match="use wait, or another placement"):
        load_config(
            {
                "tiers": [{"name": "a", "clients": 1, "cut": 1}],
                "cluster": {"placement": "colocate"},
                "failures": {"on_lost_client": "drop"},
            }
        )


def test_keys_of_the_release_before_are_read_and_told(caplog: pytest.LogCaptureFixture) -> None:
    tier = {"name": "a", "clients": 2, "cut": 1, "seats": 1}
    values = {"tiers": [tier], "server": {"seats": 2}, "training": {"turn": "batch"}}
    config = load_config(values, ["tiers.0.seats=2"])
    assert (config.tiers[0].slots, config.server.slots, config.training.interleave) == (2, 2, "batch")
    assert caplog.messages == [
        "config: tiers.0.seats is called slots now; the old name is read until 0.3",
        "config: server.seats is called slots now; the old name is read until 0.3",
        "config: training.turn is called interleave now; the old name is read until 0.3",
    ]
    assert "seats" in tier, "the caller's mapping is left as it is"
