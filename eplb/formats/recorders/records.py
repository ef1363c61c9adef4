"""Recordings of JSON objects: the objects one by one, numbers in them, and what all share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..._arrays import Ints
from ...errors import InputError
from ...trace import LoadTrace
from ..native import nested_array
from ..source import Hints, Source
from .passes import MOST_WINDOWS

# Tables in which most entries are missing are refused above this many: 2 GiB of counts.
_MOST_UNNAMED = 2**28
# Entries for each one that the file names.
_LARGEST_RATIO = 100
_MOST_EXPERTS = 1_000_000
_FILLER = 255


def first(source: Source) -> Mapping[str, Any]:
    """The first object of JSON lines, of a JSON list, or the one that is all of the file; empty
    where there is none."""
    if source.kind not in ("json", "jsonl"):
        return {}
    _, record = next(each(source), ("", None))
    return record if isinstance(record, Mapping) else {}


def each(source: Source) -> Iterator[tuple[str, Any]]:
    """The values of JSON lines or of a JSON list, each with how messages call it."""
    if source.kind == "jsonl":
        yield from source.lines()
    elif isinstance(source.content, list):
        for number, record in enumerate(source.content, start=1):
            yield f"entry {number}", record
    else:
        yield "line 1", source.content


def keys_of(record: Any) -> str:
    """The keys of an object, for a message."""
    if not isinstance(record, Mapping):
        return "no object"
    return ", ".join(map(repr, list(record)[:12])) or "none"


def whole(record: Mapping[str, Any], key: str, where: str, least: int = 0) -> int:
    """The whole number under a key.

    Raises
    ------
    InputError
        When it is missing, no whole number, or less than `least`.
    """
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        found = repr(value)[:60] if key in record else "missing"
        raise InputError(
            f"{where}: {key!r} is {found}; a whole number of {least} or more is expected"
        )
    return value


def check_once(experts: Ints, layer_ids: Sequence[int] | Ints, name: Callable[[int], str]) -> None:
    """Raise `InputError` where a token of `experts` (T, L, K) has one expert twice, which no
    router gives; −1 does not count. `name` says what messages call a token."""
    ordered = np.sort(experts, axis=2)
    same = (ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] >= 0)
    if not same.any():
        return
    token, layer, place = np.argwhere(same)[0].tolist()
    expert = int(ordered[token, layer, place])
    hint = ""
    if expert == _FILLER:
        hint = f"; {_FILLER} is a filler that some recorders write: drop those rows"
    elif expert == 0:
        hint = "; zeros are what layers without experts and empty rows hold"
    raise InputError(
        f"{name(token)}, layer {layer_ids[layer]} has expert {expert} twice, as no router"
        f" gives{hint}"
    )


def check_size(shape: Sequence[int], named: int) -> None:
    """Raise `InputError` where a table of windows × layers × experts would fill the memory with
    entries of which the file names few."""
    windows, layers, experts = (int(size) for size in shape)
    cells = windows * layers * experts
    if experts > _MOST_EXPERTS:
        raise InputError(
            f"expert {experts - 1} is named; ids below {_MOST_EXPERTS} are expected, as no model"
            " has more experts"
        )
    if cells > _MOST_UNNAMED and cells > _LARGEST_RATIO * named:
        raise InputError(
            f"{windows} windows × {layers} layers × {experts} experts are {cells:,} counts, of"
            f" which the file names {named:,}; is a column mistaken for another?"
        )


def counts(value: Any, where: str) -> Ints:
    """Lists of lists of counts as an array.

    Raises
    ------
    InputError
        When rows differ in length or hold anything but whole numbers from 0.
    """
    array = nested_array(value if isinstance(value, list) else [], where)
    if array.ndim != 2:
        raise InputError(f"{where} is nested {array.ndim} deep; lists of counts are expected")
    if array.dtype.kind != "i" or array.min() < 0:
        row, place = np.argwhere((array < 0) | (array % 1 != 0))[0]
        raise InputError(
            f"{where}[{row}][{place}] is {array[row, place]}; a count, whole and not negative, is"
            " expected"
        )
    return array


def fewer_windows(trace: LoadTrace, hints: Hints, notes: list[str], unit: str) -> LoadTrace:
    """A trace of many short windows summed into windows of `hints.window_steps`, or into at most
    `MOST_WINDOWS`; says so in `notes`, calling a window `unit`."""
    assert trace.window_steps is not None
    steps = hints.window_steps
    if steps is None:
        size = -(-trace.num_windows // MOST_WINDOWS)
        steps = size * trace.window_steps
        if size > 1:
            notes.append(
                f"{trace.num_windows} {unit} are summed into {trace.num_windows // size} windows of"
                f" {steps} steps; --window-steps chooses"
            )
    size = steps // trace.window_steps
    if size and (left := trace.num_windows % size):
        notes.append(f"the last {left} of {trace.num_windows} {unit} fill no window")
    return trace.summed(steps)
