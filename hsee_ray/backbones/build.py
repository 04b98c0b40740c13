"""From the configuration to a base network."""

from __future__ import annotations

import torch
from torch import nn

from hsee_ray.backbones.backbone import Backbone
from hsee_ray.backbones.check import check_backbone, check_own
from hsee_ray.backbones.custom import build_custom
from hsee_ray.config.schema import ModelConfig
from hsee_ray.errors import ConfigError
from hsee_ray.rng import torch_seed

BUILT_IN = ("resnet18", "resnet34", "mobilenet_v2", "vgg11_bn")


def build_backbone(
    config: ModelConfig,
    image_shape: tuple[int, int, int],
    n_classes: int,
    seed: int,
) -> Backbone:
    """The whole base network for images of shape (H, W, C), initialised from one seed and checked.

    Every process that builds it gets the same bits, and torch's global generator is left as it was.
    `config.weights` is not read here; see `load_weights`.
    Raises ConfigError for a name or an option that is not known, and for a network that `check_backbone`
    or `check_own` refuses.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "initialisation"))
        if ":" in config.name:
            backbone = build_custom(config, image_shape, n_classes)
            check_backbone(backbone, image_shape, n_classes)
            check_own(backbone, image_shape)
        else:
            backbone = _built_in(config, in_channels=image_shape[2], n_classes=n_classes)
            if config.init == "torch":
                _initialise_as_torch(backbone)
            check_backbone(backbone, image_shape, n_classes)
    return backbone


def _initialise_as_torch(backbone: Backbone) -> None:
    """Convolutions and linear layers as torch makes them: uniform up to 1 / sqrt(fan-in), biases too."""
    for unit in backbone.units.values():
        for module in unit.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.reset_parameters()


def _built_in(config: ModelConfig, in_channels: int, n_classes: int) -> Backbone:
    if config.name not in BUILT_IN:
        raise ConfigError(
            f"model.name is {config.name!r}: there is no such network; use one of {', '.join(BUILT_IN)}, or "
            "package.module:function for your own"
        )
    if config.options:
        raise ConfigError(
            f"model.options has {', '.join(map(str, config.options))}: {config.name} takes no options; "
            "use model.stem, model.width and model.norm"
        )
    # Imported where it is used: a network of the user's own does not wait for torchvision.
    if config.name == "mobilenet_v2":
        from hsee_ray.backbones.mobilenet import build_mobilenet_v2

        return build_mobilenet_v2(config, in_channels, n_classes)
    if config.name == "vgg11_bn":
        from hsee_ray.backbones.vgg import build_vgg11_bn

        return build_vgg11_bn(config, in_channels, n_classes)
    from hsee_ray.backbones.resnet import build_resnet

    return build_resnet(config, in_channels, n_classes)
