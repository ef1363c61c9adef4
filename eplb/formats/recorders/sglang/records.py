"""The parts of SGLang's dumps, checked: counts, the placement at the dump, records by pass."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from ...._arrays import Ints, Numbers
from ....errors import EplbError, InputError
from ...source import Source

# Larger counts of one pass are nonsense, and sums of fewer than 2^32 of these fit into int64.
_MOST_IN_A_PASS = 2**31 - 1
# No deployment has as many; a number above is a mistake.
_MOST_RANKS = 2**16


class Record(NamedTuple):
    """What one rank recorded of one forward pass."""

    pass_id: int
    rank: int
    counts: Ints
    """Token-expert assignments by layer and slot, of shape (L, P)."""
    slots: Ints | None
    """The slots of each token, of shape (L, T, k), −1 where absent; mode `per_token` only."""


@contextmanager
def naming(member: Source, members: Sequence[Source]) -> Iterator[None]:
    """Begin messages with the name of a file where it is one of several."""
    try:
        yield
    except EplbError as error:
        if len(members) == 1 or str(error).startswith(member.name):
            raise
        raise type(error)(f"{member.base}: {error}") from None


def some(items: Sequence[object]) -> str:
    """The first few in words."""
    shown = ", ".join(map(str, items[:6]))
    return shown if len(items) <= 6 else f"{shown} and {len(items) - 6} more"


def checked_counts(value: Any, key: str, axes: str) -> Ints:
    """Counts of single passes as integers; `axes` names the axes, as in "passes, layers".

    Raises
    ------
    InputError
        When they are no counts.
    """
    if not isinstance(value, np.ndarray):
        raise InputError(f"{key!r} is a {type(value).__name__}; a tensor [{axes}] is expected")
    if value.ndim != axes.count(",") + 1 or 0 in value.shape:
        raise InputError(
            f"{key!r} has shape {value.shape}; [{axes}] is expected, at least one of each"
        )
    if value.dtype.kind not in "iuf":
        raise InputError(f"{key!r} is of type {value.dtype}; integers are expected")
    if value.dtype.kind == "f":
        value = value.astype(np.float64)  # which narrow floats need to be compared with the limit
        _refuse(value, value != np.floor(value), key, "whole numbers are expected")
    if value.dtype.kind != "u" and value.min() < 0:
        _refuse(value, value < 0, key, "counts cannot be negative")
    if value.dtype.itemsize == 8:
        _refuse(value, value > _MOST_IN_A_PASS, key, "no forward pass has as many tokens")
        value = value.astype(np.int64, copy=False)
    counts: Ints = value
    return counts


def _refuse(value: Numbers, wrong: Numbers, key: str, why: str) -> None:
    if wrong.any():
        where = np.argwhere(wrong)[0]
        place = "".join(f"[{i}]" for i in where)
        raise InputError(f"{key}{place} is {value[tuple(where)]}; {why}")


def placement_of(content: Mapping[str, Any]) -> Ints:
    """The logical experts of the slots at the time of a dump, of shape (L, P).

    Raises
    ------
    InputError
        When it is no placement that holds every expert in every layer.
    """
    key = "last_physical_to_logical_map"
    value = content[key]
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
        kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise InputError(f"{key!r} is {kind}; a tensor of integers [layers, slots] is expected")
    if value.ndim != 2 or 0 in value.shape:
        raise InputError(f"{key!r} has shape {value.shape}; [layers, slots] is expected")
    num_layers, num_slots = value.shape
    wrong = (value < 0) | (value >= num_slots)
    _refuse(value, wrong, key, f"ids of experts from 0 to {num_slots - 1} are expected")
    present = np.zeros((num_layers, int(value.max()) + 1), bool)
    present[np.arange(num_layers)[:, None], value.astype(np.intp)] = True
    if not present.all():
        layer, expert = np.argwhere(~present)[0]
        raise InputError(
            f"{key} has no slot of expert {expert} in layer {layer} and ids up to {value.max()};"
            " every expert must be in every layer"
        )
    return value.astype(np.int64)


def records_of(content: Any) -> list[Mapping[str, Any]]:
    """The records of a dump, not yet checked one by one.

    Raises
    ------
    InputError
        When it is no dump of mode `per_pass` or `per_token`, or an empty one.
    """
    if not isinstance(content, Mapping) or "logical_count" in content:
        raise InputError("it is no dump by pass and rank, unlike the first file of the folder")
    for key in ("records", "last_physical_to_logical_map"):
        if key not in content:
            raise InputError(f"there is no {key!r} in it; every dump by pass and rank has it")
    records = content["records"]
    if not isinstance(records, list):
        raise InputError(f"'records' is a {type(records).__name__}; a list is expected")
    if not records:
        raise InputError("'records' is empty: no forward pass was recorded before the dump")
    for index, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise InputError(f"records[{index}] is a {type(record).__name__}; a dict is expected")
        _number(record, index, "forward_pass_id", 2**62)
    return records


def record_of(record: Mapping[str, Any], index: int, placement: Ints, routed: bool) -> Record:
    """A record checked; with the slots of its tokens where `routed`.

    Raises
    ------
    InputError
        When a key is missing or its value is not what it should be.
    """
    value = _value(record, index, "global_physical_count")
    count = checked_counts(value, f"records[{index}].global_physical_count", "layers, slots")
    if count.shape != placement.shape:
        raise InputError(
            f"records[{index}].global_physical_count has {count.shape[0]} layers × {count.shape[1]}"
            f" slots and the map of the dump {placement.shape[0]} × {placement.shape[1]}"
        )
    if routed != ("topk_ids_of_layer" in record):
        raise InputError(
            f"records[{index}] has {'no' if routed else 'a'} 'topk_ids_of_layer', unlike the first"
            " record; dumps of modes per_pass and per_token are read apart"
        )
    return Record(
        _number(record, index, "forward_pass_id", 2**62),
        _number(record, index, "rank", _MOST_RANKS),
        count,
        _slots(record["topk_ids_of_layer"], index, len(placement)) if routed else None,
    )


def _slots(value: Any, index: int, num_layers: int) -> Ints:
    name = f"records[{index}].topk_ids_of_layer"
    if not isinstance(value, np.ndarray) or value.dtype.kind != "i" or value.ndim != 3:
        found = (
            f"of shape {value.shape} and type {value.dtype}"
            if isinstance(value, np.ndarray)
            else f"a {type(value).__name__}"
        )
        raise InputError(f"{name} is {found}; integers [layers, tokens, top_k] are expected")
    if len(value) != num_layers or not value.shape[2]:
        raise InputError(
            f"{name} has shape {value.shape}; {num_layers} layers are expected, as in the map of"
            " the dump, and one id a token or more"
        )
    if value.size:
        _refuse(value, value < -1, name, "slots, or −1 for none, are expected")
    return value


def _value(record: Mapping[str, Any], index: int, key: str) -> Any:
    if key not in record:
        raise InputError(f"records[{index}] has no {key!r}; every record has one")
    return record[key]


def _number(record: Mapping[str, Any], index: int, key: str, end: int) -> int:
    value = _value(record, index, key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < end:
        raise InputError(
            f"records[{index}].{key} is {str(value)[:40]}; a whole number from 0 to {end - 1} is"
            " expected"
        )
    return value
