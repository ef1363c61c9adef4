"""How many tokens reach each part of the machine, counted from token routes by window.

Axes: W windows, E experts, T tokens, P parts (all nodes or all ranks). Tables of experts have a row
more, number E, for an expert that is absent.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ._arrays import Floats, Ints, Numbers
from .routes import RouteTrace

# Numbers in the largest array of a block of tokens: 2^16 float64 stay in a core's cache.
_BLOCK = 2**16


class Pass(NamedTuple):
    """How likely it is that an expert does not take its token to a part: `missed` (E + 1, P), or
    (starts, E + 1, P) by where the token starts; and how much each part of the pass counts."""

    missed: Floats
    weight: Floats  # (P,)


class Tokens:
    """The tokens of some windows, summed by window one layer at a time."""

    def __init__(self, routes: RouteTrace, start: Ints | None, edges: Sequence[int] | None) -> None:
        bounds = np.asarray([0, len(routes.experts)] if edges is None else edges)
        assert len(bounds) > 1 and (np.diff(bounds) >= 0).all(), "edges ascend"
        assert bounds[0] >= 0 and bounds[-1] <= len(routes.experts), "edges lie in the trace"
        self._own = slice(bounds[0], bounds[-1])
        self._routes = routes
        self._start = None if start is None else start[self._own]
        self._window = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        self._ids: Ints = np.empty((0, routes.top_k), np.intp)
        self.num_windows = len(bounds) - 1

    def turn_to(self, layer: int) -> None:
        """Look at this layer; experts that are absent have the number E."""
        ids = self._routes.experts[self._own, layer].astype(np.intp)
        ids[ids < 0] = self._routes.num_experts
        self._ids = ids

    def routed(self) -> Floats:
        """Tokens with an expert, (W,)."""
        present = self._ids < self._routes.num_experts
        return self._by_window(np.bitwise_or.reduce(present, axis=1))

    def adding(self, value: Floats) -> Floats:
        """The sum, (W,), of a value of each expert, (E + 1,), or (starts, E + 1) by start."""
        each = value.reshape(-1)[self._rows(slice(None), value.ndim == 2)].sum(axis=1)
        return self._by_window(each)

    def reaching(self, passes: Sequence[Pass]) -> Floats:
        """Tokens that reach each part, summed over the passes, (W, P)."""
        num_parts = len(passes[0].weight) if passes else 1
        sums = np.zeros((self.num_windows, num_parts))
        for block, windows, firsts in self._blocks(max(1, _BLOCK // num_parts)):
            for missed, weight in passes:
                rows = self._rows(block, missed.ndim == 3)
                table = missed.reshape(-1, num_parts)
                product = table[rows[:, 0]]
                for column in rows.T[1:]:
                    product *= table[column]
                reached = np.add.reduceat(1.0 - product, firsts, axis=0)
                sums[windows] += reached * weight
        return sums

    def _by_window(self, values: Numbers) -> Floats:
        sums = np.bincount(self._window, weights=values, minlength=self.num_windows)
        return sums.astype(np.float64)

    def _rows(self, block: slice, by_start: bool) -> Ints:
        ids = self._ids[block]
        if not by_start:
            return ids
        assert self._start is not None
        return ids + (self._start[block] * (self._routes.num_experts + 1))[:, None]

    def _blocks(self, size: int) -> Iterator[tuple[slice, Ints, Ints]]:
        """Blocks of tokens, the windows in each, and where in the block those begin."""
        for first in range(0, len(self._window), size):
            window = self._window[first : first + size]
            firsts = np.flatnonzero(np.diff(window, prepend=-1))
            yield slice(first, first + size), window[firsts], firsts


def own_and_others(share: Floats, weight: Floats, known: bool) -> tuple[list[Pass], list[Pass]]:
    """The passes for tokens that reach the node they start on, and for those that reach another."""
    missed = with_absent(1.0 - share, 1.0)
    num_nodes = len(weight)
    if known:
        same, whole = np.eye(num_nodes, dtype=bool)[:, None], np.ones(num_nodes)
        return [Pass(np.where(same, missed, 1.0), whole)], [
            Pass(np.where(same, 1.0, missed), whole)
        ]
    if len(missed) == 1:
        return [Pass(missed[0], weight)], [Pass(missed[0], 1.0 - weight)]
    own, *others = all_starts(missed, weight, 1)
    return [own], others


def all_starts(missed: Floats, weight: Floats, per_node: int) -> list[Pass]:
    """What every part sees of tokens that start everywhere, from `missed` by start and the share
    of tokens that start on each part, (P,): a pass for every part of its own node, itself first,
    and one for each other node, as it makes no difference on which part of that a token starts."""
    part = np.arange(len(weight))
    local, node, num_nodes = part % per_node, part // per_node, len(weight) // per_node
    starts = [(node * per_node + (local + j) % per_node, weight) for j in range(per_node)]
    of_node = np.repeat(weight.reshape(num_nodes, per_node).sum(axis=1), per_node)
    starts += [((node + d) % num_nodes * per_node, of_node) for d in range(1, num_nodes)]
    return [
        Pass(np.ascontiguousarray(missed[start, :, part].T), share[start])
        for start, share in starts
    ]


def with_absent(values: Floats, absent: float) -> Floats:
    """Values of experts, (starts, E) or (starts, E, P), with that of an absent one added."""
    width = [(0, 0), (0, 1), (0, 0)][: values.ndim]
    return np.pad(values, width, constant_values=absent)
