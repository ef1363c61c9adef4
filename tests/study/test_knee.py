"""The knee of a curve, and `--redundant auto`."""

from typing import Any

import numpy as np
import pytest

from eplb.errors import InfeasibleError
from eplb.problem import Problem
from eplb.solver.layer_planner import Settings
from eplb.study.knee import find_knee, furthest_above, knees
from eplb.study.sweep import Setting, measure, scored, study_of
from eplb.topology import Topology

from ..helpers import problem, random_loads


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([(0, 0.5), (8, 0.9), (16, 0.92), (24, 0.94)], 1),
        ([(0, 0.5), (8, 0.6), (16, 0.9), (24, 0.91)], 2),
        ([(0, 0.5), (64, 0.9), (72, 0.9)], 1),  # unequal steps
        ([(0, 0.5), (8, 0.6), (16, 0.7)], 0),  # a straight line has none: the least
        ([(0, 0.5), (8, 0.5), (16, 0.9)], 0),  # nor has one that bends the other way
        ([(0, 0.9), (8, 0.9), (16, 0.9)], 0),
        ([(0, 0.9), (8, 0.8)], 0),
        ([(0, 0.9)], 0),
    ],
)
def test_the_knee_is_furthest_above_the_line(
    curve: list[tuple[float, float]], expected: int
) -> None:
    """From the first point to the last, the least of several."""
    assert furthest_above(curve) == expected


def _point(redundant: int, balance: float, **more: Any) -> dict[str, Any]:
    sizes = {"gpus": 8, "nodes": 1, "redundant": redundant, "max_moves": None}
    return {**sizes, "held_out": {"mean_balancedness": balance}, "planned": None, **more}


def test_every_curve_has_its_own_knee() -> None:
    """Of each machine, budget and trace; balance is of what was kept back, where anything was, and
    two points have no knee."""
    points = [_point(count, y) for count, y in ((16, 0.92), (0, 0.5), (8, 0.9))]
    points += [_point(count, y, gpus=16) for count, y in ((0, 0.5), (16, 0.9))]
    points += [
        _point(count, 0.0, max_moves=5, held_out=None, planned={"mean_balancedness": y})
        for count, y in ((0, 0.5), (8, 0.6), (16, 0.9), (24, 0.9))
    ]
    points += [_point(count, y, trace="t") for count, y in ((0, 0.5), (8, 0.9), (16, 0.92))]
    machine = {"gpus": 8, "nodes": 1, "max_moves": None, "redundant": 8}
    assert knees(points) == [
        machine,
        {**machine, "max_moves": 5, "redundant": 16},
        {**machine, "trace": "t"},
    ]
    assert knees([]) == []


def test_auto_is_a_sweep_of_a_sample_of_layers() -> None:
    """Its curve is what a sweep of the same layers at the same effort gives, held out."""
    loads = random_loads(3, 10, 4, 16)
    one = problem(loads, 4, 5)
    knee = find_knee(one)
    study = study_of(one, settings=Settings(effort=0.3))
    points = [measure(study, Setting(4, 1, count)) for count, _ in knee.curve]
    assert [count for count, _ in knee.curve] == [0, 4, 8, 12, 16]
    assert [y for _, y in knee.curve] == [scored(p)["mean_balancedness"] for p in points]
    assert points[0]["held_out"] is not None
    assert knee.num_redundant == knees(points)[0]["redundant"]


def test_auto_asks_what_pays_later() -> None:
    """The hot expert of the first windows is cold later: four redundant experts for it are worth
    much in the windows planned for and nothing in those to come, which is what counts."""
    loads = np.ones((20, 1, 8))
    loads[:12, 0, 0] = loads[12:, 0, 7] = 9.0
    past = find_knee(Problem(loads[:7], Topology(4), 2))
    assert past.num_redundant == 4
    assert past.curve[1][1] > past.curve[0][1] + 0.5
    ahead = find_knee(Problem(loads, Topology(4), 2))
    assert ahead.curve[1][1] <= ahead.curve[0][1]
    assert ahead.num_redundant != 4


def test_budgets_and_rules_cut_the_curve() -> None:
    """Numbers that a node rule forbids are left out; with none left the reason is given."""
    loads = random_loads(4, 1, 1, 8)
    bound = find_knee(problem(loads, 4, 2, 2))
    assert [count for count, _ in bound.curve] == [0, 4, 8]
    assert [count for count, _ in find_knee(problem(loads, 4, 2, 2), 3).curve] == [0, 4]
    with pytest.raises(InfeasibleError, match="fewest that hold all 8 experts on 3 GPUs"):
        find_knee(Problem(loads.astype(float), Topology(4, excluded_ranks=(0,)), 4), 2)
