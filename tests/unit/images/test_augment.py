"""What augmentation may do to an image, and what it may not depend on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hsee_ray.config.files import load_config
from hsee_ray.config.schema import AugmentConfig
from hsee_ray.data.augment import Augment
from hsee_ray.errors import ConfigError
from hsee_ray.method.setup import build_client, mapped_client_data, prepare_run
from hsee_ray.rng import generator
from tests.tiny_data import make_images

FLIP_AND_SHIFT = AugmentConfig(flip=True, shift=0.125)
MEAN_C = (0.5, 0.25, 0.1)


def augmented(images: np.ndarray, seed: int = 0, mean_C: tuple[float, ...] = MEAN_C, **config: Any) -> np.ndarray:
    changed = AugmentConfig(**config) if config else FLIP_AND_SHIFT
    return Augment(changed, mean_C)(images, np.random.default_rng(seed))


def with_border(image_HWC: np.ndarray, border: str, pixels: int) -> np.ndarray:
    """The image with a border by numpy's own padding; 128, 64 and 26 are the mean colour in 255ths."""
    colours = (128, 64, 26) if border == "mean" else (0, 0, 0)
    channels = [
        np.pad(image_HWC[:, :, c], pixels, "reflect")
        if border == "reflect"
        else np.pad(image_HWC[:, :, c], pixels, constant_values=colours[c])
        for c in range(image_HWC.shape[2])
    ]
    return np.stack(channels, axis=2)


@pytest.mark.parametrize(("border", "channels"), [("black", 1), ("black", 3), ("mean", 3), ("reflect", 3)])
def test_every_image_is_a_mirrored_or_plain_crop(border: str, channels: int) -> None:
    """Images of 16 pixels have a border of 2: 25 crops, each plain or mirrored."""
    images = make_images(400, 16, 16, channels)
    changed = augmented(images, mean_C=MEAN_C[:channels], flip=True, shift=0.125, border=border)
    seen: list[tuple[bool, int, int]] = []
    for before, after in zip(images, changed, strict=True):
        for mirrored, source in ((False, before), (True, before[:, ::-1])):
            padded = with_border(source, border, 2)
            for down in range(5):
                for right in range(5):
                    if np.array_equal(padded[down : down + 16, right : right + 16], after):
                        seen.append((mirrored, down, right))
    assert len(seen) == 400, "every image is exactly one of the 50"
    assert len(set(seen)) == 50, "and all of the 50 occur"
    assert 160 < sum(mirrored for mirrored, _, _ in seen) < 240


def test_flip_and_shift_stand_alone() -> None:
    images = make_images(64, 16, 16)
    both, flips, shifts = augmented(images), augmented(images, flip=True), augmented(images, shift=0.125)
    mirrored_B = (flips != images).any(axis=(1, 2, 3))
    assert 0 < mirrored_B.sum() < 64
    assert np.array_equal(flips[mirrored_B], images[mirrored_B, :, ::-1])
    assert np.array_equal(shifts[~mirrored_B], both[~mirrored_B]), "the draws of one do not depend on the other"


@pytest.mark.parametrize("name", ["RandomErasing", "ColorJitter"])
def test_a_transform_changes_each_image_by_draws_of_its_own(name: str) -> None:
    options: dict[str, Any] = {"p": 1.0} if name == "RandomErasing" else {"brightness": 0.9}
    one = np.repeat(make_images(1, 16, 16), 8, axis=0)
    changed = augmented(one, transforms=({"name": name, "options": options},))
    assert len({image.tobytes() for image in changed}) == 8


def test_transforms_come_after_flip_and_shift_in_their_order() -> None:
    images = make_images(4, 8, 8)
    both = ("RandomSolarize", {"threshold": 100, "p": 1.0}), ("RandomInvert", {"p": 1.0})
    plugins = tuple({"name": name, "options": options} for name, options in both)
    crops = augmented(images)
    solarised = np.where(crops >= 100, 255 - crops, crops)
    assert np.array_equal(augmented(images, flip=True, shift=0.125, transforms=plugins), 255 - solarised)


@pytest.mark.parametrize("transforms", [(), ({"name": "RandomErasing", "options": {"p": 1.0}},)])
def test_augmentation_is_keyed_and_leaves_its_surroundings_alone(transforms: tuple[Any, ...]) -> None:
    images = make_images(8, 8, 8)
    before, torch_before = images.copy(), torch.random.get_rng_state()
    images.flags.writeable = False  # as a mapped file is
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, again, other = (augmented(images, s, flip=True, shift=0.125, transforms=transforms) for s in (1, 1, 2))
    assert np.array_equal(images, before)
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    assert first.shape == images.shape and first.dtype == np.uint8
    assert not np.shares_memory(first, images)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_images_that_are_not_square_are_cropped_to_their_own_shape() -> None:
    assert augmented(make_images(4, 8, 12)).shape == (4, 8, 12, 3)


# What a configuration may say


def tiny(cache: Path, augment: Any) -> Any:
    data = {"name": "synthetic", "image_size": 8, "classes": 3, "train_samples": 60, "test_samples": 8}
    return load_config(
        {
            "model": {"name": "tests.networks:conv_units"},
            "data": {**data, "cache": str(cache), "augment": augment},
            "tiers": [{"name": "a", "clients": 2, "cut": "body.0"}],
            "training": {"batch_size": 8},
        }
    )


@pytest.mark.parametrize(("name", "section"), [(True, FLIP_AND_SHIFT), (False, AugmentConfig())])
def test_what_old_configurations_say_means_what_it_meant(name: bool, section: AugmentConfig, tmp_path: Path) -> None:
    config = tiny(tmp_path, name)
    assert config.data.augment == section
    assert config.data.augment.on == name


def test_the_first_augmentation_keeps_its_bits(tmp_path: Path) -> None:
    """The draws and the arithmetic of `augment: true` as they were before there was a section."""
    setup = prepare_run(tiny(tmp_path, True))
    client = build_client(setup, 1, mapped_client_data(setup, 1), torch.device("cpu"))
    (_, x_BCHW, _), *_ = client.training_batches(2, 0, 1)
    rows = setup.parts[1].train
    rows = rows[generator(0, "order", 1, 2, 0).permutation(len(rows))][:8]
    rng = generator(0, "augmentation", 1, 2, 0)
    mirrored_B, (tops_B, lefts_B) = rng.random(8) < 0.5, rng.integers(0, 3, (2, 8))
    expected = []
    for image, mirrored, top, left in zip(
        client.data.train.images_NHWC[rows], mirrored_B, tops_B, lefts_B, strict=True
    ):
        padded = np.pad(image[:, ::-1] if mirrored else image, ((1, 1), (1, 1), (0, 0)))
        expected.append(padded[top : top + 8, left : left + 8])
    values = (np.stack(expected) / 255 - setup.mean_C) / setup.std_C
    np.testing.assert_allclose(x_BCHW.permute(0, 2, 3, 1).numpy(), values, rtol=1e-5, atol=1e-5)


def of_numpy() -> Any:
    """A transform that draws from a generator that nobody has seeded."""
    return lambda image_CHW: image_CHW ^ int(np.random.default_rng().integers(1, 256))


@pytest.mark.parametrize(
    ("augment", "told"),
    [
        ({"border": "mean"}, "data.augment: border is 'mean', and only a shift shows a border: set data.augment.shift"),
        ({"border": "white"}, "data.augment.border is 'white': should be 'black', 'mean' or 'reflect'"),
        ({"shift": 0.6}, "data.augment.shift is 0.6: should be less than or equal to 0.5"),
        ({"flips": True}, "data.augment.flips: unknown key; did you mean flip?"),
        ("yes", "data.augment is 'yes': should be a valid dictionary"),
        ({"transforms": ["Sepia"]}, "the module torchvision.transforms.v2 has no function or class Sepia"),
        (
            {"transforms": [{"name": "RandomErasing", "options": {"q": 1}}]},
            "data.augment.transforms.0.options: RandomErasing refuses them: ",
        ),
        (
            {"transforms": ["RandomInvert", {"name": "MixUp", "options": {"num_classes": 3}}]},
            "data.augment.transforms.1 is 'MixUp': on an image it fails: ",
        ),
        (
            {"transforms": [{"name": "Resize", "options": {"size": [9, 9]}}]},
            "data.augment.transforms.0 is 'Resize': on an image it gives torch.uint8 (3, 9, 9); it must give",
        ),
        ({"transforms": [f"{__name__}:of_numpy"]}, "on an image it gives other values for the same seed: it may draw"),
    ],
)
def test_a_section_that_is_none_is_one_line(augment: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        prepare_run(tiny(tmp_path, augment))
    assert told in str(refused.value) and "\n" not in str(refused.value)
