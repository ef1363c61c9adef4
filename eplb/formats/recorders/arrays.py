"""Bare arrays of loads, as planners take them: one tensor that torch saved, or one NPY file."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..._arrays import Numbers
from ...errors import InputError, RefusedError
from ...placement import Placement
from ...trace import LoadTrace
from ..native import as_windows
from ..source import Hints, Source

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
        When its counts are of slots and the placement that was live is another.
    """
    loads, notes = source.content, []
    key = _key(loads)
    if key is not None:
        loads = loads[key]
        notes.append(f"the loads are the only entry of the file, {key!r}")
    notes += _check_shape(loads, hints.experts())
    trace, remarks = by_expert(LoadTrace(as_windows(loads)), hints)
    return trace, [*notes, *remarks]


def by_expert(trace: LoadTrace, hints: Hints) -> tuple[LoadTrace, list[str]]:
    """`trace` with its counts by logical expert, and remarks: where the placement that was live
    during the recording is given, the counts are by slot of it.

    Raises
    ------
    InputError
        When the counts are as many as neither the experts nor the slots.
    RefusedError
        When the placement has other layers, slots or experts.
    """
    live, expected, width = hints.recorded_under, hints.experts(), trace.num_experts
    if live is not None:
        _check_live(trace, live, expected)
        return _folded(trace, live), [
            f"counts of {width} slots are folded to {live.num_logical_experts} experts; right only"
            " if no expert was moved during the recording"
        ]
    if expected is None or width == expected:
        return trace, []
    if width > expected:
        raise InputError(
            f"there are {width} counts a layer and the model has {expected} experts: these are"
            " slots of a load balancer, or it is another model; --recorded-under PLAN, the plan or"
            " map that was live during the recording, folds slots back to experts"
        )
    raise InputError(
        f"there are {width} counts a layer and the model has {expected} experts; the recording is"
        " of another model"
    )


def _check_live(trace: LoadTrace, live: Placement, expected: int | None) -> None:
    if trace.num_experts != live.num_slots:
        hint = (
            "; that is the number of its experts: where no load balancer was active, leave"
            " --recorded-under away"
            if trace.num_experts == live.num_logical_experts
            else ""
        )
        raise RefusedError(
            f"there are {trace.num_experts} counts a layer, and the placement recorded under has"
            f" {live.num_slots} slots{hint}"
        )
    if trace.num_layers != live.num_layers:
        raise RefusedError(
            f"the recording has {trace.num_layers} layers and the placement recorded under"
            f" {live.num_layers}; it was not the one that was live"
        )
    if expected is not None and live.num_logical_experts != expected:
        raise RefusedError(
            f"the placement recorded under is of {live.num_logical_experts} experts and the model"
            f" has {expected}; it was not the one that was live"
        )


def _folded(trace: LoadTrace, live: Placement) -> LoadTrace:
    tokens, shape = trace.tokens, (trace.num_windows, trace.num_layers, live.num_logical_experts)
    folded = np.zeros(shape, tokens.dtype)
    for layer, expert in enumerate(live.physical_to_logical):
        dead = np.flatnonzero((expert < 0) & tokens[:, layer].any(axis=0))
        if len(dead):
            raise RefusedError(
                f"slot {dead[0]} has load in layer {trace.layer_ids[layer]}, and its rank is"
                " excluded in the placement recorded under; it was not the one that was live"
            )
        held = expert >= 0
        np.add.at(folded[:, layer].T, expert[held], tokens[:, layer, held].T)
    folded.setflags(write=False)  # a trace takes a read-only array over without a copy
    return replace(trace, tokens=folded)


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
