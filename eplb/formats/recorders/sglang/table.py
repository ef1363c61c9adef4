"""The CSV of SGLang's recorder before its `.pt` dumps: one file a rank, summed into one window."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ....errors import InputError
from ....trace import LARGEST_COUNT, LoadTrace
from ...source import Hints, Source
from ..experts import largest_expert
from .records import naming, some

_HEADER = b"layer_id,expert_id,count"
_LINE = re.compile(r"\s*(\d{1,18})\s*,\s*(\d{1,18})\s*,\s*(\d{1,18})\s*", re.ASCII)
_RANK = re.compile(r"_rank(\d+)_")
# Layers × experts; the largest models have some 40 thousand.
_MOST_CELLS = 2**24


def is_table(source: Source) -> bool:
    """Whether a text file has the header of these tables."""
    return source.data().partition(b"\n")[0].strip() == _HEADER


def read_tables(members: Sequence[Source], hints: Hints) -> tuple[LoadTrace, list[str]]:
    """The sum of the files as one window, and remarks; only what was counted has a row in them.

    Raises
    ------
    InputError
        When a line is no count.
    RefusedError
        When there are other experts than the hints say.
    """
    total: Counter[tuple[int, int]] = Counter()
    tables = []
    for member in members:
        with naming(member, members):
            tables.append(_table(member))
        total.update(tables[-1])
        member.release()
    if not total:
        raise InputError("there is no count below the header; nothing was recorded")
    if max(total.values()) > LARGEST_COUNT:
        raise InputError(f"counts add up to {max(total.values())}; at most 2^53 is expected")
    layer_ids = sorted({layer for layer, _ in total})
    notes: list[str] = []
    num_experts = largest_expert("files", max(expert for _, expert in total), hints, notes)
    if len(layer_ids) * num_experts > _MOST_CELLS:
        raise InputError(
            f"{len(layer_ids)} layers of {num_experts} experts are more than any model has; a"
            " layer_id or expert_id is wrong"
        )
    row = {layer: index for index, layer in enumerate(layer_ids)}
    tokens = np.zeros((1, len(layer_ids), num_experts), np.int64)
    for (layer, expert), count in total.items():
        tokens[0, row[layer], expert] = count
    if len(tables) > 1 and all(table == tables[0] for table in tables):
        notes.append(
            f"the {len(tables)} files hold the same counts: every rank saw the same tokens, so"
            f" totals are {len(tables)} times the tokens; how loads compare is not affected"
        )
    return LoadTrace(tokens, layer_ids=np.array(layer_ids)), [*notes, *_dump_notes(members)]


def _dump_notes(members: Sequence[Source]) -> list[str]:
    """What the names say of the ranks."""
    ranks = Counter(int(found[1]) for m in members if (found := _RANK.search(m.base)))
    notes = []
    if twice := sorted(rank for rank, dumps in ranks.items() if dumps > 1):
        notes.append(f"there are several dumps of rank {some(twice)}; all are summed")
    if ranks and len(members) > 1:
        absent = [rank for rank in range(min(max(ranks), 2**16)) if rank not in ranks]
        if absent:
            notes.append(f"there is no file of rank {some(absent)}; its counts are missing")
    return notes


def _table(member: Source) -> dict[tuple[int, int], int]:
    """The counts of a file by layer and expert."""
    if member.kind != "text" or not is_table(member):
        raise InputError(f"the first line is not {_HEADER.decode()!r}, unlike in the other files")
    table: dict[tuple[int, int], int] = {}
    lines = member.data().decode(errors="replace").splitlines()
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise InputError(
                f"line {number} is {line[:60]!r}; three whole numbers of 0 or more,"
                f" {_HEADER.decode()}, are expected"
            )
        layer, expert, count = map(int, found.groups())
        if (layer, expert) in table:
            raise InputError(
                f"line {number} counts expert {expert} of layer {layer} again; each has one line"
            )
        table[layer, expert] = count
    return table
