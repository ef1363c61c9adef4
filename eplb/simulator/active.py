"""Dynamic redundancy: each rank hosts more experts than it serves with and chooses among them.

DeepSeek-V3's report describes it for prefill: every GPU hosts 16 experts, say, of which 9 are
active in a step. Every expert has an active copy, and its tokens are split evenly over those.

Chosen from a window's own loads, the slots are an oracle's: optimistic, a bound on what a server
reaches that looks at a batch before it chooses. Chosen from the loads before, they are what can be
had without looking ahead, and the figure to rely on.

To choose best is hard, as packing is a part of it, so that this is a search. By falling load, every
expert goes to its least loaded GPU; then copies of experts on the busiest GPUs are switched on, off
or over, other copies making room where they must, until no such change helps; and that again after
a few changes at random.

Axes: W windows, L layers, E experts, R ranks, S slots, C most copies.
"""

from typing import NamedTuple

import numpy as np

from .. import metrics
from .._arrays import Bools, Floats, Numbers
from ..errors import InfeasibleError, InputError
from ..placement import Placement
from .choosing import search
from .dispatch import best_split
from .switching import Switches

# Numbers in the largest array of a block of windows: 2^21 float64 are 16 MB.
_BLOCK = 2**21


class DynamicRedundancy(NamedTuple):
    """What slots serve when some of them are active; `lower_bounds` says what no choice passes."""

    slot_load: Floats  # (W, L, S), tokens: chosen from an earlier window
    oracle_slot_load: Floats  # (W, L, S): chosen from the window itself


def dynamic_redundancy(
    tokens: Numbers,
    placement: Placement,
    active_slots: int,
    pace: Floats | None = None,
    seed: int = 0,
) -> DynamicRedundancy:
    """What each slot serves of `tokens` (W, L, E) when `active_slots` of each rank are active at
    most, chosen from the loads of the window before and, beside that, from each window's own.

    The first window is served as if all experts were loaded alike. `pace` (R,) is the time of each
    rank per token, relative; 1 by default.

    Raises
    ------
    InputError
        When a rank would have no active slot, or more than it hosts.
    InfeasibleError
        When some expert would be left without an active copy.
    """
    oracle = choose_slots(tokens, placement, active_slots, pace, seed)
    alike = np.ones((1, *tokens.shape[1:]))
    unknown = choose_slots(alike, placement, active_slots, pace, seed)
    chosen = np.concatenate([unknown, oracle[:-1]])
    return DynamicRedundancy(
        active_loads(tokens, placement, chosen),
        active_loads(tokens, placement, oracle),
    )


def choose_slots(
    tokens: Numbers,
    placement: Placement,
    active_slots: int,
    pace: Floats | None = None,
    seed: int = 0,
) -> Bools:
    """The slots to serve each window of `tokens` (W, L, E) with, chosen from its own loads, of
    shape (W, L, S): every expert in one at least, `active_slots` on a rank at most.
    Never worse than all slots together where all may be active. The same `seed` gives the same.

    Raises
    ------
    InputError
        When a rank would have no active slot, or more than it hosts.
    InfeasibleError
        When some expert would be left without an active copy.
    """
    check_active_slots(placement, active_slots)
    pace = np.ones(placement.num_ranks) if pace is None else pace
    chosen = np.zeros((*tokens.shape[:2], placement.num_slots), bool)
    spread = active_slots * placement.num_slots / placement.num_logical_experts
    rows = max(placement.num_logical_experts, int(2 * spread**2))  # the changes to choose from
    size = max(1, _BLOCK // (placement.num_ranks * rows))
    for layer in range(placement.num_layers):
        for first in range(0, len(tokens), size):
            load = tokens[first : first + size, layer].astype(np.float64)
            switches = Switches(placement, layer, load, active_slots, pace)
            placed = switches.assign()
            assert placed, "checked above"
            search(switches, seed)
            chosen[first : first + size, layer] = switches.active
    return chosen


def active_loads(tokens: Numbers, placement: Placement, chosen: Bools) -> Floats:
    """Tokens that each slot serves, (W, L, S), when those `chosen` (W, L, S) share the tokens of
    their experts (W, L, E) evenly."""
    slots = np.maximum(placement.physical_to_logical, 0)
    count = np.zeros(tokens.shape, np.int64)
    window, layer, slot = np.nonzero(chosen)
    np.add.at(count, (window, layer, slots[layer, slot]), 1)
    share = metrics.even_split(tokens, np.maximum(count, 1))
    served: Floats = np.take_along_axis(share, slots[None], axis=2) * chosen
    return served


def lower_bounds(
    tokens: Numbers, placement: Placement, active_slots: int, pace: Floats | None = None
) -> Floats:
    """What the largest load × pace of a rank is at least, (W, L), whatever slots are chosen: that
    of the best split over all hosted copies, and that of the largest copy when the copies that can
    be active are given to the experts with the largest ones."""
    num_live = placement.num_ranks - len(placement.excluded_ranks)
    load = tokens.astype(np.float64)
    count = np.ones(load.shape, np.int64)
    most = np.minimum(placement.replica_count, (placement.rank_copies > 0).sum(axis=1))
    spare = min(active_slots * num_live, int(most.sum(axis=1).max())) - load.shape[2]
    rows = np.indices(load.shape[:2])
    for _ in range(spare):
        largest = (load / count).argmax(axis=2)
        more = count[*rows, largest] < most[rows[1], largest]
        if not more.any():
            break
        count[*rows, largest] += more
    least = np.ones(1) if pace is None else pace
    bound: Floats = (load / count).max(axis=2) * least.min()
    return np.maximum(bound, best_split(tokens, placement, pace).lower_bound)


def check_active_slots(placement: Placement, active_slots: int) -> None:
    """Raise `InfeasibleError` unless every expert can have an active copy, and `InputError` unless
    a rank has an active slot at all and hosts that many."""
    if not 1 <= active_slots <= placement.slots_per_rank:
        raise InputError(
            f"{active_slots} active slots a GPU; 1 to {placement.slots_per_rank}, the slots it"
            " hosts, is expected"
        )
    for layer in range(placement.num_layers):
        if _suffice(placement, layer, active_slots):
            continue
        least = next(
            number
            for number in range(active_slots + 1, placement.slots_per_rank + 1)
            if all(_suffice(placement, row, number) for row in range(placement.num_layers))
        )
        raise InfeasibleError(
            f"{active_slots} active slots a GPU leave an expert of row {layer} of the plan without"
            f" an active copy, wherever the others are active; {least} are enough for every layer"
        )


def _suffice(placement: Placement, layer: int, active_slots: int) -> bool:
    """Whether so many active slots of a rank give each expert of a layer one."""
    alike = np.ones((1, placement.num_logical_experts))
    pace = np.ones(placement.num_ranks)
    return Switches(placement, layer, alike, active_slots, pace).assign()
