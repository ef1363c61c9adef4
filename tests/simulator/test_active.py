"""Slots that are active in turn: what is chosen, and what serving with it is like."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from eplb import metrics
from eplb.errors import InfeasibleError, InputError
from eplb.placement import Placement
from eplb.simulator import active

from ..helpers import random_loads
from ..strategies import placements

# Four experts on 2 GPUs × 3 slots: 0 and 1 have a copy on either GPU.
TWO = Placement(np.array([[0, 1, 2, 0, 1, 3]]), 4, 2)


def peaks(tokens: np.ndarray, placement: Placement, chosen: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """The busiest rank's load of each window and layer."""
    slots = active.active_loads(tokens, placement, chosen)
    return metrics.by_rank(slots, placement.num_ranks).max(axis=2)


def optimum(load: np.ndarray, placement: Placement, limit: int) -> float:  # type: ignore[type-arg]
    """The least peak of a one-layer placement, by trying all slots to serve with; else infinite."""
    slots, per_rank = placement.physical_to_logical[0], placement.slots_per_rank
    of_rank = [
        choice
        for size in range(min(limit, per_rank) + 1)
        for choice in itertools.combinations(range(per_rank), size)
    ]
    best = np.inf
    for choices in itertools.product(of_rank, repeat=placement.num_ranks):
        held = [slots[np.array(c, int) + r * per_rank] for r, c in enumerate(choices)]
        count = np.bincount(np.concatenate(held), minlength=len(load))
        if count.all():
            best = min(best, max((load / count)[experts].sum() for experts in held))
    return float(best)


def random_placement(seed: int, num_experts: int, num_ranks: int, per_rank: int) -> Placement:
    """One layer whose spare slots hold copies of random experts."""
    rng = np.random.default_rng(seed)
    more = rng.integers(0, num_experts, num_ranks * per_rank - num_experts)
    row = rng.permutation(np.concatenate([np.arange(num_experts), more]))
    return Placement(row[None], num_experts, num_ranks)


def test_a_hand_solved_choice() -> None:
    """With two active slots a GPU, the two experts without a choice take one each; of the two that
    can go either way the heavier joins the lighter."""
    tokens = np.array([[[8, 5, 4, 1]]])
    chosen = active.choose_slots(tokens, TWO, 2)
    assert chosen[0, 0].tolist() == [False, True, True, True, False, True]
    assert peaks(tokens, TWO, chosen).tolist() == [[9.0]]


def test_a_second_copy_is_switched_on_where_it_helps() -> None:
    """With a third slot a GPU, the heavy expert is served by both."""
    tokens = np.array([[[8, 1, 0, 0]]])
    chosen = active.choose_slots(tokens, TWO, 3)
    assert active.active_loads(tokens, TWO, chosen)[0, 0, [0, 3]].tolist() == [4, 4]


def test_slots_are_chosen_from_the_window_before() -> None:
    """Where the heavy expert changes in every window the choice is always a window late; the first
    window is served knowing nothing."""
    tokens = np.array([[[9, 3, 0, 6]], [[3, 9, 0, 6]], [[9, 3, 0, 6]]])
    result = active.dynamic_redundancy(tokens, TWO, 2)
    late = metrics.by_rank(result.slot_load, 2).max(axis=2)[:, 0]
    best = metrics.by_rank(result.oracle_slot_load, 2).max(axis=2)[:, 0]
    assert best.tolist() == [9, 9, 9]
    assert late[1:].tolist() == [15, 15]
    assert active.lower_bounds(tokens, TWO, 2)[:, 0].tolist() == [9, 9, 9]
    alike = active.choose_slots(np.ones((1, 1, 4)), TWO, 2)
    assert late[0] == peaks(tokens[:1], TWO, alike)[0, 0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.data())
def test_it_is_feasible_whenever_a_choice_exists(seed: int, data: st.DataObject) -> None:
    """All that is asked holds of the choice, and the bound is below the best of all choices; with
    no choice at all it says which number is enough."""
    num_ranks, per_rank = data.draw(st.sampled_from([(1, 3), (2, 2), (2, 3), (3, 2), (3, 3)]))
    num_experts = data.draw(st.integers(1, num_ranks * per_rank))
    limit = data.draw(st.integers(1, per_rank))
    placement = random_placement(seed, num_experts, num_ranks, per_rank)
    tokens = random_loads(seed, 1, 1, num_experts)
    best = optimum(tokens[0, 0], placement, limit)
    if np.isinf(best):
        least = next(
            n for n in range(per_rank + 1) if np.isfinite(optimum(tokens[0, 0], placement, n))
        )
        with pytest.raises(InfeasibleError, match=rf"{limit} active slots.*; {least} are enough"):
            active.choose_slots(tokens, placement, limit)
        return
    chosen = active.choose_slots(tokens, placement, limit)
    assert chosen.reshape(num_ranks, per_rank).sum(axis=1).max() <= limit
    assert len(np.unique(placement.physical_to_logical[0][chosen[0, 0]])) == num_experts
    assert peaks(tokens, placement, chosen)[0, 0] >= best * (1 - 1e-9)
    bound = active.lower_bounds(tokens, placement, limit)[0, 0]
    assert 0 < bound <= best * (1 + 1e-9)
    assert active.active_loads(tokens, placement, chosen).sum() == pytest.approx(tokens.sum())


def test_tiny_choices_are_the_best_ones() -> None:
    """Of 40 placements that can be tried in full, all but a few are served at the least peak and
    none far above it."""
    gaps = []
    for seed in range(40):
        placement = random_placement(seed, 5, 3, 3)
        tokens = random_loads(seed, 1, 1, 5)
        best = optimum(tokens[0, 0], placement, 2)
        if np.isfinite(best):
            chosen = active.choose_slots(tokens, placement, 2)
            gaps.append(peaks(tokens, placement, chosen)[0, 0] / best - 1)
    assert len(gaps) > 30
    assert np.mean(gaps) < 0.002
    assert np.max(gaps) < 0.05


@pytest.mark.parametrize("seed", range(20))
def test_tight_slots_are_matched(seed: int) -> None:
    """With hardly a slot to spare, experts move aside along chains: as many slots are enough as a
    maximum flow from experts to ranks needs."""
    placement = random_placement(seed, 24, 6, 6)
    for limit in (4, 5, 6):
        expert, rank = np.nonzero((placement.rank_copies[0] > 0).T)
        tail = np.concatenate([np.zeros(24, int), 1 + expert, 25 + np.arange(6)])
        head = np.concatenate([1 + np.arange(24), 25 + rank, np.full(6, 31)])
        capacity = np.concatenate([np.ones(24 + len(expert)), np.full(6, limit)]).astype(np.int32)
        flow = maximum_flow(csr_array((capacity, (tail, head)), shape=(32, 32)), 0, 31).flow_value
        if flow < 24:
            with pytest.raises(InfeasibleError):
                active.check_active_slots(placement, limit)
        else:
            active.check_active_slots(placement, limit)
            chosen = active.choose_slots(random_loads(seed, 3, 1, 24), placement, limit)
            assert chosen.reshape(3, 6, 6).sum(axis=2).max() <= limit


@settings(max_examples=40, deadline=None)
@given(placements(), st.integers(0, 2**32 - 1))
def test_all_active_is_a_choice(placement: Placement, seed: int) -> None:
    """With as many active slots as there are, serving is never less even than with all of them."""
    rng = np.random.default_rng(seed)
    shape = 2, placement.num_layers, placement.num_logical_experts
    tokens = rng.integers(0, 2, shape) * rng.integers(0, 100, shape)
    chosen = active.choose_slots(tokens, placement, placement.slots_per_rank)
    even = metrics.peak_loads(metrics.rank_loads(tokens, placement))
    assert (peaks(tokens, placement, chosen) <= even * (1 + 1e-9)).all()
    loads = active.active_loads(tokens, placement, chosen)
    assert loads.sum(axis=2) == pytest.approx(tokens.sum(axis=2))


def test_windows_do_not_depend_on_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each window is served by the same slots, however many go side by side; the seed decides."""
    placement = random_placement(3, 12, 4, 6)
    tokens = random_loads(3, 5, 1, 12)
    whole = active.choose_slots(tokens, placement, 4, seed=7)
    assert (active.choose_slots(tokens, placement, 4, seed=7) == whole).all()
    monkeypatch.setattr(active, "_BLOCK", 1)
    assert (active.choose_slots(tokens, placement, 4, seed=7) == whole).all()


def test_a_slow_gpu_is_relieved() -> None:
    """Where one GPU takes three times as long for a token, the other serves what either can."""
    tokens = np.array([[[6, 6, 0, 0]]])
    chosen = active.choose_slots(tokens, TWO, 3, np.array([3.0, 1.0]))
    served = active.active_loads(tokens, TWO, chosen)[0, 0]
    assert served.reshape(2, 3).sum(axis=1).tolist() == [3, 9]


def test_ranks_out_of_service_are_never_active() -> None:
    """Dead slots are not chosen, and need no room."""
    placement = Placement(np.array([[0, 1, -1, -1, 0, 2]]), 3, 3, excluded_ranks=(1,))
    chosen = active.choose_slots(np.array([[[10, 3, 7]]]), placement, 2)
    assert not chosen[0, 0, 2:4].any()
    assert active.active_loads(np.array([[[10, 3, 7]]]), placement, chosen).sum() == 20


def test_no_active_slot_is_refused() -> None:
    """A GPU without any active slot serves nothing."""
    with pytest.raises(InputError, match=r"^0 active slots a GPU; 1 to 3"):
        active.choose_slots(np.ones((1, 1, 4)), TWO, 0)


def test_the_bound_knows_how_many_copies_can_be_active() -> None:
    """With one slot a GPU to spare for three hot experts, the largest copy is bounded by counts,
    which the best split over all hosted copies does not see."""
    placement = Placement(np.array([[0, 1, 2, 0, 1, 2]]), 3, 2)
    tokens = np.array([[[10, 10, 10]]])
    assert active.lower_bounds(tokens, placement, 2)[0, 0] == pytest.approx(15)
    tokens = np.array([[[30, 30, 0]]])
    assert active.lower_bounds(tokens, placement, 2)[0, 0] == pytest.approx(30)
