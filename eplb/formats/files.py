"""Bytes in and out: nothing else of the project opens a trace, map or plan file."""

import contextlib
import gc
import gzip
import io
import os
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from .._arrays import Numbers
from ..errors import InputError

GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGIC = b"PK\x03\x04"
# What some programs begin UTF-8 texts with, to mark them as such.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What opening a broken zip archive raises.
ZIP_ERRORS = (OSError, zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, ValueError)

# The oldest date a zip entry can have, so that the same arrays give the same bytes.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
# What is packed more tightly than this, and unpacks to more than this many bytes, is refused.
_LARGEST_RATIO = 100
_MOST_UNPACKED = 2**28
_BLOCK = 2**24


def read_bytes(path: str) -> bytes:
    """The content of a file, or of standard input for `-`; gzip is unpacked.

    Raises
    ------
    InputError
        When it cannot be read.
    """
    try:
        data = _read_stdin() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return _unpacked(data, name_of(path)) if data.startswith(GZIP_MAGIC) else data


def _unpacked(data: bytes, name: str) -> bytes:
    """A gzip file unpacked, unless it was made to fill the memory."""
    out = bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            while block := packed.read(_BLOCK):
                out += block
                check_unpacked(len(data), len(out), name)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name} is not a whole gzip file: {error}") from None
    return bytes(out)


def check_unpacked(packed: int, unpacked: int, name: str) -> None:
    """Raise `InputError` for a file of `packed` bytes that would fill the memory: recorded loads
    never pack as tightly as that."""
    if unpacked > _MOST_UNPACKED and unpacked > _LARGEST_RATIO * packed:
        raise InputError(
            f"{name} has {packed:,} bytes and unpacks to more than {unpacked:,}, as no recording"
            " does; unpack it yourself if you trust it"
        )


def _read_stdin() -> bytes:
    if sys.stdin is None or sys.stdin.closed:
        raise InputError("standard input (-) is closed; it can be read once only")
    with sys.stdin.buffer as stdin:  # closed behind us, so that nobody waits for a second input
        return stdin.read()


@contextlib.contextmanager
def paused_gc() -> Iterator[None]:
    """Hold the cycle collector off: millions of parsed numbers hold no cycles, and looking for
    them takes as long as parsing does."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def name_of(path: str) -> str:
    """How messages call `path`."""
    return "standard input" if path == "-" else path


def parse_json(data: bytes, name: str) -> Any:
    """The value of a JSON text.

    Raises
    ------
    InputError
        With line and column where it is malformed; a literal NaN or Infinity is named.
    """
    data = data.removeprefix(BYTE_ORDER_MARK)
    if not data.strip():
        raise InputError(f"{name} is empty; a JSON object or list is expected")
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if data.lstrip()[:1] not in (b"{", b"["):
            raise InputError(
                f"{name} is neither JSON, gzip nor NPZ: it begins with {data[:8]!r}"
            ) from None
        where = f"{name}, line {error.lineno}, column {error.colno}"
        # The parser points at the sign of a negative literal or just behind it.
        rest = error.doc[error.pos :] if isinstance(error.doc, str) else ""
        if error.pos and rest.startswith("Infinity") and error.doc[error.pos - 1] == "-":
            rest = f"-{rest[:8]}"
        for literal in ("NaN", "Infinity", "-Infinity"):
            if rest.startswith(literal):
                raise InputError(
                    f"{where}: {literal} is not a load, nor valid JSON;"
                    " loads must be finite numbers"
                ) from None
        raise InputError(f"{where}: not valid JSON: {error.msg.split(': line')[0]}") from None


def read_own(path: str, what: str, kind: str, version: int) -> Mapping[str, Any]:
    """The object in a JSON file of this project: `what` it is, its format's name and version.

    Raises
    ------
    InputError
        When it is something else, or of another version.
    """
    name = name_of(path)
    content = parse_json(read_bytes(path), name)
    if not isinstance(content, Mapping) or content.get("format") != kind:
        found = content.get("format") if isinstance(content, Mapping) else type(content).__name__
        raise InputError(f"{name}: the format is {found!r}; a {what} ({kind!r}) is expected")
    if content.get("version") != version:
        raise InputError(
            f"{name}: the {what} is version {content.get('version')!r}; this eplb reads version"
            f" {version}"
        )
    return content


def read_npz(data: bytes, name: str) -> dict[str, Numbers]:
    """The arrays of an NPZ file by name; pickled objects are refused.

    Raises
    ------
    InputError
        When it is not a whole NPZ file of plain arrays.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            check_unpacked(len(data), sum(entry.file_size for entry in archive.infolist()), name)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except InputError:
        raise
    except Exception as error:  # a broken archive makes numpy and zipfile raise anything
        raise InputError(f"{name} is not a readable NPZ file: {reason(error)}") from None


def read_npy(data: bytes, name: str) -> Numbers:
    """The array of an NPY file; pickled objects are refused.

    Raises
    ------
    InputError
        When it is not a whole NPY file of one plain array.
    """
    try:
        array: Numbers = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # a broken header makes numpy raise anything
        raise InputError(f"{name} is not a readable NPY file: {reason(error)}") from None
    return array


def reason(error: Exception) -> str:
    """What a library says against a file, in a line."""
    said = str(error).strip().partition("\n")[0][:120]
    if "allow_pickle" in said:
        return "it holds pickled Python objects, which are never loaded"
    return said or type(error).__name__


def npz_bytes(arrays: dict[str, Numbers]) -> bytes:
    """An NPZ file of `arrays`, compressed, the same bytes every time."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=_ZIP_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
    return out.getvalue()


def check_output(path: str, force: bool) -> None:
    """Find out before long work whether `path` may be written.

    Raises
    ------
    InputError
        When it exists and `force` is off, is no regular file, or its folder is missing or not
        writable.
    """
    target = Path(path)
    if path == "-":
        raise InputError("- is standard output, no file; the name of a file is expected")
    if target.is_dir():
        raise InputError(f"{path} is a folder; the name of a file is expected")
    if target.exists() and not target.is_file():
        raise InputError(f"{path} is a device or pipe; the name of a file is expected")
    if target.exists() and not force:
        raise InputError(f"{path} exists; --force overwrites it")
    folder = target.parent
    if not folder.is_dir():
        raise InputError(f"{path} cannot be written: {folder} is not a folder that exists")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: no permission to write in {folder}")


def write_bytes(path: str, data: bytes, force: bool = False) -> None:
    """Write a whole file or nothing: aside first, then renamed into place.

    Raises
    ------
    InputError
        When it cannot be written; whatever was at `path` before is still whole.
    """
    check_output(path, force)
    target = Path(path).resolve()
    kept = "; the file that was there is unchanged" if target.exists() else ""
    aside = None
    try:
        handle, aside = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".tmp", dir=target.parent
        )
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, target)
    except BaseException as error:
        if aside is not None:
            with contextlib.suppress(OSError):
                os.unlink(aside)
        if isinstance(error, OSError):
            raise InputError(f"{path} could not be written: {error.strerror}{kept}") from None
        raise


def _umask() -> int:
    """The process's file mode mask; reading it means setting it for a moment."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
