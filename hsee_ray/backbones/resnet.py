"""ResNet-18 and ResNet-34 (He et al. 2016, arXiv:1512.03385) from torchvision's blocks.

Units: `stem`, one for each block (`layer1.0` ... `layer4.1`), `head`; L is 10 and 18. Stage s = 0..3 has
width * 2**s channels, so width 64 with the ImageNet stem is the network that torchvision publishes.

The CIFAR stem is a 3x3 convolution with stride 1 and no pooling. The ImageNet stem is a 7x7 convolution
with stride 2 and a 3x3 max-pool with stride 2.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from torchvision.models.resnet import BasicBlock, conv1x1

from hsee_ray.backbones.backbone import Backbone
from hsee_ray.backbones.norms import norm_layer
from hsee_ray.config.schema import ModelConfig

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
"""Blocks of each stage."""


def build_resnet(config: ModelConfig, in_channels: int, n_classes: int) -> Backbone:
    """The network of `config.name`, initialised from torch's global generator."""
    norm = norm_layer(config.norm)
    units: dict[str, nn.Module] = {"stem": _stem(config, in_channels)}
    channels = config.width
    for stage, n_blocks in enumerate(BLOCKS[config.name]):
        out_channels = config.width * 2**stage
        for block in range(n_blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            downsample = None
            if stride != 1:
                downsample = nn.Sequential(conv1x1(channels, out_channels, stride), norm(out_channels))
            unit = BasicBlock(channels, out_channels, stride, downsample, norm_layer=norm)
            units[f"layer{stage + 1}.{block}"] = unit
            channels = out_channels
    units["head"] = nn.Sequential(
        OrderedDict(
            avgpool=nn.AdaptiveAvgPool2d((1, 1)),
            flatten=nn.Flatten(),
            fc=nn.Linear(channels, n_classes),
        )
    )
    for unit in units.values():
        _initialise(unit)
    prefixes = {name: f"{name}." if name.startswith("layer") else "" for name in units}
    return Backbone(units, prefixes)


def _stem(config: ModelConfig, in_channels: int) -> nn.Module:
    if config.stem == "cifar":
        convolution = nn.Conv2d(in_channels, config.width, 3, stride=1, padding=1, bias=False)
    else:
        convolution = nn.Conv2d(in_channels, config.width, 7, stride=2, padding=3, bias=False)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=convolution, bn1=norm_layer(config.norm)(config.width), relu=nn.ReLU(inplace=True)
    )
    if config.stem == "imagenet":
        layers["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(layers)


def _initialise(unit: nn.Module) -> None:
    """As torchvision's ResNet does; norms start at scale 1 and shift 0, and the linear layer at torch's
    default."""
    for module in unit.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
