"""`hsee edge --bundle DIR --images FILES [--server URL]`: answers images as a device does, without torch or Ray."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.options import job_parser, user_path
from jobs.outcome import exit_code
from jobs.token_file import read_token

# Imported where they are needed: --help answers at once.
if TYPE_CHECKING:
    import numpy as np

    from hsee_ray.edge.edge_client import Prediction

    Array = np.ndarray[Any, Any]

DESCRIPTION = """\
Answer images with the bundle of one client: where its exit is sure it answers alone, and the server does otherwise.
Prints file, class, the exit's confidence, who answered, and the time from the beginning of the batch.
"""
EXIT_CODES = """\
exit codes:
  0 done    1 the server cannot be reached (with --on-unreachable raise)    2 bad input, or the server refuses it
"""
SERVER = "server"
MOST_TIMEOUT_S = 86_400.0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.batch_size < 1:
        parser.error("--batch-size: give at least 1")
    if not 0 < options.timeout_s <= MOST_TIMEOUT_S:
        parser.error(f"--timeout-s: give more than 0 and up to {MOST_TIMEOUT_S:g}")
    return exit_code(lambda: _predict_and_print(options))


def _predict_and_print(options: argparse.Namespace) -> int:
    from hsee_ray.edge.edge_client import EdgeClient, ServerRefused, ServerUnreachable

    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it reports every retry
    client = EdgeClient(
        options.bundle,
        options.server,
        token=None if options.token_file is None else read_token(options.token_file),
        timeout_s=options.timeout_s,
        on_unreachable=options.on_unreachable,
    )
    classes, shape = client.bundle.class_names, client.bundle.image_shape
    arrays = [(file, _opened(file, shape)) for given in options.images for file in _files(given)]
    widths = max(len(_name(file, array, -1)) for file, array in arrays), max(map(len, classes))
    total = exited = degraded = 0
    with client:
        images = _images(arrays, shape, client.bundle.image_bits)
        while batch := list(islice(images, options.batch_size)):
            failure: ServerRefused | ServerUnreachable | None = None
            try:
                predictions = client.predict([image for _, image in batch])
            except (ServerRefused, ServerUnreachable) as error:
                failure, predictions = error, list(error.predictions)
            for (name, _), prediction in zip(batch, predictions, strict=True):
                print(_line(name, classes[prediction.label], prediction, widths))
            sys.stdout.flush()
            if failure is not None:
                raise failure
            total += len(predictions)
            exited += sum(prediction.exited for prediction in predictions)
            degraded += sum(prediction.degraded for prediction in predictions)
    print(f"{total} images: {exited} exited, {total - exited - degraded} offloaded, {degraded} degraded")
    return 0


def _line(name: str, class_name: str, prediction: Prediction, widths: tuple[int, int]) -> str:
    who = "exit" if prediction.exited else SERVER
    if prediction.degraded:
        who = f"exit ({prediction.reason})"
    times = f"{prediction.confidence:.3f}  {who}  {prediction.latency_ms:.1f} ms"
    return f"{name:<{widths[0]}}  {class_name:<{widths[1]}}  {times}"


def _files(given: Path) -> list[Path]:
    """A file itself; of a directory all files in it and below, by name, but for hidden ones."""
    from hsee_ray.errors import DataError

    if not given.is_dir():
        return [given]
    found = sorted(path for path in given.rglob("[!.]*") if path.is_file())
    if not found:
        raise DataError(f"{given}: has no files; name images, or a directory of them")
    return found


def _opened(file: Path, shape: tuple[int, int, int]) -> Array | None:
    """Images (N, H, W, C) of a .npy file, mapped; None for any other file, which is one image."""
    import numpy as np

    from hsee_ray.errors import DataError

    if not file.is_file():
        raise DataError(f"{file}: there is no such file")
    if file.suffix != ".npy":
        return None
    try:
        images: Array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise DataError(f"{file}: is damaged or no .npy file: replace it") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        raise DataError(f"{file}: holds {images.dtype} of shape {images.shape}; give uint8 and (N, *{shape})")
    return images


def _images(
    arrays: Sequence[tuple[Path, Array | None]], shape: tuple[int, int, int], bits: int | None
) -> Iterator[tuple[str, Array]]:
    """Name and pixels (H, W, C) of every image, made as training makes them; one at a time."""
    from hsee_ray.edge.images import pixels

    height, width, channels = shape
    for file, array in arrays:
        if array is None:
            yield str(file), pixels(file, str(file), channels, (height, width), bits)
        else:
            for index, image in enumerate(array):
                yield _name(file, array, index), image


def _name(file: Path, array: Array | None, index: int) -> str:
    """The file, and which image in it; -1 is the last."""
    return str(file) if array is None else f"{file}[{index % max(1, len(array))}]"


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("edge", DESCRIPTION, EXIT_CODES)
    parser.add_argument(
        "--bundle", type=user_path, required=True, metavar="DIR", help="a client's directory of an export"
    )
    parser.add_argument(
        "--images",
        type=user_path,
        required=True,
        nargs="+",
        metavar="FILE",
        help="images of any size, directories of them, or .npy files with uint8 (N, H, W, C)",
    )
    parser.add_argument("--server", metavar="URL", help="such as http://192.168.1.5:8000; without it the exit answers")
    parser.add_argument("--token-file", type=user_path, metavar="FILE", help="the server's token, on one line")
    parser.add_argument(
        "--on-unreachable",
        choices=["answer", "raise"],
        default="answer",
        help="without an answer of the server: the exit answers (default), or the command ends with 1",
    )
    parser.add_argument(
        "--timeout-s", type=float, default=10.0, metavar="S", help="of silence, in each of 4 tries (default: 10)"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default: 32)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
