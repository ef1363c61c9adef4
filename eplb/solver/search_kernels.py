"""Descent of one layer to where no single change helps; legend in `kernels`.

Minimised is F = Σ_w max_r rank_load[r, w] plus the layer's `charge`.
"""

from typing import NamedTuple

import numpy as np

from .._arrays import Floats, Ints
from .kernels import njit
from .layer_kernels import (
    FREE,
    Layer,
    may_replace,
    may_swap,
    replace,
    replace_charge,
    swap,
    swap_charge,
)

# Changes of F smaller than this share of it are rounding, not progress.
_EPS = 1e-12
# Ranks tried as the source of a change, those with most load above the runner-up first.
_NUM_SOURCES = 4


class Peaks(NamedTuple):
    """Of each window: the three largest rank loads and their ranks."""

    top_W: Floats  # (3, W)
    who_W: Ints  # (3, W)


class Pair(NamedTuple):
    """Room to work in: of the windows in which one of two ranks is the busiest, which they are,
    the largest load of the other ranks, and the shares of the two ranks' slots."""

    busy_W: Ints
    rest_W: Floats
    share_KW: Floats  # (2K, W)


@njit
def descend(y: Layer, goal: float, replacing: bool) -> float:
    """Best swaps until none helps, then, if `replacing`, the best replacement, and so on; F."""
    num_windows = y.load_EW.shape[1]
    peaks = Peaks(np.empty((3, num_windows)), np.empty((3, num_windows), np.int64))
    light_R = np.arange(len(y.node_R))
    while True:
        total = _find_peaks(y, peaks)
        if total <= goal:
            return total
        source = _sources(y, peaks)
        c = d = -1
        if num_windows == 1:
            _lightest_first(y, light_R)
            gain, a, b = _best_swap_of_pair(y, light_R, goal)
            if a < 0:
                gain, a, b, c, d = _best_double_swap(y, light_R, goal)
        else:
            gain, a, b = _best_swap(y, peaks, source)
        if gain > _EPS * total:
            swap(y, a, b)
            if c >= 0:
                swap(y, c, d)
            continue
        if not replacing:
            return total
        gain, b, f = _best_replacement(y, peaks, source, goal)
        if gain <= _EPS * total:
            return total
        replace(y, b, f)


@njit
def _find_peaks(y: Layer, peaks: Peaks) -> float:
    """Fill in `peaks`; gives F. Where there are fewer ranks, the missing ones are −1 at load 0."""
    total = 0.0
    for w in range(y.rank_load_RW.shape[1]):
        one = two = three = -1.0
        i = j = k = -1
        for r in range(y.rank_load_RW.shape[0]):
            load = y.rank_load_RW[r, w]
            if load > one:
                one, two, three = load, one, two
                i, j, k = r, i, j
            elif load > two:
                two, three = load, two
                j, k = r, j
            elif load > three:
                three, k = load, r
        peaks.top_W[0, w], peaks.who_W[0, w] = one, i
        peaks.top_W[1, w], peaks.who_W[1, w] = max(two, 0.0), j
        peaks.top_W[2, w], peaks.who_W[2, w] = max(three, 0.0), k
        total += one
    return total


@njit
def _sources(y: Layer, peaks: Peaks) -> Ints:
    """The ranks whose relief can gain most, largest excess over the runner-up first."""
    num_ranks = len(y.node_R)
    excess_R = np.full(num_ranks, -1.0)
    for w in range(peaks.who_W.shape[1]):
        r = peaks.who_W[0, w]
        excess_R[r] = max(excess_R[r], 0.0) + peaks.top_W[0, w] - peaks.top_W[1, w]
    source = np.empty(_NUM_SOURCES, np.int64)
    for k in range(_NUM_SOURCES):
        best = 0
        for r in range(1, num_ranks):
            if excess_R[r] > excess_R[best]:
                best = r
        if excess_R[best] < 0.0:
            return source[:k]
        source[k] = best
        excess_R[best] = -1.0
    return source


@njit
def _lightest_first(y: Layer, light_R: Ints) -> None:
    """Put the ranks in order of their load in the only window; they nearly are already."""
    for k in range(1, len(light_R)):
        r, j = light_R[k], k - 1
        while j >= 0 and y.rank_load_RW[light_R[j], 0] > y.rank_load_RW[r, 0]:
            light_R[j + 1] = light_R[j]
            j -= 1
        light_R[j + 1] = r


@njit
def _best_swap_of_pair(y: Layer, light_R: Ints, goal: float) -> tuple[float, int, int]:
    """With one window: the swap that most lowers the larger load of the busiest rank and another.

    Two ranks may tie for the maximum; lowering F itself would then stop at once. Without prices
    the first swap that brings both ranks to the goal is taken, lightest partners first: such ranks
    are done with.
    """
    g = light_R[-1]
    top = y.rank_load_RW[g, 0]
    priced = y.off_price > 0.0 or y.move_price > 0.0
    gain, best_a, best_b = _EPS * top, -1, -1
    for h in light_R[:-1]:
        for a in range(g * y.K, g * y.K + y.K):
            if y.held_RE[h, y.slots_S[a]]:
                continue
            for b in range(h * y.K, h * y.K + y.K):
                move = y.share_EW[y.slots_S[a], 0] - y.share_EW[y.slots_S[b], 0]
                one = top - y.pace_R[g] * move
                two = y.rank_load_RW[h, 0] + y.pace_R[h] * move
                lowered = top - max(max(one, two), goal)
                if lowered > gain and may_swap(y, a, b):
                    if priced:
                        lowered -= swap_charge(y, a, b)
                    if lowered > gain:
                        gain, best_a, best_b = lowered, a, b
                        if not priced and max(one, two) <= goal:
                            return gain, best_a, best_b
    return gain, best_a, best_b


@njit
def _best_double_swap(y: Layer, light_R: Ints, goal: float) -> tuple[float, int, int, int, int]:
    """With one window and no prices: as `_best_swap_of_pair`, two slots of each rank at once."""
    g = light_R[-1]
    top = y.rank_load_RW[g, 0]
    gain, best = _EPS * top, (-1, -1, -1, -1)
    if y.off_price > 0.0 or y.move_price > 0.0:
        return gain, *best
    own = range(g * y.K, g * y.K + y.K)
    for h in light_R[:-1]:
        if y.rule != FREE and y.node_R[g] != y.node_R[h]:
            continue
        other = range(h * y.K, h * y.K + y.K)
        for a in own:
            if y.held_RE[h, y.slots_S[a]]:
                continue
            for c in own:
                if c <= a or y.held_RE[h, y.slots_S[c]]:
                    continue
                two_e = y.share_EW[y.slots_S[a], 0] + y.share_EW[y.slots_S[c], 0]
                for b in other:
                    if y.held_RE[g, y.slots_S[b]]:
                        continue
                    for d in other:
                        move = two_e - y.share_EW[y.slots_S[b], 0] - y.share_EW[y.slots_S[d], 0]
                        larger = max(
                            top - y.pace_R[g] * move, y.rank_load_RW[h, 0] + y.pace_R[h] * move
                        )
                        lowered = top - max(larger, goal)
                        if d > b and lowered > gain and not y.held_RE[g, y.slots_S[d]]:
                            gain, best = lowered, (a, b, c, d)
                            if larger <= goal:
                                return gain, *best
    return gain, *best


@njit
def _best_swap(y: Layer, peaks: Peaks, source: Ints) -> tuple[float, int, int]:
    """The swap of a slot on a source rank that lowers F plus charge most: (gain, slot, slot)."""
    # Taken out of the record first: reading its arrays in the innermost loop costs a tenth.
    K, rank_load_RW, pace_R, top_W = y.K, y.rank_load_RW, y.pace_R, peaks.top_W
    order_W, first_R = _by_busiest(y, peaks)
    busy_W, rest_W = np.empty(len(order_W), np.int64), np.empty(len(order_W))
    share_KW = np.empty((2 * K, len(order_W)))
    pair = Pair(busy_W, rest_W, share_KW)
    priced = y.off_price > 0.0 or y.move_price > 0.0
    saved_RN = _most_saved(y)
    gain, best_a, best_b = 0.0, -1, -1
    for g in source:
        for h in range(len(y.node_R)):
            if h == g:
                continue
            num, hope = _gather(y, peaks, order_W, first_R, g, h, pair)
            saved = saved_RN[g, y.node_R[h]] + saved_RN[h, y.node_R[g]]
            if hope + saved <= gain:
                continue
            for a in range(K):
                for b in range(K):
                    lowered = 0.0
                    for i in range(num):
                        w = busy_W[i]
                        move = share_KW[a, i] - share_KW[K + b, i]
                        one = rank_load_RW[g, w] - pace_R[g] * move
                        two = rank_load_RW[h, w] + pace_R[h] * move
                        lowered += top_W[0, w] - max(max(one, two), rest_W[i])
                    if lowered + saved > gain and may_swap(y, g * K + a, h * K + b):
                        if priced:
                            lowered -= swap_charge(y, g * K + a, h * K + b)
                        if lowered > gain:
                            lowered = _less_raised(y, peaks, g * K + a, h * K + b, lowered, gain)
                        if lowered > gain:
                            gain, best_a, best_b = lowered, g * K + a, h * K + b
    return gain, best_a, best_b


@njit
def _most_saved(y: Layer) -> Floats:
    """At least what bringing one copy from rank r to node n can lower `charge` by, (R, N)."""
    num_ranks = len(y.node_R)
    # Ranks are numbered node by node, so that the last is on the last node.
    saved_RN = np.full((num_ranks, y.node_R[num_ranks - 1] + 1), y.move_price)
    if y.off_price > 0.0:
        for s in range(len(y.slots_S)):
            r, e = s // y.K, y.slots_S[s]
            if y.home_E[e] != y.node_R[r]:
                saved = y.move_price + y.off_price * y.total_E[e] / y.count_E[e]
                saved_RN[r, y.home_E[e]] = max(saved_RN[r, y.home_E[e]], saved)
    return saved_RN


@njit
def _by_busiest(y: Layer, peaks: Peaks) -> tuple[Ints, Ints]:
    """The windows ordered by their busiest rank, and where each rank's windows begin."""
    num_ranks, num_windows = y.rank_load_RW.shape
    first_R = np.zeros(num_ranks + 1, np.int64)
    for w in range(num_windows):
        first_R[peaks.who_W[0, w] + 1] += 1
    for r in range(num_ranks):
        first_R[r + 1] += first_R[r]
    next_R = first_R.copy()
    order_W = np.empty(num_windows, np.int64)
    for w in range(num_windows):
        r = peaks.who_W[0, w]
        order_W[next_R[r]] = w
        next_R[r] += 1
    return order_W, first_R


@njit
def _gather(
    y: Layer, peaks: Peaks, order_W: Ints, first_R: Ints, g: int, h: int, pair: Pair
) -> tuple[int, float]:
    """Fill in `pair` for ranks g and h; gives the number of windows in which one of them is the
    busiest, and what changes of the two can lower F by at the very most.

    Only in those windows can a swap of theirs gain; in the others F can only grow.
    """
    K, share_EW, slots_S, top_W = y.K, y.share_EW, y.slots_S, peaks.top_W
    busy_W, rest_W, share_KW = pair.busy_W, pair.rest_W, pair.share_KW
    num, hope = 0, 0.0
    for r in (g, h):
        for i in range(first_R[r], first_R[r + 1]):
            w = order_W[i]
            busy_W[num] = w
            rest_W[num] = _rest(peaks, w, g, h)
            hope += top_W[0, w] - rest_W[num]
            for k in range(K):
                share_KW[k, num] = share_EW[slots_S[g * K + k], w]
                share_KW[K + k, num] = share_EW[slots_S[h * K + k], w]
            num += 1
    return num, hope


@njit
def _less_raised(y: Layer, peaks: Peaks, a: int, b: int, lowered: float, beat: float) -> float:
    """`lowered` less what swapping slots a and b adds to F in the windows in which another rank is
    the busiest, or some number not above `beat`."""
    share_EW, rank_load_RW, top_W, who_W = y.share_EW, y.rank_load_RW, peaks.top_W, peaks.who_W
    g, h = a // y.K, b // y.K
    e, f = y.slots_S[a], y.slots_S[b]
    pace_g, pace_h = y.pace_R[g], y.pace_R[h]
    for w in range(share_EW.shape[1]):
        if who_W[0, w] != g and who_W[0, w] != h:
            move = share_EW[e, w] - share_EW[f, w]
            pair = max(rank_load_RW[g, w] - pace_g * move, rank_load_RW[h, w] + pace_h * move)
            if pair > top_W[0, w]:
                lowered -= pair - top_W[0, w]
                if lowered <= beat:
                    break
    return lowered


@njit
def _rest(peaks: Peaks, w: int, g: int, h: int) -> float:
    """The largest load in window w of the ranks other than g and h."""
    if peaks.who_W[0, w] != g and peaks.who_W[0, w] != h:
        return peaks.top_W[0, w]
    if peaks.who_W[1, w] != g and peaks.who_W[1, w] != h:
        return peaks.top_W[1, w]
    return peaks.top_W[2, w]


@njit
def _best_replacement(y: Layer, peaks: Peaks, source: Ints, goal: float) -> tuple[float, int, int]:
    """The replacement of a spare copy that lowers F plus charge most: (gain, slot, new expert).

    Tried are further copies of the experts on the source ranks, anywhere, and any expert in place
    of a spare copy on a source rank. With one window, the larger of the loads that change counts:
    two ranks may tie for the maximum.
    """
    gain, best_b, best_f = 0.0, -1, -1
    changed = np.empty(len(y.node_R), np.int64)
    change = np.empty((2, len(y.node_R)))
    order_W, first_R = _by_busiest(y, peaks)
    for g in source:
        for b in range(len(y.slots_S)):
            e, own = y.slots_S[b], b // y.K == g
            if y.count_E[e] <= y.least_E[e]:
                continue
            for i in range(len(y.count_E) if own else y.K):
                f = i if own else y.slots_S[g * y.K + i]
                if not may_replace(y, b, f):
                    continue
                more = replace_charge(y, b, f)
                num = changes_of(y, b, f, changed, change)
                if len(order_W) == 1:
                    after = _largest_of(y, 0, e, f, changed[:num], change)
                    lowered = peaks.top_W[0, 0] - max(after, goal)
                    # Prices decide between changes that lower loads, never for one that does not:
                    # a load that rises here would be lowered there again, for ever.
                    lowered -= more if lowered > 0.0 else np.inf
                else:
                    lowered = _lowered(
                        y, peaks, order_W, first_R, e, f, changed[:num], change, gain + more
                    )
                    lowered -= more
                if lowered > gain:
                    gain, best_b, best_f = lowered, b, f
    return gain, best_b, best_f


@njit
def changes_of(y: Layer, b: int, f: int, changed: Ints, change: Floats) -> int:
    """The ranks whose load changes once slot b holds f, and by which multiples of the loads of the
    expert it held and of f; gives how many ranks."""
    h, e = b // y.K, y.slots_S[b]
    more_e = 1.0 / (y.count_E[e] - 1) - 1.0 / y.count_E[e]
    less_f = 1.0 / y.count_E[f] - 1.0 / (y.count_E[f] + 1)
    num = 0
    for r in range(len(y.node_R)):
        if y.held_RE[r, e] or y.held_RE[r, f]:
            changed[num] = r
            change[0, num] = y.pace_R[r] * more_e if y.held_RE[r, e] else 0.0
            change[1, num] = -y.pace_R[r] * less_f if y.held_RE[r, f] else 0.0
            if r == h:
                change[0, num] = -y.pace_R[r] / y.count_E[e]
                change[1, num] = y.pace_R[r] / (y.count_E[f] + 1)
            num += 1
    return num


@njit
def _lowered(
    y: Layer,
    peaks: Peaks,
    order_W: Ints,
    first_R: Ints,
    e: int,
    f: int,
    changed: Ints,
    change: Floats,
    beat: float,
) -> float:
    """By how much these changes lower F, or some number not above `beat`."""
    lowered = 0.0
    # Windows whose busiest rank changes: only here F can fall.
    for r in changed:
        for i in range(first_R[r], first_R[r + 1]):
            w = order_W[i]
            peak = max(_largest_but(y, peaks, w, changed), _largest_of(y, w, e, f, changed, change))
            lowered += peaks.top_W[0, w] - peak
    if lowered <= beat:
        return lowered
    for w in range(y.load_EW.shape[1]):
        if not _among(peaks.who_W[0, w], changed):
            lowered -= max(_largest_of(y, w, e, f, changed, change) - peaks.top_W[0, w], 0.0)
            if lowered <= beat:
                break
    return lowered


@njit
def _largest_of(y: Layer, w: int, e: int, f: int, changed: Ints, change: Floats) -> float:
    """The largest load in window w of the ranks that change, after the change."""
    largest = 0.0
    for i in range(len(changed)):
        load = y.rank_load_RW[changed[i], w]
        load += change[0, i] * y.load_EW[e, w] + change[1, i] * y.load_EW[f, w]
        largest = max(largest, load)
    return largest


@njit
def _among(rank: int, ranks: Ints) -> bool:
    for r in ranks:  # noqa: SIM110  # numba compiles no generators
        if r == rank:
            return True
    return False


@njit
def _largest_but(y: Layer, peaks: Peaks, w: int, but: Ints) -> float:
    """The largest load in window w of the ranks that are not in `but`."""
    for k in range(3):
        if not _among(peaks.who_W[k, w], but):
            return peaks.top_W[k, w]
    largest = 0.0
    for r in range(len(y.node_R)):
        if not _among(r, but):
            largest = max(largest, y.rank_load_RW[r, w])
    return largest
