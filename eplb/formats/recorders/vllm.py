"""Expert loads that a proposed extension of vLLM writes while it serves, as JSON lines.

Each line is `{"record_type": "eplb_load_stats", "version": 1, "step", "num_ranks", "expert_load",
"p2l_map"}`: loads of every slot and the logical expert in it, both [MoE layers][slots].
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..._arrays import Ints, Numbers
from ...errors import InputError
from ...trace import LoadTrace
from ..native import nested_array
from ..source import Hints, Source
from .experts import check_experts
from .records import each, first, keys_of, whole

NAME = "vllm"
DESCRIPTION = "vLLM load statistics (PR 41141): JSON lines of eplb_load_stats, loads by slot"

_LOADS, _MAPPING = "eplb_load_stats", "eplb_initial_mapping"
_KEYS = ("record_type", "version", "step", "num_ranks", "expert_load", "p2l_map")


def detect(source: Source) -> bool:
    """Whether the first line is a record of this kind."""
    return first(source).get("record_type") in (_LOADS, _MAPPING)


def read(source: Source, hints: Hints) -> tuple[LoadTrace, list[str]]:
    """One window for each record, its slots counted under its own map, and remarks.

    Raises
    ------
    InputError
        When a record is no load record, misses a key, or does not fit the others.
    RefusedError
        When there are other experts than the hints say.
    """
    steps: list[int] = []
    windows: list[Ints] = []
    num_experts = 0
    unknown: dict[str, None] = {}
    for where, record in each(source):
        _check_header(record, where)
        unknown |= dict.fromkeys(key for key in record if key not in _KEYS)
        step = whole(record, "step", where)
        if steps and step <= steps[-1]:
            raise InputError(
                f"{where}: step {step} follows step {steps[-1]}; records of one run, in their"
                " order, are expected: give the runs as files of their own"
            )
        steps.append(step)
        load, slots = _arrays(record, where)
        if not windows:
            num_experts = int(slots.max()) + 1
            if num_experts <= slots.shape[1]:  # else the map is broken, as is told next
                check_experts(num_experts, hints)
        _check_slots(load, slots, num_experts, where)
        windows.append(_fold(load, slots, num_experts))
        if windows[-1].shape != windows[0].shape:
            raise InputError(
                f"{where}: {len(load)} layers and before {len(windows[0])};"
                " a draft model's records belong in a file of their own"
            )
    notes = [f"unknown key {key!r} was left aside" for key in unknown]
    if hints.model is None:
        notes.append(
            f"rows are the layers with experts in their order, 0 to {len(windows[0]) - 1}: --model"
            " gives them the model's numbers"
        )
    apart = set(np.diff(steps).tolist())
    if len(apart) > 1:
        notes.append("records are not equally many steps apart, so windows differ in length")
    return LoadTrace(
        np.stack(windows), window_steps=apart.pop() if len(apart) == 1 else None
    ), notes


def _check_header(record: Any, where: str) -> None:
    kind = record.get("record_type") if isinstance(record, Mapping) else None
    if kind == _MAPPING:
        raise InputError(
            f"{where} is a placement ({_MAPPING}), no load: `eplb import --from vllm` reads it"
        )
    if kind != _LOADS:
        raise InputError(
            f"{where} is no load record: its keys are {keys_of(record)}; 'record_type' of"
            f" {_LOADS!r} with {', '.join(map(repr, _KEYS[1:]))} is expected"
        )
    if record.get("version") != 1:
        raise InputError(
            f"{where} is version {record.get('version')!r} of {_LOADS}; this eplb reads version 1"
        )
    missing = [key for key in _KEYS if key not in record]
    if missing:
        raise InputError(f"{where} has no {missing[0]!r}; its keys are {keys_of(record)}")


def _arrays(record: Mapping[str, Any], where: str) -> tuple[Numbers, Ints]:
    """Loads and logical experts by layer and slot."""
    arrays = []
    for key in ("expert_load", "p2l_map"):
        value = record[key]
        array = nested_array(value if isinstance(value, list) else [], f"{where}: {key}")
        if array.ndim != 2:
            raise InputError(f"{where}: {key} is nested 3 deep; [layers][slots] is expected")
        arrays.append(array)
    load, slots = arrays
    if load.shape != slots.shape:
        raise InputError(
            f"{where}: expert_load is {load.shape[0]} layers × {load.shape[1]} slots and p2l_map"
            f" {slots.shape[0]} × {slots.shape[1]}"
        )
    if slots.dtype.kind != "i":
        raise InputError(f"{where}: p2l_map holds fractions; ids of experts are expected")
    num_ranks = whole(record, "num_ranks", where, least=1)
    if slots.shape[1] % num_ranks:
        raise InputError(f"{where}: {slots.shape[1]} slots do not divide over {num_ranks} ranks")
    return load, slots


def _check_slots(load: Numbers, slots: Ints, num_experts: int, where: str) -> None:
    if num_experts > slots.shape[1]:
        raise InputError(
            f"{where}: {num_experts} experts and {slots.shape[1]} slots a layer; each expert has"
            " one slot at least, so p2l_map is wrong or of another model"
        )
    negative = np.argwhere(load < 0)
    if len(negative):
        layer, slot = negative[0]
        raise InputError(f"{where}: expert_load[{layer}][{slot}] is {load[layer, slot]}")
    wrong = np.argwhere((slots < -1) | (slots >= num_experts))
    if len(wrong):
        layer, slot = wrong[0]
        raise InputError(
            f"{where}: p2l_map[{layer}][{slot}] is expert {slots[layer, slot]};"
            f" ids from 0 to {num_experts - 1}, or −1 for a spare slot, are expected"
        )
    spare = np.argwhere((slots < 0) & (load > 0))
    if len(spare):
        layer, slot = spare[0]
        raise InputError(
            f"{where}: slot {slot} of row {layer} holds no expert and has load"
            f" {load[layer, slot]}; load and map are of different times"
        )
    held = _fold(np.ones_like(slots), slots, num_experts)
    missing = np.argwhere(held == 0)
    if len(missing):
        layer, expert = missing[0]
        raise InputError(
            f"{where}: expert {expert} has no slot in row {layer} of p2l_map, so its load was not"
            f" counted; each of the {num_experts} experts is expected in every row"
        )


def _fold(load: Numbers, slots: Ints, num_experts: int) -> Numbers:
    """Load by expert, of shape (M, E), from load by slot."""
    counts = np.zeros((len(load), num_experts), load.dtype)
    layer, slot = np.nonzero(slots >= 0)
    np.add.at(counts, (layer, slots[layer, slot]), load[layer, slot])
    return counts
