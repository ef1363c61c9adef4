"""What every strategy owes, and how good the default is."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from eplb import metrics
from eplb.errors import InputError
from eplb.formats.plans import plan_bytes
from eplb.formats.traces import read_trace
from eplb.plan import OPTIMAL_GAP
from eplb.problem import Problem
from eplb.solver import bounds, kernels, nodes
from eplb.solver.layer_planner import Settings
from eplb.solver.solve import STRATEGIES, Strategy, solve
from eplb.topology import Topology
from eplb.trace import LoadTrace

from ..helpers import (
    EIGHT_EXPERTS,
    PUBLISHED_LOADS,
    SAMPLES,
    best_peak,
    problem,
    random_loads,
)
from ..strategies import problems


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(one=problems())
@settings(max_examples=80, deadline=None)
def test_every_strategy_keeps_its_promises(strategy: Strategy, one: Problem) -> None:
    """A complete map in range, figures that are the map's own, a bound below the peak, and no
    twin or broken node rule where the strategy promises none."""
    if strategy == "exact":
        one = replace(one, node_rule="free")
    plan = solve(one, strategy, settings=Settings(effort=0.01))
    balance = metrics.measure(one.loads, plan.placement, one.window_weight)
    assert plan.peak_load is not None and plan.lower_bound is not None and plan.status is not None
    assert plan.peak_load.tolist() == balance.peak_load.tolist()
    assert (plan.lower_bound <= plan.peak_load * (1 + 1e-12)).all()
    assert plan.summary["mean_balancedness"] == balance.mean_balancedness
    assert plan.gap is not None
    for gap, status in zip(plan.gap, plan.status, strict=True):
        assert (gap <= OPTIMAL_GAP) == (status == "optimal")
    if strategy != "deepseek":
        assert plan.placement.duplicates() == []
    if strategy in ("auto", "exact"):
        assert one.obeyed_by(plan.placement).all()


@given(one=problems())
@settings(max_examples=80, deadline=None)
def test_auto_is_never_worse_than_a_legal_published_map(one: Problem) -> None:
    """In every layer where the published map obeys the node rule and has no twins."""
    auto, published = solve(one, "auto"), solve(one, "deepseek")
    assert auto.peak_load is not None and published.peak_load is not None
    legal = one.obeyed_by(published.placement)
    assert (auto.peak_load[legal] <= published.peak_load[legal] * (1 + 1e-9)).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_problem_gives_the_same_bytes(strategy: Strategy) -> None:
    """Threads, order and earlier runs do not matter."""
    one = problem(random_loads(5, 4, 6, 16), 4, 5, 2, node_rule="free")
    assert plan_bytes(solve(one, strategy)) == plan_bytes(solve(one, strategy))


def test_the_seed_is_used() -> None:
    """Another seed searches another way: some of ten give another map."""
    one = problem(random_loads(5, 4, 6, 16), 4, 5)
    maps = {
        solve(one, settings=Settings(seed=s)).placement.physical_to_logical.tobytes()
        for s in range(10)
    }
    assert len(maps) > 1


def test_unknown_strategies_are_named() -> None:
    """The message lists the known ones."""
    with pytest.raises(InputError, match="auto, exact, deepseek, linear are known"):
        solve(problem(EIGHT_EXPERTS, 8, 2), "magic")  # type: ignore[arg-type]


def test_eight_experts_are_placed_optimally() -> None:
    """The published greedy needs 232 and the best is 590 / 3, by enumeration of the literature."""
    plan = solve(problem(EIGHT_EXPERTS, 8, 2))
    assert plan.peak_load is not None and plan.lower_bound is not None
    assert plan.peak_load[0] == pytest.approx(590 / 3)
    assert plan.lower_bound[0] == 181.25


def test_exact_proves_what_auto_finds() -> None:
    """The eight experts' optimum is proven; with three windows too; node rules are refused."""
    plan = solve(problem(EIGHT_EXPERTS, 8, 2), "exact")
    assert plan.peak_load is not None and plan.lower_bound is not None
    assert plan.peak_load[0] == pytest.approx(590 / 3)
    assert plan.status == ("optimal",)
    many = problem(random_loads(2, 3, 2, 8), 4, 3)
    proven = solve(many, "exact")
    assert proven.status == ("optimal", "optimal")
    auto = solve(many).peak_load
    assert auto is not None and proven.peak_load is not None
    assert (proven.peak_load <= auto * (1 + 1e-9)).all()
    with pytest.raises(InputError, match="--node-rule free leaves them out"):
        solve(problem(np.ones(8), 4, 3, 2), "exact")


def test_the_published_example_has_a_better_answer() -> None:
    """Where copies may cross nodes; under its own node rule the published map is the best."""
    published = solve(problem(PUBLISHED_LOADS, 8, 2, 2, num_groups=4), "deepseek").peak_load
    strict = solve(problem(PUBLISHED_LOADS, 8, 2, 2, num_groups=4)).peak_load
    free = solve(problem(PUBLISHED_LOADS, 8, 2, 2, node_rule="free")).peak_load
    assert published is not None and strict is not None and free is not None
    assert strict.tolist() == published.tolist() == [156, 179.5]
    assert free[0] <= 136 and free[1] <= 172


TINY = [
    (num_experts, num_ranks, slots, num_nodes, num_groups, rule, num_windows, seed)
    for (num_experts, num_ranks, slots, num_nodes, num_groups) in (
        (4, 3, 2, 1, 1), (5, 3, 2, 1, 1), (4, 4, 2, 2, 1), (4, 4, 2, 2, 2), (6, 2, 3, 2, 2),
        (5, 2, 4, 1, 1), (6, 4, 2, 2, 1), (4, 4, 1, 2, 2), (3, 5, 1, 1, 1),
    )
    for rule in ("strict", "free")
    for num_windows in (1, 3)
    for seed in range(3)
]  # fmt: skip


@pytest.mark.parametrize("case", TINY, ids=lambda case: "-".join(map(str, case)))
def test_tiny_problems_against_brute_force(
    case: tuple[int, int, int, int, int, str, int, int],
) -> None:
    """No placement is below the bound, and the search finds the best there is."""
    num_experts, num_ranks, slots, num_nodes, num_groups, rule, num_windows, seed = case
    one = problem(
        random_loads(seed, num_windows, 1, num_experts), num_ranks, slots, num_nodes,
        num_groups=num_groups, node_rule=rule,
    )  # fmt: skip
    best = best_peak(one)
    bound = float(bounds.lower_bounds(one)[0])
    plan = solve(one)
    assert plan.peak_load is not None
    assert bound <= best * (1 + 1e-12)
    assert best <= plan.peak_load[0] * (1 + 1e-12)
    assert plan.peak_load[0] == pytest.approx(best)


def test_greedy_counts_are_optimal() -> None:
    """No other counts that fill the slots have a smaller largest share."""
    value = np.array([7.0, 4.0, 2.0, 1.0])
    for num_slots, most in ((4, 4), (6, 4), (8, 3), (11, 3)):
        count = kernels.greedy_counts(value, np.ones(4, np.int64), num_slots, most)
        assert count.sum() == num_slots
        assert count.max() <= most
        best = min(
            max(v / c for v, c in zip(value, other, strict=True))
            for other in itertools.product(range(1, most + 1), repeat=4)
            if sum(other) == num_slots
        )
        assert max(value / count) == best


@given(one=problems())
@settings(max_examples=60, deadline=None)
def test_counts_that_leave_no_easy_place_are_packed(one: Problem) -> None:
    """Packing never fails, however many copies an expert has: heaviest last is the hardest."""
    num_ranks, K = one.topology.num_ranks, one.slots_per_rank
    ones = np.ones(one.num_experts, np.int64)
    count = kernels.greedy_counts(one.loads.sum(axis=(0, 1)), ones, one.num_slots, num_ranks)
    share = np.ascontiguousarray(one.loads[:, 0].T)
    zeros = np.zeros(one.num_experts, np.int64)
    order = np.argsort(count, kind="stable")
    slots = kernels.pack(share, order, count, zeros, zeros + num_ranks, num_ranks, K)
    rows = slots.reshape(num_ranks, K)
    assert all(len(set(row)) == K for row in rows.tolist())
    assert np.bincount(slots, minlength=one.num_experts).tolist() == count.tolist()


def test_pairings_are_all_there_once() -> None:
    """105 ways for 8 groups on 4 nodes, every one different and equal in size."""
    ways = nodes.pairings(8, 4)
    assert len(ways) == nodes.count_pairings(8, 4) == 105
    assert len({tuple(way) for way in ways.tolist()}) == 105
    assert all((np.bincount(way, minlength=4) == 2).all() for way in ways)


def test_stopping_leaves_a_legal_plan() -> None:
    """Layers not yet begun are packed without a search and say so."""
    one = problem(random_loads(6, 4, 6, 16), 4, 5, 2)
    asked = iter([False, False, *[True] * 100])
    plan = solve(one, stop=lambda: next(asked))
    assert one.obeyed_by(plan.placement).all()
    assert plan.status is not None
    assert list(plan.status).count("stopped") == 4


def test_progress_hears_of_every_layer() -> None:
    """With the peak that the plan then has."""
    heard: dict[int, float] = {}
    plan = solve(problem(random_loads(7, 3, 5, 16), 4, 5), progress=heard.__setitem__)
    assert plan.peak_load is not None
    assert [heard[layer] for layer in range(5)] == pytest.approx(plan.peak_load)


def test_a_real_trace_is_balanced() -> None:
    """The recorded sample, one spare slot a GPU: from .78 to above .95 in the windows planned."""
    trace = read_trace(str(SAMPLES / "tiny-dsv3.npz")).trace
    assert isinstance(trace, LoadTrace)
    plan = solve(Problem.from_trace(trace, Topology(8)))
    assert plan.summary["mean_balancedness"] > 0.95
    assert plan.summary["worst_balancedness"] > 0.94
