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


def lower_bounds(problem: Problem) -> Floats:
    """Of each layer, a lower bound on its peak load over all placements that obey the problem."""
    share = problem.window_weight / problem.window_weight.sum()
    return np.array(
        [
            _layer_bound(problem, problem.loads[:, layer, :] * share[:, None])
            for layer in range(problem.num_layers)
        ]
    )


def _layer_bound(problem: Problem, load: Floats) -> float:
    """The bound of one layer from its loads (W, E), multiplied by the windows' weights."""
    topology = problem.topology
    most = topology.ranks_per_node if problem.binds_nodes else topology.num_ranks
    area = load.sum(axis=1) / topology.num_ranks
    largest = kernels.largest_shares(np.ascontiguousarray(load.T), problem.num_slots, most)
    at_least = np.maximum(area, largest)
    num_groups, num_nodes = problem.groups_on_nodes, topology.num_nodes
    if not problem.binds_nodes or num_groups == 1:
        return float(at_least.sum())
    if nodes.count_pairings(num_groups, num_nodes) > nodes.MOST_PAIRINGS:
        return float(at_least.sum())
    group_load = load.reshape(len(load), num_groups, -1).sum(axis=2)
    peaks = nodes.node_peaks(group_load, nodes.pairings(num_groups, num_nodes))
    by_way = np.maximum(at_least, peaks / topology.ranks_per_node).sum(axis=1)
    return float(by_way.min())
