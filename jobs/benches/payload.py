"""`payload`: what a sample costs on the link and what that buys: features under each codec, or the image itself.

Of a finished run, with everything sent. Features are coded after training, each channel's range taken from the images
that the client set aside; a run that was trained with a codec says in its summary what that gave. An image goes to a
server that holds the client's whole network: as it is, as PNG (the same pixels), or as JPEG.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, get_args

from hsee_ray.errors import ConfigError
from jobs.benches.common import Result, tell
from jobs.options import add_run, at_least

if TYPE_CHECKING:
    import numpy as np
    import torch

    from hsee_ray.rundir.run import Run

    Array = np.ndarray[Any, Any]

DESCRIPTION = "Measure bytes and accuracy of features under each codec, and of images as PNG and JPEG, for a run."
BATCH = 256


def add_options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--samples", type=int, metavar="N", help="test images (default: those of the run)")
    parser.add_argument(
        "--quality", type=int, nargs="+", default=[95, 75, 50, 25], metavar="Q", help="of JPEG (default: 95 75 50 25)"
    )


@dataclass(frozen=True)
class Images:
    """Images of the run (N, H, W, C) uint8, with their labels."""

    test_NHWC: Array
    labels_N: Array
    aside_NHWC: Mapping[int, Array]
    """Calibration samples of each client."""


def measure(options: argparse.Namespace) -> Result:
    """Every client with every payload; rows are means over the clients of a tier."""
    at_least(options, samples=1, quality=1)
    from hsee_ray.rundir.run import load_run

    run = load_run(options.run)
    images = _images(run, options.samples)
    pictures = dict(_pictures(images.test_NHWC, options.quality))
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for spec in run.fleet.clients:
        if spec.has_server:
            tell(f"client {spec.label} ({spec.tier})")
            for payload, figures in _of_client(run, spec.client_id, images, pictures):
                found.setdefault((spec.tier, payload), []).append(figures)
    rows = [
        {
            "tier": tier,
            "payload": payload,
            "bytes": fmean(size for size, _ in figures),
            "accuracy": fmean(accuracy for _, accuracy in figures),
        }
        for (tier, payload), figures in found.items()
    ]
    trained_with = {tier.name: tier.codec for tier in run.config.tiers}
    return {"run": str(options.run), "samples": len(images.labels_N), "trained_with": trained_with, "rows": rows}


def render(result: Mapping[str, Any]) -> str:
    """A table with a row for each tier and payload."""
    from hsee_ray.rundir.tables import align

    rows = [["tier", "trained with", "sent", "bytes per sample", "accuracy"]]
    for row in result["rows"]:
        shown = [f"{row['bytes']:,.0f}", f"{100 * row['accuracy']:.1f}%"]
        rows.append([row["tier"], result["trained_with"][row["tier"]], row["payload"], *shown])
    return f"{align(rows)}\n{result['samples']} test images, everything sent"


def _images(run: Run, samples: int | None) -> Images:
    from hsee_ray.data import open_images
    from hsee_ray.method.setup import prepare_run
    from hsee_ray.rundir.run import without_training

    setup = prepare_run(without_training(run.config))
    test, train = open_images(setup.files.test), open_images(setup.files.train)
    rows = setup.test_indices[:samples]
    aside = {client_id: train.images_NHWC[part.calibration] for client_id, part in enumerate(setup.parts)}
    if not all(len(each) for each in aside.values()):
        raise ConfigError("data.calibration_fraction is 0: no images were set aside to take the codecs' ranges from")
    return Images(test.images_NHWC[rows], test.labels_N[rows], aside)


def _pictures(images_NHWC: Array, qualities: Sequence[int]) -> Iterator[tuple[str, tuple[float, Array]]]:
    """By name: bytes of an image in the mean, and the images as the server sees them."""
    import numpy as np
    from PIL import Image

    yield "raw image", (images_NHWC[0].nbytes, images_NHWC)
    for name, options in [("PNG", {}), *((f"JPEG {quality}", {"quality": quality}) for quality in qualities)]:
        sizes, decoded = [], []
        for image_HWC in images_NHWC:
            file = io.BytesIO()
            Image.fromarray(image_HWC.squeeze()).save(file, name.split()[0], **options)
            sizes.append(file.tell())
            decoded.append(np.asarray(Image.open(file)).reshape(image_HWC.shape))
        yield name, (fmean(sizes), np.stack(decoded))


def _of_client(
    run: Run, client_id: int, images: Images, pictures: Mapping[str, tuple[float, Array]]
) -> Iterator[tuple[str, tuple[float, float]]]:
    """By payload: bytes of a sample, and the accuracy of the server's answers."""
    import torch

    from hsee_ray.edge.codecs import Codec, FeatureCodec, channel_axis, channel_range

    client, server = run.client(client_id), run.server(client_id)
    with torch.no_grad():
        h_BCHW = _features(run, client, images.test_NHWC)
        bounds = channel_range(_features(run, client, images.aside_NHWC[client_id]), channel_axis(h_BCHW.ndim))
        for name in get_args(Codec):
            codec = FeatureCodec(name, bounds if name == "int8" else None)
            codes = codec.encode(h_BCHW)
            answers_B = _answers(server, torch.from_numpy(codec.decode(codes)))
            yield name, (codes[0].nbytes, float((answers_B == images.labels_N).mean()))
        for name, (size, decoded_NHWC) in pictures.items():
            answers_B = _answers(server, torch.from_numpy(_features(run, client, decoded_NHWC)))
            yield name, (size, float((answers_B == images.labels_N).mean()))


def _features(run: Run, client: torch.nn.Module, images_NHWC: Array) -> Array:
    import numpy as np

    batches = (images_NHWC[first : first + BATCH] for first in range(0, len(images_NHWC), BATCH))
    return np.concatenate([client(run.preprocess(batch)).contiguous().numpy() for batch in batches])


def _answers(server: torch.nn.Module, h_BCHW: torch.Tensor) -> Array:
    import torch

    answers_B: Array = torch.cat([server(batch).argmax(dim=1) for batch in torch.split(h_BCHW, BATCH)]).numpy()
    return answers_B
