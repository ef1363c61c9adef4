"""What comes of SGLang's records as they are read: sums of counts by window, or routes of tokens.

Axes: W windows, L layers, P slots, E logical experts, T tokens of a pass and rank.
"""

import numpy as np

from ...._arrays import Ints
from ....errors import InputError
from ....routes import RouteTrace
from ....trace import LoadTrace
from .records import Record


class Sums:
    """Counts by slot, summed into windows of `size` passes and folded into experts."""

    def __init__(self, num_experts: int, size: int, shape: tuple[int, ...]) -> None:
        num_windows, num_layers, _ = shape
        self._size = size
        self._tokens = np.zeros((num_windows, num_layers, num_experts), np.int64)
        # Counts by slot under the present placement, of all its files and of the one being read.
        self._placement: Ints | None = None
        self._slots = np.zeros(shape, np.int64)
        self._file = np.zeros(shape, np.int64)
        self._passes = np.zeros(num_windows, int)
        # To tell ranks that all count the same: the first file with all passes of a window, the
        # number of such files, and whether the others equal it.
        self._first = np.zeros(shape, np.int64)
        self._ranks = np.zeros(num_windows, int)
        self._alike = np.ones(num_windows, bool)

    def begin(self, placement: Ints) -> None:
        """The records that follow are of a file that ends with this placement (L, P)."""
        if self._placement is not None and not np.array_equal(placement, self._placement):
            self._fold()
        self._placement = placement

    def add(self, position: int, record: Record) -> None:
        """Count a record of the pass at a position in time."""
        window = position // self._size
        if window < len(self._passes):
            self._file[window] += record.counts
            self._passes[window] += 1

    def end(self) -> None:
        """The file has ended."""
        for window in np.flatnonzero(self._passes):
            counts = self._file[window]
            self._slots[window] += counts
            if self._passes[window] == self._size and counts.any():
                if self._ranks[window]:
                    self._alike[window] &= np.array_equal(counts, self._first[window])
                else:
                    self._first[window] = counts
                self._ranks[window] += 1
            counts[:] = 0
        self._passes[:] = 0

    def trace(self) -> tuple[LoadTrace, list[str]]:
        """The sums by logical expert, and remarks."""
        self._fold()
        self._tokens.setflags(write=False)
        compared = self._ranks > 1
        notes = []
        if compared.any() and self._alike[compared].all():
            ranks = int(self._ranks.max())
            notes.append(
                f"{ranks} ranks counted exactly the same: all saw the same tokens, so totals are"
                f" {ranks} times the tokens; how loads compare is not affected"
            )
        return LoadTrace(self._tokens, window_steps=self._size), notes

    def _fold(self) -> None:
        """Add what slots have counted to their experts."""
        assert self._placement is not None
        experts = np.arange(self._tokens.shape[2])
        for layer, row in enumerate(self._placement):
            order = np.argsort(row, kind="stable")
            starts = np.searchsorted(row[order], experts)  # none is empty: all experts are there
            by_expert = np.add.reduceat(self._slots[:, layer, order], starts, axis=1)
            self._tokens[:, layer] += by_expert
        self._slots[:] = 0


class Routes:
    """The experts of every token, in order of passes and then ranks."""

    def __init__(self, num_experts: int, size: int) -> None:
        self._num_experts = num_experts
        self._size = size
        self._dtype = np.int16 if num_experts < 2**15 else np.int32
        self._table: Ints = np.empty(0, self._dtype)
        self._width = 0
        self._top_k = 0
        self._outside = 0
        # By position in time and rank: (T, L, k); ranks with the same routes share one array.
        self._parts: dict[int, dict[int, Ints]] = {}

    def begin(self, placement: Ints) -> None:
        """The records that follow are of a file that ends with this placement (L, P)."""
        absent = np.full((len(placement), 1), -1)
        self._table = np.hstack([placement, absent]).astype(self._dtype)

    def add(self, position: int, record: Record) -> None:
        """Keep the tokens of a record of the pass at a position in time."""
        slots = record.slots
        assert slots is not None
        num_layers, num_tokens, width = slots.shape
        if width != (self._width or width):
            raise InputError(
                f"'topk_ids_of_layer' has {width} ids a token in pass {record.pass_id} and"
                f" {self._width} before; all records of one server have the same"
            )
        self._width = width
        num_slots = self._table.shape[1] - 1
        outside = slots >= num_slots
        self._outside += int(np.count_nonzero(outside))
        # An index of −1 is the last column of the table, which says that no expert is there.
        index = np.where(outside, -1, slots).reshape(num_layers, num_tokens * width)
        experts = np.take_along_axis(self._table, index, axis=1)
        part = experts.reshape(slots.shape).transpose(1, 0, 2)
        used = np.flatnonzero((part >= 0).any(axis=(0, 1)))
        self._top_k = max(self._top_k, int(used[-1]) + 1 if len(used) else 0)
        ranks = self._parts.setdefault(position, {})
        like = next(iter(ranks.values()), part)
        ranks[record.rank] = like if np.array_equal(like, part) else part

    def end(self) -> None:
        """The file has ended."""

    def trace(self) -> tuple[RouteTrace, list[str]]:
        """The routes of all tokens, and remarks."""
        if not self._top_k:
            raise InputError("no token in it was routed to an expert: every id is −1, or no token")
        notes = []
        twins = self._twins()
        if twins:
            notes.append(
                f"{twins} ranks routed exactly the same tokens, as without an all-to-all backend;"
                " those of one are kept, and which rank a token started on is not known"
            )
        if self._outside:
            notes.append(
                f"{self._outside} ids beyond the {self._table.shape[1] - 1} slots are left aside,"
                " as SGLang's own counters do: shared experts that are computed with the others"
            )
        parts = [
            (position, rank, self._parts[position][rank])
            for position in sorted(self._parts)
            for rank in sorted(self._parts[position])[: 1 if twins else None]
        ]
        self._parts.clear()
        lengths = [len(part) for _, _, part in parts]
        num_layers = len(self._table)
        experts = np.empty((sum(lengths), num_layers, self._top_k), self._dtype)
        step = np.repeat([position for position, _, _ in parts], lengths)
        rank = np.repeat([rank for _, rank, _ in parts], lengths)
        end = len(experts)
        while parts:  # each is forgotten when copied, so that the routes are in memory once
            part = parts.pop()[2]
            experts[end - len(part) : end] = part[:, :, : self._top_k]
            end -= len(part)
        experts.setflags(write=False)
        return RouteTrace(
            experts, self._num_experts, step=step, source_rank=None if twins else rank,
            window_steps=self._size,
        ), notes  # fmt: skip

    def _twins(self) -> int:
        """How many ranks have the same routes in every pass; 0 when they differ anywhere."""
        shared = [
            list(ranks.values())
            for ranks in self._parts.values()
            if len(ranks) > 1 and any(map(len, ranks.values()))
        ]
        same = all(part is parts[0] for parts in shared for part in parts)
        return max(map(len, shared), default=0) if same else 0
