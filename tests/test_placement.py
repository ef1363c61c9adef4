"""Placements: their rules at birth and what is derived from them."""

import numpy as np
import pytest
from hypothesis import given

from eplb.errors import EplbError
from eplb.placement import Duplicate, Placement, linear

from .strategies import placements


@given(placements())
def test_maps_agree_with_each_other(placement: Placement) -> None:
    """Every slot is found under its expert and every listed slot holds the expert."""
    slots, table = placement.physical_to_logical, placement.logical_to_physical
    for layer in range(placement.num_layers):
        for expert in range(placement.num_logical_experts):
            listed = [slot for slot in table[layer, expert] if slot >= 0]
            assert listed == np.flatnonzero(slots[layer] == expert).tolist()
            assert placement.replica_count[layer, expert] == len(listed) >= 1


@given(placements())
def test_duplicates_are_exactly_the_repeated_experts(placement: Placement) -> None:
    """Listed copies agree with a count done by hand."""
    expected = []
    for layer, row in enumerate(placement.physical_to_logical.tolist()):
        for rank in range(placement.num_ranks):
            K = placement.slots_per_rank
            own = row[rank * K : rank * K + K]
            expected += [
                Duplicate(layer, rank, e, own.count(e))
                for e in sorted(set(own))
                if own.count(e) > 1
            ]
    assert placement.duplicates() == expected


def test_the_start_of_the_engines() -> None:
    """Slot p holds expert p mod E."""
    assert linear(1, 3, 4, 2).physical_to_logical.tolist() == [[0, 1, 2, 0]]


def test_homes_default_to_the_first_copy() -> None:
    """Without stated homes an expert belongs where its first copy is."""
    placement = Placement(np.array([[0, 1, 1, 2]]), 3, 4, num_nodes=2)
    assert placement.home_node.tolist() == [[0, 0, 1]]


def test_arrays_cannot_be_written() -> None:
    """What was checked at birth stays true."""
    given = np.array([[0, 1]])
    placement = Placement(given, 2, 2)
    given[0, 0] = 1
    assert placement.physical_to_logical.tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="read-only"):
        placement.physical_to_logical[0, 0] = 1


@pytest.mark.parametrize(
    ("slots", "kwargs", "message"),
    [
        ([[0, 0]], {}, "expert 1 has no slot in row 0"),
        ([[0, 2]], {}, r"\[0\]\[1\] is 2; an expert from 0 to 1"),
        ([[0, -1]], {}, r"\[0\]\[1\] is -1"),
        ([[0, 1, 0]], {}, "3 slots do not divide over 2 ranks"),
        ([[0, 1]], {"num_nodes": 3}, "2 ranks do not divide over 3 nodes"),
        ([[0.5, 1]], {}, "type float64"),
        ([0, 1], {}, "layers × slots"),
        ([[0, 1]], {"home_node": np.array([[0, 1]])}, "outside 0 to 0"),
        ([[0, 1]], {"home_node": np.array([[0]])}, "home_node has shape"),
        ([[0, 1]], {"excluded_ranks": (5,)}, "excluded rank 5"),
        ([[0, 1]], {"excluded_ranks": (0,)}, "−1, as its rank is excluded"),
    ],
)
def test_broken_rules_are_named(slots: object, kwargs: dict[str, object], message: str) -> None:
    """Each broken invariant is refused with what was found and expected."""
    with pytest.raises(EplbError, match=message):
        Placement(np.array(slots), 2, 2, **kwargs)  # type: ignore[arg-type]
