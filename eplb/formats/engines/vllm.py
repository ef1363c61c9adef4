"""vLLM placement files: two proposed formats, neither merged as of vLLM 0.33, which reads none.

The list of lists is that of pull request 49572 (`initial_expert_map_path`), the record of
`eplb_initial_mapping` that of 41141 (`initial_mapping_path`). Rows are of the layers with experts
in their order; a draft model has rows of its own.
"""

import json
import shlex
from collections.abc import Mapping
from typing import Any

import orjson

from ...errors import InputError
from ...model import Model
from ...plan import Plan
from ..source import Source
from .constraints import family_note, note, refused
from .exports import Chosen, Export, check_ending, choose
from .rows import Rows, expect, table_of

NAME = "vllm"
DESCRIPTION = "vLLM, proposed files that 0.33 does not read: .json (PR 49572), .jsonl (PR 41141)"
ENDINGS = (".json", ".jsonl")

RECORD, VERSION = "eplb_initial_mapping", 1
MOST_REDUNDANT = 1023

_KEY = "initial_global_assignments"
# The pull request and the setting of each form.
_PROPOSALS = {
    ".json": (49572, "initial_expert_map_path"),
    ".jsonl": (41141, "initial_mapping_path"),
}
# Native model classes of 0.33 that its balancer does not know.
_LACKING = ("dbrx", "gpt_oss", "minimax_m2", "olmoe")


def write(plan: Plan, name: str, model: Model | None = None) -> Export:
    """The file of this name, and the flags that go with it.

    Raises
    ------
    InputError
        When the name has another ending.
    RefusedError
        When vLLM would not serve what was planned.
    """
    check_ending(name, ENDINGS, ".json for the list of PR 49572, .jsonl for the record of PR 41141")
    chosen = choose(
        plan, model, holds_twins=True, unchecked="vLLM takes rows by position"
    )  # fmt: skip
    if chosen.num_redundant > MOST_REDUNDANT:
        raise refused(
            "EP205",
            f"the plan has {chosen.num_redundant} redundant experts a layer; vLLM takes at most"
            f" {MOST_REDUNDANT}: plan with --redundant {MOST_REDUNDANT} or less",
        )
    number, setting = _PROPOSALS[name[name.rindex(".") :]]
    notes = [
        *chosen.notes,
        note(
            "EP209",
            f"{name} is for a vLLM with pull request {number}, not merged as of 0.33, whose"
            f' --eplb-config then also has "{setting}"; vLLM 0.33 takes the plan itself through'
            " this package's plug-in (vllm.general_plugins): set EPLB_VLLM_PLAN to the plan file",
        ),
        *family_note(plan, model, _LACKING, "vLLM 0.33 cannot balance its native class"),
    ]
    config = json.dumps({"num_redundant_experts": chosen.num_redundant})
    flags = (
        "--enable-expert-parallel", "--enable-eplb", f"--eplb-config {shlex.quote(config)}",
    )  # fmt: skip
    data = _record(chosen) if name.endswith(".jsonl") else _list(chosen)
    return Export(data, flags, tuple(notes))


def read(source: Source) -> Rows:
    """The rows of the layers with experts, in their order.

    Raises
    ------
    InputError
        When the file is of neither form.
    """
    expect(source, ("json", "jsonl"), "a JSON list of lists of experts, or JSON lines")
    if source.kind == "jsonl" or source.path.endswith(".jsonl"):
        return _from_records([value for _, value in source.lines()])
    content: Any = source.content
    if isinstance(content, Mapping):
        return _from_records([content])
    if content and all(type(expert) is int for expert in content):
        raise InputError(
            "it is one list of experts, for all layers alike; put it in a list once for each layer"
        )
    return Rows(table_of(content, lambda row: f"row {row}"))


def _list(chosen: Chosen) -> bytes:
    """One layer a line."""
    rows = b",\n".join(orjson.dumps(row.tolist()) for row in chosen.table)
    return b"[\n" + rows + b"\n]\n"


def _record(chosen: Chosen) -> bytes:
    record = {
        "record_type": RECORD,
        "version": VERSION,
        "num_redundant_experts": chosen.num_redundant,
        "num_slots": int(chosen.table.shape[1]),
        _KEY: {str(ordinal): row.tolist() for ordinal, row in enumerate(chosen.table)},
    }
    return orjson.dumps(record) + b"\n"


def _from_records(records: list[Any]) -> Rows:
    found = [r for r in records if isinstance(r, Mapping) and r.get("record_type") == RECORD]
    if len(found) != 1:
        kinds = sorted({str(r.get("record_type")) for r in records if isinstance(r, Mapping)})
        raise InputError(
            f"it has {len(found)} records of type {RECORD!r} (record_type: {', '.join(kinds)});"
            " one is expected"
        )
    record = found[0]
    if record.get("version") != VERSION:
        raise InputError(f"the record is version {record.get('version')!r}; {VERSION} is expected")
    layers = record.get(_KEY)
    if not isinstance(layers, Mapping):
        raise InputError(f"the record has no {_KEY!r} that maps ordinals to lists of experts")
    keys = [str(ordinal) for ordinal in range(len(layers))]
    if wrong := [key for key in layers if key not in keys]:
        raise InputError(
            f"{_KEY} has the key {wrong[0]!r}; its {len(layers)} layers are expected to be numbered"
            f" from '0' to '{len(layers) - 1}', in the order of layers with experts"
        )
    table = table_of([layers[key] for key in keys], lambda row: f"row {row}")
    if record.get("num_slots", table.shape[1]) != table.shape[1]:
        raise InputError(
            f"'num_slots' is {record['num_slots']!r} and rows have {table.shape[1]} slots"
        )
    redundant = record.get("num_redundant_experts")
    if redundant is not None and redundant != table.shape[1] - int(table.max()) - 1:
        raise InputError(
            f"'num_redundant_experts' is {redundant!r} and rows have {table.shape[1]} slots for"
            f" experts 0 to {table.max()}"
        )
    return Rows(table)
