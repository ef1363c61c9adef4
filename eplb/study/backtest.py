"""What a plan is worth on traffic it has not seen, found by walking forward through the trace.

At several points of the timeline the past is planned for and the windows that follow are scored.
That chooses the outlook (`eplb.solver.outlook`) that serves this trace best, and says how balanced
later windows can be expected to be.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .. import metrics
from .._arrays import Floats, Ints
from ..placement import Placement
from ..plan import Plan
from ..problem import Problem
from ..solver.layer_planner import Settings
from ..solver.outlook import OUTLOOKS, WINDOWS
from ..solver.solve import solve
from ..walk import walk_forward

# Where the timeline is cut, as shares of its windows; each fold is scored up to the next cut.
_CUTS = (0.4, 0.55, 0.7, 0.85, 1.0)
# Fewer windows than this say nothing of drift.
SHORTEST = 8
# So many layers, evenly spaced, stand for all.
_LAYERS = 6


class BackTest(NamedTuple):
    """The outlook that served best, the held-out balancedness it had and its standard error over
    folds, and the mean of each outlook tried."""

    outlook: str
    held_out: float
    error: float
    tried: dict[str, float]


def back_test(
    problem: Problem, settings: Settings, stop: Callable[[], bool] = lambda: False
) -> BackTest | None:
    """Walk forward through the timeline of a problem with every outlook; None when it has too few
    windows with load to tell, or `stop()` was true before the end."""
    timeline = (problem.scenario == 0) & (problem.loads.sum(axis=(1, 2)) > 0)
    if timeline.sum() < SHORTEST:
        return None
    rows = sample_of_layers(problem.num_layers)
    loads = problem.loads[timeline][:, rows]
    weight = problem.window_weight[timeline]
    cuts = [int(cut * len(loads)) for cut in _CUTS]
    scores: dict[str, list[float]] = {name: [] for name in OUTLOOKS}
    for name, outlook in OUTLOOKS.items():
        if stop():
            return None
        own = settings._replace(outlook=outlook)

        def plan(seen: slice, _: Placement | None, own: Settings = own) -> Placement:
            past = _part(problem, loads[seen], weight[seen], rows)
            return solve(past, settings=own).placement

        for first, end, placement in walk_forward(cuts, plan):
            if stop():
                return None
            speed = problem.topology.rank_speed
            ahead = metrics.measure(loads[first:end], placement, weight[first:end], speed)
            scores[name].append(ahead.mean_balancedness)
    tried = {name: float(np.mean(values)) for name, values in scores.items()}
    best = max(tried, key=lambda name: (tried[name], name == WINDOWS.name))
    spread = float(np.std(scores[best], ddof=1) / np.sqrt(len(scores[best])))
    return BackTest(best, tried[best], spread, tried)


def sample_of_layers(num_layers: int) -> Ints:
    """The rows of a few layers that stand for all."""
    return np.unique(np.linspace(0, num_layers - 1, _LAYERS).round().astype(np.int64))


def plan_ahead(
    problem: Problem,
    settings: Settings,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, float], None] = lambda layer, peak: None,
) -> tuple[Plan, BackTest | None]:
    """Plan with `auto`, for the outlook that a back-test of the trace itself chooses.

    The plan's summary carries the held-out balancedness and its error, unless the plan is bound by
    what the back-test's fresh plans are not: a live placement, or a cap on load off home.
    """
    tested = back_test(problem, settings, stop)
    if tested is not None:
        settings = settings._replace(outlook=OUTLOOKS[tested.outlook])
    plan = solve(problem, settings=settings, stop=stop, progress=progress)
    if tested is None or problem.current is not None or problem.max_off_home is not None:
        return plan, tested
    summary: dict[str, Any] = {
        **plan.summary,
        "held_out_balancedness": tested.held_out,
        "held_out_error": tested.error,
    }
    return replace(plan, summary=summary), tested


def _part(problem: Problem, loads: Floats, weight: Floats, rows: Ints) -> Problem:
    """The problem of some layers in some windows, planned afresh: budgets bind the whole."""
    return replace(
        problem,
        loads=loads,
        window_weight=weight if weight.any() else None,
        scenario=None,
        layer_ids=problem.layer_ids[rows],
        current=None,
        max_moves=None,
        move_price=0.0,
        max_off_home=None,
    )
