"""The compiled loops of the exact solver, which compile when it is first used; legend in `kernels`.

`find_below` enumerates, `anneal_counts` searches replica counts for two slots a rank, and
`largest_refuted` is the full-slot bound. `goal` and `limit` are values of F to be reached.
"""

from typing import NamedTuple

import numpy as np

from .._arrays import Floats, Ints
from .kernels import njit

FOUND, NONE, SPENT = 1, 0, -1
# Sums of loads in another order differ by far less: a share too small to be told apart.
ROUNDING = 1e-9
# Slopes that the full-slot bound tries, and halvings of the price of a copy for each.
_NUM_THETAS, _NUM_PRICES = 40, 26


class Filling(NamedTuple):
    """A placement in the making: rows of slots are of the rank so far, rows of ranks before it."""

    load_SW: Floats  # of the slot's rank, without it and later slots
    peak_RW: Floats  # of the ranks before
    rest_RW: Floats  # the load that is left for this rank and the later ones


@njit
def find_below(
    load_EW: Floats, num_ranks: int, K: int, limit: float, budget: Ints, slots_S: Ints
) -> int:
    """FOUND, and `slots_S`, if a placement has F below `limit`; NONE if there is none; SPENT once
    `budget[0]` nodes are used up, of which the enumerations take what they need.

    Counts are enumerated expert by expert, the largest first; what each choice leaves possible is
    at least Σ_w of the largest copy so far, or of the mean load of a rank.
    """
    num_experts = len(load_EW)
    floor_EW = _empty_floors(load_EW, num_ranks)
    least_E = _fewest_copies(load_EW, floor_EW, num_ranks, limit)
    spare = num_ranks * K
    for e in range(num_experts):
        if least_E[e] > num_ranks:
            return NONE
        spare -= least_E[e]
    if spare < 0:
        return NONE
    if _num_ways(num_experts, spare) > budget[0]:
        return SPENT
    count_E = np.zeros(num_experts, np.int64)  # 0: not chosen yet
    spare_E = np.zeros(num_experts + 1, np.int64)
    spare_E[0] = spare
    e = 0
    while e >= 0:
        if e == num_experts:
            found = _fill(load_EW, count_E, num_ranks, K, limit, budget, slots_S)
            if found != NONE:
                return found
            e -= 1
            continue
        count = max(count_E[e] + 1, least_E[e])
        if e == num_experts - 1:
            count = max(count, least_E[e] + spare_E[e])  # nobody else takes what is left
        if count > min(num_ranks, least_E[e] + spare_E[e]):
            count_E[e] = 0
            e -= 1
            continue
        count_E[e] = count
        budget[0] -= 1
        if budget[0] < 0:
            return SPENT
        if _floor_with(floor_EW, e, load_EW, count) < limit:
            spare_E[e + 1] = spare_E[e] - (count - least_E[e])
            e += 1
    return NONE


@njit
def _empty_floors(load_EW: Floats, num_ranks: int) -> Floats:
    """Row e will say what no placement can go below once experts up to e − 1 have their counts;
    row 0 is the mean load of a rank."""
    num_experts, num_windows = load_EW.shape
    floor_EW = np.zeros((num_experts + 1, num_windows))
    for e in range(num_experts):
        for w in range(num_windows):
            floor_EW[0, w] += load_EW[e, w] / num_ranks
    return floor_EW


@njit
def _fewest_copies(load_EW: Floats, floor_EW: Floats, num_ranks: int, limit: float) -> Ints:
    """The fewest copies of each expert that any placement below `limit` has; `num_ranks` + 1 for
    an expert that cannot be small enough."""
    count_E = np.ones(len(load_EW), np.int64)
    for e in range(len(load_EW)):
        while count_E[e] <= num_ranks:
            total = 0.0
            for w in range(load_EW.shape[1]):
                total += max(floor_EW[0, w], load_EW[e, w] / count_E[e])
            if total < limit:
                break
            count_E[e] += 1
    return count_E


@njit
def _num_ways(num_experts: int, spare: int) -> float:
    """In how many ways `spare` further copies can be shared out, as a float: it may be huge."""
    ways = 1.0
    for i in range(1, min(spare, num_experts - 1) + 1):
        ways *= (num_experts - 1 + spare - i + 1) / i
    return ways


@njit
def _floor_with(floor_EW: Floats, e: int, load_EW: Floats, count: int) -> float:
    """The least F once e has `count` copies; row e + 1 of `floor_EW` gets it window by window."""
    total = 0.0
    for w in range(floor_EW.shape[1]):
        floor_EW[e + 1, w] = max(floor_EW[e, w], load_EW[e, w] / count)
        total += floor_EW[e + 1, w]
    return total


@njit
def _fill(
    load_EW: Floats,
    count_E: Ints,
    num_ranks: int,
    K: int,
    limit: float,
    budget: Ints,
    slots_S: Ints,
) -> int:
    """As `find_below`, for given counts.

    Ranks are alike, so each begins with the first copy left: any other order of the same ranks is
    the same placement. Within a rank the experts come in one order too, which excludes twins.
    """
    num_experts, num_slots = len(count_E), num_ranks * K
    share_EW, size_E = _shares(load_EW, count_E)
    order_E = _by_size(size_E)  # what does not fit shows early
    left_E = count_E.copy()
    at_S = np.full(num_slots, -1, np.int64)  # place in `order_E` of the slot's expert
    f = _empty_filling(load_EW, num_ranks, num_slots)
    budget[0] -= num_experts
    s = 0
    while s < num_slots:
        first = s % K == 0
        begin = 0 if first else at_S[s - 1] + 1
        if at_S[s] >= 0:
            left_E[order_E[at_S[s]]] += 1
            begin = num_experts if first else at_S[s] + 1
        at_S[s] = -1
        for at in range(begin, num_experts):
            e = order_E[at]
            if left_E[e] == 0:
                continue
            budget[0] -= 1
            if _floor(f, s, share_EW, e, num_ranks, K) < limit:
                at_S[s] = at
                break
            if first:
                break
        if budget[0] < 0:
            return SPENT
        if at_S[s] >= 0:
            left_E[order_E[at_S[s]]] -= 1
            _put(f, s, share_EW, order_E[at_S[s]], K)
            s += 1
        elif s == 0:
            return NONE
        else:
            s -= 1
    for s in range(num_slots):
        slots_S[s] = order_E[at_S[s]]
    return FOUND


@njit
def _shares(load_EW: Floats, count_E: Ints) -> tuple[Floats, Floats]:
    """Of each expert: the load of a copy by window, and in all."""
    share_EW, size_E = np.empty_like(load_EW), np.zeros(len(load_EW))
    for e in range(len(load_EW)):
        for w in range(load_EW.shape[1]):
            share_EW[e, w] = load_EW[e, w] / count_E[e]
            size_E[e] += share_EW[e, w]
    return share_EW, size_E


@njit
def _by_size(size_E: Floats) -> Ints:
    """The experts, the largest first. numpy's sort takes a second to compile."""
    order_E = np.arange(len(size_E))
    for e in range(1, len(size_E)):
        at = e
        while at > 0 and size_E[order_E[at - 1]] < size_E[e]:
            order_E[at] = order_E[at - 1]
            at -= 1
        order_E[at] = e
    return order_E


@njit
def _empty_filling(load_EW: Floats, num_ranks: int, num_slots: int) -> Filling:
    """No slot filled, all load left."""
    num_windows = load_EW.shape[1]
    rest_RW = np.zeros((num_ranks + 1, num_windows))
    for e in range(len(load_EW)):
        for w in range(num_windows):
            rest_RW[0, w] += load_EW[e, w]
    return Filling(
        np.zeros((num_slots + 1, num_windows)), np.zeros((num_ranks + 1, num_windows)), rest_RW
    )


@njit
def _floor(f: Filling, s: int, share_EW: Floats, e: int, num_ranks: int, K: int) -> float:
    """The least F once slot s holds e: some rank has the mean of what is left, or more."""
    r = s // K
    full = s % K == K - 1
    later = num_ranks - r - 1
    total = 0.0
    for w in range(share_EW.shape[1]):
        load = f.load_SW[s, w] + share_EW[e, w]
        peak = max(f.peak_RW[r, w], load)
        if not full:
            peak = max(peak, f.rest_RW[r, w] / (later + 1))
        elif later > 0:
            peak = max(peak, (f.rest_RW[r, w] - load) / later)
        total += peak
    return total


@njit
def _put(f: Filling, s: int, share_EW: Floats, e: int, K: int) -> None:
    """Slot s holds e."""
    r = s // K
    for w in range(share_EW.shape[1]):
        load = f.load_SW[s, w] + share_EW[e, w]
        if s % K == K - 1:
            f.load_SW[s + 1, w] = 0.0
            f.peak_RW[r + 1, w] = max(f.peak_RW[r, w], load)
            f.rest_RW[r + 1, w] = f.rest_RW[r, w] - load
        else:
            f.load_SW[s + 1, w] = load


@njit
def anneal_counts(
    load_E: Floats, count_E: Ints, most: int, goal: float, heat: float, uniform: Floats
) -> None:
    """Make the peak of two slots a rank smaller by other counts, of at most `most` copies each.

    Each row of `uniform` (trials, 3) takes a copy from one expert for another and keeps that if
    the load above `goal` grows by no more than a random amount that cools from `heat` to nothing.
    """
    num_experts, trials = len(load_E), len(uniform)
    share_E = np.empty(num_experts)
    for e in range(num_experts):
        share_E[e] = load_E[e] / count_E[e]
    order_E = _by_size(share_E)
    over, least_peak = pair_excess(share_E, count_E, order_E, goal)
    best_E = count_E.copy()
    for t in range(trials):
        allowed = -heat * (1.0 - t / trials) ** 2 * np.log(max(uniform[t, 2], 1e-300))
        e, f = int(uniform[t, 0] * num_experts), int(uniform[t, 1] * num_experts)
        # The next expert with a spare copy: most have none.
        for _ in range(num_experts):
            if count_E[f] > 1 and f != e:
                break
            f = (f + 1) % num_experts
        if count_E[f] < 2 or f == e or count_E[e] >= most:
            continue
        _shift(load_E, count_E, share_E, order_E, e, f)
        new_over, peak = pair_excess(share_E, count_E, order_E, goal)
        if new_over > over + allowed:
            _shift(load_E, count_E, share_E, order_E, f, e)
            continue
        over = new_over
        if peak < least_peak:
            least_peak = peak
            _copy(count_E, best_E)
            if peak <= goal:
                break
    _copy(best_E, count_E)


@njit
def _copy(from_E: Ints, to_E: Ints) -> None:
    for e in range(len(from_E)):
        to_E[e] = from_E[e]


@njit
def pair_excess(share_E: Floats, count_E: Ints, order_E: Ints, goal: float) -> tuple[float, float]:
    """The load above `goal`, summed over ranks, and the peak of the best pairing of these counts.

    That pairs the largest copy with the smallest and so on inwards. `order_E` has the experts by
    share, the largest first.
    """
    i, j = 0, len(order_E) - 1
    left_i, left_j = count_E[order_E[i]], count_E[order_E[j]]
    over, peak = 0.0, 0.0
    while i < j:
        num = min(left_i, left_j)
        load = share_E[order_E[i]] + share_E[order_E[j]]
        peak = max(peak, load)
        over += num * max(load - goal, 0.0)
        left_i -= num
        left_j -= num
        if left_i == 0:
            i += 1
            left_i = count_E[order_E[i]]
        if left_j == 0:
            j -= 1
            left_j = count_E[order_E[j]]
    if i == j:
        # One of the two was counted down, the other is the expert's full count again.
        twins = min(left_i, left_j) // 2
        more, load = _untwin(share_E, count_E, order_E, i, twins, goal)
        return over + more, max(peak, load)
    return over, peak


@njit
def _untwin(
    share_E: Floats, count_E: Ints, order_E: Ints, middle: int, twins: int, goal: float
) -> tuple[float, float]:
    """What it takes to part `twins` pairs of the expert in the middle: load above `goal`, peak.

    Each is parted against a pair (larger, smaller), whose larger copy decides: the smallest of
    the larger copies that have not already got a copy of this expert.
    """
    share = share_E[order_E[middle]]
    larger, smaller = 0, 0
    for at in range(middle):
        larger += count_E[order_E[at]]
    for at in range(middle + 1, len(order_E)):
        smaller += count_E[order_E[at]]
    skip = max(larger - smaller, 0)
    over, peak = 0.0, 0.0
    at = middle
    while twins > 0 and at > 0:
        at -= 1
        free = count_E[order_E[at]]
        skipped = min(free, skip)
        skip -= skipped
        num = min(free - skipped, twins)
        if num > 0:
            load = share + share_E[order_E[at]]
            peak = max(peak, load)
            over += num * max(load - goal, 0.0)
            twins -= num
    return over, peak


@njit
def _shift(load_E: Floats, count_E: Ints, share_E: Floats, order_E: Ints, e: int, f: int) -> None:
    """A copy more of e and one less of f."""
    count_E[e] += 1
    count_E[f] -= 1
    for changed in (e, f):
        share_E[changed] = load_E[changed] / count_E[changed]
        _move_in_order(order_E, share_E, changed)


@njit
def _move_in_order(order_E: Ints, share_E: Floats, e: int) -> None:
    """Put e where its share belongs."""
    at = 0
    while order_E[at] != e:
        at += 1
    while at > 0 and share_E[order_E[at - 1]] < share_E[e]:
        order_E[at] = order_E[at - 1]
        at -= 1
        order_E[at] = e
    while at < len(order_E) - 1 and share_E[order_E[at + 1]] > share_E[e]:
        order_E[at] = order_E[at + 1]
        at += 1
        order_E[at] = e


@njit
def largest_refuted(
    load_E: Floats, num_ranks: int, K: int, low: float, high: float, tolerance: float
) -> float:
    """The largest peak from `low` to `high`, to `tolerance`, that no placement reaches; else `low`.

    Suppose that no rank passes `goal`. A copy above goal / 2 is then the only one on its rank, and
    its K − 1 companions sum to at most goal − p. So for every theta, summed over such ranks,

        Σ (p − goal + (K − 1) theta)⁺ over copies p > goal / 2  ≤  Σ (theta − q)⁺ over all copies q.

    Left minus right is a sum over copies, and its least value over all replica counts is bounded
    from below by putting a price on copies. Above zero, no counts and no packing reach the goal.
    """
    for t in range(_NUM_THETAS):
        slope = 0.5 * ((t + 1) / _NUM_THETAS) ** 2
        refuted, reach = low, low * (1 + tolerance)
        # Most slopes do not beat the best so far, which the first try tells.
        while reach < high and _refutes(load_E, num_ranks, K, reach, slope * reach):
            refuted, reach = reach, min(high, 2 * reach - low)
        while reach > refuted * (1 + tolerance):
            goal = 0.5 * (refuted + reach)
            if _refutes(load_E, num_ranks, K, goal, slope * goal):
                refuted = goal
            else:
                reach = goal
        low = refuted
    return low


@njit
def _refutes(load_E: Floats, num_ranks: int, K: int, goal: float, theta: float) -> bool:
    """Whether left minus right is above zero for all counts."""
    num_experts, num_slots = len(load_E), num_ranks * K
    spare = num_slots
    least_E = np.ones(num_experts, np.int64)
    for e in range(num_experts):
        least_E[e] = max(1, int(np.ceil(load_E[e] / goal * (1 - ROUNDING))))
        if least_E[e] > num_ranks:
            return True
        spare -= least_E[e]
    if spare < 0:
        return True
    value_EC = _values(load_E, least_E, min(spare, num_ranks - 1), num_ranks, K, goal, theta)
    enough = ROUNDING * K * goal
    low, high = -K * goal, K * goal  # the price of a copy
    for _ in range(_NUM_PRICES):
        price = 0.5 * (low + high)
        total, copies = -price * num_slots, 0
        for e in range(num_experts):
            least, best = np.inf, 0
            for c in range(value_EC.shape[1]):
                value = value_EC[e, c] + (least_E[e] + c) * price
                if value < least:
                    least, best = value, c
            total += least
            copies += least_E[e] + best
        if total > enough:
            return True
        # The total is concave in the price, and its slope is known.
        slope = copies - num_slots
        if total + max(slope * (low - price), slope * (high - price)) <= enough:
            return False
        if slope > 0:
            low = price
        else:
            high = price
    return False


@njit
def _values(
    load_E: Floats, least_E: Ints, spare: int, most: int, K: int, goal: float, theta: float
) -> Floats:
    """Left minus right of all copies of e with 0, 1 … `spare` more than the least, (E, spare + 1);
    infinite above `most` copies."""
    value_EC = np.full((len(load_E), spare + 1), np.inf)
    for e in range(len(load_E)):
        for c in range(min(spare, most - least_E[e]) + 1):
            share = load_E[e] / (least_E[e] + c)
            value = -max(theta - share, 0.0)
            if share > 0.5 * goal * (1 + ROUNDING):
                value += max(share - goal + (K - 1) * theta, 0.0)
            value_EC[e, c] = value * (least_E[e] + c)
    return value_EC
