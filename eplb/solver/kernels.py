"""The compiled loops that count and pack copies; those that search are in `search_kernels`.

Shape suffixes: W windows · E logical experts · S slots · R ranks · N nodes · K slots per rank.
Loads come multiplied by their window's weight, so that the objective, the weighted mean over
windows of the busiest rank's load, is F = Σ_w max_r rank_load[r, w]. Windows are the last axis
everywhere: the innermost loops run over them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
from numba.core import event

from .._arrays import Bools, Floats, Ints

njit = numba.njit(cache=True, nogil=True)


@njit
def greedy_counts(value_E: Floats, least_E: Ints, num_slots: int, most: int) -> Ints:
    """Copies of each expert, `least_E` to `most`, that fill `num_slots` with the least largest
    share of `value_E`.

    Giving each next slot to the largest share is optimal for min max value / count. That greedy
    passes through ceil(value / t) for every t, so it is begun from the smallest such t that fits.
    """
    total, spare = 0.0, num_slots
    for e in range(len(value_E)):
        total += value_E[e]
        spare -= least_E[e]
    count_E = least_E.copy()
    if spare > 0 and total > 0.0:
        low, high = 0.5 * total / num_slots, total / spare
        for _ in range(12):
            t = 0.5 * (low + high)
            if _count_for(value_E, least_E, most, t, count_E) <= num_slots:
                high = t
            else:
                low = t
        if _count_for(value_E, least_E, most, high * (1 + 1e-9), count_E) > num_slots:
            count_E[:] = least_E
    left = num_slots
    for e in range(len(value_E)):
        left -= count_E[e]
    for _ in range(left):
        best = -1
        largest = -1.0
        for e in range(len(value_E)):
            share = value_E[e] / count_E[e]
            if count_E[e] < most and share > largest:
                largest = share
                best = e
        count_E[best] += 1
    return count_E


@njit
def _count_for(value_E: Floats, least_E: Ints, most: int, t: float, count_E: Ints) -> int:
    """Fill in the fewest copies of each expert with which no share is above t; gives their sum."""
    total = 0
    for e in range(len(value_E)):
        count_E[e] = max(least_E[e], min(most, int(np.ceil(value_E[e] / t))))
        total += count_E[e]
    return total


@njit
def largest_shares(load_EW: Floats, least_E: Ints, num_slots: int, most: int) -> Floats:
    """Of each window, the least that the largest copy can be over all replica counts, (W,)."""
    num_experts, num_windows = load_EW.shape
    largest_W = np.zeros(num_windows)
    for w in range(num_windows):
        value_E = np.ascontiguousarray(load_EW[:, w])
        count_E = greedy_counts(value_E, least_E, num_slots, most)
        for e in range(num_experts):
            largest_W[w] = max(largest_W[w], value_E[e] / count_E[e])
    return largest_W


@njit
def spread(load_EW: Floats, order_E: Ints, quota_N: Ints) -> Ints:
    """The bin of each expert, `quota_N[n]` experts in bin n: in the order given, each to the bin
    whose fourth powers of load grow least."""
    num_experts, num_windows = load_EW.shape
    left_N = quota_N.copy()
    bin_load_NW = np.zeros((len(quota_N), num_windows))
    bin_E = np.empty(num_experts, np.int64)
    for e in order_E:
        best = -1
        least = np.inf
        for n in range(len(quota_N)):
            if left_N[n] > 0:
                cost = _growth(bin_load_NW[n], load_EW[e])
                if cost < least:
                    least = cost
                    best = n
        bin_E[e] = best
        left_N[best] -= 1
        bin_load_NW[best] += load_EW[e]
    return bin_E


@njit
def pack(
    share_EW: Floats,
    order_E: Ints,
    count_E: Ints,
    first_E: Ints,
    end_E: Ints,
    num_ranks: int,
    K: int,
) -> Ints:
    """Slots (S,) for `count_E` copies of each expert e on ranks `first_E[e]` to `end_E[e]` − 1,
    none twice on a rank: in the order given, each to the rank whose fourth powers of load grow
    least. There must be as many copies as slots on every range of ranks, and no more copies of an
    expert than ranks in its range."""
    num_experts, num_windows = share_EW.shape
    slots_S = np.full(num_ranks * K, -1, np.int64)
    fill_R = np.zeros(num_ranks, np.int64)
    held_RE = np.zeros((num_ranks, num_experts), np.bool_)
    rank_load_RW = np.zeros((num_ranks, num_windows))
    for e in order_E:
        for _ in range(count_E[e]):
            best = -1
            least = np.inf
            for r in range(first_E[e], end_E[e]):
                if fill_R[r] < K and not held_RE[r, e]:
                    cost = _growth(rank_load_RW[r], share_EW[e])
                    if cost < least:
                        least = cost
                        best = r
            if best < 0:
                best = _make_room(e, first_E[e], end_E[e], K, slots_S, fill_R, held_RE)
                for r in range(first_E[e], end_E[e]):
                    rank_load_RW[r] = 0.0
                    for s in range(r * K, r * K + fill_R[r]):
                        rank_load_RW[r] += share_EW[slots_S[s]]
            slots_S[best * K + fill_R[best]] = e
            fill_R[best] += 1
            held_RE[best, e] = True
            rank_load_RW[best] += share_EW[e]
    return slots_S


@njit
def _make_room(
    e: int, first: int, end: int, K: int, slots_S: Ints, fill_R: Ints, held_RE: Bools
) -> int:
    """A rank without e that was full and now has a free slot.

    All free slots are on ranks that hold e. Such a rank g holds fewer experts than any full rank h
    without e, so h has an expert that g lacks, which moves to g.
    """
    for g in range(first, end):
        if fill_R[g] == K:
            continue
        for h in range(first, end):
            if held_RE[h, e]:
                continue
            for b in range(h * K, h * K + K):
                f = slots_S[b]
                if not held_RE[g, f]:
                    slots_S[g * K + fill_R[g]] = f
                    fill_R[g] += 1
                    held_RE[g, f] = True
                    held_RE[h, f] = False
                    slots_S[b] = slots_S[h * K + K - 1]
                    fill_R[h] -= 1
                    return h
    return -1


@njit
def _growth(load_W: Floats, more_W: Floats) -> float:
    total = 0.0
    for w in range(len(load_W)):
        before = load_W[w] * load_W[w]
        after = (load_W[w] + more_W[w]) * (load_W[w] + more_W[w])
        total += after * after - before * before
    return total


@contextmanager
def on_compile(announce: Callable[[], None]) -> Iterator[None]:
    """Call `announce()` once if a kernel has to be compiled while the context is open.

    Compiled kernels are cached on disk, so this happens on the first run after an installation.
    """

    class Listener(event.Listener):
        announced = False

        def on_start(self, _event: Any) -> None:
            if not self.announced:
                self.announced = True
                announce()

        def on_end(self, _event: Any) -> None:
            pass

    with event.install_listener("numba:compile", Listener()):
        yield
