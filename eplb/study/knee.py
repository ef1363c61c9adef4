"""How many redundant experts pay: the knee of balance over redundant experts."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import InfeasibleError
from ..problem import Problem
from ..solver.layer_planner import Settings
from .backtest import sample_of_layers
from .sweep import Point, Setting, held_out, plan_at, scored, study_of, usual_redundant

# To find a knee quickly, its curve is drawn of a sample of layers, at this effort.
_EFFORT = 0.3
# A knee is a bend, and two points have none.
_FEWEST_FOR_KNEE = 3


def furthest_above(curve: Sequence[tuple[float, float]]) -> int:
    """The knee of a curve: the number of its point furthest above the line from the first to the
    last; 0 where none is above it."""
    (x0, y0), (x1, y1) = curve[0], curve[-1]
    slope = (y1 - y0) / (x1 - x0) if x1 > x0 else 0.0
    return int(np.argmax([y - y0 - slope * (x - x0) for x, y in curve]))


def knees(points: Iterable[Point]) -> list[dict[str, Any]]:
    """The setting at the knee of each curve of mean balancedness over redundant experts, in the
    order of the points; curves of fewer than three points have none."""
    curves: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        key = tuple((name, point.get(name)) for name in ("trace", "gpus", "nodes", "max_moves"))
        curves.setdefault(key, []).append(point)
    found = []
    for key, curve in curves.items():
        if len(curve) < _FEWEST_FOR_KNEE:
            continue
        curve.sort(key=lambda point: int(point["redundant"]))
        at = furthest_above(
            [(point["redundant"], scored(point)["mean_balancedness"]) for point in curve]
        )
        own = {name: value for name, value in key if name != "trace" or value is not None}
        found.append({**own, "redundant": curve[at]["redundant"]})
    return found


class Knee(NamedTuple):
    """The number of redundant experts to take, and the curve: (redundant experts, balancedness)."""

    num_redundant: int
    curve: list[tuple[int, float]]


def find_knee(problem: Problem, max_slots_per_rank: int | None = None) -> Knee:
    """The knee of mean balancedness over redundant experts, one number for all layers.

    It is that of a sweep over the usual numbers (`sweep.usual_redundant`), made on a sample of
    layers with less effort: balance is of later windows where the trace has enough of them.
    `problem` may have any number of redundant experts; its limits hold for all.

    Raises
    ------
    InfeasibleError
        When not even the least number fits `max_slots_per_rank`, or none obeys the limits.
    """
    topology, num_experts = problem.topology, problem.num_experts
    least = -(-num_experts // topology.num_live_ranks)
    if max_slots_per_rank is not None and max_slots_per_rank < least:
        raise InfeasibleError(
            f"--budget-gib holds {max_slots_per_rank} experts a GPU and layer; {least} are the"
            f" fewest that hold all {num_experts} experts on {topology.num_live_ranks} GPUs"
        )
    study = study_of(_sample(problem), settings=Settings(effort=_EFFORT))
    curve: list[tuple[int, float]] = []
    reason: InfeasibleError | None = None
    for count in usual_redundant(num_experts, topology):
        slots = (num_experts + count) // topology.num_ranks
        if max_slots_per_rank is not None and slots > max_slots_per_rank:
            break
        try:
            plan = plan_at(study, Setting(topology.num_ranks, topology.num_nodes, count))
        except InfeasibleError as error:
            reason = error  # excluded GPUs or a node rule need more slots than these, or fewer
            continue
        ahead = held_out(study, plan.placement)
        planned = float(plan.summary["mean_balancedness"])
        curve.append((count, planned if ahead is None else ahead.mean_balancedness))
    if not curve:
        assert reason is not None
        raise reason
    return Knee(curve[furthest_above(curve)][0], curve)


def _sample(problem: Problem) -> Problem:
    """A few layers of a problem, planned afresh."""
    rows = sample_of_layers(problem.num_layers)
    return replace(
        problem,
        loads=problem.loads[:, rows],
        layer_ids=problem.layer_ids[rows],
        current=None,
        max_moves=None,
        move_price=0.0,
    )
