"""`auto`: replica counts and places searched together against every window.

Minimises      the weighted mean over windows of the busiest rank's load
Guarantees     no expert twice on a rank; the node rule; in-window never worse than `deepseek`
               where that map obeys both
Cost           about 25 ms a layer for 288 slots on 32 ranks and 32 windows; layers in parallel
Deterministic  yes, by seed; the number of threads does not matter
Use when       always, unless another engine's own answer is wanted
Reference      Counts by greedy on mean + 0.67 standard deviations over windows, so that experts
               that swing get copies; heaviest first packing by fourth powers; then descent by
               swaps and replacements, restarted from disturbed optima.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .. import metrics
from .._arrays import Bools, Floats, Ints
from ..placement import Placement
from ..problem import Problem
from . import hierarchical, kernels, nodes
from .search_kernels import layer_of, search

# How many standard deviations above its mean an expert is sized for; chosen by walk-forward tests.
SWING = 0.67
# Restarts a layer: as many as this work allows, in slots × windows a restart, but at least and at
# most so many. Small problems can be searched until nothing is left to find.
_WORK, _FEWEST, _MOST = 60_000, 10, 5_000


def place(
    problem: Problem,
    lower_bound: Floats,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, float], None] = lambda layer, peak: None,
) -> tuple[Ints, Ints | None, Bools]:
    """The slots (L, S), the home nodes (L, E) under a rule, and which layers were cut short (L,).

    Once `stop()` is true the layers not yet begun are packed without a search. `progress` hears
    of each finished layer and its peak load, from any thread.
    """
    deepseek = _deepseek_rows(problem)
    pairing = _Pairing(problem)
    slots = np.empty((problem.num_layers, problem.num_slots), np.int64)
    home = np.zeros((problem.num_layers, problem.num_experts), np.int64)
    stopped = np.zeros(problem.num_layers, bool)

    def place_layer(layer: int) -> None:
        stopped[layer] = stop()
        rng = np.random.default_rng([seed, layer])
        start, peak = _place_layer(
            problem, layer, pairing, lower_bound[layer], rng, deepseek[layer], stopped[layer]
        )
        slots[layer], home[layer] = start
        progress(layer, peak)

    # The kernels let go of Python's lock; a layer depends on no other, so order cannot matter.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in [pool.submit(place_layer, layer) for layer in range(problem.num_layers)]:
            done.result()
    in_order = np.sort(slots.reshape(*slots.shape[:1], problem.topology.num_ranks, -1), axis=2)
    return in_order.reshape(slots.shape), home if problem.binds_nodes else None, stopped


def _place_layer(
    problem: Problem,
    layer: int,
    pairing: "_Pairing",
    bound: float,
    rng: np.random.Generator,
    deepseek: "tuple[float, Ints, Ints] | None",
    hurry: bool,
) -> tuple[tuple[Ints, Ints], float]:
    """The slots and homes of one layer, and its peak load."""
    share = problem.window_weight / problem.window_weight.sum()
    loads = problem.loads[:, layer, :]
    load_EW = np.ascontiguousarray((loads * share[:, None]).T)
    mean = load_EW.sum(axis=1)
    swing = np.sqrt(np.maximum((share[:, None] * (loads - mean) ** 2).sum(axis=0), 0.0))
    home = pairing.homes(load_EW)
    slots = _first_slots(problem, load_EW, mean + SWING * swing, home)
    # In a hurry every map is good enough as it is.
    target = np.inf if hurry else bound
    kicks = min(max(_WORK // (problem.num_slots * problem.num_windows), _FEWEST), _MOST)
    disturb = rng.random((0 if hurry else kicks, 17))
    node_of_rank = problem.topology.node_of_rank.astype(np.int64)
    fixed_homes = problem.groups_on_nodes > 1

    def improve(slots: Ints, home: Ints) -> float:
        layer = layer_of(load_EW, node_of_rank, problem.binds_nodes, fixed_homes, slots, home)
        return float(search(layer, target, disturb))

    peak = improve(slots, home)
    if deepseek is not None and deepseek[0] < peak:
        # Its own homes and counts may be the better start, and are at the least as good an end.
        other, other_home = deepseek[1].copy(), deepseek[2].copy()
        other_peak = improve(other, other_home)
        if other_peak < peak:
            return (other, other_home), other_peak
    return (slots, home), peak


def _first_slots(problem: Problem, load_EW: Floats, value: Floats, home: Ints) -> Ints:
    """Greedy counts and a packing that obeys the node rule."""
    topology = problem.topology
    per_node = topology.ranks_per_node
    if not problem.binds_nodes:
        count = kernels.greedy_counts(value, problem.num_slots, topology.num_ranks)
        first, end = np.zeros_like(home), np.full_like(home, topology.num_ranks)
    else:
        count = np.empty_like(home)
        for node in range(topology.num_nodes):
            own = np.flatnonzero(home == node)
            count[own] = kernels.greedy_counts(
                value[own], problem.num_slots // topology.num_nodes, per_node
            )
        first, end = home * per_node, (home + 1) * per_node
    share_EW = load_EW / count[:, None]
    order = np.argsort(-share_EW.sum(axis=1), kind="stable")
    slots: Ints = kernels.pack(
        share_EW, order, count, first, end, topology.num_ranks, problem.slots_per_rank
    )
    return slots


class _Pairing:
    """Home nodes to start a layer from: the best pairing of whole groups with nodes, or a node
    for each expert where there are no groups to keep whole."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._groups, self._nodes = problem.groups_on_nodes, problem.topology.num_nodes
        self._ways: Ints | None = None
        if problem.binds_nodes and self._groups > 1:
            few = nodes.count_pairings(self._groups, self._nodes) <= nodes.MOST_PAIRINGS
            self._ways = nodes.pairings(self._groups, self._nodes) if few else None

    def homes(self, load_EW: Floats) -> Ints:
        """The home node of each expert of a layer."""
        num_experts = len(load_EW)
        if not self._problem.binds_nodes:
            return np.zeros(num_experts, np.int64)
        # A unit is what must share a home: a group, or a single expert.
        num_units = self._groups if self._groups > 1 else num_experts
        unit_load = load_EW.reshape(num_units, num_experts // num_units, -1).sum(axis=1)
        if self._ways is not None:
            peak = nodes.node_peaks(np.ascontiguousarray(unit_load.T), self._ways).sum(axis=1)
            node = self._ways[int(np.argmin(peak))]
        else:
            quota = np.full(self._nodes, num_units // self._nodes)
            quota[: num_units % self._nodes] += 1
            order = np.argsort(-unit_load.sum(axis=1), kind="stable")
            node = kernels.spread(unit_load, order, quota)
        return np.repeat(node, num_experts // num_units)


def _deepseek_rows(problem: Problem) -> "list[tuple[float, Ints, Ints] | None]":
    """The published greedy's peak load, slots and homes of each layer where they break no rule."""
    slots, _ = hierarchical.place(problem)
    topology = problem.topology
    placement = Placement(slots, problem.num_experts, topology.num_ranks, topology.num_nodes)
    legal = problem.obeyed_by(placement)
    peak = metrics.measure(problem.loads, placement, problem.window_weight).peak_load
    home = placement.home_node.astype(np.int64)
    return [
        (float(peak[layer]), slots[layer], home[layer]) if legal[layer] else None
        for layer in range(problem.num_layers)
    ]
