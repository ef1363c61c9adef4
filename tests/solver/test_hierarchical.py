"""The published greedy, map for map."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb.solver import hierarchical
from eplb.solver.solve import solve

from ..helpers import EIGHT_EXPERTS, PUBLISHED_LOADS, PUBLISHED_MAP, problem, random_loads

F = np.float32


def test_the_published_example() -> None:
    """Two layers, 16 slots, 4 groups, 2 nodes, 8 GPUs: the map printed with the original."""
    plan = solve(problem(PUBLISHED_LOADS, 8, 2, 2, num_groups=4), "deepseek")
    assert plan.placement.physical_to_logical.tolist() == PUBLISHED_MAP


def test_the_published_greedy_wastes_a_slot() -> None:
    """On eight experts its busiest GPU has 232 tokens, and one GPU holds expert 1 twice."""
    plan = solve(problem(EIGHT_EXPERTS, 8, 2), "deepseek")
    assert plan.peak_load is not None
    assert plan.peak_load.tolist() == [232]
    assert [tuple(twin) for twin in plan.placement.duplicates()] == [(0, 7, 1, 2)]


def _balanced_packing(weight: list[float], num_packs: int) -> list[list[int]]:
    """One row, as the original describes it, with Python loops: items of each pack in order."""
    size = len(weight) // num_packs
    if size == 1:
        return [[item] for item in range(len(weight))]
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    load = [F(0)] * num_packs
    for item in sorted(range(len(weight)), key=lambda i: (-weight[i], i)):
        open_packs = [p for p in range(num_packs) if len(packs[p]) < size]
        pack = min(open_packs, key=lambda p: (load[p], p))
        packs[pack].append(item)
        load[pack] = F(load[pack] + F(weight[item]))
    return packs


def _one_layer(
    weight: "np.ndarray[tuple[int], np.dtype[np.float32]]",
    num_slots: int,
    num_groups: int,
    num_nodes: int,
    num_ranks: int,
) -> list[int]:
    """The published algorithm for one layer, one loop after another."""
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    size = len(weight) // num_groups
    group_load = [F(weight[g * size : (g + 1) * size].sum(dtype=F)) for g in range(num_groups)]
    slots: list[int] = []
    for groups in _balanced_packing(group_load, num_nodes):
        experts = [g * size + i for g in groups for i in range(size)]
        copies, count = list(range(len(experts))), [1] * len(experts)
        while len(copies) < num_slots // num_nodes:
            share = [F(weight[e]) / F(c) for e, c in zip(experts, count, strict=True)]
            hottest = int(np.argmax(share))
            copies.append(hottest)
            count[hottest] += 1
        load = [F(weight[experts[c]]) / F(count[c]) for c in copies]
        for pack in _balanced_packing(load, num_ranks // num_nodes):
            slots += [experts[copies[item]] for item in pack]
    return slots


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.data())
@settings(max_examples=60)
def test_equal_to_a_loop_by_loop_reading(
    seed: int, num_nodes: int, per_node: int, slots: int, data: st.DataObject
) -> None:
    """Vectorised over layers it is the same as one layer at a time."""
    num_ranks = num_nodes * per_node
    num_groups = data.draw(st.sampled_from([1, num_nodes, 2 * num_nodes, 5]))
    most = num_ranks * slots // num_groups
    if most == 0:
        num_groups, most = 1, num_ranks * slots
    num_experts = num_groups * data.draw(st.integers(1, most))
    if slots > num_experts:
        slots = 1
        num_experts, num_groups = num_ranks, 1
    loads = random_loads(seed, 3, num_experts)
    one = problem(loads, num_ranks, slots, num_nodes, num_groups=num_groups, node_rule="free")
    found, _ = hierarchical.place(one)
    expected = [
        _one_layer(row.astype(F), one.num_slots, num_groups, num_nodes, num_ranks) for row in loads
    ]
    assert found.tolist() == expected


def test_groups_that_do_not_divide_make_it_global() -> None:
    """Then copies may cross nodes and no homes are stated."""
    one = problem(random_loads(1, 1, 12), 4, 4, 2, num_groups=3)
    slots, home = hierarchical.place(one)
    assert home is None
    same, _ = hierarchical.place(problem(random_loads(1, 1, 12), 4, 4, 1, num_groups=3))
    assert slots.tolist() == same.tolist()


@pytest.mark.parametrize("num_nodes", [1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_repair_removes_every_twin_and_nothing_else(seed: int, num_nodes: int) -> None:
    """Repaired maps obey the rules that the published map obeyed; clean maps are left alone."""
    loads = random_loads(seed, 2, 8) ** 2
    one = problem(loads, 4, 4, num_nodes, num_groups=2)
    plain, mended = solve(one, "deepseek"), solve(one, "deepseek", repair=True)
    assert mended.placement.duplicates() == []
    assert one.obeyed_by(mended.placement).all()
    twins = {twin.layer for twin in plain.placement.duplicates()}
    for layer in set(range(2)) - twins:
        assert (
            mended.placement.physical_to_logical[layer].tolist()
            == plain.placement.physical_to_logical[layer].tolist()
        )


def test_repair_has_something_to_do() -> None:
    """The loads of the test above do make the published greedy place twins."""
    twins = [
        len(solve(problem(random_loads(seed, 2, 8) ** 2, 4, 4, 2, num_groups=2), "deepseek")
            .placement.duplicates())
        for seed in range(20)
    ]  # fmt: skip
    assert sum(twins) > 10


def test_repair_crosses_nodes_where_a_node_has_too_few_experts() -> None:
    """Three slots a rank and two experts a node: no node can mend itself."""
    loads = random_loads(5, 2, 8)
    one = problem(loads, 4, 3, 4, num_groups=4, node_rule="free")
    assert len(solve(one, "deepseek").placement.duplicates()) >= 4
    assert solve(one, "deepseek", repair=True).placement.duplicates() == []
