"""A file or folder to be read: what kind it is, told by its first bytes, and what it holds."""

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from ..errors import InputError
from ..model import Model
from ..placement import Placement
from . import files, tensors

_MAGIC = {
    b"\x93NUMPY": "npy",
    b"GGUF": "gguf",
    b"PAR1": "parquet",
    b"\x80\x02": "torch",  # a pickle by itself, as torch wrote before its zip files
}


@dataclass(frozen=True)
class Hints:
    """What a recording may not say of itself, as far as the user knows it.

    Parameters
    ----------
    num_experts
        Logical experts of a layer.
    model
        The structure of the model, from its configuration.
    window_steps
        Forward passes to sum in one window, where the recording is by pass.
    recorded_under
        The placement that was live during the recording, where counts are by slot.
    """

    num_experts: int | None = None
    model: Model | None = None
    window_steps: int | None = None
    recorded_under: Placement | None = None

    def experts(self) -> int | None:
        """How many experts a layer has, as far as it is known."""
        return self.num_experts or (self.model.num_experts if self.model else None)


# Bytes that tell the kind of a file.
_HEAD = 4096


class Source:
    """One file, folder or standard input (`-`).

    `kind` is one of json, jsonl, npz, npy, torch, gguf, parquet, text, bytes and folder. `content`
    is what the file holds: parsed JSON, arrays by name (npz), an array (npy), a tree of plain
    values and arrays (torch), otherwise bytes; read when first asked for and kept until `release`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = files.name_of(path)
        self._data: bytes | None = None
        self._known: dict[Path, Source] = {}
        self.on_disk = True
        """Whether the path itself holds the bytes: no standard input or pipe, not packed."""
        self.kind = self._kind()

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.kind == "folder"

    @cached_property
    def content(self) -> Any:
        """What the file holds."""
        match self.kind:
            case "json":
                return files.parse_json(self.data(), self.name)
            case "npz":
                return files.read_npz(self.data(), self.name)
            case "npy":
                return files.read_npy(self.data(), self.name)
            case "torch":
                return tensors.read_torch(self.path if self.on_disk else self.data(), self.name)
        return self.data()

    def release(self) -> None:
        """Forget the content, so that only one file of a folder is in memory at a time."""
        self.__dict__.pop("content", None)
        self._data = None

    def data(self) -> bytes:
        """The bytes of the file, gzip unpacked."""
        if self._data is None:
            self._data = files.read_bytes(self.path)
        data = self._data
        if self.kind in ("json", "npz", "npy"):
            self._data = None  # parsed once; the bytes need not stay beside the value
        return data

    def lines(self) -> Iterator[tuple[str, Any]]:
        """The values of a JSONL file one by one, each with how messages call its line.

        Raises
        ------
        InputError
            When a line is no JSON.
        """
        with self._stream() as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    where = f"line {number}"
                    yield where, files.parse_json(line, f"{self.name}, {where}")

    @property
    def names(self) -> list[str]:
        """What is in a folder, by name; empty when it cannot be read."""
        with contextlib.suppress(OSError):
            return sorted(os.listdir(self.path))
        return []

    def members(self, *endings: str) -> "list[Source]":
        """The files of a folder whose names have one of the endings, by name.

        Raises
        ------
        InputError
            When one of them is a link that leaves the folder, or no plain file.
        """
        try:
            paths = sorted(Path(self.path).iterdir())
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from None
        return [self._member(path) for path in paths if path.name.endswith(endings)]

    def _member(self, path: Path) -> "Source":
        """A file of the folder, the same one each time, so that its content is kept."""
        if path not in self._known:
            if not path.resolve().is_relative_to(Path(self.path).resolve()):
                raise InputError(
                    f"{path.name} is a link out of the folder, to {path.resolve()};"
                    " put the file itself there"
                )
            if not path.is_file():
                raise InputError(f"{path.name} is no plain file")
            self._known[path] = Source(str(path))
        return self._known[path]

    def file(self, name: str) -> "Source | None":
        """The file of a folder that has this name, if it is there."""
        return next((member for member in self.members(name) if member.base == name), None)

    @property
    def base(self) -> str:
        """The last part of the path."""
        return os.path.basename(self.path)

    def _head(self) -> bytes:
        # Standard input and pipes, such as the shell's `<(...)`, can be read once only.
        if self.path != "-" and os.path.isfile(self.path):
            try:
                with open(self.path, "rb") as file:
                    head = file.read(_HEAD)
            except OSError as error:
                raise InputError(f"{self.path} cannot be read: {error.strerror}") from None
            if not head.startswith(files.GZIP_MAGIC):
                return head
        self.on_disk = False
        self._data = files.read_bytes(self.path)
        return self._data[:_HEAD]

    def _kind(self) -> str:
        if self.path != "-" and os.path.isdir(self.path):
            return "folder"
        head = self._head()
        if head.startswith(files.ZIP_MAGIC):
            return self._zip_kind()
        for magic, kind in _MAGIC.items():
            if head.startswith(magic):
                return kind
        text = head.removeprefix(files.BYTE_ORDER_MARK).lstrip()
        if text[:1] in (b"{", b"["):
            return "jsonl" if _is_jsonl(self._first_lines(text)) else "json"
        return "text" if text and b"\x00" not in head else "bytes"

    def _first_lines(self, text: bytes) -> bytes:
        """`text`, the head of the file, with its first line whole and the beginning of the next:
        records of large models have lines of megabytes."""
        if not text.startswith(b"{") or text.partition(b"\n")[2].strip():
            return text
        with self._stream() as stream:
            line = b""
            while not line.strip():
                line = stream.readline()
            return line.removeprefix(files.BYTE_ORDER_MARK) + stream.read(_HEAD)

    def _stream(self) -> BinaryIO:
        if self.on_disk:
            return open(self.path, "rb")
        return io.BytesIO(files.read_bytes(self.path) if self._data is None else self._data)

    def _zip_kind(self) -> str:
        place = io.BytesIO(self._data) if self._data is not None else self.path
        try:
            with zipfile.ZipFile(place) as archive:
                names = archive.namelist()
        except files.ZIP_ERRORS as error:
            raise InputError(
                f"{self.name} begins as a zip archive and is not a whole one: {error}"
            ) from None
        return "torch" if any(name.endswith("data.pkl") for name in names) else "npz"


def _is_jsonl(head: bytes) -> bool:
    """Whether a first line is a whole JSON object and another line follows."""
    line, _, rest = head.lstrip().partition(b"\n")
    if not rest.strip() or not line.startswith(b"{"):
        return False
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True
