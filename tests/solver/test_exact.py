"""The exact solver: bounds that hold, placements that reach them, work that is counted."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb.solver import exact, exact_kernels, exact_pairs
from eplb.solver.exact import Closed, close, full_slot_bound

from ..helpers import EIGHT_EXPERTS, best_peak, problem

TOLERANCE = 1e-6


def _start(num_experts: int, num_ranks: int, slots_per_rank: int) -> "np.ndarray":
    """Experts in turn: a placement without twins, whatever its peak."""
    return np.arange(num_ranks * slots_per_rank) % num_experts


def _tiny(seed: int, windows: int | None = None) -> tuple["np.ndarray", int, int, float]:
    """Loads (E, W) of windows of equal weight, ranks, slots a rank and the least peak."""
    rng = np.random.default_rng(seed)
    slots_per_rank = seed % 3 + 1
    num_ranks = int(rng.integers(2, 5)) if slots_per_rank == 1 else int(rng.integers(2, 4))
    most = min(num_ranks * slots_per_rank, 5)
    num_experts = int(rng.integers(min(slots_per_rank + 1, most), most + 1))
    num_windows = windows or int(rng.integers(1, 4))
    spread = rng.choice([0.3, 1.0, 2.0])
    loads = np.ceil(100 * rng.lognormal(0, spread, (num_windows, num_experts)))
    one = problem(loads[:, None, :], num_ranks, slots_per_rank)
    return loads.T / num_windows, num_ranks, slots_per_rank, best_peak(one)


def _closed(
    load_EW: "np.ndarray",
    num_ranks: int,
    slots_per_rank: int,
    tolerance: float = TOLERANCE,
    effort: float = 1.0,
) -> Closed:
    """What `close` makes of a poor start, once it has been checked against the loads."""
    load_EW = np.asarray(load_EW, float).reshape(len(load_EW), -1)
    start = _start(len(load_EW), num_ranks, slots_per_rank)
    closed = close(load_EW, num_ranks, slots_per_rank, start, 0.0, tolerance, effort)
    by_rank = closed.slots_S.reshape(num_ranks, slots_per_rank)
    assert all(len(set(row)) == slots_per_rank for row in by_rank.tolist()), "twins"
    count = np.bincount(closed.slots_S, minlength=len(load_EW))
    assert count.min() >= 1 and len(count) == len(load_EW)
    peak = (load_EW / count[:, None])[by_rank].sum(axis=1).max(axis=0).sum()
    assert closed.peak == pytest.approx(peak, rel=1e-12)
    assert closed.bound <= closed.peak
    return closed


@pytest.fixture
def by_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slots a rank without the enumeration, so that small cases need the other way too."""
    monkeypatch.setattr(exact, "_FEW_NODES", 0)


def test_eight_experts_close_at_the_known_optimum() -> None:
    """Counts 4, 3, 1, 3, 1, 1, 1, 2 on 8 ranks of 2 slots: 590 / 3, and nothing is below."""
    closed = _closed(EIGHT_EXPERTS, 8, 2, tolerance=1e-9)
    assert closed.peak == pytest.approx(590 / 3, rel=1e-12)
    assert closed.peak / closed.bound - 1 <= 1e-9


def test_the_optimum_is_reached_and_proven() -> None:
    """On 180 tiny layers of 1 to 3 slots a rank and 1 to 3 windows, as brute force has it."""
    for seed in range(180):
        load_EW, num_ranks, slots_per_rank, optimum = _tiny(seed)
        closed = _closed(load_EW, num_ranks, slots_per_rank)
        assert closed.bound <= optimum * (1 + 1e-12), seed
        assert closed.peak == pytest.approx(optimum, rel=2 * TOLERANCE), seed
        assert closed.peak <= closed.bound * (1 + TOLERANCE), seed


@pytest.mark.usefixtures("by_counts")
def test_two_slots_a_rank_are_exact_in_counts_alone() -> None:
    """Annealing, the programmes and the pairing reach and prove what brute force finds."""
    for seed in range(1, 181, 3):
        load_EW, num_ranks, _, optimum = _tiny(seed, windows=1)
        closed = _closed(load_EW, num_ranks, 2, effort=0.05)
        assert closed.bound <= optimum * (1 + 1e-12), seed
        assert closed.peak == pytest.approx(optimum, rel=2 * TOLERANCE), seed
        assert closed.peak <= closed.bound * (1 + TOLERANCE), seed


@pytest.mark.usefixtures("by_counts")
@pytest.mark.parametrize("load_E", [[900, 20, 10], [500, 499, 3, 2], [90, 90, 1], [0, 50, 0, 0]])
def test_a_dominant_expert_is_never_beside_itself(load_E: list[int]) -> None:
    """The best pairing would put it there; what parts the two has the least peak that can be."""
    num_ranks = 4 if len(load_E) == 3 else 3
    optimum = best_peak(problem(load_E, num_ranks, 2))
    closed = _closed(load_E, num_ranks, 2, effort=0.05)
    assert closed.peak == pytest.approx(optimum, rel=2 * TOLERANCE)
    assert closed.peak <= closed.bound * (1 + TOLERANCE)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_the_pairing_is_best_for_given_counts(data: st.DataObject) -> None:
    """No other way of putting the copies in pairs without twins has a lower peak, and the
    annealing knows that peak."""
    num_ranks = data.draw(st.integers(2, 4))
    num_experts = data.draw(st.integers(2, 2 * num_ranks))
    count_E = np.ones(num_experts, np.int64)
    for _ in range(2 * num_ranks - num_experts):
        count_E[data.draw(st.sampled_from(np.flatnonzero(count_E < num_ranks).tolist()))] += 1
    load_E = np.array(
        data.draw(st.lists(st.integers(0, 40), min_size=num_experts, max_size=num_experts)), float
    )
    share_E = load_E / count_E
    slots_S = exact_pairs.pair_up(load_E, count_E, num_ranks)
    assert (np.bincount(slots_S, minlength=num_experts) == count_E).all()
    assert (slots_S[::2] != slots_S[1::2]).all()
    peak = share_E[slots_S].reshape(-1, 2).sum(axis=1).max()
    assert peak == pytest.approx(_best_pairing(share_E, np.repeat(np.arange(num_experts), count_E)))
    order_E = np.argsort(-share_E, kind="stable")
    assert exact_kernels.pair_excess(share_E, count_E, order_E, 0.0)[1] == pytest.approx(peak)


def _best_pairing(share_E: "np.ndarray", copies: "np.ndarray") -> float:
    """The least peak over all ways of pairing the copies without twins."""
    if len(copies) == 0:
        return 0.0
    first, rest = copies[0], copies[1:]
    return min(
        (
            max(share_E[first] + share_E[e], _best_pairing(share_E, np.delete(rest, i)))
            for i, e in enumerate(rest)
            if e != first and (i == 0 or rest[i - 1] != e)
        ),
        default=np.inf,
    )


def test_the_full_slot_bound_holds() -> None:
    """It is never above the optimum of brute force, and above the mean load where that is low."""
    better = 0
    for seed in itertools.chain(range(1, 121, 3), range(2, 121, 3)):
        load_EW, num_ranks, slots_per_rank, optimum = _tiny(seed, windows=1)
        bound = full_slot_bound(load_EW[:, 0], num_ranks, slots_per_rank, 0.0, 2 * optimum)
        mean = load_EW.sum() / num_ranks
        assert mean <= bound <= optimum * (1 + 1e-12), seed
        better += bound > mean * 1.01
    assert better >= 3


def test_a_large_expert_needs_its_rank_nearly_alone() -> None:
    """100 can be split in two at most, and beside each half there is a copy of 1 or more."""
    assert full_slot_bound(np.array([100.0, 1.0, 1.0]), 2, 2, 0.0, 60.0) == pytest.approx(
        51.0, rel=1e-3
    )


def test_sixty_experts_are_proven_within_a_thousandth() -> None:
    """40 ranks of 2 slots: too many counts to enumerate."""
    load_E = np.ceil(1000 * np.random.default_rng(3).lognormal(0, 1, 60))
    closed = _closed(load_E, 40, 2, tolerance=1e-3)
    assert closed.peak <= closed.bound * (1 + 1e-3)


def test_the_same_layer_gives_the_same_answer() -> None:
    """No clock and no thread decides."""
    load_E = np.ceil(1000 * np.random.default_rng(7).lognormal(0, 1, 40))
    once, again = (_closed(load_E, 26, 2, tolerance=1e-5, effort=0.1) for _ in range(2))
    assert once.slots_S.tolist() == again.slots_S.tolist()
    assert once[1:] == again[1:]


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_nothing_gets_worse(seed: int) -> None:
    """Neither the placement nor the bound that are given, however little the effort is."""
    rng = np.random.default_rng(seed)
    num_windows, slots_per_rank = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    load_EW = np.ceil(100 * rng.lognormal(0, 1, (12, num_windows)))
    num_ranks = int(rng.integers(-(-12 // slots_per_rank), 13))
    start = _start(12, num_ranks, slots_per_rank)
    share_EW = load_EW / np.bincount(start)[:, None]
    before = share_EW[start.reshape(num_ranks, -1)].sum(axis=1).max(axis=0).sum()
    given_bound = load_EW.sum() / num_ranks
    closed = close(load_EW, num_ranks, slots_per_rank, start, given_bound, 1e-4, 0.002)
    assert closed.peak <= before * (1 + 1e-12)
    assert given_bound * (1 - 1e-12) <= closed.bound <= closed.peak


def test_a_layer_without_load_is_closed() -> None:
    """Zero is reached and proven at once."""
    assert _closed(np.zeros(5), 3, 2)[1:] == (0.0, 0.0)
