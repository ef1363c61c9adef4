"""From one placement to another: the copies that ranks must receive.

A move is one expert that a rank must receive because it held no copy of it before; the order of
slots inside a rank does not matter.
"""

from dataclasses import dataclass

import numpy as np

from ._arrays import Ints, frozen
from .errors import RefusedError
from .placement import Placement


@dataclass(frozen=True, eq=False)
class Migration:
    """What changes between two placements of one model.

    Parameters
    ----------
    received
        Integers of shape (M, 3): layer row, rank, expert of each copy a rank must receive.
    dropped
        Integers of shape (D, 3): layer row, rank, expert of each copy a rank gives up.
    copies_added, copies_dropped
        Integers of shape (A, 3) and (B, 3): layer row, expert, and by how many copies over all
        ranks the new placement holds more (fewer) of it.
    changed
        Integers of shape (C, 2): layer row and rank whose slots do not hold the same experts, each
        as often, in whatever order.
    """

    received: Ints
    dropped: Ints
    copies_added: Ints
    copies_dropped: Ints
    changed: Ints

    @property
    def num_moves(self) -> int:
        """M, the expert copies that must be sent."""
        return len(self.received)


def migrate(old: Placement, new: Placement) -> Migration:
    """What must be moved to get from `old` to `new`.

    Ranks match by number; a rank that only `new` has starts empty.

    Raises
    ------
    RefusedError
        When the two are of different numbers of layers or experts.
    """
    for name in ("num_layers", "num_logical_experts"):
        if getattr(old, name) != getattr(new, name):
            what = name.removeprefix("num_").replace("_", " ")
            raise RefusedError(
                f"one placement has {getattr(old, name)} {what} and the other"
                f" {getattr(new, name)}; they are of different models"
            )
    num_ranks = max(old.num_ranks, new.num_ranks)
    had, has = (_held(placement, num_ranks) for placement in (old, new))
    change = new.replica_count - old.replica_count
    return Migration(
        received=frozen(np.argwhere((has > 0) & (had == 0)), np.int64),
        dropped=frozen(np.argwhere((had > 0) & (has == 0)), np.int64),
        copies_added=_changed(np.maximum(change, 0)),
        copies_dropped=_changed(np.maximum(-change, 0)),
        changed=frozen(np.argwhere((had != has).any(axis=2)), np.int64),
    )


def _held(placement: Placement, num_ranks: int) -> Ints:
    """Copies of each expert on each rank, of shape (L, num_ranks, E)."""
    return np.pad(placement.rank_copies, ((0, 0), (0, num_ranks - placement.num_ranks), (0, 0)))


def _changed(change: Ints) -> Ints:
    where = np.argwhere(change)
    return frozen(np.column_stack([where, change[tuple(where.T)]]), np.int64)
