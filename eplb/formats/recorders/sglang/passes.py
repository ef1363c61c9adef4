"""SGLang's dumps by pass and rank, modes `per_pass` and `per_token`: one file a rank, read one
after another, each known by the passes and ranks of its records and not by its name."""

import re
from collections.abc import Sequence

import numpy as np

from ...._arrays import Bools, Ints
from ....errors import InputError
from ....routes import RouteTrace
from ....trace import LoadTrace
from ...source import Hints, Source
from ..experts import check_experts
from ..passes import pass_windows
from .records import Record, naming, placement_of, record_of, records_of, some
from .sums import Routes, Sums

_RANK = re.compile(r"_(\d+)\.pt$")


def read_passes(
    members: Sequence[Source], hints: Hints
) -> tuple[LoadTrace | RouteTrace, list[str]]:
    """Counts summed over ranks, or the routes of tokens where there are any, and remarks.

    Only one file is in memory at a time, beside the sums. The files of the first one's rank say
    which passes there are. Slots become experts by the placement that a file ends with; several
    dumps may have different ones.

    Raises
    ------
    InputError
        When a file is not as the recorder writes it, or they do not fit together.
    RefusedError
        When there are other experts than the hints say.
    """
    log = _Log(_pass_ids(members))
    size, num_windows, notes = pass_windows(len(log.pass_ids), hints.window_steps)
    with naming(members[0], members):
        first = placement_of(members[0].content)
    routed = "topk_ids_of_layer" in records_of(members[0].content)[0]
    num_experts = int(first.max()) + 1
    check_experts(num_experts, hints)
    shape = (num_windows, *first.shape)
    into = Routes(num_experts, size) if routed else Sums(num_experts, size, shape)
    for member in members:
        with naming(member, members):
            _read_file(member, first, routed, log, into)
        member.release()
    if hints.recorded_under is not None:
        notes.append("the dump says itself what was placed where, so no live plan is needed for it")
    trace, remarks = into.trace()
    return trace, [*notes, *log.notes(), *remarks]


def _read_file(member: Source, first: Ints, routed: bool, log: "_Log", into: Routes | Sums) -> None:
    """Enter the records of a file; `first` is the placement of the first file."""
    records = records_of(member.content)
    placement = placement_of(member.content)
    if placement.shape != first.shape or placement.max() != first.max():
        raise InputError(
            f"the map of the dump has {_sizes(placement)} and that of the first file"
            f" {_sizes(first)}; a folder is one recording of one model"
        )
    log.begin(placement)
    into.begin(placement)
    for index, plain in enumerate(records):
        record = record_of(plain, index, placement, routed)
        position = log.enter(record)
        if position is not None:
            into.add(position, record)
    into.end()


def _pass_ids(members: Sequence[Source]) -> list[int]:
    """The passes, in order of time, that files of the first one's rank hold."""
    ranks = [found[1] if (found := _RANK.search(m.base)) else None for m in members]
    same = [m for m, rank in zip(members, ranks, strict=True) if rank == ranks[0]]
    ids: set[int] = set()
    for member in reversed(same):  # the first last: it stays in memory, to be read on
        with naming(member, members):
            ids |= {record["forward_pass_id"] for record in records_of(member.content)}
        if member is not members[0]:
            member.release()
    return sorted(ids)


def _sizes(placement: Ints) -> str:
    layers, slots = placement.shape
    return f"{layers} layers × {slots} slots of {placement.max() + 1} experts"


class _Log:
    """Which passes which rank has recorded, and under which placement."""

    def __init__(self, pass_ids: list[int]) -> None:
        self.pass_ids = pass_ids
        self._position = {pass_id: index for index, pass_id in enumerate(pass_ids)}
        self._seen: dict[int, Bools] = {}
        self._extra: dict[int, int] = {}
        self._placements: list[Ints] = []
        self._placed = np.full(len(pass_ids), -1)  # index into the placements

    def begin(self, placement: Ints) -> None:
        """The records that follow are of a file that ends with this placement."""
        for number, known in enumerate(self._placements):
            if np.array_equal(known, placement):
                self._number = number
                return
        self._number = len(self._placements)
        self._placements.append(placement)

    def enter(self, record: Record) -> int | None:
        """The position of a record's pass in time, None where the first rank does not have it."""
        seen = self._seen.setdefault(record.rank, np.zeros(len(self.pass_ids), bool))
        position = self._position.get(record.pass_id)
        if position is None:
            self._extra[record.rank] = self._extra.get(record.rank, 0) + 1
            return None
        if seen[position]:
            raise InputError(
                f"pass {record.pass_id} of rank {record.rank} is there twice; a folder holds one"
                " run of the server, each dump once"
            )
        seen[position] = True
        if self._placed[position] not in (-1, self._number):
            raise InputError(
                f"'last_physical_to_logical_map' is not the same as on other ranks in pass"
                f" {record.pass_id}: experts moved while the dump was written, or its files are of"
                " different runs; record again without rebalancing"
            )
        self._placed[position] = self._number
        return position

    def notes(self) -> list[str]:
        """What a user should know of the recording."""
        notes = []
        absent = [rank for rank in range(max(self._seen)) if rank not in self._seen]
        if absent:
            notes.append(
                f"there is no record of rank {some(absent)}, though of rank {max(self._seen)}: its"
                " share of the load is missing; where SGLang counts what a rank receives, its"
                " experts seem idle"
            )
        missing = {rank: int((~seen).sum()) for rank, seen in sorted(self._seen.items())}
        if lacking := [f"{count} of rank {rank}" for rank, count in missing.items() if count]:
            notes.append(
                f"of {len(self.pass_ids)} passes are missing: {some(lacking)}; the loads of these"
                " passes are too low"
            )
        if self._extra:
            extra = [f"{count} of rank {rank}" for rank, count in sorted(self._extra.items())]
            notes.append(f"passes that the first file does not have are left aside: {some(extra)}")
        if len(self._placements) > 1:
            notes.append(
                f"experts moved between the dumps, which have {len(self._placements)} different"
                " maps; each is read by its own, which is wrong for passes before the move"
            )
        return notes
