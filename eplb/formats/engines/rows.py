"""Rows that a file holds, checked as they are read."""

import reprlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..._arrays import Ints
from ...errors import InputError
from ..source import Source

# More layers than any model has; a larger number is a mistake, not a layer.
MOST_LAYERS = 10_000


class Rows(NamedTuple):
    """What an engine's file holds: the expert of each slot, int64 of shape (rows, S).

    `layer_ids` are the model's own numbers where the file gives them; rows are else of the layers
    with experts in their order. `has_dense` is whether rows of dense layers are among them, and
    `num_ranks` is None where the file does not say.
    """

    table: Ints
    layer_ids: Ints | None = None
    has_dense: bool = False
    num_ranks: int | None = None
    notes: tuple[str, ...] = ()


def expect(source: Source, kinds: Sequence[str], what: str) -> None:
    """Raise `InputError` unless the file is of one of these kinds."""
    if source.kind in kinds:
        return
    if source.kind in ("text", "bytes") and not source.data().strip():
        raise InputError(f"it is empty; {what} is expected")
    raise InputError(f"{what} is expected; this is {source.kind}, by its first bytes")


def table_of(rows: Sequence[Any], called: Callable[[int], str]) -> Ints:
    """Rows of expert ids as an array; `called` names a row in messages.

    Raises
    ------
    InputError
        When a row is no list of ids, differs in length, or holds what cannot be an expert.
    """
    if not len(rows):
        raise InputError("it has no rows; a list of expert ids for each layer is expected")
    for number, row in enumerate(rows):
        if not isinstance(row, list) or not row:
            raise InputError(f"{called(number)} is {shown(row)}; a list of expert ids is expected")
        if len(row) != len(rows[0]):
            raise InputError(
                f"{called(number)} has {len(row)} slots and {called(0)} {len(rows[0])}; every layer"
                " has the same number of slots"
            )
        for slot, expert in enumerate(row):
            if type(expert) is not int or not 0 <= expert < len(row):
                raise InputError(f"{called(number)}, slot {slot}: {_no_expert(expert, len(row))}")
    return np.array(rows, np.int64)


def array_rows(value: Any, name: str) -> list[Any]:
    """A list of rows, of an array or of what already is one.

    Raises
    ------
    InputError
        When it is neither.
    """
    if isinstance(value, np.ndarray) and value.ndim == 2:
        rows: list[Any] = value.tolist()
        return rows
    if isinstance(value, list):
        return value
    found = f"of shape {value.shape}" if isinstance(value, np.ndarray) else shown(value)
    raise InputError(f"{name!r} is {found}; a list of expert ids for each layer is expected")


def _no_expert(value: Any, num_slots: int) -> str:
    if value == -1:
        return "−1, an empty slot; a plan has an expert in every slot of a GPU in service"
    if type(value) is not int or value < 0:
        return f"{shown(value)} is no expert; a whole number of 0 or more is expected"
    return (
        f"expert {shown(value)} is expected nowhere, as {num_slots} slots cannot hold all of"
        f" experts 0 to {shown(value)}"
    )


def shown(value: Any) -> str:
    """A value for a message, cut short, however large it is or often it holds itself."""
    try:
        return f"{reprlib.repr(value):.40}"
    except ValueError:  # Python writes out no number of thousands of digits
        return "a number of thousands of digits"
