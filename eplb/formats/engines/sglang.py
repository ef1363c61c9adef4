"""SGLang's `--init-expert-location` file: rows of all decoder layers, dense ones included.

Read from SGLang 0.5.23. It splats the file's object as keyword arguments, so the map must be its
only key; it checks neither width nor height, and gives layers beyond the height the trivial row.
"""

import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from ..._arrays import Ints
from ...errors import InputError
from ...findings import listed
from ...model import Model
from ...plan import Plan
from ..source import Source
from .constraints import family_note, note
from .exports import Chosen, Export, check_ending, choose, torch_bytes
from .rows import Rows, array_rows, expect, table_of

NAME = "sglang"
DESCRIPTION = "SGLang expert location: .json or .pt, a row for every decoder layer"
ENDINGS = (".json", ".pt")

KEY = "physical_to_logical_map"

# Native model classes of 0.5.23 that say nothing of their experts' location.
_LACKING = (
    "ernie4_5_moe", "granitemoe", "hunyuan_v1_moe", "llama4", "llama4_text", "mixtral", "olmoe",
    "phimoe",
)  # fmt: skip


def write(plan: Plan, name: str, model: Model | None = None) -> Export:
    """The file of this name, and the flags that go with it.

    Raises
    ------
    InputError
        When the name has another ending, or torch is needed and not installed.
    RefusedError
        When SGLang would not serve what was planned.
    """
    check_ending(name, ENDINGS, "SGLang takes any other for the text of a map itself")
    chosen = choose(
        plan, model, unchecked="SGLang gives layers that have no planned row the trivial one"
    )
    num_layers, notes = chosen.num_layers, list(chosen.notes)
    if num_layers is None:
        num_layers = int(chosen.layer_ids.max()) + 1
        notes.append(
            note(
                "EP206",
                f"{num_layers} decoder layers are assumed, the plan's last one being the model's"
                " last",
            )
        )
    notes += family_note(
        plan, model, _LACKING,
        "SGLang's own class for it had no expert location in 0.5.23 and would leave the map aside;"
        " its Transformers backend has one",
    )  # fmt: skip
    notes.append(
        "without --enable-eplb the placement stays; with it SGLang starts from it and rebalances"
    )
    table = _with_dense(chosen, num_layers)
    flags = (
        f"--init-expert-location {shlex.quote(name)}",
        f"--ep-size {chosen.num_ranks}",
        f"--ep-num-redundant-experts {chosen.num_redundant}",
    )
    data = torch_bytes({KEY: table}) if name.endswith(".pt") else _json(table)
    return Export(data, flags, tuple(notes))


def read(source: Source) -> Rows:
    """The rows of all decoder layers.

    Raises
    ------
    InputError
        When the file is none that SGLang would start with.
    """
    expect(source, ("json", "torch"), f'JSON or a torch file of {{"{KEY}": [layers][slots]}}')
    content: Any = source.content
    if not isinstance(content, Mapping) or KEY not in content:
        if isinstance(content, Mapping) and "logical_count" in content:
            raise InputError("it holds recorded loads (logical_count); `eplb plan` reads those")
        raise InputError(f"it has no {KEY!r}; an object with that key alone is expected")
    if others := [key for key in content if key != KEY]:
        raise InputError(f"it has a key {others[0]!r} too; SGLang takes {KEY!r} alone")
    table = table_of(array_rows(content[KEY], KEY), lambda row: f"layer {row}")
    return Rows(table, np.arange(len(table)), has_dense=True)


def trivial_row(num_slots: int, num_experts: int) -> Ints:
    """What a layer starts with when nobody places it: slot p holds expert p mod E."""
    return np.arange(num_slots, dtype=np.int64) % num_experts


def looks_dense(rows: Rows, num_experts: int) -> str | None:
    """The layers whose row is the trivial one, in a few words, or None."""
    trivial = (rows.table == trivial_row(rows.table.shape[1], num_experts)).all(axis=1)
    return listed(np.flatnonzero(trivial)) if trivial.any() else None


def _with_dense(chosen: Chosen, num_layers: int) -> Ints:
    """The rows of all decoder layers, of shape (num_layers, S)."""
    table = np.tile(trivial_row(chosen.table.shape[1], chosen.num_experts), (num_layers, 1))
    table[chosen.layer_ids] = chosen.table
    return table


def _json(table: Ints) -> bytes:
    """One layer a line, so that maps can be compared by line."""
    rows = b",\n".join(orjson.dumps(row.tolist()) for row in table)
    return b'{"' + KEY.encode() + b'": [\n' + rows + b"\n]}\n"
