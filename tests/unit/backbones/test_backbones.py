"""Backbones: units, shapes, seeds, torchvision's weights, networks of the user's own, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision.models
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.vgg import make_layers

from hsee_ray.backbones import (
    Backbone,
    build_backbone,
    check_backbone,
    feature_shapes,
    load_published,
    load_weights,
    published_state_dict,
)
from hsee_ray.backbones.norms import group_norm
from hsee_ray.backbones.vgg import build_vgg11_bn
from hsee_ray.config.schema import ModelConfig
from hsee_ray.errors import ConfigError

NAMES = ("resnet18", "resnet34", "mobilenet_v2", "vgg11_bn")
CIFAR = (32, 32, 3)


def build(name: str = "resnet18", image_shape: tuple[int, int, int] = CIFAR, **model: object) -> Backbone:
    config = ModelConfig(name=name, **{"width": 8, **model})
    return build_backbone(config, image_shape, n_classes=10, seed=0)


def tensors(backbone: Backbone) -> dict[str, Tensor]:
    return {f"{u}.{name}": t for u, unit in backbone.units.items() for name, t in unit.state_dict().items()}


def forward(backbone: Backbone, images: Tensor) -> Tensor:
    for unit in backbone.units.values():
        images = unit(images)
    return images


def evaluate(backbone: Backbone, images: Tensor) -> Tensor:
    for unit in backbone.units.values():
        unit.eval()
    with torch.no_grad():
        return forward(backbone, images)


def randomise(module: nn.Module) -> None:
    """Distinct values in every tensor, so that a swapped or forgotten one shows."""
    generator = torch.Generator().manual_seed(1)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_((torch.rand(tensor.shape, generator=generator) - 0.5) * 0.02)
        else:
            tensor.fill_(7)


# Units and shapes


def test_units_of_the_networks() -> None:
    def stages(*blocks: int) -> list[str]:
        layers = [f"layer{s}.{b}" for s, n in enumerate(blocks, start=1) for b in range(n)]
        return ["stem", *layers, "head"]

    assert list(build("resnet18").units) == stages(2, 2, 2, 2)
    assert list(build("resnet34").units) == stages(3, 4, 6, 3)
    assert list(build("mobilenet_v2").units) == [*(f"features.{i}" for i in range(19)), "head"]
    assert list(build("vgg11_bn").units) == [*(f"block{i}" for i in range(1, 9)), "head"]


def test_feature_shapes_of_small_gray_images() -> None:
    shape = (8, 8, 1)
    assert feature_shapes(build(image_shape=shape), shape) == (
        *[(8, 8, 8)] * 3,
        *[(16, 4, 4)] * 2,
        *[(32, 2, 2)] * 2,
        *[(64, 1, 1)] * 2,
        (10,),
    )


def test_feature_shapes_with_the_cifar_stem() -> None:
    resnet = feature_shapes(build(), CIFAR)
    assert resnet[0] == (8, 32, 32)
    assert resnet[-2:] == ((64, 4, 4), (10,))
    mobilenet = feature_shapes(build("mobilenet_v2", width=64), CIFAR)
    assert [mobilenet[i] for i in (0, 1, 3, 6, 10, 13, 16, 17, 18, 19)] == [
        (32, 32, 32),
        (16, 32, 32),
        (24, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
        (96, 8, 8),
        (160, 4, 4),
        (320, 4, 4),
        (1280, 4, 4),
        (10,),
    ]
    assert feature_shapes(build("vgg11_bn"), CIFAR) == (
        (8, 16, 16),
        (16, 8, 8),
        (32, 8, 8),
        (32, 4, 4),
        (64, 4, 4),
        (64, 2, 2),
        (64, 2, 2),
        (64, 1, 1),
        (10,),
    )


def test_feature_shapes_with_the_imagenet_stem() -> None:
    shape = (224, 224, 3)

    def sides(name: str) -> list[int]:
        shapes = feature_shapes(build(name, shape, width=2, stem="imagenet"), shape)
        assert shapes[-1] == (10,)
        return [height for _, height, _ in shapes[:-1]]

    assert sides("resnet18") == [56, 56, 56, 28, 28, 14, 14, 7, 7]
    assert sides("mobilenet_v2") == [112] * 2 + [56] * 2 + [28] * 3 + [14] * 7 + [7] * 5
    assert sides("vgg11_bn") == [112, 56, 56, 28, 28, 14, 14, 7]


def test_feature_shapes_change_neither_mode_nor_statistics() -> None:
    backbone = build()
    backbone.units["layer1.0"].eval()
    before = {name: tensor.clone() for name, tensor in tensors(backbone).items()}
    feature_shapes(backbone, CIFAR)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(backbone).items())
    assert backbone.units["stem"].training
    assert not backbone.units["layer1.0"].training


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (2, 1), (3, 1), (4, 2), (6, 3), (8, 4), (10, 5), (24, 8), (64, 8)]
)
def test_group_norm_takes_the_most_groups_up_to_eight_of_two_channels(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize("name", NAMES)
def test_group_norm_replaces_every_batch_norm(name: str) -> None:
    modules = [m for unit in build(name, norm="group").units.values() for m in unit.modules()]
    assert any(isinstance(m, nn.GroupNorm) for m in modules)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in modules)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    backbone = build(name)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = forward(backbone, images)
    assert logits.shape == (2, 10)
    functional.cross_entropy(logits, torch.tensor([3, 8])).backward()
    for unit in backbone.units.values():
        for parameter in unit.parameters():
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()


# Initialisation


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_gives_the_same_bits_and_another_seed_others(name: str) -> None:
    config = ModelConfig(name=name, width=8)
    first = tensors(build_backbone(config, CIFAR, 10, seed=5))
    torch.rand(3)
    again = tensors(build_backbone(config, CIFAR, 10, seed=5))
    other = tensors(build_backbone(config, CIFAR, 10, seed=6))
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    convolutions = [key for key, tensor in first.items() if tensor.dim() == 4]
    assert convolutions
    assert not any(torch.equal(first[key], other[key]) for key in convolutions)


def test_the_global_generator_is_left_as_it_was() -> None:
    before = torch.random.get_rng_state()
    build()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_convolutions_start_with_the_kaiming_deviation() -> None:
    weight = build(width=32).units["layer4.1"].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_torchs_own_initialisation_is_uniform_by_the_fan_in(name: str) -> None:
    backbone, kaiming = build(name, init="torch"), build(name)
    assert list(tensors(backbone)) == list(tensors(kaiming))
    for unit in backbone.units.values():
        for module in unit.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = module.weight[0].numel() ** -0.5
                assert 0.8 * bound < module.weight.abs().max() <= bound
                assert module.bias is None or module.bias.abs().max() <= bound
    again = build(name, init="torch")
    assert all(torch.equal(tensor, tensors(again)[key]) for key, tensor in tensors(backbone).items())


# torchvision's networks


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "mobilenet_v2"])
def test_published_weights_give_the_published_outputs(name: str) -> None:
    published = getattr(torchvision.models, name)().eval()
    randomise(published)
    state = published.state_dict()
    backbone = build_backbone(ModelConfig(name=name, stem="imagenet"), (64, 64, 3), n_classes=1000, seed=0)
    load_published(backbone, state)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = published(images)
    assert torch.isfinite(expected).all()
    assert torch.equal(evaluate(backbone, images), expected)
    back = published_state_dict(backbone, tensors(backbone))
    assert list(back) == list(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_vgg_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        published = torchvision.models.vgg11_bn().state_dict()
        config = ModelConfig(name="vgg11_bn", stem="imagenet")
        backbone = build_vgg11_bn(config, in_channels=3, n_classes=1000)
    ours = published_state_dict(backbone, tensors(backbone))
    assert [(key, t.shape) for key, t in ours.items()] == [(key, t.shape) for key, t in published.items()]


def test_narrow_vgg_computes_what_torchvision_computes() -> None:
    published = torchvision.models.vgg.VGG(
        make_layers([2, "M", 4, "M", 8, 8, "M", 16, 16, "M", 16, 16, "M"], batch_norm=True),
        init_weights=False,
    )
    published.classifier = nn.Sequential(
        nn.Linear(16 * 49, 128),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(128, 10),
    )
    published.eval()
    randomise(published)
    backbone = build("vgg11_bn", width=2, stem="imagenet")
    load_published(backbone, published.state_dict())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(evaluate(backbone, images), published(images))


def test_load_published_names_the_tensor_and_both_shapes() -> None:
    backbone = build(stem="imagenet")
    state = published_state_dict(backbone, tensors(backbone))
    state["layer2.0.conv1.weight"] = torch.zeros(3, 8, 3, 3)
    before = {name: tensor.clone() for name, tensor in tensors(backbone).items()}
    state["conv1.weight"] = torch.ones_like(state["conv1.weight"])
    with pytest.raises(ConfigError, match=r"layer2\.0\.conv1\.weight .*\(3, 8, 3, 3\) .*\(16, 8, 3, 3\)"):
        load_published(backbone, state)
    assert torch.equal(tensors(backbone)["stem.conv1.weight"], before["stem.conv1.weight"])


def test_load_published_is_strict_about_names_and_the_head() -> None:
    backbone = build()
    state = published_state_dict(backbone, tensors(backbone))
    with pytest.raises(ConfigError, match=r"does not have layer1\.0\.bn1\.running_var"):
        load_published(backbone, {k: v for k, v in state.items() if k != "layer1.0.bn1.running_var"})
    with pytest.raises(ConfigError, match=r"has layer5\.weight, which the network does not have"):
        load_published(backbone, {**state, "layer5.weight": torch.zeros(1)})
    with pytest.raises(ConfigError, match=r"fc\.bias .*\(3,\) .*\(10,\)"):
        load_published(backbone, {**state, "fc.bias": torch.zeros(3)})


def test_state_dicts_older_than_the_batch_counters_load() -> None:
    backbone = build()
    state = {k: v + 1 for k, v in published_state_dict(backbone, tensors(backbone)).items()}
    load_published(backbone, {k: v for k, v in state.items() if "num_batches_tracked" not in k})
    assert torch.equal(backbone.units["stem"].bn1.bias, torch.ones(8))
    assert backbone.units["stem"].bn1.num_batches_tracked.item() == 0


def test_published_names_are_refused_for_other_tensors_and_networks() -> None:
    with pytest.raises(ConfigError, match=r"exit\.fc\.weight"):
        published_state_dict(build(), {"exit.fc.weight": torch.zeros(1)})
    with pytest.raises(ConfigError, match="not one of torchvision's"):
        published_state_dict(build("vgg11_bn", stem="cifar"), {})


# Files of weights


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("published", [True, False])
def test_weights_come_back_from_a_file(tmp_path: Path, suffix: str, published: bool) -> None:
    source = build("mobilenet_v2")
    saved = tensors(source)
    for unit in source.units.values():
        randomise(unit)
    content = published_state_dict(source, saved) if published else saved
    path = tmp_path / f"weights{suffix}"
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    backbone = build("mobilenet_v2")
    assert load_weights(backbone, path) == ()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in tensors(backbone).items())


def test_another_class_count_leaves_the_last_layer_as_it_was(tmp_path: Path) -> None:
    config = ModelConfig(width=8)
    torch.save(tensors(build_backbone(config, CIFAR, n_classes=7, seed=1)), tmp_path / "seven.pth")
    backbone = build_backbone(config, CIFAR, n_classes=10, seed=2)
    head = backbone.units["head"].fc.weight.clone()
    stem = backbone.units["stem"].conv1.weight.clone()
    assert load_weights(backbone, tmp_path / "seven.pth") == ("head.fc.weight", "head.fc.bias")
    assert torch.equal(backbone.units["head"].fc.weight, head)
    assert not torch.equal(backbone.units["stem"].conv1.weight, stem)


def test_another_class_count_leaves_only_the_last_of_several_layers(tmp_path: Path) -> None:
    config = ModelConfig(name="vgg11_bn", width=1, stem="imagenet")
    torch.save(tensors(build_backbone(config, CIFAR, n_classes=7, seed=1)), tmp_path / "seven.pth")
    backbone = build_backbone(config, CIFAR, n_classes=10, seed=2)
    assert load_weights(backbone, tmp_path / "seven.pth") == (
        "head.classifier.6.weight",
        "head.classifier.6.bias",
    )


def test_another_width_is_refused_although_the_class_count_differs_too(tmp_path: Path) -> None:
    other = build_backbone(ModelConfig(width=4), CIFAR, n_classes=7, seed=1)
    torch.save(tensors(other), tmp_path / "narrow.pth")
    with pytest.raises(ConfigError, match=r"stem\.conv1\.weight .*\(4, 3, 3, 3\) .*\(8, 3, 3, 3\).*width"):
        load_weights(build(), tmp_path / "narrow.pth")


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load_weights(build(), path)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        return message

    assert "no such file" in refusal(tmp_path / "absent.pth")
    (tmp_path / "weights.h5").write_bytes(b"x")
    assert ".safetensors, .pth or .pt" in refusal(tmp_path / "weights.h5")
    for name in ("junk.pth", "junk.safetensors", "junk.pt"):
        (tmp_path / name).write_bytes(b"0" if name == "junk.pt" else b"not weights at all")
        assert "damaged or holds more than tensors" in refusal(tmp_path / name)
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")
    assert "damaged or holds more than tensors" in refusal(tmp_path / "module.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "it holds list" in refusal(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "checkpoint.pth")
    assert "'epoch' is int" in refusal(tmp_path / "checkpoint.pth")


# Networks of the user's own

CUSTOM_MODULE = """
from torch import nn


def small(image_shape, n_classes, width=4):
    height, w, channels = image_shape
    body = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())
    return {"body.first": body, "top": nn.Sequential(nn.Flatten(), nn.Linear(width * height * w, n_classes))}


def pairs(image_shape, n_classes):
    return list(small(image_shape, n_classes).items())


def returns_module(image_shape, n_classes):
    return nn.Linear(1, 1)


def returns_modules(image_shape, n_classes):
    return [nn.Flatten(), nn.Linear(1, 1)]


def named(image_shape, n_classes, names):
    return [(name, nn.Identity()) for name in names]


not_a_function = 3
"""


@pytest.fixture
def custom_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "hsee_test_networks"
    (tmp_path / f"{name}.py").write_text(CUSTOM_MODULE)
    (tmp_path / "hsee_test_broken.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_custom_network_as_mapping_and_as_pairs(custom_module: str) -> None:
    shape = (6, 5, 1)
    mapped = build(f"{custom_module}:small", shape, options={"width": 3})
    assert list(mapped.units) == ["body.first", "top"]
    assert mapped.published_prefix is None
    assert feature_shapes(mapped, shape) == ((3, 6, 5), (10,))
    assert list(build(f"{custom_module}:pairs", shape).units) == ["body.first", "top"]


def test_custom_network_starts_from_the_seed(custom_module: str) -> None:
    first, again = (tensors(build(f"{custom_module}:small")) for _ in range(2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("absent", {}, "has no function or class absent"),
        ("not_a_function", {}, "has no function or class not_a_function"),
        ("small", {"depth": 3}, "unexpected keyword argument 'depth'"),
        ("small", {"n_classes": 3}, r"model\.options\.n_classes"),
        ("returns_module", {}, "returned Linear; return a mapping"),
        ("returns_modules", {}, "returned Flatten among its units"),
        ("named", {"names": ["a", "exit"]}, "'exit' is reserved"),
        ("named", {"names": ["a", "exit.one"]}, r"'exit\.one' is reserved"),
        ("named", {"names": ["a", "codec"]}, "'codec' is reserved for what the int8 codec knows"),
        ("named", {"names": ["a", "b c"]}, "'b c' cannot be used"),
        ("named", {"names": ["a", "b/c"]}, "'b/c' cannot be used"),
        ("named", {"names": ["a", ".b"]}, r"'\.b' cannot be used"),
        ("named", {"names": ["0", "1"]}, "'0' is a number"),
        ("named", {"names": ["a", "b", "a"]}, "'a' is given more than once"),
        ("named", {"names": ["a.b", "a"]}, r"'a\.b' begins with that of the unit 'a'"),
        ("named", {"names": ["a"]}, r"1 unit\(s\)"),
        ("named", {"names": ["a", "b"]}, r"last unit, b, .* \(2, 10\)"),
    ],
)
def test_custom_networks_that_are_refused(
    custom_module: str, function: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(f"{custom_module}:{function}", options=options)
    assert "\n" not in str(caught.value)


def test_custom_modules_that_cannot_be_imported(custom_module: str) -> None:
    with pytest.raises(ConfigError, match="hsee_test_absent cannot be imported"):
        build("hsee_test_absent:build")
    with pytest.raises(ConfigError, match=r"hsee_test_broken cannot be imported.*a_module_that_is_not_there"):
        build("hsee_test_broken:build")
    for name in ("package.module:", ":function", "a b:c", "a:b:c"):
        with pytest.raises(ConfigError, match=r"write package\.module:name"):
            build(name)


def test_custom_network_does_not_import_torchvision(custom_module: str, tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from hsee_ray.backbones import build_backbone\n"
        "from hsee_ray.config.schema import ModelConfig\n"
        f"build_backbone(ModelConfig(name='{custom_module}:small'), (8, 8, 1), 10, 0)\n"
        "sys.exit('torchvision' in sys.modules)\n"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root, timeout=120)


# What is refused of any network


def test_built_in_networks_refuse_unknown_names_and_options() -> None:
    with pytest.raises(ConfigError, match="'resnet50': there is no such network; use one of resnet18"):
        build("resnet50")
    with pytest.raises(ConfigError, match=r"model\.options has depth: resnet18 takes no options"):
        build(options={"depth": 3})


def test_image_that_is_too_small_names_the_unit_and_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"block6 cannot take features of shape \(64, 1, 1\).*image_size"):
        build("vgg11_bn", (8, 8, 1))


class SilentWrite(nn.Module):
    """Writes around autograd's version counter."""

    def forward(self, features: Tensor) -> Tensor:
        features.data.mul_(2)
        return features


class Pair(nn.Module):
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return features, features


def chain(*units: nn.Module) -> Backbone:
    named: dict[str, nn.Module] = {"first": nn.Flatten(), **{f"unit{i}": u for i, u in enumerate(units)}}
    return Backbone({**named, "last": nn.Linear(4, 3)}, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.ReLU(inplace=True), "the unit unit0 changes its input in place"),
        (SilentWrite, "the unit unit0 changes its input in place"),
        (lambda: nn.Dropout(0.3), r"unit0 has dropout \(unit0, p=0\.3\).*set it to 0"),
        (lambda: nn.Sequential(nn.Identity(), nn.AlphaDropout(0.1)), r"dropout \(unit0\.1, p=0\.1\)"),
        (lambda: nn.Linear(5, 4), r"unit0 cannot take features of shape \(4,\)"),
        (Pair, "unit0 returns tuple for 2 sample"),
        (lambda: nn.Flatten(0), r"unit0 returns shape \(8,\) for 2 sample"),
    ],
)
def test_units_that_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_backbone(chain(make()), (2, 2, 1), n_classes=3)


def test_an_in_place_write_of_equal_values_is_refused() -> None:
    with pytest.raises(ConfigError, match="the unit unit1 changes its input in place"):
        check_backbone(chain(nn.ReLU(), nn.ReLU(inplace=True)), (2, 2, 1), n_classes=3)


def test_dropout_of_nothing_and_later_in_place_operations_are_allowed() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Dropout(0.0))
    check_backbone(chain(inner), (2, 2, 1), n_classes=3)


def test_units_that_share_a_parameter_are_refused() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    with pytest.raises(ConfigError, match="the units unit0 and unit1 share a parameter or buffer"):
        check_backbone(chain(first, second), (2, 2, 1), n_classes=3)


def test_a_last_unit_with_another_class_count_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"last unit, last, returns shape \(2, 3\).*\(2, 4\)"):
        check_backbone(chain(), (2, 2, 1), n_classes=4)
