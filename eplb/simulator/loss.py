"""What the loss of ranks does before anyone re-plans."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .. import metrics
from .._arrays import Floats, Ints
from ..errors import InputError
from ..placement import Placement
from ..trace import LoadTrace
from .replay import Dispatch


class Loss(NamedTuple):
    """What is left when ranks are lost.

    `lost` are the (layer row, expert) pairs without a copy, of shape (M, 2). `dispatch` splits the
    tokens of the others evenly over the copies that are left, and those of lost experts go nowhere.
    `ranks` are out of service, those included that were so before.
    """

    ranks: tuple[int, ...]
    lost: Ints
    dispatch: Dispatch


def lose(placement: Placement, ranks: Sequence[int]) -> Loss:
    """What the loss of `ranks` leaves of a placement.

    Raises
    ------
    InputError
        When a rank does not exist, or none would be left.
    """
    for rank in ranks:
        if not 0 <= rank < placement.num_ranks:
            raise InputError(f"GPU {rank}; the GPUs are numbered 0 to {placement.num_ranks - 1}")
    gone = tuple(sorted({*ranks, *placement.excluded_ranks}))
    if len(gone) == placement.num_ranks:
        raise InputError("every GPU would be lost; at least one must be left")
    copies = placement.rank_copies.copy()
    copies[:, gone] = 0
    left = copies.sum(axis=1)
    slots = np.maximum(placement.physical_to_logical, 0)
    rank_of_slot = np.arange(placement.num_slots) // placement.slots_per_rank
    serves = ~np.isin(rank_of_slot, gone) & (placement.physical_to_logical >= 0)

    def dispatch(trace: LoadTrace, _windows: Ints) -> Floats:
        share = metrics.even_split(trace.tokens, np.maximum(left, 1))
        on_slot: Floats = np.take_along_axis(share, slots[None], axis=2) * serves
        return on_slot

    return Loss(gone, np.argwhere(left == 0), dispatch)


def lost_share(loss: Loss, mean_load: Floats) -> float:
    """Of the mean load of experts, (L, E), the share that lost experts had."""
    total = mean_load.sum()
    return float(mean_load[tuple(loss.lost.T)].sum() / total) if total else 0.0
