"""The way that a client's features take across the cut: the stages of its tier, and its codec behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from hsee_ray.backbones.backbone import tensors_of
from hsee_ray.config.fleet import CODEC, PATH, ClientSpec, Fleet
from hsee_ray.config.plugins import PlugIn, create
from hsee_ray.config.schema import Config
from hsee_ray.edge import codecs
from hsee_ray.edge.codecs import UNCODED, FeatureCodec
from hsee_ray.edge.named import NamedPart
from hsee_ray.errors import ConfigError
from hsee_ray.features.message import FeatureBatch, encode
from hsee_ray.features.stages import Array, Coded, Half, Int8, Stage
from hsee_ray.rng import generator


class FeaturePath:
    """The stages of one client, in their order."""

    def __init__(self, config: Config, spec: ClientSpec, feature_shape: Sequence[int]) -> None:
        """Raises ConfigError when a stage cannot be had."""
        self.seed, self.client_id = config.seed, spec.client_id
        self.stages: dict[str, Stage] = {}
        """By their names among the client's units."""
        plugins = {f"{PATH}.{index}": plugin for index, plugin in enumerate(spec.stages)}
        if spec.codec != "none":
            plugins[CODEC] = PlugIn(name=spec.codec)
        for index, (name, plugin) in enumerate(plugins.items()):
            key = f"{_key(config, spec)}.stages.{index}"
            self.stages[name] = create("stage", key, plugin, Stage, feature_shape)  # type: ignore[type-abstract]

    @property
    def units(self) -> dict[str, nn.Module]:
        """The stages that have a state, for the client's model."""
        return {name: stage for name, stage in self.stages.items() if tensors_of(stage)}

    @property
    def ready(self) -> bool:
        """Whether inference needs no training batch first."""
        return all(stage.ready for stage in self.stages.values())

    @property
    def codec(self) -> FeatureCodec:
        """Codec in inference, after the stages."""
        codec = self.stages.get(CODEC)
        return codec.codec if isinstance(codec, Half | Int8) else UNCODED

    def for_training(self, message: FeatureBatch, round_number: int) -> FeatureBatch:
        """The message of a training step as it is sent; stages with a state take it in."""
        for index, stage in enumerate(self.stages.values()):
            rng = generator(self.seed, "stage", self.client_id, round_number, message.step, index)
            message = _passed(message, stage.for_training(message.features, message.axis, rng))
        return message

    def for_inference(self, message: FeatureBatch) -> FeatureBatch:
        """Any other message as it is sent."""
        for stage in self.stages.values():
            message = _passed(message, stage.for_inference(message.features, message.axis))
        return message

    def on_device(self) -> tuple[NamedPart, ...]:
        """Stages that a device applies before the codec. Raises UserError when it cannot."""
        found = [stage.on_device() for name, stage in self.stages.items() if name != CODEC]
        return tuple(stage for stage in found if stage is not None)


def check_stages(config: Config, fleet: Fleet, feature_shapes: Sequence[tuple[int, ...]]) -> None:
    """Raises ConfigError when a tier's stages cannot be had, or do not let float32 features of their shape arrive."""
    for spec in {spec.tier: spec for spec in fleet.clients if spec.stages}.values():
        shape = feature_shapes[spec.cut - 1]
        sent = encode(torch.zeros(2, *shape), torch.zeros(2, dtype=torch.int64))
        arrived = FeaturePath(config, spec, shape).for_training(sent, 0).decoded().numpy()
        if arrived.dtype != np.float32 or arrived.shape != sent.features.shape:
            raise ConfigError(
                f"{_key(config, spec)}.stages: {arrived.dtype} features of shape {arrived.shape} arrive where float32 "
                f"ones of {sent.features.shape} were sent; give what a stage gets, or Coded with its decoder"
            )


def feature_bytes(config: Config, spec: ClientSpec, feature_shape: Sequence[int], samples: int) -> int:
    """Bytes of a batch in training, without labels; 0 of a client without a server."""
    if not spec.has_server:
        return 0
    size = codecs.feature_bytes(spec.codec, feature_shape, samples)
    stages = FeaturePath(config, spec, feature_shape).stages.values() if spec.stages else ()
    told = [stage.feature_bytes(feature_shape, samples) for stage in stages]
    return next((each for each in reversed(told) if each is not None), size)


def _passed(message: FeatureBatch, given: Array | Coded) -> FeatureBatch:
    """The message behind a stage."""
    if isinstance(given, Coded):
        return dataclasses.replace(message, features=given.codes, decoders=(*message.decoders, given.decoder))
    return dataclasses.replace(message, features=np.ascontiguousarray(given))


def _key(config: Config, spec: ClientSpec) -> str:
    """Key of the client's tier in the configuration."""
    return f"tiers.{[tier.name for tier in config.tiers].index(spec.tier)}"
