"""Files that torch wrote, read as plain values and numpy arrays; never as a program."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import files

# torch stores tensors unpacked, so a file that unpacks to more than this many times its size is
# made to fill the memory.
_LARGEST_RATIO = 4


def read_torch(place: str | bytes, name: str) -> Any:
    """The value that `torch.save` wrote, with numpy arrays for tensors.

    Only tensors and plain values are loaded; tensors of a GPU come to the CPU. Arrays may be views
    of the file, read when touched.

    Raises
    ------
    InputError
        When torch is not installed, the file is broken, or it is a pickle that needs more.
    """
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{name} was written by torch, which is not installed: pip install 'eplb[runtime]'"
        ) from None
    import warnings
    from pickle import UnpicklingError

    _check_size(place, name)
    on_disk = isinstance(place, str) and zipfile.is_zipfile(place)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old storage types, which are read all the same
            value = torch.load(
                io.BytesIO(place) if isinstance(place, bytes) else place,
                map_location="cpu", weights_only=True, mmap=on_disk or None,
            )  # fmt: skip
        return _plain(value)
    except UnpicklingError as error:
        wanted = str(error).partition("GLOBAL ")[2].split(" ")[0]
        more = f" ({wanted})" if wanted else ""
        raise InputError(
            f"{name} is a pickle that needs more than tensors and plain values{more}; such files"
            " can run any program and are never loaded"
        ) from None
    except Exception as error:  # a broken file makes torch raise anything
        raise InputError(f"{name} is not a readable torch file: {files.reason(error)}") from None


def _check_size(place: str | bytes, name: str) -> None:
    size = len(place) if isinstance(place, bytes) else Path(place).stat().st_size
    try:
        with zipfile.ZipFile(io.BytesIO(place) if isinstance(place, bytes) else place) as archive:
            whole = sum(entry.file_size for entry in archive.infolist())
    except files.ZIP_ERRORS:
        return  # not a zip file; torch says what is wrong with it
    if whole > _LARGEST_RATIO * size + 2**20:
        raise InputError(
            f"{name} has {size} bytes and would unpack to {whole}; torch packs nothing, so this is"
            " not a file of its making"
        )


def _plain(value: Any) -> Any:
    """`value` with arrays for tensors."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.is_sparse or value.is_quantized:
            raise ValueError("it holds a sparse or quantised tensor; plain ones are expected")
        if value.dtype == torch.bfloat16:
            value = value.float()  # numpy has no such type
        return value.detach().numpy()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
