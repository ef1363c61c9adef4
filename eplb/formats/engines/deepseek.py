"""What DeepSeek's `rebalance_experts` returns, as arrays: phy2log, log2phy, logcnt.

`layer_ids` is beside them, so that rows keep their numbers; DeepSeek's own rows have none.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..._arrays import Ints, Numbers
from ...errors import InputError
from ...model import Model
from ...placement import Placement
from ...plan import Plan
from .. import files
from ..source import Source
from .exports import Export, check_ending, choose, torch_bytes
from .rows import MOST_LAYERS, Rows, array_rows, expect, shown, table_of

NAME = "deepseek"
DESCRIPTION = "Arrays of DeepSeek's EPLB: .npz or .pt with phy2log, log2phy, logcnt, layer_ids"
ENDINGS = (".npz", ".pt")

_RETURNED = ("phy2log", "log2phy", "logcnt")


def write(plan: Plan, name: str, model: Model | None = None) -> Export:
    """The file of this name; no server reads it, so no flags go with it.

    Raises
    ------
    InputError
        When the name has another ending, or torch is needed and not installed.
    RefusedError
        When the arrays cannot say what was planned.
    """
    check_ending(name, ENDINGS, ".npz is numpy's, .pt torch's")
    chosen = choose(
        plan, model, takes_mtp=True, holds_twins=True, unchecked="rows are only what was planned"
    )
    placement = Placement(chosen.table, chosen.num_experts, chosen.num_ranks)
    arrays: dict[str, Numbers] = {
        "phy2log": chosen.table,
        "log2phy": placement.logical_to_physical.astype(np.int64),
        "logcnt": placement.replica_count,
        "layer_ids": chosen.layer_ids,
    }
    data = torch_bytes(arrays) if name.endswith(".pt") else files.npz_bytes(arrays)
    return Export(data, (), tuple(chosen.notes))


def read(source: Source) -> Rows:
    """The rows of phy2log, whatever layers they are of unless the file says it.

    Raises
    ------
    InputError
        When there is no phy2log, or log2phy or logcnt tell of another placement.
    """
    expect(source, ("npz", "torch", "npy"), "an NPZ, NPY or torch file with phy2log")
    content: Any = source.content
    if isinstance(content, list) and len(content) == len(_RETURNED):
        content = dict(zip(_RETURNED, content, strict=True))  # the tuple that it returns
    if isinstance(content, np.ndarray):
        content = {"phy2log": content}
    if not isinstance(content, Mapping) or "phy2log" not in content:
        raise InputError("it has no array 'phy2log' of [rows][slots]")
    table = table_of(array_rows(content["phy2log"], "phy2log"), lambda row: f"phy2log[{row}]")
    _check_rest(content, table)
    if "layer_ids" not in content:
        return Rows(table)
    layer_ids = _array(content, "layer_ids")
    if layer_ids.dtype.kind not in "iu" or layer_ids.shape != (len(table),):
        raise InputError(
            f"'layer_ids' has shape {layer_ids.shape} and type {layer_ids.dtype}; one whole number"
            f" for each of the {len(table)} rows is expected"
        )
    if wrong := [layer for layer in layer_ids.tolist() if not 0 <= layer < MOST_LAYERS]:
        raise InputError(f"'layer_ids' has {wrong[0]}, which is no layer of any model")
    return Rows(table, layer_ids)


def _check_rest(content: Mapping[str, Any], table: Ints) -> None:
    """What is told twice must be the same."""
    num_experts = int(table.max()) + 1
    count = np.zeros((len(table), num_experts), np.int64)
    np.add.at(count, (np.arange(len(table))[:, None], table), 1)
    if "logcnt" in content and not np.array_equal(_array(content, "logcnt"), count):
        raise InputError(
            "'logcnt' does not count what 'phy2log' holds; which is right is not known"
        )
    if "log2phy" in content and not _same_slots(_array(content, "log2phy"), table, count):
        raise InputError(
            "'log2phy' names other slots than 'phy2log' holds; which is right is not known"
        )


def _array(content: Mapping[str, Any], key: str) -> Numbers:
    try:
        return np.asarray(content[key])
    except ValueError:
        raise InputError(f"{key!r} is {shown(content[key])}; an array is expected") from None


def _same_slots(log2phy: Numbers, table: Ints, count: Ints) -> bool:
    """Whether `log2phy` (rows, E, copies), in any order of copies, is the inverse of the table."""
    if log2phy.ndim != 3 or log2phy.shape[:2] != count.shape or log2phy.dtype.kind not in "iu":
        return False
    row, expert, copy = np.nonzero(log2phy >= 0)
    slot = log2phy[row, expert, copy]
    if len(slot) != table.size or slot.max() >= table.shape[1]:
        return False
    found = np.full_like(table, -1)
    found[row, slot] = expert
    return np.array_equal(found, table)
