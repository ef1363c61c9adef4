"""Same-rank copies removed from a map that has them, with the least harm to balance."""

import numpy as np

from .. import metrics
from .._arrays import Floats, Ints
from ..placement import Placement
from ..problem import Problem


def repair(problem: Problem, placement: Placement, inside_nodes: bool) -> Placement:
    """`placement` with every expert at most once on a rank.

    Each surplus copy changes places with a slot of another rank, or becomes a copy of another
    expert where that is not possible or worse; of all such changes the one with the least peak
    load. With `inside_nodes` nothing crosses nodes where that is possible at all.
    """
    # A rank with more slots than its node has experts must hold experts of other nodes.
    inside_nodes &= placement.slots_per_rank * placement.num_nodes <= placement.num_logical_experts
    share = problem.window_weight / problem.window_weight.sum()
    slots = placement.physical_to_logical.astype(np.int64)
    for layer in sorted({duplicate.layer for duplicate in placement.duplicates()}):
        load_EW = np.ascontiguousarray((problem.loads[:, layer, :] * share[:, None]).T)
        while (slot := _surplus_slot(slots[layer], placement.slots_per_rank)) is not None:
            slots[layer] = _mend(load_EW, slots[layer], slot, placement, inside_nodes)
    return Placement(
        slots,
        placement.num_logical_experts,
        placement.num_ranks,
        placement.num_nodes,
        placement.home_node if inside_nodes else None,
    )


def _surplus_slot(slots: Ints, slots_per_rank: int) -> int | None:
    """The first slot whose expert its rank already holds."""
    for slot, expert in enumerate(slots):
        if expert in slots[slot // slots_per_rank * slots_per_rank : slot]:
            return slot
    return None


def _mend(
    load_EW: Floats, slots: Ints, slot: int, placement: Placement, inside_nodes: bool
) -> Ints:
    """The best of all maps that differ in what `slot` holds and have one surplus copy fewer."""
    K = placement.slots_per_rank
    per_node = placement.num_ranks // placement.num_nodes
    by_rank = slots.reshape(-1, K)
    rank, expert = slot // K, slots[slot]
    node_of_slot = np.arange(len(slots)) // K // per_node
    reach = node_of_slot == rank // per_node if inside_nodes else np.ones(len(slots), bool)
    best, least = slots, np.inf
    for other in np.flatnonzero(reach):
        if slots[other] in by_rank[rank] or expert in by_rank[other // K]:
            continue
        trial = slots.copy()
        trial[slot], trial[other] = slots[other], slots[slot]
        best, least = min((best, least), (trial, _peak(load_EW, trial, K)), key=lambda x: x[1])
    for new in np.unique(slots[reach]):
        if new in by_rank[rank]:
            continue
        trial = slots.copy()
        trial[slot] = new
        best, least = min((best, least), (trial, _peak(load_EW, trial, K)), key=lambda x: x[1])
    assert best is not slots, "with fewer slots a rank than experts there always is another expert"
    return best


def _peak(load_EW: Floats, slots: Ints, slots_per_rank: int) -> float:
    alike = np.ones(len(slots) // slots_per_rank)
    return float(metrics.slot_peaks(load_EW, slots, alike).sum())
