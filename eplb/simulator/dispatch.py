"""What each slot serves under a dispatch rule, from counts or from token routes.

`even` splits the tokens of an expert over its copies evenly: that is `metrics.slot_loads`.
`nearest` sends a token to copies on its own GPU, else on its node, else to all, evenly. `lp` splits
the tokens of every expert over its copies so that the busiest rank has least to do, as engines do
that solve a linear program for every batch.

What windows say of `lp`: a window is the sum of many batches. The least peak of a sum is at most
the sum of the least peaks of its parts, since splits that are best for the parts are one way to
split the sum. So the optimum of a window bounds from below what solving the program batch by batch
comes to over the window, with whole tokens all the more, and the balancedness it gives is a bound
from above. It is attained where every batch is routed alike.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from .. import metrics, traffic
from .._arrays import Floats, Ints, Numbers
from ..errors import InputError
from ..placement import Placement
from ..routes import RouteTrace

# Numbers in the largest array of a block of windows: 2^22 int64 are 32 MB.
_BLOCK = 2**22
# Variables of one linear program, in which many windows are solved side by side.
_VARIABLES = 4096


class BestSplit(NamedTuple):
    """The optimum of every window and layer."""

    slot_load: Floats  # (W, L, S), tokens
    peak: Floats  # (W, L): the largest load × pace of a rank
    lower_bound: Floats  # (W, L): what no split passes, by duality; the peak to 1e-9


def nearest_slots(
    routes: RouteTrace, placement: Placement, edges: Sequence[int] | None = None
) -> Floats:
    """Tokens that each slot serves under `nearest`, (W, L, S), from routes that say on which rank
    each token starts; `edges` as in `traffic.route_traffic`.

    Raises
    ------
    InputError
        When the routes do not say where tokens start.
    RefusedError
        When they are of other layers, experts or ranks than the placement.
    """
    traffic.check_routes(routes, placement)
    if routes.source_rank is None:
        raise InputError(
            "the routes do not say on which GPU each token starts (source_rank), so that the"
            " nearest copy is not known; --dispatch even needs no sources"
        )
    bounds = np.asarray([0, len(routes.experts)] if edges is None else edges)
    num_windows, num_ranks = len(bounds) - 1, placement.num_ranks
    served = np.empty((num_windows, placement.num_layers, placement.num_slots))
    size = max(1, _BLOCK // (num_ranks * max(routes.num_experts, placement.num_slots)))
    for layer in range(placement.num_layers):
        share = _nearest_share(placement, layer)
        expert = np.maximum(placement.physical_to_logical[layer], 0)
        for first in range(0, num_windows, size):
            counts = _counts(routes, layer, bounds[first : first + size + 1], num_ranks)
            served[first : first + size, layer] = np.einsum(
                "wrs,rs->ws", counts[:, :, expert], share
            )
    return served


def expected_nearest_slots(tokens: Numbers, placement: Placement) -> Floats:
    """Tokens that each slot serves under `nearest`, (W, L, S), expected of `tokens` (W, L, E) that
    start evenly on the ranks in service, whatever their experts."""
    start = traffic.start_weight(placement)
    slots = np.maximum(placement.physical_to_logical, 0)
    share = np.stack([start @ _nearest_share(placement, row) for row in range(len(slots))])
    served: Floats = np.take_along_axis(tokens, slots[None], axis=2) * share
    return served


def best_split(tokens: Numbers, placement: Placement, pace: Floats | None = None) -> BestSplit:
    """The split of `tokens` (W, L, E) over copies with the least peak, for every window and layer.

    `pace` (R,) is the time of each rank per token, relative; 1 by default. The peak is that of load
    × pace. Tokens may be split into parts.
    """
    num_windows, num_layers, _ = tokens.shape
    pace = np.ones(placement.num_ranks) if pace is None else pace
    served = np.zeros((num_windows, num_layers, placement.num_slots))
    bounds = np.zeros((num_windows, num_layers))
    for layer in range(num_layers):
        program = _Program(placement, layer, pace)
        size = min(_VARIABLES // (len(program.copy_rank) + 1), _BLOCK // program.has.size)
        size = max(1, size)
        for first in range(0, num_windows, size):
            part = slice(first, first + size)
            served[part, layer], bounds[part, layer] = program.solve(tokens[part, layer])
    peak = (metrics.by_rank(served, placement.num_ranks) * pace).max(axis=2)
    return BestSplit(served, peak, bounds)


class _Program:
    """The linear program of one layer: split over copies x and peak M, least M.

    Experts with a single copy are no variables: they are what a rank has to serve anyway.
    """

    def __init__(self, placement: Placement, layer: int, pace: Floats) -> None:
        self.pace = pace
        self.slots = placement.physical_to_logical[layer]
        self.copies = placement.rank_copies[layer]  # (R, E)
        self.has = self.copies > 0
        self.served = self.has.any(axis=1)
        self.single = self.has.sum(axis=0) == 1
        self.several = np.flatnonzero(~self.single)
        self.copy_expert, self.copy_rank = np.nonzero(self.has[:, self.several].T)

    def solve(self, load: Numbers) -> tuple[Floats, Floats]:
        """Slot loads (W, S) and proven lower bounds of the peaks (W,), from `load` (W, E)."""
        on_rank = load[:, None, :] * self.has  # (W, R, E), right where there is one copy
        fixed = on_rank[:, :, self.single].sum(axis=2)
        bound = (fixed * self.pace).max(axis=1)
        if len(self.several):
            scale = load.sum(axis=1) / (self.served / self.pace).sum()
            scale = np.where(scale > 0, scale, 1.0)[:, None]  # variables are then near 1
            split, price = self._optimum(fixed / scale, load[:, self.several] / scale)
            split = np.maximum(split, 0.0)
            total = np.zeros((len(load), len(self.several)))
            np.add.at(total.T, self.copy_expert, split.T)
            share = split / np.where(total > 0, total, 1.0)[:, self.copy_expert]
            expert = self.several[self.copy_expert]
            on_rank = on_rank.astype(np.float64)
            on_rank[:, self.copy_rank, expert] = share * load[:, expert]
            bound = np.maximum(bound, self._dual(load, price))
        rank = np.arange(len(self.slots)) // (len(self.slots) // len(self.pace))
        on_slot = on_rank[:, rank, self.slots] / np.maximum(self.copies[rank, self.slots], 1)
        return on_slot * (self.slots >= 0), bound

    def _optimum(self, fixed: Floats, flexible: Floats) -> tuple[Floats, Floats]:
        """The split over copies and the price of each rank's time, of windows side by side."""
        from scipy.optimize import linprog
        from scipy.sparse import block_diag, csr_array

        num_copies, num_windows, live = len(self.copy_rank), len(fixed), np.flatnonzero(self.served)
        row = np.cumsum(self.served) - 1
        copy, one = np.arange(num_copies), np.ones(num_copies)
        # Rank by rank: what its copies serve, less the peak over its pace, is at most −fixed.
        values = np.concatenate([one, -1.0 / self.pace[live]])
        where = (
            np.concatenate([row[self.copy_rank], np.arange(len(live))]),
            np.concatenate([copy, np.full(len(live), num_copies)]),
        )
        capacity = csr_array((values, where), shape=(len(live), num_copies + 1))
        whole = csr_array(
            (one, (self.copy_expert, copy)), shape=(len(self.several), num_copies + 1)
        )
        answer = linprog(
            np.tile(np.append(np.zeros(num_copies), 1.0), num_windows),
            A_ub=block_diag([capacity] * num_windows, format="csr"),
            b_ub=-fixed[:, live].ravel(),
            A_eq=block_diag([whole] * num_windows, format="csr"),
            b_eq=flexible.ravel(),
            method="highs-ds",
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        assert answer.status == 0, answer.message  # every expert has a copy: never infeasible
        price = np.zeros(fixed.shape)
        price[:, live] = np.maximum(-answer.ineqlin.marginals, 0.0).reshape(num_windows, -1)
        return answer.x.reshape(num_windows, -1)[:, :-1], price

    def _dual(self, load: Numbers, price: Floats) -> Floats:
        """What no split passes with any price: each token pays at least its cheapest copy, and the
        time of all ranks up to the peak is worth what they take."""
        cheapest = np.where(self.has, price[:, :, None], np.inf).min(axis=1)
        worth = (price[:, self.served] / self.pace[self.served]).sum(axis=1)
        paid = (load * cheapest).sum(axis=1)
        bound: Floats = np.divide(paid, worth, out=np.zeros_like(paid), where=worth > 0)
        return bound


def _nearest_share(placement: Placement, layer: int) -> Floats:
    """Of its expert's tokens that start on each rank, the share of each slot, (R, S)."""
    slots = placement.physical_to_logical[layer]
    rank = np.arange(len(slots)) // placement.slots_per_rank
    share = traffic.rank_shares(placement, layer, "nearest")[:, slots, rank]
    alike = np.maximum(placement.rank_copies[layer][rank, slots], 1)
    served: Floats = share * ((slots >= 0) / alike)
    return served


def _counts(routes: RouteTrace, layer: int, bounds: Ints, num_ranks: int) -> Ints:
    """Assignments by window, start and expert, (W, R, E)."""
    own = slice(bounds[0], bounds[-1])
    ids = routes.experts[own, layer].astype(np.intp)
    assert routes.source_rank is not None
    window = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    start = (window * num_ranks + routes.source_rank[own])[:, None]
    places = (start * routes.num_experts + ids)[ids >= 0]
    shape = (len(bounds) - 1, num_ranks, routes.num_experts)
    return np.bincount(places, minlength=prod(shape)).reshape(shape)
