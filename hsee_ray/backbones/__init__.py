"""Base networks as ordered lists of named units, which a cut may separate."""

from hsee_ray.backbones.backbone import Backbone, tensors_of
from hsee_ray.backbones.build import BUILT_IN, build_backbone
from hsee_ray.backbones.check import check_backbone, feature_shapes
from hsee_ray.backbones.weights import load_published, load_weights, published_state_dict

__all__ = [
    "BUILT_IN",
    "Backbone",
    "build_backbone",
    "check_backbone",
    "feature_shapes",
    "load_published",
    "load_weights",
    "published_state_dict",
    "tensors_of",
]
