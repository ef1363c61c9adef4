"""Moves between placements."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb.errors import RefusedError
from eplb.migration import migrate
from eplb.placement import Placement, linear

from .strategies import placements


def test_a_hand_counted_migration() -> None:
    """GPU 1 lacks expert 2 and receives it; GPU 0's order changes, which moves nothing."""
    old = Placement(np.array([[0, 1, 2, 0, 1, 3]]), 4, 2)
    new = Placement(np.array([[1, 0, 2, 0, 2, 3]]), 4, 2)
    change = migrate(old, new)
    assert change.received.tolist() == [[0, 1, 2]]
    assert change.dropped.tolist() == [[0, 1, 1]]
    assert change.copies_added.tolist() == [[0, 2, 1]]
    assert change.copies_dropped.tolist() == [[0, 1, 1]]


@given(placements(), st.randoms(use_true_random=False))
def test_the_order_of_slots_inside_a_rank_moves_nothing(placement: Placement, rng: object) -> None:
    """Shuffled slots of each rank are the same placement."""
    rows = placement.physical_to_logical.reshape(-1, placement.slots_per_rank).tolist()
    for row in rows:
        rng.shuffle(row)  # type: ignore[attr-defined]
    shape = placement.physical_to_logical.shape
    shuffled = Placement(
        np.array(rows).reshape(shape),
        placement.num_logical_experts,
        placement.num_ranks,
        placement.num_nodes,
    )
    change = migrate(placement, shuffled)
    assert change.num_moves == len(change.dropped) == len(change.copies_added) == 0


def test_a_new_rank_starts_empty() -> None:
    """Ranks match by number; everything a new one holds must be sent."""
    assert migrate(linear(1, 4, 4, 2), linear(1, 4, 8, 4)).num_moves == 4


def test_other_models_are_refused() -> None:
    """Different layers or experts cannot be moved between."""
    with pytest.raises(RefusedError, match="4 logical experts and the other 6"):
        migrate(linear(1, 4, 6, 2), linear(1, 6, 6, 2))


def test_copies_that_change_ranks_are_a_change() -> None:
    """Neither what a rank has at all nor how many copies there are tells: how often it has them."""
    old = Placement(np.array([[0, 0, 1, 0, 1, 1]]), 2, 2)
    new = Placement(np.array([[0, 1, 1, 0, 0, 1]]), 2, 2)
    change = migrate(old, new)
    assert change.num_moves == len(change.dropped) == len(change.copies_added) == 0
    assert change.changed.tolist() == [[0, 0], [0, 1]]
    assert migrate(old, Placement(np.array([[1, 0, 0, 1, 0, 1]]), 2, 2)).changed.size == 0
