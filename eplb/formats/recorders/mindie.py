"""Expert loads that MindIE dumps, as msit's load balancer (`elb`) reads them.

A folder with `prefill_<rank>.csv` or `decode_<rank>.csv` for each NPU, and in newer versions
`model_gen_config.json`. A file holds matrices without a header, a row for each layer with experts
and a column for each expert the rank holds, one below the other: running totals, written every so
many forward passes.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..._arrays import Numbers
from ...errors import InputError, RefusedError
from ...trace import LARGEST_COUNT, LoadTrace
from ..source import Hints, Source
from .experts import by_expert
from .records import fewer_windows, whole
from .tables import csv_numbers, csv_text

NAME = "mindie"
DESCRIPTION = "MindIE / msit elb: a folder of prefill_<rank>.csv or decode_<rank>.csv"

_FILE = re.compile(r"(prefill|decode)_(\d+)\.csv")
_CONFIG = "model_gen_config.json"


class _Config(NamedTuple):
    """What the recording, or else the model, says of itself; None where neither does."""

    num_layers: int | None = None
    num_experts: int | None = None
    top_k: int | None = None
    interval: int | None = None
    shared_ranks: int = 0
    is_by_slot: bool = False


def detect(source: Source) -> bool:
    """Whether it is a folder with a file of this name."""
    return source.is_folder and any(map(_FILE.fullmatch, source.names))


def read(source: Source, hints: Hints) -> tuple[LoadTrace, list[str]]:
    """One window for each matrix, or for several, and remarks.

    Raises
    ------
    InputError
        When files are missing or hold no such matrices, or both phases are in the folder.
    RefusedError
        When it is of another model, or of another placement than said.
    """
    notes: list[str] = []
    phase, members = _members(source)
    config = _config(source, hints)
    members = members[config.shared_ranks :]
    matrices = []
    for member in members:
        matrices.append(csv_numbers(csv_text(member), member.base))
        member.release()
    if config.shared_ranks:
        notes.append(f"the first {config.shared_ranks} ranks hold shared experts: left aside")
    names = [member.base for member in members]
    totals = _stacked(matrices, names, config, hints, notes)
    if hints.model is None:
        notes.append(
            f"rows are the layers with experts in their order, 0 to {totals[0].shape[1] - 1}:"
            " --model gives them the model's numbers"
        )
    changes = [_differences(*both) for both in zip(totals, names, strict=True)]
    tokens = _counts(changes, config, hints, notes)
    if phase == "prefill":
        notes.append("expert 0 may count padding in prefill; msit puts the mean in its place")
    trace = LoadTrace(
        tokens.astype(np.int64),
        top_k=config.top_k,
        window_steps=config.interval,
        phase=phase,
    )
    if hints.recorded_under is not None:
        trace, remarks = by_expert(trace, replace(hints, num_experts=config.num_experts))
        notes += remarks
    if config.interval is None:
        return trace, notes
    return fewer_windows(trace, hints, notes, "matrices"), notes


def _members(source: Source) -> tuple[str, list[Source]]:
    """The phase, and the files of all ranks."""
    found: dict[str, dict[int, Source]] = {}
    for member in source.members(".csv"):
        if match := _FILE.fullmatch(member.base):
            found.setdefault(match[1], {})[int(match[2])] = member
    if len(found) > 1:
        raise InputError(
            "prefill and decode are both in this folder, and they are different loads: move each"
            " into a folder of its own and give one as the trace, the other with --scenario"
        )
    ((phase, ranks),) = found.items()
    missing = [rank for rank in range(len(ranks)) if rank not in ranks]
    if missing:
        raise InputError(
            f"{phase}_{missing[0]}.csv is missing and {phase}_{max(ranks)}.csv is there;"
            " bring the files of all NPUs into one folder"
        )
    return phase, [ranks[rank] for rank in sorted(ranks)]


def _config(source: Source, hints: Hints) -> _Config:
    file = source.file(_CONFIG)
    known = hints.experts()
    if file is None:
        return _Config(num_experts=known)
    content = file.content
    if not isinstance(content, Mapping):
        raise InputError(f"{_CONFIG} is no JSON object")
    num_experts = whole(content, "num_of_experts", _CONFIG, least=1)
    if known is not None and num_experts != known:
        raise RefusedError(
            f"{_CONFIG} says {num_experts} experts and the model has {known};"
            " the recording is of another model"
        )
    interval, shared = "collection_Interval", "num_dangling_shared_experts"
    return _Config(
        num_layers=whole(content, "num_moe_layers", _CONFIG, least=1),
        num_experts=num_experts,
        top_k=_top_k(content),
        interval=whole(content, interval, _CONFIG, least=1) if interval in content else None,
        shared_ranks=max(whole(content, shared, _CONFIG, least=-1), 0) if shared in content else 0,
        is_by_slot=bool(content.get("eplb_expert_map_file")),
    )


def _top_k(content: Mapping[str, Any]) -> int | None:
    value = content.get("num_of_selected_experts", content.get("num_of_selected_expert"))
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if type(value) is int else None


def _stacked(
    matrices: list[Numbers], names: list[str], config: _Config, hints: Hints, notes: list[str]
) -> list[Numbers]:
    """The running totals of each rank, of shape (W, L, columns)."""
    if not matrices:
        raise InputError("no rank holds routed experts")
    lengths = [len(matrix) for matrix in matrices]
    shortest, longest = min(lengths), max(lengths)
    if config.num_layers is None and shortest != longest:
        raise InputError(
            f"{names[lengths.index(shortest)]} has {shortest} rows and"
            f" {names[lengths.index(longest)]} {longest}; files of one recording have as many"
        )
    if not shortest:
        raise InputError(
            f"{names[lengths.index(0)]} is empty; was the server stopped before it had written?"
        )
    num_layers = config.num_layers or shortest
    if config.num_layers is None and hints.model is not None:
        with_mtp = len(hints.model.all_layer_ids)
        layers = len(hints.model.moe_layer_ids)
        num_layers = with_mtp if shortest % with_mtp == 0 else layers
        if shortest % num_layers:
            raise InputError(
                f"{shortest} rows are not a whole number of times the {layers} layers with experts"
                f" of the model ({hints.model.name})"
            )
    count = shortest // num_layers
    if not count:
        raise InputError(
            f"{names[lengths.index(shortest)]} has {shortest} rows, less than the {num_layers}"
            " layers with experts"
        )
    if longest > count * num_layers:
        notes.append(
            f"files have {shortest} to {longest} rows; {count} whole matrices of {num_layers} rows"
            " are read of each"
        )
    return [matrix[: count * num_layers].reshape(count, num_layers, -1) for matrix in matrices]


def _differences(totals: Numbers, name: str) -> Numbers:
    """Counts of each window from running totals."""
    wrong = ~((totals >= 0) & (totals <= LARGEST_COUNT)) | (totals != np.floor(totals))
    if wrong.any():
        window, layer, column = np.argwhere(wrong)[0]
        raise InputError(
            f"{name}, row {window * totals.shape[1] + layer + 1}, column {column + 1} is"
            f" {totals[window, layer, column]}; a count, whole and not negative, is expected"
        )
    change = np.diff(totals, axis=0, prepend=0)
    if (change < 0).any():
        window, layer, column = np.argwhere(change < 0)[0]
        raise InputError(
            f"{name}: the total of layer {layer}, column {column + 1} falls from"
            f" {totals[window - 1, layer, column]:.0f} to {totals[window, layer, column]:.0f} in"
            f" matrix {window}; totals only grow, so the files of two runs, or of other layers"
            " than stated, are in one"
        )
    return change


def _counts(ranks: list[Numbers], config: _Config, hints: Hints, notes: list[str]) -> Numbers:
    """The counts of all ranks beside each other, of shape (W, L, E); by slot, where a placement
    that was live is given."""
    widths = [rank.shape[2] for rank in ranks]
    columns, num_experts = sum(widths), config.num_experts
    if hints.recorded_under is not None:
        return np.concatenate(ranks, axis=2)
    if config.is_by_slot:
        raise InputError(
            "it was recorded under a map of redundant experts, so columns are slots:"
            " --recorded-under, the plan that was live, tells which expert a column is"
        )
    if num_experts is None:
        if len(ranks) > 1:
            raise InputError(
                f"{len(ranks)} ranks count {columns} experts in all, and it is not known how many a"
                " layer has: --model, the model's folder or config.json, tells"
            )
        notes.append(f"{columns} experts are taken, as many as the one rank counts")
    elif columns != num_experts:
        if widths == [num_experts] * len(ranks):
            notes.append(f"each rank counts all {num_experts} experts; ranks are summed")
            summed: Numbers = np.sum(ranks, axis=0)
            return summed
        raise InputError(
            f"{len(ranks)} ranks count {columns} experts in all and a layer has {num_experts}; are"
            " the files of all NPUs there? With redundant experts, --recorded-under tells which"
            " expert a column is"
        )
    return np.concatenate(ranks, axis=2)
