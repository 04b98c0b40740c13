"""Parquet files with encoded images, in the layout that image data sets have on the Hugging Face hub."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hsee_ray.config.schema import DataConfig
from hsee_ray.data.decode import Contents, Picture, Source, Split
from hsee_ray.edge.images import first_line
from hsee_ray.errors import DataError

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_ROWS_PER_BATCH = 1024


def parquet_source(root: Path, config: DataConfig) -> Source:
    """`train-*.parquet` and `test-*.parquet` in `root`, or in one directory below it.

    Raises DataError when there are none.
    """
    train, test = _shards(root, "train"), _shards(root, "test")

    def read() -> Contents:
        names = _class_names(train[0], _label_column(train[0], config))
        return Contents(_split(train, config), _split(test, config), names)

    return Source((*train, *test), read)


def _shards(root: Path, split: str) -> tuple[Path, ...]:
    pattern = f"{split}-*.parquet"
    shards = sorted(root.glob(pattern)) or sorted(root.glob(f"*/{pattern}"))
    if not shards:
        raise DataError(f"{root} has no {pattern}, nor has a directory in it: name another data.root")
    directories = sorted({str(shard.parent) for shard in shards})
    if len(directories) > 1:
        listed = ", ".join(directories)
        raise DataError(f"{pattern} lies in several directories: name one of {listed} as data.root")
    return tuple(shards)


def _split(shards: tuple[Path, ...], config: DataConfig) -> Split:
    labels = [_read_labels(shard, _label_column(shard, config)) for shard in shards]
    image_columns = [_image_column(shard, config) for shard in shards]
    firsts = list(accumulate((len(shard_labels) for shard_labels in labels), initial=0))

    def picture_batches() -> Iterator[Sequence[Picture]]:
        for shard, column in zip(shards, image_columns, strict=True):
            yield from _read_pictures(shard, column)

    def name_row(row: int) -> str:
        shard = bisect_right(firsts, row) - 1
        return f"{shards[shard]} row {row - firsts[shard]}"

    return Split(np.concatenate(labels), picture_batches, name_row)


def _read_pictures(path: Path, column: str) -> Iterator[Sequence[Picture]]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_PER_BATCH, columns=[column]):
                images = batch.column(0)
                yield (images.field("bytes") if pa.types.is_struct(images.type) else images).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


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


def _image_column(path: Path, config: DataConfig) -> str:
    schema = _schema(path)
    wanted = (config.image_column,) if config.image_column else _IMAGE_COLUMNS
    column = next((name for name in wanted if name in schema.names), None)
    if column is None:
        raise DataError(
            f"{path} has no image column {' or '.join(wanted)}: "
            f"set data.image_column to one of its columns {', '.join(schema.names)}"
        )
    kind = schema.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(
            f"column {column} of {path} holds {kind}, not encoded images: "
            f"set data.image_column to one of its columns {', '.join(schema.names)}"
        )
    return column


def _label_column(path: Path, config: DataConfig) -> str:
    schema = _schema(path)
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    wanted = (config.label_column,) if config.label_column else _LABEL_COLUMNS
    for name in wanted:
        if name in integers:
            return name
    if config.label_column is None and len(integers) == 1:
        return str(integers[0])
    raise DataError(
        f"{path} has no integer label column {' or '.join(wanted)}: "
        f"set data.label_column to one of its integer columns {', '.join(integers) or '(there are none)'}; "
        f"all its columns are {', '.join(schema.names)}"
    )


def _class_names(path: Path, column: str) -> tuple[str, ...] | None:
    """Names of the classes from the metadata that the `datasets` library writes; None without them."""
    described = json.loads((_schema(path).metadata or {}).get(b"huggingface", b"{}"))
    names = described.get("info", {}).get("features", {}).get(column, {}).get("names")
    return tuple(names) if names else None
