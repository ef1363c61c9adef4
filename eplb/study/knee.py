"""How many redundant experts pay: the curve of balance against slots, and its knee."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..errors import EplbError, InfeasibleError
from ..problem import Problem, legal_redundant
from ..solver.layer_planner import Settings
from ..solver.solve import solve

# The curve goes to so many slots a GPU beyond the least, on so many layers, at this effort.
_MORE_SLOTS, _LAYERS, _EFFORT = 4, 6, 0.3


class Knee(NamedTuple):
    """The number of redundant experts to take, and the curve: (redundant experts, balancedness)."""

    num_redundant: int
    curve: list[tuple[int, float]]


def find_knee(problem: Problem, max_slots_per_rank: int | None = None) -> Knee:
    """The knee of mean balancedness over redundant experts, one number for all layers: of the least
    that fills equal slots and a few slots a GPU more, the point furthest above the line from the
    first to the last. `problem` may have any number; its limits hold for all.

    Raises
    ------
    InfeasibleError
        When not even the least number fits `max_slots_per_rank`.
    """
    num_ranks, num_experts = problem.topology.num_ranks, problem.num_experts
    least = (num_experts + legal_redundant(num_experts, problem.topology)[0]) // num_ranks
    if max_slots_per_rank is not None and max_slots_per_rank < least:
        raise InfeasibleError(
            f"--budget-gib holds {max_slots_per_rank} experts a GPU and layer; {least} are the"
            f" fewest that hold all {num_experts} experts on {num_ranks} GPUs"
        )
    most = min(max_slots_per_rank or num_experts, least + _MORE_SLOTS, num_experts)
    curve: list[tuple[int, float]] = []
    reason: EplbError | None = None
    for slots in range(least, most + 1):
        try:
            balance = _balance(replace(problem, slots_per_rank=slots))
        except EplbError as error:
            reason = error  # excluded GPUs or a node rule need more slots than these, or fewer
            continue
        curve.append((slots * num_ranks - num_experts, balance))
    if reason is not None and not curve:
        raise reason
    return Knee(_furthest_above(curve), curve)


def _balance(problem: Problem) -> float:
    rows = np.unique(np.linspace(0, problem.num_layers - 1, _LAYERS).round().astype(int))
    part = replace(
        problem,
        loads=problem.loads[:, rows],
        layer_ids=problem.layer_ids[rows],
        current=None,
        max_moves=None,
        move_price=0.0,
    )
    return float(solve(part, settings=Settings(effort=_EFFORT)).summary["mean_balancedness"])


def _furthest_above(curve: list[tuple[int, float]]) -> int:
    """The abscissa of the point furthest above the chord; the first where none is."""
    (x0, y0), (x1, y1) = curve[0], curve[-1]
    slope = (y1 - y0) / (x1 - x0) if x1 > x0 else 0.0
    above = [y - y0 - slope * (x - x0) for x, y in curve]
    return curve[int(np.argmax(above))][0]
