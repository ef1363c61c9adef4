"""`deepseek`: the greedy that DeepSeek published, for comparison and compatibility.

Minimises      nothing exactly: replicates the hottest, then packs heaviest first
Guarantees     equal slots per rank; not that copies of an expert are on different ranks
Cost           O(L · S · R), vectorised over layers: about 10 ms for 58 layers of 288 slots
Deterministic  yes; the same map as the original wherever loads have no ties
Use when       an engine's own answer is wanted, to compare with or to reproduce
Reference      DeepSeek's EPLB (`rebalance_experts`), DeepSeek-V3 technical report, section 3.4

Arithmetic as there: windows summed, then float32, stable descending sort, first maximum. It is
hierarchical (groups to nodes, then replicas inside a node, then ranks) iff the groups divide by
the nodes; otherwise every expert may go anywhere.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from .._arrays import Ints, Numbers
from ..problem import Problem

Singles = npt.NDArray[np.floating[Any]]


def place(problem: Problem) -> tuple[Ints, Ints | None]:
    """The slots (L, S) of every layer, and the home nodes (L, E) when it went by groups."""
    weight = problem.loads.sum(axis=0).astype(np.float32)
    num_groups, num_nodes = problem.num_groups, problem.topology.num_nodes
    hierarchical = num_groups % num_nodes == 0
    if not hierarchical:
        num_groups = num_nodes = 1
    num_layers, num_experts = weight.shape
    num_ranks, num_slots = problem.topology.num_ranks, problem.num_slots
    group_size, node_size = num_experts // num_groups, num_experts // num_nodes

    # Groups to nodes: the experts of node n, in order, are columns n·node_size and up of `by_node`.
    group_load = weight.reshape(num_layers, num_groups, group_size).sum(axis=-1, dtype=np.float32)
    node, place_in_node = _pack(group_load, num_nodes)
    position = (node * (num_groups // num_nodes) + place_in_node) * group_size
    columns = (position[:, :, None] + np.arange(group_size)).reshape(num_layers, num_experts)
    by_node = _inverse(columns)

    # Replicas inside each node; a row is now a layer and a node.
    load = np.take_along_axis(weight, by_node, axis=1).reshape(-1, node_size)
    copy_expert, count = _replicate(load, num_slots // num_nodes)

    # Copies to ranks inside each node.
    share = np.take_along_axis(load / count.astype(np.float32), copy_expert, axis=1)
    slots_per_rank = num_slots // num_ranks
    rank, place_in_rank = _pack(share, num_ranks // num_nodes)
    order = _inverse(rank * slots_per_rank + place_in_rank)
    local = np.take_along_axis(copy_expert, order, axis=1).reshape(num_layers, num_nodes, -1)
    column = local + np.arange(0, num_experts, node_size)[None, :, None]
    slots = np.take_along_axis(by_node, column.reshape(num_layers, num_slots), axis=1)
    home = np.repeat(node, group_size, axis=1) if hierarchical else None
    return slots, home


def _pack(weight: Singles, num_packs: int) -> tuple[Ints, Ints]:
    """Pack the items of each row into packs of equally many: heaviest first, each to the lightest
    pack that has room. Gives each item's pack and its place there, both of shape (rows, items)."""
    num_rows, num_items = weight.shape
    size = num_items // num_packs
    if size == 1:
        return np.tile(np.arange(num_items), (num_rows, 1)), np.zeros_like(weight, np.int64)
    rows = np.arange(num_rows)
    pack, place_in_pack = (np.empty((num_rows, num_items), np.int64) for _ in range(2))
    load = np.zeros((num_rows, num_packs), np.float32)
    fill = np.zeros((num_rows, num_packs), np.int64)
    for item in np.argsort(-weight, axis=1, kind="stable").T:
        lightest = np.argmin(np.where(fill < size, load, np.inf), axis=1)
        pack[rows, item] = lightest
        place_in_pack[rows, item] = fill[rows, lightest]
        load[rows, lightest] += weight[rows, item]
        fill[rows, lightest] += 1
    return pack, place_in_pack


def _replicate(weight: Singles, num_copies: int) -> tuple[Ints, Ints]:
    """The expert of each copy, (rows, num_copies), and copies of each expert, (rows, experts):
    one of each, then one more of whichever has the largest share."""
    num_rows, num_experts = weight.shape
    rows = np.arange(num_rows)
    expert = np.tile(np.arange(num_copies), (num_rows, 1))
    count = np.ones((num_rows, num_experts), np.int64)
    for copy in range(num_experts, num_copies):
        hottest = np.argmax(weight / count.astype(np.float32), axis=1)
        expert[:, copy] = hottest
        count[rows, hottest] += 1
    return expert, count


def _inverse(permutation: Ints) -> Ints:
    """The inverse of each row's permutation."""
    inverse: Numbers = np.empty_like(permutation)
    places = np.broadcast_to(np.arange(permutation.shape[1]), permutation.shape)
    np.put_along_axis(inverse, permutation, places, axis=1)
    return inverse
