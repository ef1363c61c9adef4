"""Iterated local search of one layer: descend, disturb the best slots found, descend again.

The loop is plain Python: restarts are few and long, and compiled it would add a third to the time
that the kernels take to compile.
"""

import numpy as np

from .._arrays import Floats
from .layer_kernels import (
    FREE,
    STRICT,
    Layer,
    charge,
    may_replace,
    may_swap,
    rebuild,
    replace,
    swap,
)
from .search_kernels import descend

# Replacements are looked for by the last of so many restarts: that costs ten times what looking
# for swaps does, and restarts make random ones anyway.
_REPLACE_EVERY = 4


def search(y: Layer, goal: float, kicks: Floats) -> float:
    """Improve the layer until no single change helps; gives its peaks plus charge.

    Each row of `kicks` (rounds, 17), uniform numbers in [0, 1), disturbs the best slots found and
    descends again, until the peaks are not above `goal`. With one window nothing is gained below
    the goal.
    """
    best = np.inf
    slots_S, home_E = y.slots_S.copy(), y.home_E.copy()
    priced = y.off_price > 0.0 or y.move_price > 0.0
    for k in range(len(kicks) + 1):
        y.slots_S[:], y.home_E[:] = slots_S, home_E
        rebuild(y)
        if k > 0:
            _kick(y, kicks[k - 1])
        peaks = float(descend(y, goal, k % _REPLACE_EVERY == _REPLACE_EVERY - 1))
        now = peaks + (float(charge(y)) if priced else 0.0)
        if now <= best:
            best = now
            slots_S[:], home_E[:] = y.slots_S, y.home_E
        if peaks <= goal and not priced:
            break
    y.slots_S[:], y.home_E[:] = slots_S, home_E
    rebuild(y)
    return best


def _kick(y: Layer, u: Floats) -> None:
    """One to four random changes where they are legal: swaps, replacements, exchanges of two
    experts and, where experts may take their homes along, relocations. `u` holds 17 uniform
    numbers in [0, 1)."""
    num_slots = len(y.slots_S)
    for k in range(1, 2 + 4 * int(4 * u[0]), 4):
        a, b, c = int(u[k] * num_slots), int(u[k + 1] * num_slots), int(u[k + 3] * num_slots)
        if u[k + 2] < 1 / 3:
            if may_replace(y, a, y.slots_S[b]):
                replace(y, a, y.slots_S[b])
        elif u[k + 2] < 1 / 2:
            _exchange(y, y.slots_S[a], y.slots_S[b])
        elif u[k + 2] < 2 / 3 and y.rule == STRICT and not y.fixed_homes:
            _relocate(y, a, b, y.slots_S[c])
        elif a // y.K != b // y.K and may_swap(y, a, b):
            swap(y, a, b)


def _exchange(y: Layer, e: int, f: int) -> None:
    """Where legal, all copies of e and f change places, and e and f their homes."""
    if e == f or y.count_E[f] < y.least_E[e] or y.count_E[e] < y.least_E[f]:
        return
    if y.rule != FREE and y.fixed_homes and y.home_E[e] != y.home_E[f]:
        return
    holds_e, holds_f = y.slots_S == e, y.slots_S == f
    y.slots_S[holds_e], y.slots_S[holds_f] = f, e
    y.home_E[e], y.home_E[f] = y.home_E[f], y.home_E[e]
    rebuild(y)


def _relocate(y: Layer, a: int, b: int, f: int) -> None:
    """Where legal, the single copy in slot b moves, with its home, into the spare copy in slot a
    of another node, and leaves its slot to a further copy of f: the nodes' shares of the experts
    change, which swaps cannot do."""
    g, h = a // y.K, b // y.K
    e, d = y.slots_S[b], y.slots_S[a]
    if y.node_R[g] == y.node_R[h] or f in (d, e):
        return
    if y.count_E[e] != 1 or y.count_E[d] <= y.least_E[d]:
        return
    if y.home_E[f] != y.node_R[h] or y.held_RE[h, f]:
        return
    y.slots_S[a], y.slots_S[b] = e, f
    y.home_E[e] = y.node_R[g]
    rebuild(y)
