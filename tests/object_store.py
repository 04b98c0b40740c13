"""A stand-in for an object store: whole objects in memory, no directories, no rename."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pyarrow import fs


class ObjectStore(fs.FileSystemHandler):
    """Objects by path. Renaming raises, and an object is there only when its stream is closed."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def get_type_name(self) -> str:
        return "stand-in"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [fs.FileInfo(path, fs.FileType.File if path in self.objects else fs.FileType.NotFound) for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        prefix = f"{selector.base_dir.rstrip('/')}/"
        found: dict[str, fs.FileInfo] = {}
        for path in self.objects:
            if path.startswith(prefix):
                name, _, below = path.removeprefix(prefix).partition("/")
                kind = fs.FileType.Directory if below else fs.FileType.File
                found[name] = fs.FileInfo(prefix + name, kind)
        return list(found.values())

    def create_dir(self, path: str, recursive: bool) -> None:
        pass

    def delete_dir(self, path: str) -> None:
        self.objects = {name: data for name, data in self.objects.items() if not name.startswith(f"{path}/")}

    def delete_file(self, path: str) -> None:
        del self.objects[path]

    def open_input_stream(self, path: str) -> Any:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return pa.PythonFile(pa.BufferReader(self.objects[path]), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        store = self

        class Upload:
            closed = False

            def __init__(self) -> None:
                self.parts: list[bytes] = []

            def write(self, data: Any) -> int:
                self.parts.append(bytes(data))
                return len(data)

            def flush(self) -> None:
                pass

            def tell(self) -> int:
                return sum(map(len, self.parts))

            def close(self) -> None:
                if not self.closed:
                    store.objects[path] = b"".join(self.parts)
                self.closed = True

        return pa.PythonFile(Upload(), mode="w")

    def _refuse(self, *args: Any) -> Any:
        raise NotImplementedError("an object store has no such operation")

    move = copy_file = open_input_file = open_append_stream = delete_dir_contents = delete_root_dir_contents = _refuse
