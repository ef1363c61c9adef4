"""Which node each routing group is at home on: every way there is, and the best."""

from collections.abc import Iterator
from math import factorial

import numpy as np

from .._arrays import Floats, Ints

# DeepSeek-V3 has 105 ways for 8 groups on 4 nodes; 16 groups on 2 nodes have 6,435.
MOST_PAIRINGS = 10_000


def count_pairings(num_groups: int, num_nodes: int) -> int:
    """Ways to split groups into `num_nodes` equal sets; nodes are alike."""
    same = factorial(num_groups // num_nodes) ** num_nodes * factorial(num_nodes)
    return int(factorial(num_groups) // same)


def pairings(num_groups: int, num_nodes: int) -> Ints:
    """The node of each group, in every way, of shape (ways, G)."""
    size = num_groups // num_nodes

    def extend(node: list[int], fill: list[int]) -> Iterator[list[int]]:
        if len(node) == num_groups:
            yield node
            return
        used = sum(1 for n in fill if n)
        # A new node is always the lowest empty one, so that renumbered nodes are not told apart.
        for n in range(min(used + 1, num_nodes)):
            if fill[n] < size:
                yield from extend([*node, n], [*fill[:n], fill[n] + 1, *fill[n + 1 :]])

    return np.array(list(extend([], [0] * num_nodes)), np.int64)


def node_peaks(group_load: Floats, ways: Ints) -> Floats:
    """The busiest node's load of each way and window, of shape (ways, W), from the loads of the
    groups, (W, G)."""
    num_nodes = int(ways.max()) + 1
    peak = np.zeros((len(ways), len(group_load)))
    for n in range(num_nodes):
        np.maximum(peak, ((ways == n)[:, None, :] * group_load[None]).sum(axis=2), out=peak)
    return peak


def least_off_home(group_load: Floats, ways: Ints, balancedness: float) -> Floats:
    """Of each way, the least share of a layer's load that is served off its home node at that
    balancedness: what the groups of a node have beyond all that its ranks may serve."""
    num_nodes = int(ways.max()) + 1
    share = group_load / max(float(group_load.sum()), 1e-300)
    off = np.zeros(len(ways))
    for n in range(num_nodes):
        own = ((ways == n) * share).sum(axis=1)
        off += np.maximum(own - 1 / (num_nodes * balancedness), 0.0)
    return off
