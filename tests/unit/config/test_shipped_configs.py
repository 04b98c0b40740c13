"""The configs that are shipped: they load, they can be taken elsewhere, and the reference leaves no key out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from hsee_ray.config.files import load_config
from hsee_ray.config.plugins import PlugIn
from hsee_ray.config.schema import Config
from hsee_ray.method.setup import prepare_run

CONFIGS = Path(__file__).parents[3] / "jobs" / "configs"
REFERENCE = CONFIGS / "reference.yaml"
SHIPPED = sorted(CONFIGS.glob("*.yaml"))
PAPER = ("paper_cifar10", "paper_cifar100", "paper_stl10")
TAGS = ("kind", "name")
"""The keys that tell the variants of a union apart."""

shipped = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)


def models_of(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if annotation is PlugIn else [annotation]  # written as a name alone
    return [model for part in get_args(annotation) for model in models_of(part)]


def tag_of(model: type[BaseModel]) -> str:
    """`dirichlet` of DirichletPartition: the only value of its tag."""
    (tag,) = next(get_args(model.model_fields[key].annotation) for key in TAGS if key in model.model_fields)
    return str(tag)


def missing_keys(model: type[BaseModel], values: dict[str, Any], path: str = "") -> Iterator[str]:
    """Dotted names of the model's keys that the values do not have; of a list, its first item counts."""
    for key, field in model.model_fields.items():
        name = f"{path}{key}"
        if key not in values:
            yield name
        elif (nested := models_of(field.annotation)) and values[key] is not None:
            value = values[key][0] if isinstance(values[key], list) else values[key]
            variants = [m for m in nested if len(nested) == 1 or tag_of(m) in value.values()]
            yield from missing_keys(variants[0], value, f"{name}.")


def alternatives(lines: list[str]) -> dict[str, dict[str, Any]]:
    """Variants that stand commented out in the reference, by their tag: `# kind: dirichlet  # what it is`, ..."""
    found: dict[str, dict[str, Any]] = {}
    tag = ""
    for line in lines:
        if match := re.fullmatch(r" +# (\w+: .+?) +# \S.*", line):
            entry = yaml.safe_load(match[1])
            tag = next((entry[key] for key in TAGS if key in entry), tag)
            found.setdefault(tag, {}).update(entry)
    return found


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from strings_in(item)
    elif isinstance(value, str):
        yield value


def test_the_configs_are_found() -> None:
    names = {path.stem for path in SHIPPED}
    assert names >= {"quickstart", "cifar10_cpu", "reference", *PAPER}


@shipped
def test_a_shipped_config_loads(path: Path) -> None:
    assert load_config(path).n_clients == (12 if path.stem in ("cluster_cifar10", "recipe_cifar10") else 6)


@shipped
def test_a_shipped_config_names_no_place_of_one_machine(path: Path) -> None:
    places = [text for text in strings_in(yaml.safe_load(path.read_text(encoding="utf-8"))) if text[:1] in ("/", "~")]
    assert places == []


@shipped
def test_a_shipped_config_asks_for_no_gpu(path: Path) -> None:
    config = load_config(path)
    if config.cluster.node_types is not None:
        return  # made for a cluster: test_cluster_files.py holds it against what that offers
    assert [part.resources.num_gpus for part in (*config.tiers, config.server)] == [0, 0, 0, 0]


def test_the_reference_has_every_key() -> None:
    values = yaml.safe_load(REFERENCE.read_text(encoding="utf-8"))
    assert list(missing_keys(Config, values)) == []


def test_a_missing_key_is_noticed() -> None:
    values = yaml.safe_load(REFERENCE.read_text(encoding="utf-8"))
    del values["tiers"][0]["resources"]["num_gpus"], values["training"]["optimizer"]["betas"], values["failures"]
    assert list(missing_keys(Config, values)) == [
        "tiers.resources.num_gpus",
        "training.optimizer.betas",
        "failures",
    ]


def test_the_reference_has_every_default() -> None:
    config = load_config(REFERENCE)
    assert config == Config(tiers=config.tiers)
    first, second, _ = config.tiers
    assert first.resources == second.resources and first.batch_size == second.batch_size


@pytest.mark.parametrize(
    ("section", "key"),
    [("data", "partition"), ("training", "lr_schedule"), ("training", "feedback"), ("training", "average_step")],
)
def test_the_reference_has_every_variant_with_its_defaults(section: str, key: str) -> None:
    found = alternatives(REFERENCE.read_text(encoding="utf-8").splitlines())
    chosen = yaml.safe_load(REFERENCE.read_text(encoding="utf-8"))[section][key]
    variants = models_of(models_of(Config.model_fields[section].annotation)[0].model_fields[key].annotation)
    assert len(variants) == 3
    for variant in variants:
        values = chosen if tag_of(variant) in chosen.values() else found[tag_of(variant)]
        assert set(values) == set(variant.model_fields)
        required = {name: values[name] for name, field in variant.model_fields.items() if field.is_required()}
        assert variant.model_validate(values) == variant.model_validate(required)


def test_every_key_of_the_reference_is_explained() -> None:
    lines = REFERENCE.read_text(encoding="utf-8").splitlines()
    keys = [line for line in lines if re.match(r" *(# |- )?\{?\w+:", line)]
    assert len(keys) > 80
    unexplained = [line for line in keys if not re.search(r"\S +# \S+ \S+", line)]
    assert unexplained == []


def test_the_quickstart_has_three_cuts_and_needs_no_files(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "quickstart.yaml", [f"data.cache={tmp_path}"])
    assert config.data.root is None and config.model.weights is None
    assert [tier.cut for tier in config.tiers] == ["layer1", "layer2", "layer3"]
    setup = prepare_run(config)
    assert setup.files.image_shape == (8, 8, 1)
    # A stage of ResNet-18 has two blocks, and the stem is before them.
    assert [client.cut for client in setup.fleet.clients] == [3, 3, 5, 5, 7, 7]


def test_the_reference_can_be_run(tmp_path: Path) -> None:
    setup = prepare_run(load_config(REFERENCE, [f"data.cache={tmp_path}"]))
    assert [client.cut for client in setup.fleet.clients] == [3, 3, 5, 5, 7, 7]


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_configs_differ_in_data_and_stem_only(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    first = load_config(CONFIGS / f"{PAPER[0]}.yaml")
    assert config.data.name == name.removeprefix("paper_")
    assert config.model.stem == ("imagenet" if name == "paper_stl10" else "cifar")
    data = config.data.model_copy(update={"name": first.data.name})
    model = config.model.model_copy(update={"stem": first.model.stem})
    assert config.model_copy(update={"data": data, "model": model}) == first


def test_the_paper_configs_take_the_whole_network_and_all_images() -> None:
    config = load_config(CONFIGS / f"{PAPER[0]}.yaml")
    assert (config.model.name, config.model.width) == ("resnet18", 64)
    assert (config.data.train_samples, config.data.test_samples) == (None, None)
    assert (config.training.strategy.name, config.training.aggregate) == ("averaging", "all")
