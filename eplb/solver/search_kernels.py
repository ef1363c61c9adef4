"""The compiled search of one layer; legend in `kernels`.

A swap exchanges two experts between ranks; a replacement turns a spare copy of one expert into a
further copy of another. No change puts an expert twice on a rank. Under `strict` an expert stays
on its home node; single copies may take their home along unless homes are fixed.
"""

from typing import NamedTuple

import numpy as np

from .._arrays import Bools, Floats, Ints
from .kernels import njit

# Changes of F smaller than this share of it are rounding, not progress.
_EPS = 1e-12
# Ranks tried as the source of a change, those with most load above the runner-up first.
_NUM_SOURCES = 4


class Layer(NamedTuple):
    """A layer's search: what is given, and its state, which is changed in place."""

    load_EW: Floats
    node_R: Ints
    strict: bool
    fixed_homes: bool
    K: int
    slots_S: Ints  # the expert of each slot
    home_E: Ints
    count_E: Ints
    held_RE: Bools  # whether a rank holds an expert
    share_EW: Floats  # load of one copy
    rank_load_RW: Floats


class Peaks(NamedTuple):
    """Of each window: the three largest rank loads, and the ranks of the first two."""

    top_W: Floats  # (3, W)
    who_W: Ints  # (2, W)


def layer_of(
    load_EW: Floats, node_R: Ints, strict: bool, fixed_homes: bool, slots_S: Ints, home_E: Ints
) -> Layer:
    """The search of a layer from `slots_S` and `home_E`, which it will change."""
    num_experts, num_windows = load_EW.shape
    num_ranks = len(node_R)
    return Layer(
        load_EW,
        node_R,
        strict,
        fixed_homes,
        len(slots_S) // num_ranks,
        slots_S,
        home_E,
        np.zeros(num_experts, np.int64),
        np.zeros((num_ranks, num_experts), np.bool_),
        np.empty((num_experts, num_windows)),
        np.empty((num_ranks, num_windows)),
    )


@njit
def search(y: Layer, bound: float, kicks: Floats) -> float:
    """Improve the layer until no single change lowers F; give F.

    Each row of `kicks` (rounds, 17), uniform numbers in [0, 1), disturbs the best slots found and
    descends again, until F reaches `bound`.
    """
    _rebuild(y)
    best = _descend(y, bound)
    best_slots_S = y.slots_S.copy()
    best_home_E = y.home_E.copy()
    for k in range(len(kicks)):
        if best <= bound * (1 + _EPS):
            break
        _kick(y, kicks[k])
        now = _descend(y, bound)
        if now <= best:
            best = now
            best_slots_S[:] = y.slots_S
            best_home_E[:] = y.home_E
        else:
            y.slots_S[:] = best_slots_S
            y.home_E[:] = best_home_E
            _rebuild(y)
    y.slots_S[:] = best_slots_S
    y.home_E[:] = best_home_E
    return best


@njit
def _rebuild(y: Layer) -> None:
    y.count_E[:] = 0
    y.held_RE[:] = False
    y.rank_load_RW[:] = 0.0
    for s in range(len(y.slots_S)):
        y.count_E[y.slots_S[s]] += 1
        y.held_RE[s // y.K, y.slots_S[s]] = True
    for e in range(len(y.count_E)):
        y.share_EW[e] = y.load_EW[e] / y.count_E[e]
    for s in range(len(y.slots_S)):
        y.rank_load_RW[s // y.K] += y.share_EW[y.slots_S[s]]


@njit
def _descend(y: Layer, bound: float) -> float:
    """Best swaps until none helps, then the best replacement, and so on; gives F."""
    num_windows = y.load_EW.shape[1]
    peaks = Peaks(np.empty((3, num_windows)), np.empty((2, num_windows), np.int64))
    while True:
        total = _find_peaks(y, peaks)
        if total <= bound * (1 + _EPS):
            return total
        source = _sources(y, peaks)
        if num_windows == 1:
            gain, a, b = _best_swap_of_pair(y, peaks.who_W[0, 0])
        else:
            gain, a, b = _best_swap(y, peaks, source)
        if gain > _EPS * total:
            _swap(y, a, b)
            continue
        gain, b, f = _best_replacement(y, total, source)
        if gain <= _EPS * total:
            return total
        _replace(y, b, f)


@njit
def _find_peaks(y: Layer, peaks: Peaks) -> float:
    """Fill in `peaks`; gives F."""
    total = 0.0
    for w in range(y.rank_load_RW.shape[1]):
        one = two = three = -1.0
        i = j = -1
        for r in range(y.rank_load_RW.shape[0]):
            load = y.rank_load_RW[r, w]
            if load > one:
                one, two, three = load, one, two
                i, j = r, i
            elif load > two:
                two, three = load, two
                j = r
            elif load > three:
                three = load
        peaks.top_W[0, w], peaks.top_W[1, w], peaks.top_W[2, w] = (
            one,
            max(two, 0.0),
            max(three, 0.0),
        )
        peaks.who_W[0, w], peaks.who_W[1, w] = i, j
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
        best = np.argmax(excess_R)
        if excess_R[best] < 0.0:
            return source[:k]
        source[k] = best
        excess_R[best] = -1.0
    return source


@njit
def _may_swap(y: Layer, a: int, b: int) -> bool:
    g, h = a // y.K, b // y.K
    e, f = y.slots_S[a], y.slots_S[b]
    if e == f or y.held_RE[g, f] or y.held_RE[h, e]:
        return False
    if not y.strict or y.node_R[g] == y.node_R[h]:
        return True
    return not y.fixed_homes and y.count_E[e] == 1 and y.count_E[f] == 1


@njit
def _best_swap_of_pair(y: Layer, g: int) -> tuple[float, int, int]:
    """With one window: the swap that most lowers the larger load of the busiest rank g and another.

    Two ranks may tie for the maximum; lowering F itself would then stop at once.
    """
    gain, best_a, best_b = 0.0, -1, -1
    for a in range(g * y.K, g * y.K + y.K):
        for b in range(len(y.slots_S)):
            move = y.share_EW[y.slots_S[a], 0] - y.share_EW[y.slots_S[b], 0]
            room = y.rank_load_RW[g, 0] - y.rank_load_RW[b // y.K, 0]
            lowered = min(move, room - move)
            if lowered > gain and _may_swap(y, a, b):
                gain, best_a, best_b = lowered, a, b
    return gain, best_a, best_b


@njit
def _best_swap(y: Layer, peaks: Peaks, source: Ints) -> tuple[float, int, int]:
    """The swap of a slot on a source rank that lowers F most, as (gain, slot, slot)."""
    order_W, first_R = _by_busiest(y, peaks)
    gain, best_a, best_b = 0.0, -1, -1
    for g in source:
        for h in range(len(y.node_R)):
            if h == g or _hope(peaks, order_W, first_R, g, h) <= gain:
                continue
            for a in range(g * y.K, g * y.K + y.K):
                for b in range(h * y.K, h * y.K + y.K):
                    if _may_swap(y, a, b):
                        lowered = _lowered(y, peaks, order_W, first_R, a, b, gain)
                        if lowered > gain:
                            gain, best_a, best_b = lowered, a, b
    return gain, best_a, best_b


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
def _hope(peaks: Peaks, order_W: Ints, first_R: Ints, g: int, h: int) -> float:
    """What changes of ranks g and h can lower F by at the very most.

    Only windows in which g or h is busiest can gain; in the others F can only grow.
    """
    hope = 0.0
    for r in (g, h):
        for i in range(first_R[r], first_R[r + 1]):
            hope += peaks.top_W[0, order_W[i]] - _rest(peaks, order_W[i], g, h)
    return hope


@njit
def _lowered(
    y: Layer, peaks: Peaks, order_W: Ints, first_R: Ints, a: int, b: int, beat: float
) -> float:
    """By how much swapping slots a and b lowers F, or some number not above `beat`."""
    g, h = a // y.K, b // y.K
    e, f = y.slots_S[a], y.slots_S[b]
    lowered = 0.0
    for r in (g, h):
        for i in range(first_R[r], first_R[r + 1]):
            w = order_W[i]
            move = y.share_EW[e, w] - y.share_EW[f, w]
            pair = max(y.rank_load_RW[g, w] - move, y.rank_load_RW[h, w] + move)
            lowered += peaks.top_W[0, w] - max(pair, _rest(peaks, w, g, h))
    if lowered <= beat:
        return lowered
    for w in range(len(order_W)):
        if peaks.who_W[0, w] != g and peaks.who_W[0, w] != h:
            move = y.share_EW[e, w] - y.share_EW[f, w]
            pair = max(y.rank_load_RW[g, w] - move, y.rank_load_RW[h, w] + move)
            if pair > peaks.top_W[0, w]:
                lowered -= pair - peaks.top_W[0, w]
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
def _best_replacement(y: Layer, total: float, source: Ints) -> tuple[float, int, int]:
    """The replacement of a spare copy that lowers F most, as (gain, slot, new expert).

    Tried are further copies of the experts on the source ranks, anywhere, and any expert in place
    of a spare copy on a source rank.
    """
    gain, best_b, best_f = 0.0, -1, -1
    peak_W = np.empty(y.load_EW.shape[1])
    every_E = np.arange(len(y.count_E))
    for g in source:
        own_K = y.slots_S[g * y.K : g * y.K + y.K].copy()
        for b in range(len(y.slots_S)):
            if y.count_E[y.slots_S[b]] < 2:
                continue
            for f in every_E if b // y.K == g else own_K:
                if _may_replace(y, b, f):
                    lowered = total - _replaced(y, b, f, peak_W)
                    if lowered > gain:
                        gain, best_b, best_f = lowered, b, f
    return gain, best_b, best_f


@njit
def _may_replace(y: Layer, b: int, f: int) -> bool:
    h = b // y.K
    if y.count_E[y.slots_S[b]] < 2 or y.held_RE[h, f]:
        return False
    return not y.strict or y.home_E[f] == y.node_R[h]


@njit
def _replaced(y: Layer, b: int, f: int, peak_W: Floats) -> float:
    """F once slot b holds f; `peak_W` is room to work in."""
    h, e = b // y.K, y.slots_S[b]
    more_e = 1.0 / (y.count_E[e] - 1) - 1.0 / y.count_E[e]
    less_f = 1.0 / y.count_E[f] - 1.0 / (y.count_E[f] + 1)
    share_f = 1.0 / (y.count_E[f] + 1)
    peak_W[:] = 0.0
    for r in range(len(y.node_R)):
        if r == h:
            for w in range(len(peak_W)):
                load = y.rank_load_RW[r, w] - y.share_EW[e, w] + y.load_EW[f, w] * share_f
                peak_W[w] = max(peak_W[w], load)
        elif y.held_RE[r, e] or y.held_RE[r, f]:
            plus = more_e if y.held_RE[r, e] else 0.0
            minus = less_f if y.held_RE[r, f] else 0.0
            for w in range(len(peak_W)):
                load = y.rank_load_RW[r, w] + y.load_EW[e, w] * plus - y.load_EW[f, w] * minus
                peak_W[w] = max(peak_W[w], load)
        else:
            for w in range(len(peak_W)):
                peak_W[w] = max(peak_W[w], y.rank_load_RW[r, w])
    return peak_W.sum()


@njit
def _swap(y: Layer, a: int, b: int) -> None:
    g, h = a // y.K, b // y.K
    e, f = y.slots_S[a], y.slots_S[b]
    y.slots_S[a], y.slots_S[b] = f, e
    y.held_RE[g, e] = y.held_RE[h, f] = False
    y.held_RE[g, f] = y.held_RE[h, e] = True
    for w in range(y.load_EW.shape[1]):
        move = y.share_EW[e, w] - y.share_EW[f, w]
        y.rank_load_RW[g, w] -= move
        y.rank_load_RW[h, w] += move
    if y.node_R[g] != y.node_R[h]:
        # Under `strict` only single copies cross nodes, and take their home along; without a node
        # rule homes mean nothing to the search.
        y.home_E[e], y.home_E[f] = y.node_R[h], y.node_R[g]


@njit
def _replace(y: Layer, b: int, f: int) -> None:
    h, e = b // y.K, y.slots_S[b]
    _lift(y, e, -1.0)
    _lift(y, f, -1.0)
    y.slots_S[b] = f
    y.held_RE[h, e] = False
    y.held_RE[h, f] = True
    y.count_E[e] -= 1
    y.count_E[f] += 1
    y.share_EW[e] = y.load_EW[e] / y.count_E[e]
    y.share_EW[f] = y.load_EW[f] / y.count_E[f]
    _lift(y, e, 1.0)
    _lift(y, f, 1.0)


@njit
def _lift(y: Layer, e: int, sign: float) -> None:
    """Add (or take away) the load of e's copies on the ranks that hold them."""
    for r in range(len(y.node_R)):
        if y.held_RE[r, e]:
            for w in range(y.load_EW.shape[1]):
                y.rank_load_RW[r, w] += sign * y.share_EW[e, w]


@njit
def _kick(y: Layer, u: Floats) -> None:
    """One to four random changes where they are legal: swaps, replacements, exchanges of two
    experts and, where experts may take their homes along, relocations."""
    num_slots = len(y.slots_S)
    for k in range(1, 2 + 4 * int(4 * u[0]), 4):
        a, b, c = int(u[k] * num_slots), int(u[k + 1] * num_slots), int(u[k + 3] * num_slots)
        if u[k + 2] < 1 / 3:
            if _may_replace(y, a, y.slots_S[b]):
                _replace(y, a, y.slots_S[b])
            elif y.strict and not y.fixed_homes:
                _relocate(y, a, b, y.slots_S[c])
        elif u[k + 2] < 1 / 2:
            _exchange(y, y.slots_S[a], y.slots_S[b])
        elif a // y.K != b // y.K and _may_swap(y, a, b):
            _swap(y, a, b)


@njit
def _exchange(y: Layer, e: int, f: int) -> None:
    """Where legal, all copies of e and f change places, and e and f their homes."""
    if e == f or (y.fixed_homes and y.strict and y.home_E[e] != y.home_E[f]):
        return
    for s in range(len(y.slots_S)):
        if y.slots_S[s] == e:
            y.slots_S[s] = f
        elif y.slots_S[s] == f:
            y.slots_S[s] = e
    y.home_E[e], y.home_E[f] = y.home_E[f], y.home_E[e]
    _rebuild(y)


@njit
def _relocate(y: Layer, a: int, b: int, f: int) -> None:
    """Where legal, the single copy in slot b moves, with its home, into the spare copy in slot a
    of another node, and leaves its slot to a further copy of f: the nodes' shares of the experts
    change, which swaps cannot do."""
    g, h = a // y.K, b // y.K
    e, d = y.slots_S[b], y.slots_S[a]
    if y.node_R[g] == y.node_R[h] or y.count_E[e] != 1 or y.count_E[d] < 2 or f in (d, e):
        return
    if y.home_E[f] != y.node_R[h] or y.held_RE[h, f]:
        return
    y.slots_S[a], y.slots_S[b] = e, f
    y.home_E[e] = y.node_R[g]
    _rebuild(y)
