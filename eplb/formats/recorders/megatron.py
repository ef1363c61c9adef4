"""Tokens per expert that Megatron-LM logs while it trains (`--save-tokens-per-expert-interval`).

A folder `tokens_per_expert` with a file `rank<r>.jsonl` for each rank, whose lines are
`{"iter": 100, "block": "decoder", "layer": 3, "tpe": [[128, 64], [96, 80]]}`: by micro-batch, the
tokens of the experts that the rank holds. Like names of keys are understood.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..._arrays import Ints
from ...errors import InputError
from ...trace import LoadTrace
from ..source import Hints, Source
from .records import check_size, counts, each, fewer_windows, first, keys_of, whole

NAME = "megatron"
DESCRIPTION = "Megatron-LM tokens_per_expert: a folder of rank<r>.jsonl, or one of them"

_ITERATION = ("iter", "iteration", "step")
_LAYER = ("layer", "layer_id", "layer_number")
_COUNTS = ("tpe", "tokens_per_expert", "counts")
_RANK = re.compile(r"rank(\d+)\.jsonl")

# Counts of the experts that one rank holds, by iteration and layer.
_Counts = dict[tuple[int, int], Ints]


def detect(source: Source) -> bool:
    """Whether the first line, of the first rank's file in a folder, counts tokens by expert."""
    if source.is_folder:
        return any(detect(member) for member in _files(source)[:1])
    record = first(source)
    if _key(record, _COUNTS) is None:
        return False
    return _key(record, _ITERATION) is not None or _key(record, _LAYER) is not None


def read(source: Source, hints: Hints) -> tuple[LoadTrace, list[str]]:
    """One window for each logged iteration, or several, with remarks.

    Raises
    ------
    InputError
        When a line is not understood, or it cannot be told which experts a rank holds.
    """
    notes: list[str] = []
    ranks = []
    for member in _files(source) if source.is_folder else [source]:
        ranks.append(_rank(member, notes))
        member.release()
    _check_alike(ranks)
    iterations = sorted(set.intersection(*({key[0] for key in rank} for rank in ranks)))
    layer_ids = sorted({key[1] for key in ranks[0]})
    if not iterations:
        raise InputError("the ranks have no iteration in common; are they of one run?")
    if left := len({key[0] for rank in ranks for key in rank}) - len(iterations):
        notes.append(f"{left} iterations that not every rank logged are left aside")
    if hints.model is not None and len(layer_ids) < len(hints.model.moe_layer_ids):
        raise InputError(
            f"{len(layer_ids)} layers are logged and the model ({hints.model.name}) has"
            f" {len(hints.model.moe_layer_ids)} with experts: pipeline stages number their layers"
            " from 0 each, so that stages cannot be told apart; log a run without pipeline stages"
        )
    held = len(next(iter(ranks[0].values())))
    ep_size = _ep_size(len(ranks), held, hints.experts(), notes)
    check_size((len(iterations), len(layer_ids), held * ep_size), sum(map(len, ranks)) * held)
    tokens = np.zeros((len(iterations), len(layer_ids), ep_size, held), np.int64)
    for number, rank in enumerate(ranks):
        for window, iteration in enumerate(iterations):
            for row, layer in enumerate(layer_ids):
                tokens[window, row, number % ep_size] += rank[iteration, layer]
    _check_shards(tokens)
    trace = LoadTrace(
        tokens.reshape(len(iterations), len(layer_ids), -1), layer_ids=layer_ids, window_steps=1
    )
    return fewer_windows(trace, hints, notes, "logged iterations"), list(dict.fromkeys(notes))


def _files(source: Source) -> list[Source]:
    """The files of a folder by rank.

    Raises
    ------
    InputError
        When the file of a rank is missing.
    """
    found = {
        int(match[1]): member
        for member in source.members(".jsonl")
        if (match := _RANK.fullmatch(member.base))
    }
    missing = [rank for rank in range(len(found)) if rank not in found]
    if missing:
        raise InputError(
            f"rank{missing[0]}.jsonl is missing and rank{max(found)}.jsonl is there;"
            " bring the files of all ranks into one folder"
        )
    return [found[rank] for rank in sorted(found)]


def _key(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in record), None)


def _rank(source: Source, notes: list[str]) -> _Counts:
    """What one rank counted, micro-batches summed."""
    found: _Counts = {}
    for where, record in each(source):
        where = f"{source.base}, {where}"
        if not isinstance(record, Mapping):
            raise InputError(f"{where} is no object; an iteration, layer and counts are expected")
        if record.get("block", "decoder") != "decoder":
            notes.append("layers that predict several tokens (MTP) are left aside")
            continue
        iteration, layer, rows = _fields(record, where, notes)
        for number, row in enumerate(rows):
            if (iteration, layer + number) in found:
                raise InputError(
                    f"{where}: iteration {iteration} of layer {layer + number} is there already;"
                    " was the run resumed from before it? Remove the lines of one of the two"
                )
            found[iteration, layer + number] = row
    if not found:
        raise InputError(f"{source.base} has no counts of decoder layers")
    return found


def _fields(record: Mapping[str, Any], where: str, notes: list[str]) -> tuple[int, int, list[Ints]]:
    """Iteration, first layer and the counts of the layers from it."""
    iteration, layer, key = (_key(record, names) for names in (_ITERATION, _LAYER, _COUNTS))
    if iteration is None or key is None:
        raise InputError(
            f"{where} is not understood: its keys are {keys_of(record)}; one of each is expected of"
            f" {'/'.join(_ITERATION)}, {'/'.join(_LAYER)} and {'/'.join(_COUNTS)}"
        )
    value = record[key]
    flat = isinstance(value, list) and value and not isinstance(value[0], list)
    rows = counts([value] if flat else value, f"{where}: {key}")
    if layer is None:
        if flat:
            raise InputError(
                f"{where} does not say of which layer its counts are: its keys are"
                f" {keys_of(record)}; {'/'.join(_LAYER)} is expected"
            )
        notes.append("counts without a layer are taken for [layers][experts], from layer 0")
        return whole(record, iteration, where), 0, list(rows)
    number = whole(record, layer, where, least=1 if layer == "layer_number" else 0)
    if layer == "layer_number":
        notes.append("'layer_number' counts layers from 1; layers are taken from 0")
        number -= 1
    return whole(record, iteration, where), number, [rows.sum(axis=0)]


def _check_alike(ranks: list[_Counts]) -> None:
    layers = {key[1] for key in ranks[0]}
    width = len(next(iter(ranks[0].values())))
    for number, rank in enumerate(ranks):
        if {key[1] for key in rank} != layers:
            raise InputError(
                f"ranks 0 and {number} logged different layers, as pipeline stages do; only logs"
                " of runs without pipeline stages can be read"
            )
        for (iteration, layer), row in rank.items():
            if len(row) != width:
                raise InputError(
                    f"rank {number} counts {len(row)} experts in layer {layer}, iteration"
                    f" {iteration}, and rank 0 {width} in its first line"
                )
        own = {key[0] for key in rank}
        if len(rank) != len(own) * len(layers):
            gap = next((i, x) for i in sorted(own) for x in sorted(layers) if (i, x) not in rank)
            raise InputError(f"rank {number} has no line for layer {gap[1]} in iteration {gap[0]}")


def _ep_size(num_ranks: int, held: int, num_experts: int | None, notes: list[str]) -> int:
    """Over how many ranks the experts of a layer are spread."""
    if num_experts is None:
        if num_ranks > 1:
            raise InputError(
                f"each of {num_ranks} ranks counts {held} experts, and it is not known how many a"
                " layer has: --model, the model's folder or config.json, tells"
            )
        notes.append(f"{held} experts are taken, as many as the one rank counts")
        return 1
    if num_experts % held or num_ranks % (num_experts // held):
        raise InputError(
            f"{num_ranks} ranks with {held} experts each do not hold {num_experts} experts a whole"
            " number of times; are the files of all ranks there?"
        )
    size = num_experts // held
    if size > 1:
        notes.append(
            f"ranks hold {held} of {num_experts} experts each, {size} ranks after another all of"
            " them: as without tensor parallel experts and pipeline stages"
        )
    elif num_ranks > 1:
        notes.append(f"every rank counts all {num_experts} experts; ranks are summed")
    return size


def _check_shards(tokens: Ints) -> None:
    """Refuse shards of one expert counted as experts of their own; `tokens` is (W, L, EP, E/EP)."""
    for shard in range(tokens.shape[2] - 1):
        if tokens[:, :, shard].any() and (tokens[:, :, shard] == tokens[:, :, shard + 1]).all():
            raise InputError(
                f"ranks {shard} and {shard + 1} counted the same throughout, as ranks that share"
                " experts (tensor parallel experts) do; only logs without that can be read"
            )
