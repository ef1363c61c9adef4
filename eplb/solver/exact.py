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

from typing import Any, NamedTuple

import numpy as np

from .._arrays import Bools, Floats, Ints
from . import kernels
from .exact_kernels import FOUND, NONE, ROUNDING, SPENT, anneal_counts, find_below, largest_refuted

# The bound is sought this much finer than the gap that is to be closed.
_FINER = 0.25
# Nodes of an enumeration at effort 1, 5 to 10 s. Two slots a rank have another way: a little first.
_NODES, _FEW_NODES = 150_000_000, 2_000_000
# An enumeration ends when less than this share of its nodes is left.
_SHARE_LEFT = 0.05
# Trials of an annealing at effort 1, and its heats in shares of a rank's mean load.
_TRIALS, _HEATS = 100_000, (0.003, 0.01)
# CP-SAT's deterministic time for a layer at effort 1, about a second each.
_CP_TIME = 8.0
# Sizes this near to a limit may lie on either side of it: models let them pass.
_ALLOWANCE = 1e-11


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
    gap = _Gap(np.ascontiguousarray(load_EW, np.float64), num_ranks, slots_per_rank)
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
        _close_by_pairs(gap, effort)
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


class _Gap:
    """The best placement and the best bound of a layer so far."""

    tolerance = ROUNDING
    bound = 0.0
    peak = np.inf
    slots_S: Ints

    def __init__(self, load_EW: Floats, num_ranks: int, slots_per_rank: int) -> None:
        self.load_EW, self.num_ranks, self.slots_per_rank = load_EW, num_ranks, slots_per_rank

    @property
    def closed(self) -> bool:
        return self.peak <= self.bound * (1 + self.tolerance)

    @property
    def goal(self) -> float:
        """A peak that would be an improvement worth having, and closes the gap if refuted."""
        return self.peak * (1 - 0.9 * self.tolerance)

    def offer(self, slots_S: Ints) -> bool:
        """Whether the placement is better than the best so far, which it then becomes."""
        peak = float(self.peaks_W(slots_S).sum())
        if peak >= self.peak:
            return False
        self.slots_S, self.peak = slots_S.copy(), peak
        return True

    def peaks_W(self, slots_S: Ints) -> Floats:
        """Of each window, the busiest rank's load."""
        count_E = np.bincount(slots_S, minlength=len(self.load_EW))
        share_SW = (self.load_EW / count_E[:, None])[slots_S]
        by_rank = share_SW.reshape(self.num_ranks, self.slots_per_rank, -1).sum(axis=1)
        peaks: Floats = by_rank.max(axis=0)
        return peaks

    def refuted(self, goal: float) -> None:
        """No placement is below `goal`."""
        self.bound = max(self.bound, goal * (1 - 1e-12))


def _close_by_greedy(gap: _Gap) -> None:
    """One slot a rank: greedy counts have the least largest copy, and that is the peak."""
    count_E = _greedy_counts(gap)
    gap.offer(np.repeat(np.arange(len(count_E)), count_E))
    gap.refuted(float((gap.load_EW[:, 0] / count_E).max()))


def _greedy_counts(gap: _Gap) -> Ints:
    load_E = gap.load_EW.sum(axis=1)
    num_slots = gap.num_ranks * gap.slots_per_rank
    least_E = np.ones(len(load_E), np.int64)
    counts: Ints = kernels.greedy_counts(load_E, least_E, num_slots, gap.num_ranks)
    return counts


def _bound_by_full_slots(gap: _Gap) -> None:
    """The full-slot bound of each window by itself."""
    total = 0.0
    for load_E, peak in zip(gap.load_EW.T, gap.peaks_W(gap.slots_S), strict=True):
        total += full_slot_bound(load_E, gap.num_ranks, gap.slots_per_rank, 0.0, float(peak))
    gap.refuted(total)


def _close_by_enumeration(gap: _Gap, num_nodes: int) -> None:
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


def _close_by_pairs(gap: _Gap, effort: float) -> None:
    """Two slots a rank, one window: everything is in the counts."""
    load_E, num_ranks = gap.load_EW[:, 0].copy(), gap.num_ranks
    gap.offer(_pair_up(load_E, _greedy_counts(gap), num_ranks))
    _bound_by_programme(gap, load_E)
    for heat in _HEATS:
        if gap.closed:
            return
        count_E: Ints = np.bincount(gap.slots_S, minlength=len(load_E))
        uniform = np.random.default_rng(0).random((int(_TRIALS * effort), 3))
        heat *= load_E.sum() / num_ranks
        anneal_counts(load_E, count_E, num_ranks, gap.bound, heat, uniform)
        gap.offer(_pair_up(load_E, count_E, num_ranks))
    left, alone = _CP_TIME * effort, np.zeros(len(load_E), bool)
    while not gap.closed and left > 0:
        goal = gap.goal
        answer, count_E, spent = _search_counts(_Pairs(load_E, num_ranks, goal), alone, left)
        left -= spent
        if answer == NONE:
            gap.refuted(goal)
        if answer != FOUND:
            return
        if not gap.offer(_pair_up(load_E, count_E, num_ranks)):
            # The pairing put an expert beside itself, and parting the two costs too much.
            twins = _twins(load_E, count_E, num_ranks)
            if not (twins & ~alone).any():
                return
            alone |= twins


def _bound_by_programme(gap: _Gap, load_E: Floats) -> None:
    """Raise the bound to what the linear programme refutes, or to what closes the gap."""
    low, high = gap.bound, gap.peak
    goal = gap.goal
    while high > low * (1 + _FINER * gap.tolerance):
        if _refuted_by_programme(_Pairs(load_E, gap.num_ranks, goal)):
            low = goal
            if goal == gap.goal:
                break
        else:
            high = goal
        goal = 0.5 * (low + high)
    gap.refuted(low)


def _pair_up(load_E: Floats, count_E: Ints, num_ranks: int) -> Ints:
    """Slots for these counts with the least peak: the largest copy with the smallest and so on.

    A copy beside its twin is exchanged with the pair whose larger copy is the smallest.
    """
    share_E = load_E / count_E
    larger, smaller = _in_pairs(share_E, count_E, num_ranks)
    for rank in np.flatnonzero(larger == smaller):
        e = larger[rank]
        # There is one: e has no more copies than there are ranks.
        free = (larger != e) & (smaller != e)
        other = int(np.argmin(np.where(free, share_E[larger], np.inf)))
        smaller[rank], larger[other] = larger[other], e
    slots: Ints = np.column_stack([larger, smaller]).ravel()
    return slots


def _in_pairs(share_E: Floats, count_E: Ints, num_ranks: int) -> tuple[Ints, Ints]:
    order_E = np.argsort(-share_E, kind="stable")
    copies = np.repeat(order_E, count_E[order_E])
    return copies[:num_ranks].copy(), copies[: num_ranks - 1 : -1].copy()


def _twins(load_E: Floats, count_E: Ints, num_ranks: int) -> Bools:
    """Whether the best pairing puts an expert beside itself, (E,)."""
    larger, smaller = _in_pairs(load_E / count_E, count_E, num_ranks)
    return np.bincount(larger[larger == smaller], minlength=len(load_E)) > 0


class _Pairs:
    """Which counts let two slots a rank stay at or below `goal`: linear in binaries.

    Column n says that `expert_N[n]` has `count_N[n]` copies, all those it can have. Copies above
    goal / 2 are big: no two share a rank, and each needs a small one beside it. Rows are the
    sizes of big copies, the largest first. Copies count in their row, big ones as −1; small ones
    as +1 in the first row that they fit beside. What fits beside a size fits beside smaller ones,
    so that all can be paired iff no sum over rows 0 … i is negative (Hall's theorem).
    """

    def __init__(self, load_E: Floats, num_ranks: int, goal: float) -> None:
        self.num_ranks, self.num_slots, self.num_experts = num_ranks, 2 * num_ranks, len(load_E)
        least_E = np.maximum(np.ceil(load_E / goal * (1 - _ALLOWANCE)), 1).astype(np.int64)
        spare = self.num_slots - int(least_E.sum())
        self.impossible = spare < 0 or int(least_E.max()) > num_ranks
        if self.impossible:
            return
        num_E = np.minimum(num_ranks, least_E + spare) - least_E + 1
        first_E = np.cumsum(num_E) - num_E
        self.expert_N = np.repeat(np.arange(len(load_E)), num_E)
        self.count_N = np.arange(num_E.sum()) - np.repeat(first_E - least_E, num_E)
        self.size_N = load_E[self.expert_N] / self.count_N
        self.room_N = goal * (1 + _ALLOWANCE) - self.size_N
        self.first_E = first_E
        big_N = self.size_N > 0.5 * goal * (1 + _ALLOWANCE)
        sizes = np.unique(self.size_N[big_N])[::-1]
        self.num_rows = len(sizes)
        # A small copy that fits beside no big one gets row `num_rows`, which is not there.
        self.row_N = np.searchsorted(-sizes, -np.where(big_N, self.size_N, self.room_N))
        self.change_N = np.where(big_N, -self.count_N, self.count_N)


def _refuted_by_programme(pairs: _Pairs) -> bool:
    """Whether not even fractions of columns obey the rows.

    The programme looks for the least shortfall t. Its prices are a proof when the shortfall that
    they leave, computed anew here, is above zero: nothing rests on the solver's own tolerances.
    """
    if pairs.impossible or pairs.num_rows == 0:
        return pairs.impossible
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    # Columns: pairs' columns, the sum over rows 0 … i plus t for each i, and t.
    num, rows = len(pairs.expert_N), pairs.num_rows
    in_row = np.flatnonzero(pairs.row_N < rows)
    n, i = np.arange(num), np.arange(rows)
    cells = [
        (pairs.row_N[in_row], in_row, -pairs.change_N[in_row]),
        (i, num + i, np.ones(rows)),
        (i[1:], num + i[:-1], -np.ones(rows - 1)),
        (np.zeros(1, np.int64), np.array([num + rows]), -np.ones(1)),
        (rows + pairs.expert_N, n, np.ones(num)),
        (np.full(num, rows + pairs.num_experts), n, pairs.count_N),
    ]
    row, column, value = (np.concatenate(part) for part in zip(*cells, strict=True))
    equal = np.concatenate([np.zeros(rows), np.ones(pairs.num_experts), [pairs.num_slots]])
    cost = np.zeros(num + rows + 1)
    cost[-1] = 1.0
    matrix = csr_array((value.astype(float), (row, column)), shape=(len(equal), len(cost)))
    result = linprog(cost, A_eq=matrix, b_eq=equal, bounds=(0, None), method="highs")
    if result.x is None:
        return False
    price = result.eqlin.marginals
    return _shortfall(pairs, price[:rows], float(price[-1])) > ROUNDING * pairs.num_slots


def _shortfall(pairs: _Pairs, row_price: Floats, copy_price: float) -> float:
    """A lower bound on the weighted shortfall of all counts, by prices of rows and of a copy."""
    weight = np.append(np.minimum.accumulate(np.maximum(-row_price, 0.0)), 0.0)
    gain_N = pairs.change_N * weight[pairs.row_N] + pairs.count_N * copy_price
    most = float(np.maximum.reduceat(gain_N, pairs.first_E).sum())
    return copy_price * pairs.num_slots - most


def _search_counts(pairs: _Pairs, alone_E: Bools, limit: float) -> tuple[int, Ints, float]:
    """FOUND and the counts, NONE, or SPENT; and the deterministic time that it took."""
    nothing = np.zeros(0, np.int64)
    if pairs.impossible:
        return NONE, nothing, 0.0
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    has: list[Any] = [model.new_bool_var("") for _ in pairs.expert_N]
    for columns in np.split(np.arange(len(has)), pairs.first_E[1:]):
        model.add_exactly_one(has[n] for n in columns)
    model.add(sum(int(c) * h for c, h in zip(pairs.count_N, has, strict=True)) == pairs.num_slots)
    before: Any = 0
    for row in range(pairs.num_rows):
        total = model.new_int_var(0, pairs.num_slots, "")
        columns = np.flatnonzero(pairs.row_N == row)
        model.add(total == before + sum(int(pairs.change_N[n]) * has[n] for n in columns))
        before = total
    for n in np.flatnonzero(alone_E[pairs.expert_N] & (pairs.size_N <= pairs.room_N)):
        # No two of these copies can share a rank: twins, and copies too large to be beside them.
        others = np.flatnonzero(
            (pairs.size_N > pairs.room_N[n]) & (pairs.expert_N != pairs.expert_N[n])
        )
        crowd = sum(int(pairs.count_N[m]) * has[m] for m in others)
        model.add(int(pairs.count_N[n]) * has[n] + crowd <= pairs.num_ranks)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = limit
    status = solver.solve(model)
    spent = float(solver.response_proto.deterministic_time)
    if status == cp_model.INFEASIBLE:
        return NONE, nothing, spent
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return SPENT, nothing, limit
    chosen = np.array([solver.boolean_value(h) for h in has])
    return FOUND, pairs.count_N[chosen], spent
