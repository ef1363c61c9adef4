"""TensorRT-LLM's expert statistics: `meta_info.json` and a safetensors file a rank."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..._arrays import Ints, Numbers
from ...errors import EplbError, InputError
from ...trace import LoadTrace
from .. import files
from ..source import Hints, Source
from .experts import by_expert
from .passes import pass_windows

NAME = "trtllm"
DESCRIPTION = "TensorRT-LLM expert statistics: folder with meta_info.json and rank<r>.safetensors"

_META = "meta_info.json"
_FILE = re.compile(r"rank(0|[1-9][0-9]{0,4})(_raw)?\.safetensors")
_PICKLE = re.compile(r"rank_[0-9]+\.pkl")
_KEY = re.compile(r"(0|[1-9][0-9]{0,17})_(0|[1-9][0-9]{0,5})")
_INTEGERS = "bBhHiIlq"
# No forward pass routes as many tokens to one expert; sums of such counts stay exact.
_MOST_OF_A_PASS = 2**32
# No model has nearly as many experts, and no memory as many counts (16 GiB).
_MOST_EXPERTS = 1_000_000
_MOST_COUNTS = 2**31


class _RankFile(NamedTuple):
    """The file of one rank: iteration and layer of each of its tensors, by name."""

    name: str
    path: str
    raw: bool  # holds the ids [tokens, top_k] that the rank's tokens went to, no counts
    iterations: Ints
    layers: Ints


class _Grid(NamedTuple):
    """What a recording covers, ascending, and for each file where its tensors belong in it."""

    iterations: Ints
    layers: Ints
    cells: Sequence[Ints]  # iteration index × layers + layer index


def detect(source: Source) -> bool:
    """Whether it is a folder of statistics, or a file out of one."""
    if not source.is_folder:
        return bool(_FILE.fullmatch(source.base)) and source.kind == "bytes"
    return any(
        name == _META or _FILE.fullmatch(name) or _PICKLE.fullmatch(name) for name in source.names
    )


def read(source: Source, hints: Hints) -> tuple[LoadTrace, list[str]]:
    """The counts of all ranks added up by window, and remarks on how they were read.

    Raises
    ------
    InputError
        When a file is missing, broken or not of this recording, or counts are by slot and the
        placement that was live is not given.
    RefusedError
        When the placement given as live does not fit the recording.
    """
    if not source.is_folder:
        raise InputError("this is the file of one rank; give the folder with those of all ranks")
    recording, notes = _rank_files(source)
    width, top_k, remarks = _meta(source, len(recording))
    notes += remarks
    grid, remarks = _grid(recording)
    notes += remarks
    num_layers = len(grid.layers)
    size, count, remarks = pass_windows(len(grid.iterations), hints.window_steps)
    notes += remarks
    if prod((count, num_layers, width)) > _MOST_COUNTS:
        raise InputError(
            f"{count} windows × {num_layers} layers × {width} experts are too many counts;"
            " --window-steps with a larger number makes fewer windows"
        )
    tokens = np.zeros((count, num_layers, width), np.int64)
    shares = []
    for file, cells in zip(recording, grid.cells, strict=True):
        before = tokens[0].copy()
        rows = cells // num_layers // size * num_layers + cells % num_layers
        _add(file, rows, tokens.reshape(-1, width), top_k)
        shares.append((tokens[0] - before).tobytes())
    tokens.setflags(write=False)  # a trace takes a read-only array over without a copy
    trace = LoadTrace(tokens, grid.layers, top_k=top_k, window_steps=size)
    notes += _repeated(shares)
    if hints.recorded_under is None:
        notes.append(
            f"the {width} counts a layer are taken for experts; with a load balancer active they"
            " are slots, which --recorded-under PLAN folds back to experts"
        )
    trace, remarks = by_expert(trace, hints)
    return trace, [*notes, *remarks]


def _rank_files(source: Source) -> tuple[list[_RankFile], list[str]]:
    """One file of each rank, by rank, and remarks: its counts, or else its routed ids."""
    chosen: dict[int, tuple[Source, bool]] = {}
    aside = []
    members = source.members(".safetensors", ".json", ".pkl")
    for member in sorted(members, key=lambda member: member.base.endswith("_raw.safetensors")):
        match = _FILE.fullmatch(member.base)
        if match and int(match[1]) not in chosen:
            chosen[int(match[1])] = (member, match[2] is not None)
        elif member.base != _META:
            aside.append(member.base)
    if not chosen:
        pickles = [name for name in aside if _PICKLE.fullmatch(name)]
        raise InputError(
            f"{pickles[0]} is a pickle, as very early versions of TensorRT-LLM wrote; pickles can"
            " run any program and are never loaded: record again with a version that writes"
            " rank<r>.safetensors"
            if pickles
            else "there is no rank<r>.safetensors; TensorRT-LLM writes them when the last iteration"
            " of EXPERT_STATISTIC_ITER_RANGE is over"
        )
    ranks = sorted(chosen)
    recording = [_index(*chosen[rank]) for rank in ranks]
    raw = [file.name for file in recording if file.raw]
    missing = [rank for rank in range(ranks[-1]) if rank not in chosen]
    notes = []
    if aside:
        notes.append(f"no counts, left aside: {_few(sorted(aside))}")
    if raw:
        notes.append(f"ids of tokens instead of counts, counted here: {_few(raw)}")
    if missing:
        notes.append(f"no file of rank {_few(missing)}: tokens counted there are missing")
    return recording, notes


def _index(member: Source, raw: bool) -> _RankFile:
    with _opened(member.path, member.base) as tensors:
        keys = sorted(tensors.keys())
    odd = next((key for key in keys if not _KEY.fullmatch(key)), None)
    if odd is not None:
        raise InputError(
            f"{member.base} has a tensor {odd[:40]!r}; names as 100_3, iteration and layer, are"
            " expected"
        )
    numbers = [int(number) for key in keys for number in key.split("_")]
    pairs = np.array(numbers, np.int64).reshape(-1, 2)
    return _RankFile(member.base, member.path, raw, pairs[:, 0], pairs[:, 1])


@contextlib.contextmanager
def _opened(path: str, name: str) -> Iterator[Any]:
    """A safetensors file; whatever the library says against it becomes an `InputError`."""
    try:
        from safetensors import safe_open
    except ImportError:
        raise InputError(
            f"{name} is read with safetensors, which is not installed: pip install 'eplb[formats]'"
        ) from None
    try:
        with safe_open(path, framework="numpy") as tensors:
            yield tensors
    except EplbError:
        raise
    except Exception as error:  # broken files and types unknown to numpy make it raise anything
        raise InputError(
            f"{name} is not a readable safetensors file: {files.reason(error)}"
        ) from None


def _meta(source: Source, num_files: int) -> tuple[int, int | None, list[str]]:
    """Counts a layer, experts a token, and remarks."""
    file = source.file(_META)
    if file is None:
        raise InputError(f"there is no {_META}, which rank 0 writes; copy it from the recording")
    content = files.parse_json(file.data(), file.name)
    if not isinstance(content, dict):
        raise InputError(f"{_META} holds {str(content)[:40]!r}; an object is expected")
    width = content.get("num_experts")
    if type(width) is not int or not 1 <= width <= _MOST_EXPERTS:
        raise InputError(
            f"{_META}: num_experts is {width!r}; a whole number of 1 to {_MOST_EXPERTS} is expected"
        )
    top_k = content.get("num_experts_per_token")
    if top_k is not None and (type(top_k) is not int or not 1 <= top_k <= width):
        raise InputError(
            f"{_META}: num_experts_per_token is {top_k!r}; a whole number of 1 to {width} is"
            " expected"
        )
    ranks = content.get("ep_size")
    if type(ranks) is int and ranks > num_files:
        return width, top_k, [f"{_META} says {ranks} ranks, and {num_files} left files"]
    return width, top_k, []


def _grid(recording: list[_RankFile]) -> tuple[_Grid, list[str]]:
    """What the files cover, and remarks on what is missing; a layer must be there in every
    iteration, on some rank."""
    iterations = np.unique(np.concatenate([file.iterations for file in recording]))
    layers = np.unique(np.concatenate([file.layers for file in recording]))
    cells = [
        np.searchsorted(iterations, file.iterations) * len(layers)
        + np.searchsorted(layers, file.layers)
        for file in recording
    ]
    present = np.unique(np.concatenate(cells))
    if not len(present):
        raise InputError("the rank files hold no counts at all")
    if holes := len(iterations) * len(layers) - len(present):
        hole = int(np.flatnonzero(np.append(present, -1) != np.arange(len(present) + 1))[0])
        raise InputError(
            f"no rank has counts of layer {layers[hole % len(layers)]} in iteration"
            f" {iterations[hole // len(layers)]}, which has counts of other layers ({holes} such"
            " holes); a file is missing, or the files are of several recordings"
        )
    notes = []
    gaps = [(int(a) + 1, int(b) - 1) for a, b in pairwise(iterations) if b - a > 1]
    if gaps:
        shown = [str(a) if a == b else f"{a} to {b}" for a, b in gaps]
        notes.append(f"missing iterations: {_few(shown)}; windows are of those that are there")
    for file in recording:
        whole = len(iterations) * len(np.unique(file.layers))
        if len(file.layers) < whole:
            notes.append(
                f"{file.name} lacks {whole - len(file.layers)} of {whole} counts of its layers, as"
                " if the rank had no tokens then; are all files of one recording?"
            )
    return _Grid(iterations, layers, cells), notes


def _add(file: _RankFile, rows: Ints, tokens: Ints, top_k: int | None) -> None:
    """Add the counts of a file to the rows of `tokens`; what is past its end belongs to no
    window."""
    shape, end = tokens.shape[1:], len(tokens)
    totals = list(tokens)  # views of its rows, which cost less to reach than tokens[row]
    bits = np.zeros(shape, np.int64)  # of all counts: one is wrong if and only if these are
    with _opened(file.path, file.name) as tensors:
        keys = sorted(tensors.keys())
        for key, row in zip(keys, rows.tolist(), strict=True):
            if row >= end:
                continue
            counts = tensors.get_tensor(key)
            if file.raw:
                counts = _counted(counts, shape[0], top_k, f"{file.name}, {key}")
            elif counts.shape != shape or counts.dtype.char not in _INTEGERS:
                raise InputError(
                    f"{file.name}, {key} has shape {list(counts.shape)} and type {counts.dtype};"
                    f" {shape[0]} whole numbers are expected, as num_experts in {_META} says"
                )
            bits |= counts
            totals[row] += counts
        if bits.min() < 0 or bits.max() >= _MOST_OF_A_PASS:
            raise _wrong_count(tensors, keys, file)


def _wrong_count(tensors: Any, keys: list[str], file: _RankFile) -> InputError:
    for key in keys:
        counts = tensors.get_tensor(key)
        for expert in np.flatnonzero((counts < 0) | (counts >= _MOST_OF_A_PASS)):
            return InputError(
                f"{file.name}, {key}: expert {expert} has {counts[expert]} tokens; 0 or more, and"
                f" less than {_MOST_OF_A_PASS} in one iteration, are expected"
            )
    raise AssertionError


def _counted(ids: Numbers, width: int, top_k: int | None, where: str) -> Ints:
    """How often each expert is among `ids`, [tokens, top_k]; −1 is none."""
    if ids.ndim != 2 or ids.dtype.char not in _INTEGERS or ids.shape[1] != (top_k or ids.shape[1]):
        raise InputError(
            f"{where} has shape {list(ids.shape)} and type {ids.dtype}; ids of"
            f" [tokens, {top_k or 'top_k'}] are expected"
        )
    flat = ids.ravel().astype(np.int64)
    wrong = flat[(flat < -1) | (flat >= width)]
    if len(wrong):
        raise InputError(
            f"{where} has expert {wrong[0]}; ids from 0 to {width - 1} (or −1 for none) are"
            " expected"
        )
    return np.bincount(flat + 1, minlength=width + 1)[1:]


def _repeated(shares: list[bytes]) -> list[str]:
    """A remark where ranks counted the same tokens; `shares` are their counts of a window."""
    times = set(Counter(share for share in shares if any(share)).values())
    if not times or times == {1}:
        return []
    if len(times) == 1:
        return [
            f"the counts of every {max(times)} ranks are the same, as without attention data"
            f" parallelism: loads are {max(times)} times the tokens, their shares are right"
        ]
    return ["the counts of some ranks are the same and of others not; were their files copied?"]


def _few(items: list[Any]) -> str:
    shown = ", ".join(map(str, items[:4]))
    return shown if len(items) <= 4 else f"{shown} and {len(items) - 4} more"
