"""Re-planning from a live placement: budgets, prices, renumbering, and other machines."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb.errors import InfeasibleError, InputError
from eplb.migration import migrate
from eplb.placement import Placement, linear
from eplb.problem import Problem
from eplb.solver.layer_planner import Settings
from eplb.solver.pooling import Point, at_price, within
from eplb.solver.solve import solve
from eplb.topology import Topology

from ..helpers import problem, random_loads

QUICK = Settings(effort=0.2)


def _drifted(rule: str = "free", num_groups: int = 1) -> Problem:
    """A plan made for some loads, and other loads to serve with it."""
    old = problem(random_loads(1, 3, 3, 16), 4, 6, 2, node_rule=rule, num_groups=num_groups)
    new = problem(random_loads(2, 3, 3, 16), 4, 6, 2, node_rule=rule, num_groups=num_groups)
    return replace(new, current=solve(old).placement)


@pytest.mark.parametrize("rule", ["strict", "home", "free"])
@pytest.mark.parametrize("num_groups", [1, 4])
@pytest.mark.parametrize("budget", [0, 1, 5, 12, 30])
def test_budgets_are_kept(rule: str, num_groups: int, budget: int) -> None:
    """No more copies are received than allowed, whatever the rule; nothing moves for nothing."""
    one = replace(_drifted(rule, num_groups), max_moves=budget)
    plan = solve(one, settings=QUICK)
    assert one.current is not None
    moves = migrate(one.current, plan.placement).num_moves
    assert moves == plan.summary["moves"] <= budget
    assert one.obeyed_by(plan.placement).all()
    if budget == 0:
        kept = plan.placement.rank_copies
        assert (kept == one.current.rank_copies).all()


@pytest.mark.parametrize("seed", range(6))
def test_a_legal_live_plan_can_always_be_kept(seed: int) -> None:
    """Whatever rule it was made under: if it obeys this one, no move is needed to keep it."""
    rng = np.random.default_rng(seed)
    topology = Topology(4, 2)
    loads = rng.gamma(0.7, 100, (2, 3, 2, 8))
    current = solve(Problem(loads[0], topology, 3, node_rule="free"), settings=QUICK).placement
    one = Problem(loads[1], topology, 3, node_rule="home", current=current, max_moves=0)
    assert one.obeyed_by(current).all(), "homes default to the first copy"
    assert solve(one, settings=QUICK).summary["moves"] == 0


def test_a_larger_budget_is_never_worse() -> None:
    """The frontier rises, from what the live plan is worth to what a fresh plan is."""
    one = _drifted()
    plan = solve(one, settings=QUICK)
    balance = [point["mean_balancedness"] for point in plan.frontier]
    moves = [point["moves"] for point in plan.frontier]
    assert len(plan.frontier) == 7
    assert moves == sorted(moves) and moves[0] == 0
    assert balance[-1] > balance[0] + 0.1
    assert all(b >= a - 0.005 for a, b in pairwise(balance))
    assert plan.summary["moves"] == moves[-1]


def test_prices_decide_between_moves_and_balance() -> None:
    """Free moves are made, dear ones are not."""
    moves = [
        solve(replace(_drifted(), move_price=price), settings=QUICK).summary["moves"]
        for price in (0.0, 0.003, 0.02, 10.0)
    ]
    assert moves == sorted(moves, reverse=True)
    assert moves[0] > moves[-1] == 0


def test_the_same_plan_again_moves_nothing() -> None:
    """Planning for the same loads from the plan made for them keeps it, slot for slot."""
    one = problem(random_loads(4, 1, 4, 16), 4, 6)
    first = solve(one)
    again = solve(replace(one, current=first.placement, move_price=1e-6))
    assert again.summary["moves"] == 0
    same = first.placement.physical_to_logical == again.placement.physical_to_logical
    assert same.all()


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_experts_that_stay_keep_their_slots(seed: int) -> None:
    """Of a rank's experts those it keeps are in the slots they were in."""
    one = problem(random_loads(seed, 1, 2, 12), 4, 4)
    shuffled = np.random.default_rng(seed).permuted(
        linear(2, 12, 16, 4).physical_to_logical.reshape(2, 4, 4), axis=2
    )
    current = Placement(shuffled.reshape(2, 16), 12, 4)
    plan = solve(replace(one, current=current, max_moves=6), settings=QUICK).placement
    for layer in range(2):
        for rank in range(4):
            before = current.physical_to_logical[layer, rank * 4 : rank * 4 + 4]
            after = plan.physical_to_logical[layer, rank * 4 : rank * 4 + 4]
            for slot in range(4):
                assert before[slot] not in after or after[slot] == before[slot]


def test_ranks_are_renumbered_so_that_least_moves() -> None:
    """A live plan whose ranks are merely numbered otherwise needs no move."""
    one = problem(random_loads(5, 1, 3, 16), 4, 6)
    fresh = solve(one).placement
    order = [2, 0, 3, 1]
    turned = fresh.physical_to_logical.reshape(3, 4, 6)[:, order].reshape(3, 24)
    again = solve(replace(one, current=Placement(turned, 16, 4)))
    assert again.summary["moves"] == 0


@pytest.mark.parametrize("rule", ["strict", "home", "free"])
def test_a_lost_gpu_is_replaced_with_few_moves(rule: str) -> None:
    """The survivors keep what they hold, as far as the rules allow, and nobody holds nothing."""
    one = _drifted(rule)
    lost = replace(
        one, topology=Topology(4, 2, excluded_ranks=(3,)), max_moves=None, move_price=0.05
    )
    plan = solve(lost, settings=QUICK)
    assert one.current is not None
    assert plan.placement.excluded_ranks == (3,)
    assert lost.obeyed_by(plan.placement).all()
    fresh = solve(replace(lost, current=None, move_price=0.0), settings=QUICK)
    assert plan.summary["moves"] < migrate(one.current, fresh.placement).num_moves
    least = int((one.current.rank_copies[:, :3].sum(axis=1) == 0).sum())
    assert plan.summary["moves"] >= least


@pytest.mark.parametrize(("num_ranks", "slots"), [(6, 4), (2, 10), (4, 5), (4, 7)])
def test_other_numbers_of_gpus_and_slots_are_accepted(num_ranks: int, slots: int) -> None:
    """Scale-up and -down: ranks match by number, new ones start empty."""
    one = _drifted()
    other = replace(one, topology=Topology(num_ranks), slots_per_rank=slots, move_price=1.0)
    plan = solve(other, settings=QUICK)
    assert other.obeyed_by(plan.placement).all()
    new_slots = max(num_ranks - 4, 0) * slots * 3
    assert new_slots <= plan.summary["moves"] < num_ranks * slots * 3


def test_budgets_that_cannot_be_met_name_the_least() -> None:
    """A lost GPU's only copies must be sent somewhere."""
    one = replace(_drifted(), topology=Topology(4, 2, excluded_ranks=(0,)), max_moves=0)
    with pytest.raises(InfeasibleError, match=r"--max-moves \d+ is the least found"):
        solve(one, settings=QUICK)


def test_budgets_need_a_live_plan() -> None:
    """There is nothing to move from otherwise."""
    for limit in ({"max_moves": 3}, {"move_price": 0.1}):
        with pytest.raises(InputError, match="--current PLAN"):
            problem(np.ones(8), 4, 3, **limit)


def _points(*pairs: tuple[float, float]) -> list[Point]:
    none = np.empty(0, np.int64)
    return [Point(cost, peak, none, none) for cost, peak in pairs]


def test_budgets_are_pooled_by_the_steepest_steps() -> None:
    """Two layers share four moves: the one that gains more takes them, and what is left goes to
    any point that fits."""
    found = [_points((0, 10), (4, 2), (1, 9)), _points((0, 10), (4, 9), (2, 9.8))]
    assert [(p.cost, p.peak) for p in within(found, 4)] == [(4, 2), (0, 10)]
    assert [p.cost for p in within(found, 6)] == [4, 2]
    assert [p.cost for p in within(found, None)] == [4, 4]
    assert [p.cost for p in at_price(found, 1.0)] == [4, 0]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 9), st.integers(0, 99)), max_size=5),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 20),
)
def test_pooled_budgets_are_kept_and_used(layers: list[list[tuple[int, int]]], budget: int) -> None:
    """Never over budget, never worse than moving nothing, and no single better point still fits."""
    found = [_points((0, 100), *points) for points in layers]
    taken = within(found, budget)
    left = budget - sum(point.cost for point in taken)
    assert left >= 0
    for own, point in zip(found, taken, strict=True):
        assert point.peak <= 100
        assert not any(p.peak < point.peak and p.cost - point.cost <= left for p in own)


def test_live_homes_of_unequal_nodes_are_chosen_anew() -> None:
    """The engines' start puts more groups on one node than on another, which no plan may keep."""
    loads = np.random.default_rng(0).zipf(1.5, (1, 3, 32)).clip(max=500).astype(float)
    problem = Problem(
        loads, Topology(8, 2), slots_per_rank=6, num_groups=4, current=linear(3, 32, 48, 8, 2)
    )
    placement = solve(problem).placement
    assert problem.obeyed_by(placement).all()
