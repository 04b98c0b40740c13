"""Parquet files with encoded images, in the layout that image data sets have on the Hugging Face hub."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hsee_ray.config.schema import DataConfig
from hsee_ray.data.decode import Contents, Notes, Picture, Source, Split
from hsee_ray.edge.images import first_line
from hsee_ray.errors import DataError

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_TEST_SPLITS = ("test", "validation", "valid", "val")
_ROWS_PER_BATCH = 1024


def parquet_source(root: Path, config: DataConfig) -> Source:
    """`train-*.parquet`, `train.parquet` or `train/*.parquet`, and the same of `test`, in `root` or a directory below.

    Without a test split, the validation split is the test set. Raises DataError when there are none, or when the files
    do not agree on the columns of images and labels.
    """
    notes = Notes()
    train, test = _splits(root, notes)
    image_column = _image_column((*train, *test), config)
    label_column = _label_column((*train, *test), config, notes)
    outside = [path for shard in (*train, *test) for path in _outside_files(shard, image_column, root)]

    def read() -> Contents:
        train_split = _split(train, image_column, label_column, root)
        names = _class_names(train[0], label_column, notes)
        return Contents(train_split, _split(test, image_column, label_column, root), names, notes.all())

    return Source((*train, *test, *outside), read)


def _splits(root: Path, notes: Notes) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Files of training and of test, of one directory."""
    below = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    complete = []
    for directory in (root, *below):
        train = _shards(directory, "train")
        tests = {split: shards for split in _TEST_SPLITS if (shards := _shards(directory, split))}
        if train and tests:
            complete.append((directory, train, tests))
    if not complete:
        wanted = "train-*.parquet, train.parquet or train/*.parquet"
        raise DataError(
            f"{root} has no {wanted} with the same of test (or validation) beside it, nor has a directory in it: name "
            "another data.root"
        )
    if len(complete) > 1 and complete[0][0] != root:
        listed = ", ".join(str(directory) for directory, _, _ in complete)
        raise DataError(f"Parquet files lie in several directories: name one of {listed} as data.root")
    _, train, tests = complete[0]
    split, *others = tests
    if split != "test":
        notes.add(f"files of the {split} split taken as the test set", str(tests[split][0]), len(tests[split]))
    for other in others:
        notes.add(f"files of the {other} split ignored", str(tests[other][0]), len(tests[other]))
    return train, tests[split]


def _shards(directory: Path, split: str) -> tuple[Path, ...]:
    single = directory / f"{split}.parquet"
    return tuple(
        sorted(directory.glob(f"{split}-*.parquet"))
        or ([single] if single.is_file() else sorted((directory / split).glob("*.parquet")))
    )


def _split(shards: tuple[Path, ...], image_column: str, label_column: str, root: Path) -> Split:
    labels = [_read_labels(shard, label_column) for shard in shards]
    firsts = list(accumulate((len(shard_labels) for shard_labels in labels), initial=0))

    def picture_batches() -> Iterator[Sequence[Picture]]:
        for shard in shards:
            yield from _read_pictures(shard, image_column, root)

    def name_row(row: int) -> str:
        shard = bisect_right(firsts, row) - 1
        return f"{shards[shard]} row {row - firsts[shard]}"

    return Split(np.concatenate(labels), picture_batches, name_row)


def _read_pictures(path: Path, column: str, root: Path) -> Iterator[Sequence[Picture]]:
    """Encoded images; where a row has no bytes but a path, the file at that path."""
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_PER_BATCH, columns=[column]):
                images = batch.column(0)
                if not pa.types.is_struct(images.type):
                    yield images.to_pylist()
                    continue
                contents = images.field("bytes").to_pylist()
                if images.type.get_field_index("path") >= 0 and None in contents:
                    named = images.field("path").to_pylist()
                    contents = [
                        _beside(name, path, root) if content is None and name else content
                        for content, name in zip(contents, named, strict=True)
                    ]
                yield contents
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _beside(name: str, shard: Path, root: Path) -> Path:
    """A file that a table names: relative to the table, or to the data set."""
    return shard.parent / name if (shard.parent / name).exists() else root / name


def _outside_files(shard: Path, column: str, root: Path) -> Iterator[Path]:
    """Files of images that a table names without holding them."""
    kind = _schema(shard).field(column).type
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0 or _all_bytes_there(shard, f"{column}.bytes"):
        return
    for pictures in _read_pictures(shard, column, root):
        yield from (picture for picture in pictures if isinstance(picture, Path) and picture.exists())


def _all_bytes_there(shard: Path, column: str) -> bool:
    """Whether the table's own statistics say that no row lacks them."""
    with pq.ParquetFile(shard) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        chunks = [group.column(k) for group in groups for k in range(group.num_columns)]
    found = [chunk.statistics for chunk in chunks if chunk.path_in_schema == column]
    return all(statistics is not None and statistics.null_count == 0 for statistics in found)


def _read_labels(path: Path, column: str) -> npt.NDArray[np.int64]:
    try:
        labels = pq.read_table(path, columns=[column], partitioning=None).column(0).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    if labels.null_count:
        row = int(np.flatnonzero(labels.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{path} row {row} has no label in column {column}: remove the row or fill it in")
    labels_N: npt.NDArray[np.int64] = labels.to_numpy().astype(np.int64)
    return labels_N


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> DataError:
    return DataError(f"{path} is damaged or not a Parquet file ({first_line(error)}): replace it")


def _image_column(shards: Sequence[Path], config: DataConfig) -> str:
    """The column of encoded images that all files have."""
    wanted = (config.image_column,) if config.image_column else _IMAGE_COLUMNS
    column, candidates = _common_column(shards, wanted, _holds_images)
    if column is None and config.image_column is None and len(candidates) == 1:
        column = candidates[0]
    if column is not None:
        return column
    for shard in shards:
        schema = _schema(shard)
        for name in wanted:
            if name in schema.names and not _holds_images(schema.field(name).type):
                raise DataError(
                    f"column {name} of {shard} holds {schema.field(name).type}, not encoded images: "
                    f"set data.image_column to one of its columns {', '.join(schema.names)}"
                )
    raise _no_column(shards, "image", wanted, "image_column", _holds_images)


def _label_column(shards: Sequence[Path], config: DataConfig, notes: Notes) -> str:
    """The column of integer labels that all files have."""
    wanted = (config.label_column,) if config.label_column else _LABEL_COLUMNS
    column, candidates = _common_column(shards, wanted, pa.types.is_integer)
    if column is None and config.label_column is None and len(candidates) == 1:
        column = candidates[0]
        notes.add(f"column taken as the label, the only one of integers: {column}", str(shards[0]))
    if column is None:
        raise _no_column(shards, "integer label", wanted, "label_column", pa.types.is_integer)
    return column


def _common_column(
    shards: Sequence[Path], wanted: Sequence[str], fits: Callable[[pa.DataType], bool]
) -> tuple[str | None, list[str]]:
    """The first of the wanted columns that fits in every file, and all that fit in every file."""
    columns = [{field.name for field in _schema(shard) if fits(field.type)} for shard in shards]
    common = set.intersection(*columns)
    return next((name for name in wanted if name in common), None), sorted(common)


def _no_column(
    shards: Sequence[Path], what: str, wanted: Sequence[str], key: str, fits: Callable[[pa.DataType], bool]
) -> DataError:
    """One file that lacks it, and what it has."""
    fields = {shard: {field.name for field in _schema(shard) if fits(field.type)} for shard in shards}
    shard = next((shard for shard in shards if not fields[shard] & set(wanted)), None)
    if shard is None:
        return DataError(
            f"{shards[0].parent}: its files have no {what} column in common, though each has one of "
            f"{', '.join(wanted)}: give them one name, and set data.{key} to it"
        )
    fitting = sorted(fields[shard])
    return DataError(
        f"{shard} has no {what} column {' or '.join(wanted)}: set data.{key} to one of "
        f"{', '.join(fitting) or '(none of its columns would do)'}, which all files must have; all its columns are "
        f"{', '.join(_schema(shard).names)}"
    )


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(path: Path, column: str, notes: Notes) -> tuple[str, ...] | None:
    """Names of the classes from the metadata that the `datasets` library writes; None without them.

    A list of names, or a mapping from labels to names.
    """
    text = (_schema(path).metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        names: Any = json.loads(text)
        for key in ("info", "features", column, "names"):
            names = names.get(key) if isinstance(names, dict) else None
        if isinstance(names, dict):
            names = [names[str(label)] for label in range(len(names))]
    except (ValueError, KeyError, RecursionError):
        names = ()
    if names is None:
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        notes.add("file whose class names cannot be read: classes are numbered", str(path))
        return None
    return tuple(names)
