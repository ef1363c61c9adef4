"""Random problems and placements for property tests."""

import numpy as np
from hypothesis import strategies as st

from eplb.placement import Placement
from eplb.problem import Problem
from eplb.topology import Topology


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Small problems of every kind: nodes, groups, windows, ties and zeros."""
    num_nodes = draw(st.sampled_from([1, 1, 2, 3]))
    num_ranks = num_nodes * draw(st.integers(1, 4))
    slots_per_rank = draw(st.integers(1, 4))
    group_size = draw(st.integers(1, 3))
    num_groups = draw(st.sampled_from([1, num_nodes, 2 * num_nodes, 5]))
    most = max(1, num_ranks * slots_per_rank // (num_groups * group_size))
    num_experts = num_groups * group_size * draw(st.integers(1, most))
    node_rule = draw(st.sampled_from(["strict", "free"]))
    at_least = slots_per_rank * (num_nodes if node_rule == "strict" else 1)
    if not at_least <= num_experts <= num_ranks * slots_per_rank:
        num_experts, num_groups = num_ranks * slots_per_rank, 1
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 2)), num_experts
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    kind = draw(st.sampled_from(["skewed", "flat", "sparse", "fractions"]))
    loads = {
        "skewed": lambda: np.ceil(100 * rng.lognormal(0, 1.5, shape)),
        "flat": lambda: np.full(shape, 7.0),
        "sparse": lambda: rng.integers(0, 2, shape) * rng.integers(0, 100, shape).astype(float),
        "fractions": lambda: rng.random(shape),
    }[kind]()
    return Problem(
        loads,
        Topology(num_ranks, num_nodes),
        slots_per_rank,
        window_weight=rng.random(shape[0]) + 0.1,
        num_groups=num_groups,
        node_rule=node_rule,
    )


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    """Legal placements, same-rank copies included."""
    num_nodes = draw(st.integers(1, 2))
    num_ranks = num_nodes * draw(st.integers(1, 3))
    slots_per_rank = draw(st.integers(1, 4))
    num_slots = num_ranks * slots_per_rank
    num_experts = draw(st.integers(1, num_slots))
    num_layers = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = []
    for _ in range(num_layers):
        more = rng.integers(0, num_experts, num_slots - num_experts)
        rows.append(rng.permutation(np.concatenate([np.arange(num_experts), more])))
    return Placement(np.array(rows), num_experts, num_ranks, num_nodes)
