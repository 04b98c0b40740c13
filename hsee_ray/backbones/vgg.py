"""VGG-11 with normalisation (Simonyan and Zisserman 2015, arXiv:1409.1556), in torchvision's names.

Units: `block1` ... `block8` (convolution, norm, ReLU, and the max-pool that follows it), `head`; L is 9.
Channels are width / 64 times the published ones.

With the ImageNet stem the head is torchvision's: average pooling to 7x7, two hidden layers of 64 * width
features (4096 at width 64) and the last linear layer. With the CIFAR stem it is global average pooling and
one linear layer. The convolutions are the same. Five max-pools halve the image, so it needs at least 32x32
pixels.

Dropout between the linear layers is 0, where the paper has 0.5: a step that draws random numbers would not
give the same bits when it is run again after a failure.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from hsee_ray.backbones.backbone import Backbone
from hsee_ray.backbones.norms import norm_layer
from hsee_ray.config.schema import ModelConfig

BLOCKS = ((1, True), (2, True), (4, False), (4, True), (8, False), (8, True), (8, False), (8, True))
"""Of each block: channels in multiples of the width, and whether a max-pool follows (configuration A)."""


def build_vgg11_bn(config: ModelConfig, in_channels: int, n_classes: int) -> Backbone:
    """The network, initialised from torch's global generator."""
    units: dict[str, nn.Module] = {}
    channels = in_channels
    index = 0
    for number, (multiple, pooled) in enumerate(BLOCKS, start=1):
        out_channels = config.width * multiple
        layers = [
            nn.Conv2d(channels, out_channels, 3, padding=1),
            norm_layer(config.norm)(out_channels),
            nn.ReLU(inplace=True),
        ]
        if pooled:
            layers.append(nn.MaxPool2d(2, stride=2))
        # Layers are numbered through all blocks, as torchvision numbers them in `features`.
        named = OrderedDict((str(index + i), layer) for i, layer in enumerate(layers))
        units[f"block{number}"] = nn.Sequential(named)
        index += len(layers)
        channels = out_channels
    units["head"] = _head(config, channels, n_classes)
    for unit in units.values():
        _initialise(unit)
    # torchvision's VGG has no single linear layer as its head.
    prefixes = {name: "" if name == "head" else "features." for name in units}
    return Backbone(units, prefixes if config.stem == "imagenet" else None)


def _head(config: ModelConfig, channels: int, n_classes: int) -> nn.Module:
    if config.stem == "cifar":
        size = 1
        classifier: nn.Module = nn.Linear(channels, n_classes)
    else:
        size = 7
        hidden = 64 * config.width
        # 2 and 5 are dropout in torchvision's numbering.
        numbered: dict[str, nn.Module] = {
            "0": nn.Linear(channels * size * size, hidden),
            "1": nn.ReLU(inplace=True),
            "3": nn.Linear(hidden, hidden),
            "4": nn.ReLU(inplace=True),
            "6": nn.Linear(hidden, n_classes),
        }
        classifier = nn.Sequential(OrderedDict(numbered))
    return nn.Sequential(
        OrderedDict(pool=nn.AdaptiveAvgPool2d((size, size)), flatten=nn.Flatten(), classifier=classifier)
    )


def _initialise(unit: nn.Module) -> None:
    """As torchvision's VGG does; norms start at scale 1 and shift 0."""
    for module in unit.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
