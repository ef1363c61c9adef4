"""Two slots a rank and one window, for `exact`: replica counts decide everything.

For given counts, pairing the largest copy with the smallest is optimal, so that a peak can be
reached iff, for every size z above half of it, there are no more copies of z or larger than copies
that fit beside z. That is linear in binaries per (expert, count): a linear program bounds the peak,
annealing of the counts improves it, and CP-SAT proves what is left.
"""

from typing import Any

import numpy as np

from .._arrays import Bools, Floats, Ints
from .exact_gap import Gap
from .exact_kernels import FOUND, NONE, ROUNDING, SPENT, anneal_counts

# The bound is sought this much finer than the gap that is to be closed.
_FINER = 0.25
# Trials of an annealing at effort 1, and its heats in shares of a rank's mean load.
_TRIALS, _HEATS = 100_000, (0.003, 0.01)
# CP-SAT's deterministic time for a layer at effort 1, about a second each.
_CP_TIME = 8.0
# Sizes this near to a limit may lie on either side of it: models let them pass.
_ALLOWANCE = 1e-11


def close_by_pairs(gap: Gap, effort: float) -> None:
    """Two slots a rank, one window: everything is in the counts."""
    load_E, num_ranks = gap.load_EW[:, 0].copy(), gap.num_ranks
    gap.offer(pair_up(load_E, gap.greedy_counts(), num_ranks))
    _bound_by_programme(gap, load_E)
    for heat in _HEATS:
        if gap.closed:
            return
        count_E: Ints = np.bincount(gap.slots_S, minlength=len(load_E))
        uniform = np.random.default_rng(0).random((int(_TRIALS * effort), 3))
        heat *= load_E.sum() / num_ranks
        anneal_counts(load_E, count_E, num_ranks, gap.bound, heat, uniform)
        gap.offer(pair_up(load_E, count_E, num_ranks))
    left, alone = _CP_TIME * effort, np.zeros(len(load_E), bool)
    while not gap.closed and left > 0:
        goal = gap.goal
        answer, count_E, spent = _search_counts(_Pairs(load_E, num_ranks, goal), alone, left)
        left -= spent
        if answer == NONE:
            gap.refuted(goal)
        if answer != FOUND:
            return
        if not gap.offer(pair_up(load_E, count_E, num_ranks)):
            # The pairing put an expert beside itself, and parting the two costs too much.
            twins = _twins(load_E, count_E, num_ranks)
            if not (twins & ~alone).any():
                return
            alone |= twins


def _bound_by_programme(gap: Gap, load_E: Floats) -> None:
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


def pair_up(load_E: Floats, count_E: Ints, num_ranks: int) -> Ints:
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
