"""Back-tests and the knee of redundancy."""

import numpy as np
import pytest

from eplb.errors import InfeasibleError
from eplb.problem import Problem
from eplb.solver.layer_planner import Settings
from eplb.solver.outlook import OUTLOOKS
from eplb.solver.solve import solve
from eplb.study.backtest import SHORTEST, back_test, plan_ahead
from eplb.study.knee import find_knee
from eplb.synthetic import Shape, Traffic, generate
from eplb.topology import Topology

QUICK = Settings(effort=0.2)


def _problem(drift: float, num_windows: int = 24) -> Problem:
    traffic = Traffic(num_windows=num_windows, tokens=20000, num_topics=6, drift=drift, seed=3)
    return Problem.from_trace(generate(Shape(3, 32, 4), traffic), Topology(8))


def test_the_back_test_is_an_independent_scorer_s() -> None:
    """The chosen outlook's figure is what planning the past and scoring the rest by hand gives."""
    one = _problem(0.3)
    tested = back_test(one, QUICK)
    assert tested is not None
    scores = []
    for first, end in ((9, 13), (13, 16), (16, 20), (20, 24)):
        past = Problem(one.loads[:first], Topology(8), one.slots_per_rank)
        outlook = OUTLOOKS[tested.outlook]
        slots = solve(past, settings=QUICK._replace(outlook=outlook)).placement.physical_to_logical
        ratios = []
        for window in one.loads[first:end]:
            for load, row in zip(window, slots, strict=True):
                copies = np.bincount(row, minlength=32)
                ranks = (load / copies)[row].reshape(8, -1).sum(axis=1)
                ratios.append(ranks.mean() / ranks.max())
        scores.append(np.mean(ratios))
    assert tested.held_out == pytest.approx(np.mean(scores))
    assert tested.held_out == max(tested.tried.values())


def test_plans_carry_their_held_out_balance() -> None:
    """In the summary, with an error bar, and below what the planned windows show."""
    plan, tested = plan_ahead(_problem(0.4), QUICK)
    assert tested is not None
    assert plan.summary["held_out_balancedness"] == tested.held_out
    assert plan.summary["held_out_error"] > 0
    assert plan.options["outlook"] == tested.outlook
    assert tested.held_out < plan.summary["mean_balancedness"]


def test_short_traces_are_not_judged() -> None:
    """Too few windows say nothing; idle windows do not count."""
    one = _problem(0.3, SHORTEST - 1)
    plan, tested = plan_ahead(one, QUICK)
    assert tested is None
    assert "held_out_balancedness" not in plan.summary
    idle = np.concatenate([one.loads, np.zeros_like(one.loads)])
    assert back_test(Problem(idle, Topology(8), one.slots_per_rank), QUICK) is None


def test_traffic_with_a_trend_is_planned_for_its_present_level() -> None:
    """Where load wanders from one half of the experts to the other, windows to come win the
    back-test by far; where it only flickers around a level, they do not."""
    rng = np.random.default_rng(0)
    early, late = rng.lognormal(0, 1, (2, 32))
    early[16:] /= 10
    late[:16] /= 10
    share = np.linspace(0, 1, 24)[:, None]
    trend = (1 - share) * early + share * late
    one = Problem(trend[:, None, :], Topology(8), 5)
    tested = back_test(one, QUICK)
    assert tested is not None
    assert tested.outlook == "futures"
    assert tested.tried["futures"] > tested.tried["windows"] + 0.01
    still = Problem(rng.multinomial(5000, early / early.sum(), 24)[:, None, :], Topology(8), 5)
    tested = back_test(still, QUICK)
    assert tested is not None
    assert tested.tried["futures"] < tested.tried["windows"] + 0.01


def test_the_knee_is_where_more_slots_stop_paying() -> None:
    """Eight hot experts of thirty-two on eight GPUs: one more slot a GPU evens them out."""
    loads = np.ones((1, 2, 32))
    loads[:, :, :8] = 9.0
    loads[:, :, 0] = 30.0
    knee = find_knee(Problem(loads, Topology(8), 4))
    assert knee.num_redundant == 8
    assert [count for count, _ in knee.curve] == [0, 8, 16, 24, 32]
    assert knee.curve[0][1] < 0.7 < 0.9 < knee.curve[1][1]


def test_budgets_of_memory_cut_the_curve() -> None:
    """No more slots than fit; none at all is answered with the least."""
    one = Problem(np.arange(1, 33, dtype=float)[None, None], Topology(8), 4)
    assert max(count for count, _ in find_knee(one, 5).curve) == 8
    with pytest.raises(InfeasibleError, match="4 are the fewest that hold all 32 experts"):
        find_knee(one, 3)
