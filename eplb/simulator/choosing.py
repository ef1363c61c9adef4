"""The search for the slots to serve with, for all windows of a layer side by side.

Axes: W windows, R ranks; n candidates, each for one window. Slot −1 is none.
"""

from math import ceil
from typing import NamedTuple

import numpy as np

from .._arrays import Ints
from .switching import Switches

# A change must lower the peak, or else the squares, by this much, relative.
_LESS = 1e-9
# Changes for each slot after which it is left at that; it converges long before.
_MOST_CHANGES = 20
# The share of ranks that are looked at, and the least number.
_BUSY, _LEAST_BUSY = 0.25, 4
# How often a search begins anew, and after how many changes at most.
_KICKS, _KICK_CHANGES = 16, 12


class _Changes(NamedTuple):
    """For each candidate, (n,): its window, and slots to switch off and on, of two experts."""

    window: Ints
    off: Ints
    on: Ints
    other_off: Ints
    other_on: Ints


def search(switches: Switches, seed: int) -> None:
    """Lower the peaks as far as possible: improve, with the slots now active and with all that
    there is room for; then again and again after some changes at random, which are taken back
    where they lead to something worse."""
    full = switches.copy()
    full.fill()
    _improve(full)
    _improve(switches)
    switches.take(full, full.peaks() < switches.peaks())
    rng = np.random.default_rng(seed)
    for _ in range(_KICKS):
        before = switches.copy()
        for _ in range(int(rng.integers(2, _KICK_CHANGES + 1))):
            _change_at_random(switches, *rng.random(2).tolist())
        _improve(switches)
        switches.take(before, before.peaks() < switches.peaks())


def _improve(switches: Switches) -> None:
    """Change an expert of the busiest rank, and another to make room, while that helps; where
    nothing does, look at the next busiest ranks."""
    going, turn = np.arange(len(switches.load)), np.zeros(len(switches.load), np.int64)
    for _ in range(_MOST_CHANGES * len(switches.expert)):
        busiest = np.argsort(-switches.served[going] * switches.pace, axis=1, kind="stable")
        changed = _change(switches, going, busiest[np.arange(len(going)), turn[going]])
        turn[going] += 1
        turn[changed] = 0
        going = going[turn[going] < _num_busy(switches)]
        if not len(going):
            return


def _change_at_random(switches: Switches, which_rank: float, which: float) -> None:
    """Make some change to a busy rank; both numbers, from 0 to 1, hold for all windows, so that
    what happens to one does not depend on the others."""
    windows = np.arange(len(switches.load))
    busiest = np.argsort(-switches.served * switches.pace, axis=1, kind="stable")
    changes = _candidates(switches, windows, busiest[:, int(which_rank * _num_busy(switches))])
    order = np.argsort(changes.window, kind="stable")
    _, first, count = np.unique(changes.window[order], return_index=True, return_counts=True)
    _make(switches, changes, order[first + (which * count).astype(np.int64)])


def _change(switches: Switches, windows: Ints, rank: Ints) -> Ints:
    """Do the best about a rank of each of these windows; the windows where anything helped."""
    changes = _candidates(switches, windows, rank)
    time = switches.served[changes.window]
    time += switches.difference(changes.window, changes.off, changes.on)
    time += switches.difference(changes.window, changes.other_off, changes.other_on)
    time *= switches.pace
    peak, squares = time.max(axis=1), (time * time).sum(axis=1)
    order = np.lexsort((squares, peak, changes.window))
    windows, first = np.unique(changes.window[order], return_index=True)
    best = order[first]
    now = switches.served[windows] * switches.pace
    highest, sum_squares = now.max(axis=1), (now * now).sum(axis=1)
    lower = peak[best] < highest * (1 - _LESS)
    smoother = (peak[best] <= highest) & (squares[best] < sum_squares * (1 - _LESS))
    helps = lower | smoother
    _make(switches, changes, best[helps])
    changed: Ints = windows[helps]
    return changed


def _make(switches: Switches, changes: _Changes, chosen: Ints) -> None:
    """Make these of the changes, one a window at most."""
    for slots, to in zip(changes[1:], (False, True, False, True), strict=True):
        some = chosen[slots[chosen] >= 0]
        switches.switch(changes.window[some], slots[some], to)


def _candidates(switches: Switches, windows: Ints, rank: Ints) -> _Changes:
    """What could be done about a rank of each of these windows."""
    window, off = switches.active_on(windows, rank)
    spare = switches.count[window, switches.expert[off]] > 1
    pair, on = switches.inactive_copies(window, off)
    apart = switches.rank[on] != switches.rank[off[pair]]
    pair, on = pair[apart], on[apart]
    none = np.full(len(on), -1)
    base_window = np.tile(window[pair], 2)
    base_off = np.concatenate([off[pair], none])
    base_on = np.tile(on, 2)
    room = switches.used[base_window, switches.rank[base_on]] < switches.limit
    done = _stack((window[spare], off[spare]), (base_window[room], base_off[room], base_on[room]))
    full = ~room
    return _with_room(switches, done, base_window[full], base_off[full], base_on[full])


def _with_room(switches: Switches, done: _Changes, window: Ints, off: Ints, on: Ints) -> _Changes:
    """The candidates, with those that need a slot on a full rank, which another expert there
    gives up: it has further active copies, or switches to another slot."""
    base = np.arange(len(window))
    index, gives = switches.active_on(window, switches.rank[on], base)
    differs = switches.expert[gives] != switches.expert[on[index]]
    index, gives = index[differs], gives[differs]
    spare = switches.count[window[index], switches.expert[gives]] > 1
    pair, takes = switches.inactive_copies(window[index], gives)
    target, start = switches.rank[takes], index[pair]
    freed = (off[start] >= 0) & (switches.rank[np.maximum(off[start], 0)] == target)
    fits = ((switches.used[window[start], target] < switches.limit) | freed) & (
        target != switches.rank[gives[pair]]
    )
    start, pair, takes = start[fits], pair[fits], takes[fits]
    drop = index[spare]
    return _stack(
        done,
        (window[drop], off[drop], on[drop], gives[spare]),
        (window[start], off[start], on[start], gives[pair], takes),
    )


def _num_busy(switches: Switches) -> int:
    """How many of the busiest ranks are looked at."""
    num_ranks = len(switches.pace)
    return min(num_ranks, max(_LEAST_BUSY, ceil(_BUSY * num_ranks)))


def _stack(*parts: tuple[Ints, ...]) -> _Changes:
    """Candidates one below the other, each part with −1 in the columns it lacks."""
    width = len(_Changes._fields)
    full = [(*part, *[np.full(len(part[0]), -1)] * (width - len(part))) for part in parts]
    return _Changes(*(np.concatenate(column) for column in zip(*full, strict=True)))
