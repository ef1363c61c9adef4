"""SGLang's counts by logical expert: dumps of modes `stat` and `stat_approx`, and JSON of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...._arrays import Bools, Ints, Numbers
from ....errors import InputError
from ....timeline import join
from ....trace import LoadTrace
from ...native import as_windows, nested_array
from ...source import Hints, Source
from ..experts import check_experts
from ..passes import pass_windows
from .records import checked_counts, naming

_KNOWN = ("logical_count", "rank", "average_utilization_rate_over_window")


def read_json(content: Mapping[str, Any], hints: Hints) -> tuple[LoadTrace, list[str]]:
    """The counts of JSON: [layers][experts] is one window, a first axis is forward passes.

    Raises
    ------
    InputError
        When the counts are not a nested list of numbers.
    """
    counts = content["logical_count"]
    if not isinstance(counts, list):
        raise InputError("'logical_count' is no list; [layers][experts] is expected")
    notes = _unknown_keys(content)
    array = nested_array(counts, "logical_count")
    trace = LoadTrace(as_windows(array))
    if array.ndim == 2:
        return trace, notes
    order, remarks = time_order(trace.tokens)
    size, num_windows, more = _windows(len(order), hints)
    tokens = np.zeros((num_windows, *array.shape[1:]), array.dtype)
    _add(tokens, size, 0, trace.tokens, order)
    return LoadTrace(tokens, window_steps=size), [*notes, *remarks, *more]


def read_stat(members: Sequence[Source], hints: Hints) -> tuple[LoadTrace, list[str]]:
    """The counts of one or more dumps as one timeline, and remarks on how they were read.

    Only one file is in memory at a time.

    Raises
    ------
    InputError
        When a file is not as the recorder writes it, or they do not fit together.
    RefusedError
        When there are other experts than the hints say.
    """
    dumps = []
    notes: list[str] = []
    for member in members:
        with naming(member, members):
            dumps.append(_look(member, hints))
            if dumps[-1].form != dumps[0].form:
                raise InputError(
                    "'logical_count' has other layers, experts or axes than in the first file;"
                    " a folder is one recording of one model"
                )
        name = f"{member.base}: " if len(members) > 1 else ""
        notes += [name + note for note in dumps[-1].notes]
        if len(members) > 1:
            member.release()
    totals = [dump.total for dump in dumps if dump.total is not None]
    if totals:
        return join(totals), notes
    size, num_windows, remarks = _windows(sum(len(dump.order) for dump in dumps), hints)
    tokens = np.zeros((num_windows, *dumps[0].form[1:]), np.int64)
    position = 0
    for member, dump in zip(members, dumps, strict=True):
        _add(tokens, size, position, _counts(member.content), dump.order)
        position += len(dump.order)
        member.release()
    tokens.setflags(write=False)
    return LoadTrace(tokens, window_steps=size), [*notes, *remarks]


class _Dump(NamedTuple):
    """What is known of a file without its counts."""

    form: tuple[int, ...]
    """Number of axes, layers, experts."""
    total: LoadTrace | None
    """The counts where somebody has summed the passes."""
    order: Ints
    notes: list[str]


def _look(member: Source, hints: Hints) -> _Dump:
    counts = _counts(member.content)
    form = (counts.ndim, *counts.shape[-2:])
    notes = _unknown_keys(member.content)
    if counts.ndim == 2:
        dump = _Dump(form, LoadTrace(as_windows(counts)), np.arange(0), notes)
    else:
        order, remarks = time_order(counts)
        dump = _Dump(form, None, order, [*notes, *remarks])
    check_experts(counts.shape[-1], hints)
    return dump


def time_order(counts: Numbers) -> tuple[Ints, list[str]]:
    """The entries of a ring that hold a pass, oldest first, and remarks; `counts` are [entries,
    layers, experts].

    The recorder goes on where it was when a dump empties the ring, so the oldest entry is the one
    after the gap. Passes without tokens look like unused entries and make gaps of their own.
    """
    used: Bools = np.any(counts, axis=(1, 2))
    entries = np.flatnonzero(used)
    if not len(entries):
        return entries, [f"all {len(used)} entries are empty: no pass was recorded before the dump"]
    if len(entries) == len(used):
        full = (
            f"all {len(used)} entries of the ring hold a pass, so the oldest cannot be told: unless"
            " the ring was unlimited, time jumps back once in the windows"
        )
        return entries, [full] if len(used) > 1 else []
    gap = (entries - np.roll(entries, 1) - 1) % len(used)
    start = int(np.argmax(gap))
    notes = [f"{len(used) - len(entries)} of {len(used)} entries of the ring hold no counts"]
    if start or np.count_nonzero(gap) > 1:
        notes.append(
            f"time is taken to start at entry {entries[start]} of the ring, after the longest run"
            " of entries without counts"
        )
    return np.roll(entries, -start), notes


def _windows(num_passes: int, hints: Hints) -> tuple[int, int, list[str]]:
    if not num_passes:
        raise InputError("no entry of 'logical_count' holds a count: no pass was recorded")
    return pass_windows(num_passes, hints.window_steps)


def _add(tokens: Numbers, size: int, position: int, counts: Numbers, order: Ints) -> None:
    """Add passes to their windows of `size`; the first of them is at `position` in time."""
    for number, entry in enumerate(order, start=position):
        if number // size < len(tokens):
            tokens[number // size] += counts[entry]


def _counts(content: Any) -> Numbers:
    """The checked counts of a dump: [passes, layers, experts], or [layers, experts] summed."""
    if not isinstance(content, Mapping) or "logical_count" not in content:
        raise InputError("there is no 'logical_count' in it, unlike in the first file")
    value = content["logical_count"]
    if isinstance(value, np.ndarray) and value.ndim == 2:
        return value  # not of a single pass; LoadTrace checks it as it checks JSON
    return checked_counts(value, "logical_count", "passes, layers, experts")


def _unknown_keys(content: Mapping[str, Any]) -> list[str]:
    return [f"unknown key {key!r} was left aside" for key in content if key not in _KNOWN]
