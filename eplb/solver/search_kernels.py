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
# Replacements are tried by one restart in so many: looking for them costs ten times what looking
# for swaps does, and restarts make random ones anyway.
_REPLACE_EVERY = 8


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
    """Of each window: the three largest rank loads and their ranks."""

    top_W: Floats  # (3, W)
    who_W: Ints  # (3, W)


class Pair(NamedTuple):
    """Room to work in: of the windows in which one of two ranks is the busiest, which they are,
    the largest load of the other ranks, and the shares of the two ranks' slots."""

    busy_W: Ints
    rest_W: Floats
    share_KW: Floats  # (2K, W)


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
    best = np.inf
    best_slots_S = y.slots_S.copy()
    best_home_E = y.home_E.copy()
    # One call of each large function: a compiled caller holds a copy of its callee for each.
    for k in range(len(kicks) + 1):
        y.slots_S[:] = best_slots_S
        y.home_E[:] = best_home_E
        _rebuild(y)
        if k > 0:
            _kick(y, kicks[k - 1])
        now = _descend(y, bound, k % _REPLACE_EVERY == 0)
        if now <= best:
            best = now
            best_slots_S[:] = y.slots_S
            best_home_E[:] = y.home_E
        if best <= bound * (1 + _EPS):
            break
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
def _descend(y: Layer, bound: float, replace: bool) -> float:
    """Best swaps until none helps, then, with `replace`, the best replacement, and so on; F."""
    num_windows = y.load_EW.shape[1]
    peaks = Peaks(np.empty((3, num_windows)), np.empty((3, num_windows), np.int64))
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
        if not replace:
            return total
        gain, b, f = _best_replacement(y, peaks, source)
        if gain <= _EPS * total:
            return total
        _replace(y, b, f)


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
    K = y.K
    node_R = y.node_R
    rank_load_RW = y.rank_load_RW
    top_W = peaks.top_W
    order_W, first_R = _by_busiest(y, peaks)
    busy_W, rest_W = np.empty(len(order_W), np.int64), np.empty(len(order_W))
    share_KW = np.empty((2 * K, len(order_W)))
    pair = Pair(busy_W, rest_W, share_KW)
    gain, best_a, best_b = 0.0, -1, -1
    for g in source:
        for h in range(len(node_R)):
            if h == g:
                continue
            num, hope = _gather(y, peaks, order_W, first_R, g, h, pair)
            if hope <= gain:
                continue
            for a in range(K):
                for b in range(K):
                    lowered = 0.0
                    for i in range(num):
                        w = busy_W[i]
                        move = share_KW[a, i] - share_KW[K + b, i]
                        one, two = rank_load_RW[g, w] - move, rank_load_RW[h, w] + move
                        lowered += top_W[0, w] - max(max(one, two), rest_W[i])
                    if lowered > gain and _may_swap(y, g * K + a, h * K + b):
                        lowered = _less_raised(y, peaks, g * K + a, h * K + b, lowered, gain)
                        if lowered > gain:
                            gain, best_a, best_b = lowered, g * K + a, h * K + b
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
def _gather(
    y: Layer, peaks: Peaks, order_W: Ints, first_R: Ints, g: int, h: int, pair: Pair
) -> tuple[int, float]:
    """Fill in `pair` for ranks g and h; gives the number of windows in which one of them is the
    busiest, and what changes of the two can lower F by at the very most.

    Only in those windows can a swap of theirs gain; in the others F can only grow.
    """
    K = y.K
    share_EW = y.share_EW
    slots_S = y.slots_S
    top_W = peaks.top_W
    busy_W = pair.busy_W
    rest_W = pair.rest_W
    share_KW = pair.share_KW
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
    K = y.K
    slots_S = y.slots_S
    load_EW = y.load_EW
    share_EW = y.share_EW
    rank_load_RW = y.rank_load_RW
    who_W = peaks.who_W
    top_W = peaks.top_W
    g, h = a // K, b // K
    e, f = slots_S[a], slots_S[b]
    for w in range(load_EW.shape[1]):
        if who_W[0, w] != g and who_W[0, w] != h:
            move = share_EW[e, w] - share_EW[f, w]
            pair = max(rank_load_RW[g, w] - move, rank_load_RW[h, w] + move)
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
def _best_replacement(y: Layer, peaks: Peaks, source: Ints) -> tuple[float, int, int]:
    """The replacement of a spare copy that lowers F most, as (gain, slot, new expert).

    Tried are further copies of the experts on the source ranks, anywhere, and any expert in place
    of a spare copy on a source rank.
    """
    gain, best_b, best_f = 0.0, -1, -1
    changed = np.empty(len(y.node_R), np.int64)
    change = np.empty((2, len(y.node_R)))
    every_E = np.arange(len(y.count_E))
    order_W, first_R = _by_busiest(y, peaks)
    for g in source:
        own_K = y.slots_S[g * y.K : g * y.K + y.K].copy()
        for b in range(len(y.slots_S)):
            if y.count_E[y.slots_S[b]] < 2:
                continue
            for f in every_E if b // y.K == g else own_K:
                if _may_replace(y, b, f):
                    num = _changes(y, b, f, changed, change)
                    lowered = _lowered(
                        y, peaks, order_W, first_R, y.slots_S[b], f, changed[:num], change, gain
                    )
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
def _changes(y: Layer, b: int, f: int, changed: Ints, change: Floats) -> int:
    """The ranks whose load changes once slot b holds f, and by which multiples of the loads of the
    expert it held and of f; gives how many ranks."""
    h, e = b // y.K, y.slots_S[b]
    more_e = 1.0 / (y.count_E[e] - 1) - 1.0 / y.count_E[e]
    less_f = 1.0 / y.count_E[f] - 1.0 / (y.count_E[f] + 1)
    num = 0
    for r in range(len(y.node_R)):
        if y.held_RE[r, e] or y.held_RE[r, f]:
            changed[num] = r
            change[0, num] = more_e if y.held_RE[r, e] else 0.0
            change[1, num] = -less_f if y.held_RE[r, f] else 0.0
            if r == h:
                change[0, num] = -1.0 / y.count_E[e]
                change[1, num] = 1.0 / (y.count_E[f] + 1)
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
    for sign in (-1.0, 1.0):
        # Take the load of both experts' copies off their ranks, and put it back when it is right.
        for r in range(len(y.node_R)):
            for w in range(y.load_EW.shape[1]):
                load = y.held_RE[r, e] * y.share_EW[e, w] + y.held_RE[r, f] * y.share_EW[f, w]
                y.rank_load_RW[r, w] += sign * load
        if sign < 0:
            y.slots_S[b] = f
            y.held_RE[h, e] = False
            y.held_RE[h, f] = True
            y.count_E[e] -= 1
            y.count_E[f] += 1
            y.share_EW[e] = y.load_EW[e] / y.count_E[e]
            y.share_EW[f] = y.load_EW[f] / y.count_E[f]


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
        elif u[k + 2] < 1 / 2:
            _exchange(y, y.slots_S[a], y.slots_S[b])
        elif u[k + 2] < 2 / 3 and y.strict and not y.fixed_homes:
            _relocate(y, a, b, y.slots_S[c])
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
