"""Proof: what no placement of a layer can do better than.

Every bound holds window by window, so their weighted mean bounds the weighted mean of peaks:

* area: the busiest rank serves at least the mean;
* largest copy: whatever the replica counts, some copy is at least this large, and some rank
  serves it (greedy counts minimise the largest share exactly);
* node level, under `strict` with routing groups: whichever way the groups are paired with nodes,
  the busiest node's mean rank load.
"""

import numpy as np

from .._arrays import Floats
from ..problem import Problem
from . import kernels, nodes


def lower_bounds(problem: Problem, strict: bool | None = None) -> Floats:
    """Of each layer, a lower bound on its peak load over all placements that obey the problem, or
    the same problem with (or without) the node rule `strict`, whether it can be met or not."""
    if strict is None:
        strict = problem.node_rule == "strict"
    strict = strict and problem.topology.num_nodes > 1
    share = problem.window_weight / problem.window_weight.sum()
    return np.array(
        [
            _layer_bound(problem, problem.loads[:, layer, :] * share[:, None], strict)
            for layer in range(problem.num_layers)
        ]
    )


def _layer_bound(problem: Problem, load: Floats, strict: bool) -> float:
    """The bound of one layer from its loads (W, E), multiplied by the windows' weights."""
    topology = problem.topology
    ranks_of_node = np.bincount(topology.node_of_rank[topology.live_ranks])
    most = int(ranks_of_node.max()) if strict else topology.num_live_ranks
    area = load.sum(axis=1) / topology.num_live_ranks
    ones = np.ones(load.shape[1], np.int64)
    load_EW = np.ascontiguousarray(load.T)
    # The largest copy may be on the fastest rank.
    largest = kernels.largest_shares(load_EW, ones, problem.num_slots, most) * topology.pace.min()
    at_least = np.maximum(area, largest)
    num_groups, num_nodes = problem.groups_on_nodes, topology.num_nodes
    if not strict or num_groups == 1 or not topology.is_plain:
        return float(at_least.sum())
    if nodes.count_pairings(num_groups, num_nodes) > nodes.MOST_PAIRINGS:
        return float(at_least.sum())
    group_load = load.reshape(len(load), num_groups, -1).sum(axis=2)
    peaks = nodes.node_peaks(group_load, nodes.pairings(num_groups, num_nodes))
    by_way = np.maximum(at_least, peaks / topology.ranks_per_node).sum(axis=1)
    return float(by_way.min())
