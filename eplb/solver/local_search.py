"""`auto`: replica counts and places searched together against every window to plan for.

Minimises      the weighted mean over windows of the busiest rank's load, and under `home` the load
               served off its home node at a price
Guarantees     no expert twice on a rank; the node rule; unless cut short, in the recorded windows
               never worse than `deepseek` in any layer where that map obeys both
Cost           about 15 ms a layer for 288 slots on 32 ranks and 32 windows; layers in parallel
Deterministic  yes, by seed; the number of threads does not matter
Use when       always, unless another engine's own answer is wanted
Reference      Windows to come around the present level (`outlook`); counts by greedy on mean plus
               some standard deviations, so that experts that swing get copies; heaviest first
               packing by fourth powers; descent by swaps and replacements, restarted from disturbed
               optima (iterated local search). Under `home` annealing first.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from .._arrays import Bools, Floats, Ints
from ..problem import Problem
from .layer_kernels import HOME
from .layer_planner import LayerPlanner, Settings
from .pooling import Point, within


class Placed(NamedTuple):
    """Slots (L, S) on the live ranks, home nodes (L, E), and which layers were cut short (L,)."""

    slots: Ints
    home: Ints
    stopped: Bools


def place(
    problem: Problem,
    lower_bound: Floats,
    settings: Settings,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, float], None] = lambda layer, peak: None,
) -> Placed:
    """Place every layer afresh.

    Once `stop()` is true the layers not yet begun are packed without a search. `progress` hears
    of each finished layer and its peak load, from any thread.
    """
    planner = LayerPlanner(problem, lower_bound, settings)
    slots = np.empty((problem.num_layers, problem.num_slots), np.int64)
    home = np.zeros((problem.num_layers, problem.num_experts), np.int64)
    stopped = np.zeros(problem.num_layers, bool)

    capped = problem.max_off_home is not None and planner.rule == HOME
    points: list[list[Point]] = [[] for _ in range(problem.num_layers)]

    def place_layer(layer: int) -> None:
        stopped[layer] = stop()
        if capped and not stopped[layer]:
            points[layer] = planner.trade_off(layer)
            progress(layer, planner.peak(layer, points[layer][-1].slots))
            return
        slots[layer], home[layer], peak = planner.plan(layer, hurry=bool(stopped[layer]))
        progress(layer, peak)

    for_each_layer(problem.num_layers, place_layer)
    if capped:
        _take_points(problem, planner, points, slots, home)
    in_order = np.sort(slots.reshape(problem.num_layers, -1, problem.slots_per_rank), axis=2)
    return Placed(in_order.reshape(slots.shape), home, stopped)


def _take_points(
    problem: Problem,
    planner: "LayerPlanner",
    points: list[list[Point]],
    slots: Ints,
    home: Ints,
) -> None:
    """Fill in the placements that keep the mean share of load off home under its cap. Layers that
    were cut short have spent theirs."""
    assert problem.max_off_home is not None
    ready = [layer for layer in range(problem.num_layers) if points[layer]]
    spent = sum(
        planner.off_home(layer, slots[layer], home[layer])
        for layer in range(problem.num_layers)
        if not points[layer]
    )
    budget = problem.max_off_home * problem.num_layers - spent
    for layer, point in zip(ready, within([points[i] for i in ready], budget), strict=True):
        slots[layer], home[layer] = point.slots, point.home


def for_each_layer(num_layers: int, action: Callable[[int], None]) -> None:
    """Do it for every layer on all cores; no layer may depend on another, so order is free."""
    # The kernels let go of Python's lock.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for done in [pool.submit(action, layer) for layer in range(num_layers)]:
            done.result()
