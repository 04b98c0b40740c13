"""Messages whose features are coded, as a client's feature path makes them."""

from __future__ import annotations

import dataclasses

from hsee_ray.edge.codecs import ChannelRange, Codec, FeatureCodec, channel_range
from hsee_ray.features.message import FeatureBatch


def coded(message: FeatureBatch, name: Codec, bounds: ChannelRange | None = None) -> FeatureBatch:
    """The message under a codec; int8 codes within `bounds`, or in the batch's own range."""
    if name == "none":
        return message
    if name == "int8" and bounds is None:
        bounds = channel_range(message.features, message.axis)
    codec = FeatureCodec(name, bounds)
    return dataclasses.replace(message, features=codec.encode(message.features, message.axis), decoders=(codec,))


def range_of(message: FeatureBatch) -> ChannelRange | None:
    """What int8 codes are decoded with; None under another codec."""
    codecs = [decoder for decoder in message.decoders if isinstance(decoder, FeatureCodec)]
    return codecs[-1].bounds if codecs else None
