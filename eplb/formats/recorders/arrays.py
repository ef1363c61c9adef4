"""Bare arrays of loads, as planners take them: one tensor that torch saved, or one NPY file."""

from collections.abc import Mapping

import numpy as np

from ..._arrays import Numbers
from ...errors import InputError
from ...trace import LoadTrace
from ..native import as_windows
from ..source import Hints, Source
from .experts import by_expert

NAME = "array"
DESCRIPTION = (
    "Bare array, .npy or torch.save: loads [layers, E] or [windows, layers, E] (DeepSeek's weight)"
)

_KEYS = ("weight", "load", "loads")  # of a torch file with one entry
_EXPECTED = "[layers, experts] or [windows, layers, experts] is expected"
_ROUTES = (
    "save routes as NPZ, numpy.savez(file, routes=..., num_experts=...), with −1 on dense layers"
    " (docs/files.md)"
)
# Routers choose hardly more experts a token than this; recordings of so few experts are rare.
_MOST_TOP_K = 16


def detect(source: Source) -> bool:
    """Whether it is an array by itself, or a torch file with one entry that is one."""
    if source.kind not in ("npy", "torch"):
        return False
    return isinstance(source.content, np.ndarray) or _key(source.content) is not None


def read(source: Source, hints: Hints) -> tuple[LoadTrace, list[str]]:
    """The trace that the array holds, and remarks on how its axes were taken.

    Raises
    ------
    InputError
        When its shape or type is not one of loads.
    RefusedError
        When it is of another model, or its counts are of slots and the live placement is another.
    """
    loads, notes = source.content, []
    key = _key(loads)
    if key is not None:
        loads = loads[key]
        notes.append(f"the loads are the only entry of the file, {key!r}")
    notes += _check_shape(loads, hints.experts())
    trace, remarks = by_expert(LoadTrace(as_windows(loads)), hints)
    return trace, [*notes, *remarks]


def _key(content: object) -> str | None:
    """The key of a torch file that has this one entry, an array of loads."""
    if not isinstance(content, Mapping) or len(content) != 1:
        return None
    (key, value), *_ = content.items()
    return key if key in _KEYS and isinstance(value, np.ndarray) else None


def _check_shape(loads: Numbers, num_experts: int | None) -> list[str]:
    """Remarks on which axis is taken for what."""
    shape = list(loads.shape)
    found = f"an array of shape {shape} and type {loads.dtype}"
    if loads.ndim not in (2, 3):
        raise InputError(f"{found}; {_EXPECTED}")
    if loads.dtype.kind not in "iuf":
        raise InputError(f"{found}; numbers are expected")
    if loads.ndim == 2:
        return [f"the array {shape} is taken for [layers, experts], one window"]
    if loads.dtype.kind == "u" and loads.dtype.itemsize <= 2:
        raise InputError(
            f"{found} looks like vLLM's token routes [tokens, layers, top_k], not like loads"
            f" [windows, layers, experts]; {_ROUTES}; if they are loads, save them as int64"
        )
    notes = [f"the array {shape} is taken for [windows, layers, experts]"]
    if loads.dtype.kind in "iu" and shape[2] <= _MOST_TOP_K and num_experts is None:
        notes.append(
            f"were the last axis, {shape[2]}, the top-k of token routes, these would be no loads:"
            f" {_ROUTES}"
        )
    return notes
