"""YAML as people write it: what has two meanings is refused, and paths mean what they say."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hsee_ray.config.files import load_config
from hsee_ray.config.yaml_text import read_value, read_yaml
from hsee_ray.errors import ConfigError

BASE = {"tiers": [{"name": "sensor", "clients": 2, "cut": 1}]}
CONFIG = "tiers: [{name: sensor, clients: 2, cut: 1}]\n"


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as raised:
        read_yaml(text, "a.yaml")
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "training: {rounds: 2}\nseed: 1\ntraining: {}",
            "a.yaml: is not valid YAML in line 3, column 1: the key training is given twice, first in line 1",
        ),
        ("a:\n  b: 1\n  b: 2", "in line 3, column 3: the key b is given twice, first in line 2; remove one of them"),
        ("a: 010", "in line 1, column 4: 010 can be read as another number; write it without leading zeros or colons"),
        ("a: 1:30", "1:30 can be read as another number"),
        ("a: -1:30.5", "-1:30.5 can be read as another number"),
        ("[" * 3000, "is nested too deeply to be read"),
        ("a: 1\n---\nb: 2", "a.yaml: holds 2 documents; keep one"),
        ("a: [1,", "is not valid YAML in line 1, column 7"),
        ("a: \x00", "is not valid YAML"),
        ("a: &a [*a]", "in line 1, column 4: found unconstructable recursive node"),
        ("a: &a {b: {c: *a}}", "in line 1, column 4: found unconstructable recursive node"),
        ("a: {<<: {p: 1}, <<: {p: 2}}", "in line 1, column 17: the key << is given twice, first in line 1"),
        ("a: {<<: {p: 1, p: 2}}", "in line 1, column 16: the key p is given twice, first in line 1"),
        ("a: {<<: [{p: 1, p: 2}]}", "in line 1, column 17: the key p is given twice, first in line 1"),
        ("a: !!set {b}", "in line 1, column 4: could not determine a constructor"),
        ("a: !!binary aGVsbG8=", "in line 1, column 4: could not determine a constructor"),
        ("? [a]\n: 1", "is not valid YAML in line 1, column 3"),
    ],
)
def test_what_has_two_meanings_is_refused(text: str, message: str) -> None:
    assert message in refusal(text)


def test_merges_and_anchors_are_read() -> None:
    assert read_yaml("a: {b: &x {<<: {p: 1}, p: 2}}\nc: {<<: *x}", "a.yaml")["c"] == {"p": 2}
    assert read_yaml("{a: 2024-01-01, b: =}", "a.yaml") == {"a": "2024-01-01", "b": "="}
    assert read_yaml("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}", "a.yaml")["b"] == {"p": 1, "q": 3}
    assert read_yaml("{a: '010', b: 0, c: 10, d: 0.5, e: 1e3}", "a.yaml") == {
        "a": "010", "b": 0, "c": 10, "d": 0.5, "e": "1e3",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("/data/my #1", "/data/my #1"),
        ("~", "~"),
        ("~/images", "~/images"),
        ("null", None),
        ("", None),
        ("3", 3),
        ("0.5", 0.5),
        ("true", True),
        ("a: b", "a: b"),
        ("'#'", "#"),
        ("[0.1, 0.5]", [0.1, 0.5]),
        ("{name: cosine}", {"name": "cosine"}),
    ],
)
def test_a_plain_word_on_the_command_line_is_taken_as_it_stands(text: str, value: Any) -> None:
    assert read_value(text, "--set a") == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tiers.².clients=4", "² is no index of a list of 1"),
        ("training.rounds=010", "010 can be read as another number"),
        ("exits.taus=[yes]", "taus is True: YAML reads yes, no, on and off so"),
        ("tiers.0.resources.custom={camera: on}", "custom is True: YAML reads yes, no, on and off so"),
        ("training.batch_size=true", "batch_size is True"),
        ("seed=" + "9" * 400, "seed has 400 digits: give a number below 2^63"),
        ("data.root=/images", "root is '/images', and name is digits, which reads no files; remove one of them"),
        ("model.weights=$NO_SUCH_VARIABLE/a.pt", "the environment variable NO_SUCH_VARIABLE is not set"),
        ("model.weights=~nobody-here/a.pt", "no home directory is known for ~nobody-here"),
    ],
)
def test_overrides_that_would_be_misread_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(BASE, [override])
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["int", "str"])
def test_a_key_that_is_called_as_a_type_is_unknown_as_any_other(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^config: {key}: unknown key"):
        load_config({**BASE, key: None})


def test_what_a_bool_may_be_stays() -> None:
    assert load_config(BASE, ["data.augment=yes"]).data.augment.on
    assert load_config(BASE, ["model.options={pretrained: true}"]).model.options == {"pretrained": True}


def test_every_path_is_expanded_and_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.chdir(tmp_path)
    config = load_config(
        BASE,
        [
            "data.name=folder",
            "data.root=~/images",
            "data.cache=$SCRATCH/cache",
            "model.weights=${SCRATCH}/start.pt",
            "simulation.profiles=own.yaml",
            "cluster.node_types=../cluster.yaml",
        ],
    )
    found = [
        config.data.root, config.data.cache, config.model.weights, config.simulation.profiles, config.cluster.node_types
    ]  # fmt: skip
    assert found == [
        "/home/me/images", "/scratch/cache", "/scratch/start.pt", f"{tmp_path}/own.yaml",
        f"{os.path.dirname(tmp_path)}/cluster.yaml",
    ]  # fmt: skip


WORDS = st.text(max_size=30) | st.sampled_from(
    ["010", "1:30", "~", "#", "yes", ".nan", "0x10", "1e400", "=", "<<", "---"]
)


@pytest.mark.long
@settings(max_examples=2000, deadline=None)
@given(st.text(max_size=80) | st.builds(lambda a, b: f"{CONFIG}{a}: {b}", WORDS, WORDS))
def test_no_text_ends_in_a_traceback(text: str) -> None:
    try:
        load_config_of(text)
    except ConfigError as error:
        assert "\n" not in str(error)


@pytest.mark.long
@settings(max_examples=2000, deadline=None)
@given(
    st.sampled_from(["seed", "data.root", "tiers.0.cut", "exits.taus", "training", "model.options", "tiers.0"]), WORDS
)
def test_no_override_ends_in_a_traceback(key: str, value: str) -> None:
    try:
        load_config(BASE, [f"{key}={value}"])
    except ConfigError as error:
        assert "\n" not in str(error)


@pytest.mark.long
@settings(max_examples=2000, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=12,
    )
)
def test_what_pyyaml_writes_is_read_back(value: Any) -> None:
    text = yaml.safe_dump(value)
    found = read_yaml(text, "a.yaml")
    assert found == value or "nan" in repr(value) or math.nan in (value, found)


def load_config_of(text: str) -> None:
    values = read_yaml(text, "a.yaml")
    if isinstance(values, dict):
        load_config(values)


@pytest.mark.parametrize("key", ["model.options", "exits.head.options"])
@pytest.mark.parametrize("value", [math.nan, math.inf, b"x", {1, 2}])
def test_an_option_that_a_runs_files_cannot_say_is_refused(key: str, value: Any) -> None:
    options = {"deep": [{"a": value}]}
    where = {"model": {"options": options}, "exits": {"head": {"name": "pool", "options": options}}}
    section = key.partition(".")[0]
    with pytest.raises(ConfigError, match=f"config: {key}.*give text, finite numbers, lists and mappings"):
        load_config({**BASE, section: where[section]})


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "\x1b[31mred", "a\u2028b", "\x9b2J"])
def test_a_name_that_breaks_a_line_or_steers_a_terminal_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="it is no UTF-8 text in one line; give it another name"):
        load_config({"tiers": [{"name": name, "clients": 2, "cut": 1}]})


@pytest.mark.parametrize(
    ("key", "value"), [("data.image_size", 1 << 62), ("training.threads", 100_000), ("data.image_size", 70_000)]
)
def test_numbers_that_end_torch_or_pillow_are_refused(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{key} is {value}: should be less than or equal to"):
        load_config(BASE, [f"{key}={value}"])


def test_a_wrong_value_of_any_length_makes_a_short_message() -> None:
    with pytest.raises(ConfigError) as raised:
        load_config({**BASE, "seed": ["x"] * 10_000})
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("key", ["data.root", "data.cache", "model.weights", "cluster.node_types"])
def test_a_path_that_is_empty_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY_HERE", "")
    for text, message in (("''", "names no place"), ("$EMPTY_HERE/x", "variable EMPTY_HERE is empty")):
        with pytest.raises(ConfigError, match=message):
            load_config(BASE, [f"{key}={text}"])
