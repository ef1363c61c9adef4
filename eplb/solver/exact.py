"""One layer to the end: a better placement or a higher proven bound, until they meet.

Minimises      the weighted mean over windows of the busiest rank's load, F
Guarantees     no expert twice on a rank; never worse than the placement given; the bound is below
               every placement
Cost           at `effort` 1 about 10 s a layer at worst; most of 256 experts on 144 ranks of two
               slots take .3 to 2 s, small layers milliseconds
Deterministic  yes: all limits count work, none the time
Use when       a layer is free of node rules, prices and speeds, and its gap is worth seconds
Reference      One slot a rank, one window: greedy counts are optimal. Two slots: pairing the
               largest copy with the smallest is optimal for given counts, so that a peak can be
               reached iff, for every size z above half of it, there are no more copies of z or
               larger than copies that fit beside z, which is linear in binaries per (expert,
               count). Small layers: enumeration of counts, then of ranks with the slack rule.
               Otherwise the full-slot bound of `exact_kernels.largest_refuted`.
"""

from typing import NamedTuple

import numpy as np

from .._arrays import Floats, Ints
from .exact_gap import Gap
from .exact_kernels import NONE, ROUNDING, SPENT, find_below, largest_refuted
from .exact_pairs import close_by_pairs

# The bound is sought this much finer than the gap that is to be closed.
_FINER = 0.25
# Nodes of an enumeration at effort 1, 5 to 10 s. Two slots a rank have another way: a little first.
_NODES, _FEW_NODES = 150_000_000, 2_000_000
# An enumeration ends when less than this share of its nodes is left.
_SHARE_LEFT = 0.05


class Closed(NamedTuple):
    """A layer's placement, its F, and what no placement can go below."""

    slots_S: Ints
    peak: float
    bound: float


def close(
    load_EW: Floats,
    num_ranks: int,
    slots_per_rank: int,
    slots_S: Ints,
    bound: float,
    tolerance: float,
    effort: float,
) -> Closed:
    """A placement at least as good as `slots_S`, and a bound at least as high as `bound`.

    Work ends once the peak is within `tolerance` (1e-9 or more) of the bound, or the effort is
    spent. Loads come multiplied by their window's weight. Nothing but loads binds the placement.
    """
    gap = Gap(np.ascontiguousarray(load_EW, np.float64), num_ranks, slots_per_rank)
    gap.tolerance = max(tolerance, ROUNDING)
    gap.bound = bound
    gap.offer(np.asarray(slots_S, np.int64))
    one_window = load_EW.shape[1] == 1
    two_slots = one_window and slots_per_rank == 2
    if one_window and slots_per_rank == 1:
        _close_by_greedy(gap)
    if not gap.closed and slots_per_rank > 1:
        _bound_by_full_slots(gap)
    if not gap.closed:
        _close_by_enumeration(gap, int(effort * (_FEW_NODES if two_slots else _NODES)))
    if not gap.closed and two_slots:
        close_by_pairs(gap, effort)
    return Closed(gap.slots_S, gap.peak, min(gap.bound, gap.peak))


def full_slot_bound(
    load_E: Floats, num_ranks: int, slots_per_rank: int, low: float, high: float
) -> float:
    """The largest peak of one window, from `low` to `high`, that is proven out of reach: `low`
    where nothing above it is. `low` is a bound that holds, `high` a peak that is reached."""
    low = max(low, float(load_E.sum()) / num_ranks)
    if slots_per_rank == 1 or low <= 0.0:
        return low
    load_E = np.ascontiguousarray(load_E, np.float64)
    return float(largest_refuted(load_E, num_ranks, slots_per_rank, low, high, 1e-4))


def _close_by_greedy(gap: Gap) -> None:
    """One slot a rank: greedy counts have the least largest copy, and that is the peak."""
    count_E = gap.greedy_counts()
    gap.offer(np.repeat(np.arange(len(count_E)), count_E))
    gap.refuted(float((gap.load_EW[:, 0] / count_E).max()))


def _bound_by_full_slots(gap: Gap) -> None:
    """The full-slot bound of each window by itself."""
    total = 0.0
    for load_E, peak in zip(gap.load_EW.T, gap.peaks_W(gap.slots_S), strict=True):
        total += full_slot_bound(load_E, gap.num_ranks, gap.slots_per_rank, 0.0, float(peak))
    gap.refuted(total)


def _close_by_enumeration(gap: Gap, num_nodes: int) -> None:
    """Ask for ever better placements until there is none, or the nodes are spent.

    Each question may take half of the nodes that are left. One without an answer is followed by a
    lower goal, which is quicker to refute, and a placement found there is a long step.
    """
    order_E = np.argsort(-gap.load_EW.sum(axis=1), kind="stable")
    sorted_EW = np.ascontiguousarray(gap.load_EW[order_E])
    slots_S, goal, left = np.empty_like(gap.slots_S), gap.goal, num_nodes
    while not gap.closed and left > _SHARE_LEFT * num_nodes:
        budget = np.array([left // 2])
        answer = find_below(sorted_EW, gap.num_ranks, gap.slots_per_rank, goal, budget, slots_S)
        left -= left // 2 if answer == SPENT else left // 2 - int(budget[0]) + 1
        if answer == SPENT:
            goal = 0.5 * (gap.bound + goal)
        elif answer == NONE:
            gap.refuted(goal)
            goal = 0.5 * (gap.goal + goal)
            if goal > gap.goal * (1 - _FINER * gap.tolerance):
                goal = gap.goal
        elif gap.offer(order_E[slots_S]):
            goal = gap.goal
        else:
            return
