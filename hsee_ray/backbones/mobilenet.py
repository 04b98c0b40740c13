"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) from torchvision's network.

Units: `features.0` (the first convolution), `features.1` ... `features.17` (the inverted residuals),
`features.18` (the last 1x1 convolution), `head`; L is 20. The width multiplier is width / 64, as
torchvision applies it: channels are rounded to multiples of 8, and the last convolution never has fewer
than 1280.

With the ImageNet stem the strides are the published ones. With the CIFAR stem the first convolution and the
first block of the stage with 24 channels (`features.2`) have stride 1 in place of 2, so that 32x32 images
end as 4x4 maps.

Dropout before the last linear layer is 0, where the paper has 0.2: a step that draws random numbers would
not give the same bits when it is run again after a failure.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from torchvision.models.mobilenetv2 import MobileNetV2

from hsee_ray.backbones.backbone import Backbone
from hsee_ray.backbones.norms import norm_layer
from hsee_ray.config.schema import ModelConfig


def build_mobilenet_v2(config: ModelConfig, in_channels: int, n_classes: int) -> Backbone:
    """The network, initialised from torch's global generator."""
    cifar = config.stem == "cifar"
    network = MobileNetV2(
        num_classes=n_classes,
        width_mult=config.width / 64,
        inverted_residual_setting=_stages(second_stride=1 if cifar else 2),
        norm_layer=norm_layer(config.norm),
        dropout=0.0,
    )
    # torchvision's first convolution is for 3 channels and stride 2, whatever the arguments.
    first = nn.Conv2d(
        in_channels, network.features[0][0].out_channels, 3, stride=1 if cifar else 2, padding=1, bias=False
    )
    nn.init.kaiming_normal_(first.weight, mode="fan_out")
    network.features[0][0] = first
    units: dict[str, nn.Module] = {f"features.{i}": unit for i, unit in enumerate(network.features)}
    units["head"] = nn.Sequential(
        OrderedDict(pool=nn.AdaptiveAvgPool2d((1, 1)), flatten=nn.Flatten(), classifier=network.classifier)
    )
    prefixes = {name: "" if name == "head" else f"{name}." for name in units}
    return Backbone(units, prefixes)


def _stages(second_stride: int) -> list[list[int]]:
    """Table 2 of the paper: expansion, channels, blocks, stride of the first block."""
    return [
        [1, 16, 1, 1],
        [6, 24, 2, second_stride],
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
