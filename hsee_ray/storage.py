"""Storage of a run's files: a local directory, or anything that pyarrow.fs reaches by a URI (s3://, gs://, ...).

A reader sees a whole file or none: local files are synced and renamed, objects of an object store appear when they
are complete. Nothing here renames on a store that cannot.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from hsee_ray.errors import UserError
from hsee_ray.paths import refuse_credentials

_PIECE_BYTES = 1 << 20


def write_whole(path: Path, content: bytes) -> None:
    """Writes a local file so that a reader sees all of it or none: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Makes the names in a directory last through a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_uri(place: str) -> bool:
    """Whether a place is a URI; anything else is a local path."""
    return "://" in place


def join(place: str, *names: str) -> str:
    """A place below another one, URI or path. What follows a URI's `?` (region, endpoint) stays at the end."""
    root, mark, query = place.partition("?") if is_uri(place) else (place, "", "")
    return "/".join([root.rstrip("/"), *names]) + mark + query


class Storage:
    """A directory on some file system; names in it are relative, with forward slashes."""

    def __init__(self, filesystem: fs.FileSystem, root: str) -> None:
        self.filesystem = filesystem
        self.root = root.rstrip("/")
        self.local = isinstance(filesystem, fs.LocalFileSystem)

    @classmethod
    def at(cls, uri: str) -> Storage:
        """The storage at a URI or a local path. Raises UserError when there is no such kind of storage."""
        refuse_credentials(uri)
        if not is_uri(uri) and ":/" not in uri:
            return cls(fs.LocalFileSystem(), os.path.abspath(uri))
        try:
            filesystem, root = fs.FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{uri}: is no storage that can be reached ({reason}); give a path or s3://, gs://"
            ) from None
        if not root.strip("/"):
            raise UserError(f"{uri}: names no directory; give one, such as s3://bucket/runs")
        return cls(filesystem, root)

    def write(self, name: str, content: bytes) -> None:
        """Writes one file, whole or not at all. Raises OSError where the file system does."""
        path = self._path(name)
        if self.local:
            parent = Path(path).parent
            if not parent.is_dir():
                parent.mkdir(parents=True, exist_ok=True)
                _sync_directory(parent.parent)
            write_whole(Path(path), content)
            return
        self.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(content)

    def read(self, name: str) -> bytes:
        """Content of a file. Raises OSError (FileNotFoundError) when it is not there."""
        with self.filesystem.open_input_stream(self._path(name)) as stream:
            content: bytes = stream.read()
        return content

    def sha256(self, name: str) -> tuple[str, int]:
        """SHA-256 and size of a file, read piece by piece. Raises OSError when it is not there."""
        digest, size = hashlib.sha256(), 0
        with self.filesystem.open_input_stream(self._path(name)) as stream:
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
                size += len(piece)
        return digest.hexdigest(), size

    def names(self, directory: str = "") -> list[str]:
        """Names of what lies directly in a directory, sorted; none when there is no such directory."""
        selector = fs.FileSelector(self._path(directory), allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def files(self, directory: str = "") -> list[str]:
        """Names of the files directly in a directory, sorted; none when there is no such directory."""
        selector = fs.FileSelector(self._path(directory), allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector) if info.is_file)

    def remove(self, directory: str) -> None:
        """Removes a directory with everything in it."""
        self.filesystem.delete_dir(self._path(directory))

    def remove_file(self, name: str) -> None:
        """Removes a file if it is there."""
        if self.filesystem.get_file_info(self._path(name)).type != fs.FileType.NotFound:
            self.filesystem.delete_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root
