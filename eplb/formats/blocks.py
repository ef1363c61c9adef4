"""A trace read a few windows at a time, for traces larger than memory."""

import os
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from math import prod
from typing import IO, Any

import numpy as np

from .._arrays import Numbers
from ..errors import EplbError, InputError
from ..trace import LoadTrace
from . import files, native
from .source import Hints, Source

# Bytes of loads in one block.
_BLOCK = 2**25
_BY_WINDOW = ("window_weight", "scenario")


def streams(path: str) -> bool:
    """Whether `read_blocks` can read a file: NPZ with loads by window, as this project writes."""
    if not os.path.isfile(path):
        return False  # standard input or a pipe, which looking into would empty
    source = Source(path)
    if source.kind != "npz" or not source.on_disk:
        return False
    with zipfile.ZipFile(path) as archive:
        return "loads.npy" in archive.namelist()


def read_blocks(
    path: str, hints: Hints | None = None, block_bytes: int = _BLOCK
) -> Iterator[LoadTrace]:
    """The windows of such a file in order, as many at a time as fit `block_bytes`.

    Raises
    ------
    InputError
        When the file is broken or makes no sense.
    RefusedError
        When it is of another model than `hints` say.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("loads.npy") as loads:
            values = {
                name.removesuffix(".npy"): files.read_npy(archive.read(name), path)
                for name in archive.namelist()
                if name != "loads.npy"
            }
            yield from _blocks(loads, values, hints or Hints(), block_bytes)
    except EplbError as error:
        raise type(error)(f"{path}: {error}") from None
    except (*files.ZIP_ERRORS, EOFError) as error:
        raise InputError(f"{path} is not a readable NPZ file: {error}") from None


def _blocks(
    loads: IO[bytes], values: dict[str, Any], hints: Hints, block_bytes: int
) -> Iterator[LoadTrace]:
    shape, dtype = _header(loads)
    by_window = {key: values.pop(key) for key in _BY_WINDOW if key in values}
    for key, value in by_window.items():
        if value.shape != shape[:1]:
            raise InputError(f"{key} has shape {value.shape}; one value a window is expected")
    window_bytes = prod(shape[1:]) * dtype.itemsize
    size = max(1, block_bytes // (prod(shape[1:]) * 8))  # counts become 64 bits wide
    edges = _edges(by_window.get("window_weight", np.ones(shape[0])), size)
    for first, end in pairwise(edges):
        count = end - first
        data = loads.read(count * window_bytes)
        if len(data) != count * window_bytes:
            raise InputError(f"the loads end in window {first + len(data) // window_bytes}")
        block = np.frombuffer(data, dtype).reshape(count, *shape[1:])
        own = {key: value[first:end] for key, value in by_window.items()}
        trace, _ = native.parse({**values, **own, "loads": block}, hints)
        assert isinstance(trace, LoadTrace)
        if hints.model is not None:
            trace, _ = hints.model.describe(trace)
            # What the first block told of the layers holds for all: a later one may be idle.
            values["layer_ids"] = trace.layer_ids
        yield trace


def _edges(weight: Numbers, size: int) -> list[int]:
    """Where blocks of `size` windows begin, and the end of the last. Windows that count for nothing
    are no trace by themselves and go with those before or after."""
    starts = [s for s in range(0, len(weight), size) if weight[s : s + size].any()]
    return [0, *starts[1:], len(weight)]


def _header(loads: IO[bytes]) -> tuple[tuple[int, ...], Any]:
    """Shape and type of the array that follows."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(loads)
    if version not in read:
        raise InputError(f"loads are of NPY version {version}; 1.0 and 2.0 are read in blocks")
    shape, fortran, dtype = read[version](loads)
    if fortran or len(shape) != 3 or 0 in shape or dtype.kind not in "iuf":
        raise InputError(
            f"loads of shape {shape} and type {dtype}{' by column' if fortran else ''} cannot be"
            " read in blocks; numbers of windows × layers × experts in row order are expected"
        )
    return shape, dtype
