"""A layer under search: its state, which changes are legal, what they cost and how they are made.

Legend in `kernels`. A swap exchanges two experts between ranks; a replacement turns a spare copy of
one expert into a further copy of another. No change puts an expert twice on a rank or takes its
last copies. Under STRICT an expert stays on its home node, under HOME one copy at least does;
single copies may take their home along unless homes are fixed.
"""

from typing import NamedTuple

import numpy as np

from .._arrays import Bools, Floats, Ints
from .kernels import njit

FREE, STRICT, HOME = 0, 1, 2


class Layer(NamedTuple):
    """What is given of a layer, and its state, which is changed in place."""

    load_EW: Floats
    total_E: Floats  # load of all windows
    node_R: Ints
    pace_R: Floats  # time per token, relative: 1 / speed
    rule: int  # FREE, STRICT or HOME
    fixed_homes: bool
    off_price: float  # of the load that is served off its home node
    move_price: float  # of each copy that a rank holds and did not hold live
    live_RE: Bools  # whether a rank holds an expert now, before any change
    least_E: Ints  # copies each expert must keep
    K: int
    slots_S: Ints  # the expert of each slot
    home_E: Ints
    count_E: Ints
    at_home_E: Ints  # copies on the home node
    held_RE: Bools  # whether a rank holds an expert
    share_EW: Floats  # load of one copy
    rank_load_RW: Floats  # load times pace


def layer_of(
    load_EW: Floats,
    slots_S: Ints,
    home_E: Ints,
    node_R: Ints,
    *,
    rule: int = FREE,
    fixed_homes: bool = False,
    pace_R: Floats | None = None,
    least_E: Ints | None = None,
    live_RE: Bools | None = None,
    off_price: float = 0.0,
    move_price: float = 0.0,
) -> Layer:
    """The search of a layer from `slots_S` and `home_E`, which it will change."""
    num_experts, num_windows = load_EW.shape
    num_ranks = len(node_R)
    return Layer(
        load_EW=load_EW,
        total_E=load_EW.sum(axis=1),
        node_R=node_R,
        pace_R=np.ones(num_ranks) if pace_R is None else pace_R,
        rule=rule,
        fixed_homes=fixed_homes,
        off_price=off_price,
        move_price=move_price,
        live_RE=np.zeros((num_ranks, num_experts), np.bool_) if live_RE is None else live_RE,
        least_E=np.ones(num_experts, np.int64) if least_E is None else least_E,
        K=len(slots_S) // num_ranks,
        slots_S=slots_S,
        home_E=home_E,
        count_E=np.zeros(num_experts, np.int64),
        at_home_E=np.zeros(num_experts, np.int64),
        held_RE=np.zeros((num_ranks, num_experts), np.bool_),
        share_EW=np.empty((num_experts, num_windows)),
        rank_load_RW=np.empty((num_ranks, num_windows)),
    )


@njit
def rebuild(y: Layer) -> None:
    """Work out the state from `slots_S` and `home_E`."""
    y.count_E[:] = 0
    y.at_home_E[:] = 0
    y.held_RE[:] = False
    y.rank_load_RW[:] = 0.0
    for s in range(len(y.slots_S)):
        e, r = y.slots_S[s], s // y.K
        y.count_E[e] += 1
        y.held_RE[r, e] = True
        y.at_home_E[e] += y.node_R[r] == y.home_E[e]
    for e in range(len(y.count_E)):
        y.share_EW[e] = y.load_EW[e] / y.count_E[e]
    for s in range(len(y.slots_S)):
        y.rank_load_RW[s // y.K] += y.pace_R[s // y.K] * y.share_EW[y.slots_S[s]]


@njit
def off_home(y: Layer) -> float:
    """The load that is served off its home node."""
    total = 0.0
    for e in range(len(y.count_E)):
        total += y.total_E[e] / y.count_E[e] * (y.count_E[e] - y.at_home_E[e])
    return total


@njit
def received(y: Layer) -> int:
    """The copies that ranks hold and did not hold live."""
    total = 0
    for s in range(len(y.slots_S)):
        total += not y.live_RE[s // y.K, y.slots_S[s]]
    return total


@njit
def charge(y: Layer) -> float:
    """What the state costs beside its peaks: the prices of load off home and of copies received."""
    total = 0.0
    if y.off_price > 0.0:
        total += y.off_price * off_home(y)
    if y.move_price > 0.0:
        total += y.move_price * received(y)
    return total


@njit
def may_swap(y: Layer, a: int, b: int) -> bool:
    """Whether slots a and b, of different ranks, may exchange their experts."""
    g, h = a // y.K, b // y.K
    e, f = y.slots_S[a], y.slots_S[b]
    if e == f or y.held_RE[g, f] or y.held_RE[h, e]:
        return False
    if y.rule == FREE or y.node_R[g] == y.node_R[h] or _take_homes(y, e, f):
        return True
    return y.rule == HOME and _may_leave(y, e, g, h) and _may_leave(y, f, h, g)


@njit
def _take_homes(y: Layer, e: int, f: int) -> bool:
    """Whether a swap of e and f between nodes exchanges their homes: single copies may."""
    return y.rule != FREE and not y.fixed_homes and y.count_E[e] == 1 and y.count_E[f] == 1


@njit
def _may_leave(y: Layer, e: int, g: int, h: int) -> bool:
    """Whether a copy of e may go from rank g to h: under HOME the last at home may not."""
    return y.home_E[e] != y.node_R[g] or y.at_home_E[e] > 1 or y.home_E[e] == y.node_R[h]


@njit
def may_replace(y: Layer, b: int, f: int) -> bool:
    """Whether slot b may give up its copy for one of expert f."""
    h, e = b // y.K, y.slots_S[b]
    if y.count_E[e] <= y.least_E[e] or y.held_RE[h, f]:
        return False
    if y.rule == HOME:
        return y.home_E[e] != y.node_R[h] or y.at_home_E[e] > 1
    return y.rule == FREE or y.home_E[f] == y.node_R[h]


@njit
def swap_charge(y: Layer, a: int, b: int) -> float:
    """By how much swapping slots a and b raises `charge`."""
    g, h = a // y.K, b // y.K
    e, f = y.slots_S[a], y.slots_S[b]
    more = 0.0
    if y.move_price > 0.0:
        gone = y.live_RE[g, e] + y.live_RE[h, f]
        come = y.live_RE[h, e] + y.live_RE[g, f]
        more += y.move_price * (gone - come)
    if y.off_price > 0.0 and y.node_R[g] != y.node_R[h] and not _take_homes(y, e, f):
        more -= y.off_price * _homeward(y, e, g, h) * y.total_E[e] / y.count_E[e]
        more -= y.off_price * _homeward(y, f, h, g) * y.total_E[f] / y.count_E[f]
    return more


@njit
def _homeward(y: Layer, e: int, g: int, h: int) -> int:
    """By how many a copy of e that goes from rank g to h adds to those at home."""
    return int(y.home_E[e] == y.node_R[h]) - int(y.home_E[e] == y.node_R[g])


@njit
def replace_charge(y: Layer, b: int, f: int) -> float:
    """By how much giving slot b to expert f raises `charge`."""
    h, e = b // y.K, y.slots_S[b]
    more = 0.0
    if y.move_price > 0.0:
        more += y.move_price * (int(y.live_RE[h, e]) - int(y.live_RE[h, f]))
    if y.off_price > 0.0:
        count_e, count_f = y.count_E[e], y.count_E[f]
        home_e = y.at_home_E[e] - (y.home_E[e] == y.node_R[h])
        home_f = y.at_home_E[f] + (y.home_E[f] == y.node_R[h])
        more_e = y.at_home_E[e] / count_e - home_e / (count_e - 1)
        more_f = y.at_home_E[f] / count_f - home_f / (count_f + 1)
        more += y.off_price * (more_e * y.total_E[e] + more_f * y.total_E[f])
    return more


@njit
def swap(y: Layer, a: int, b: int) -> None:
    """Exchange the experts of slots a and b."""
    g, h = a // y.K, b // y.K
    e, f = y.slots_S[a], y.slots_S[b]
    if y.node_R[g] != y.node_R[h]:
        if _take_homes(y, e, f):
            y.home_E[e], y.home_E[f] = y.node_R[h], y.node_R[g]
            y.at_home_E[e] = y.at_home_E[f] = 1
        else:
            y.at_home_E[e] += _homeward(y, e, g, h)
            y.at_home_E[f] += _homeward(y, f, h, g)
    y.slots_S[a], y.slots_S[b] = f, e
    y.held_RE[g, e] = y.held_RE[h, f] = False
    y.held_RE[g, f] = y.held_RE[h, e] = True
    for w in range(y.load_EW.shape[1]):
        move = y.share_EW[e, w] - y.share_EW[f, w]
        y.rank_load_RW[g, w] -= y.pace_R[g] * move
        y.rank_load_RW[h, w] += y.pace_R[h] * move


@njit
def replace(y: Layer, b: int, f: int) -> None:
    """Give slot b to a further copy of expert f."""
    h, e = b // y.K, y.slots_S[b]
    for sign in (-1.0, 1.0):
        # Take the load of both experts' copies off their ranks, and put it back when it is right.
        for r in range(len(y.node_R)):
            for w in range(y.load_EW.shape[1]):
                load = y.held_RE[r, e] * y.share_EW[e, w] + y.held_RE[r, f] * y.share_EW[f, w]
                y.rank_load_RW[r, w] += sign * y.pace_R[r] * load
        if sign < 0:
            y.slots_S[b] = f
            y.held_RE[h, e] = False
            y.held_RE[h, f] = True
            y.count_E[e] -= 1
            y.count_E[f] += 1
            y.at_home_E[e] -= y.home_E[e] == y.node_R[h]
            y.at_home_E[f] += y.home_E[f] == y.node_R[h]
            y.share_EW[e] = y.load_EW[e] / y.count_E[e]
            y.share_EW[f] = y.load_EW[f] / y.count_E[f]
