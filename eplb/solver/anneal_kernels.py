"""Annealing of one layer, for where prices and peaks pull against each other; legend in `kernels`.

Minimised is Σ_w Σ_r max(0, rank_load − goal_w) plus the layer's `charge`: nothing is gained below
the goal, so that what balance can spare is spent on staying at home, or where copies are.
"""

import numpy as np

from .._arrays import Floats
from .kernels import njit
from .layer_kernels import (
    Layer,
    may_replace,
    may_swap,
    rebuild,
    replace,
    replace_charge,
    swap,
    swap_charge,
)
from .search_kernels import changes_of

_REPLACEMENTS = 0.25  # of all changes tried


@njit
def anneal(y: Layer, goal_W: Floats, heat: float, uniform: Floats) -> None:
    """Try a random change for each row of `uniform` (trials, 4), and keep it when it raises the
    energy by no more than a random amount that cools from `heat` to nothing."""
    rebuild(y)
    num_slots, trials = len(y.slots_S), len(uniform)
    changed = np.empty(len(y.node_R), np.int64)
    change = np.empty((2, len(y.node_R)))
    for t in range(trials):
        u = uniform[t]
        allowed = -heat * (1.0 - t / trials) ** 2 * np.log(max(u[3], 1e-300))
        a, b = int(u[0] * num_slots), int(u[1] * num_slots)
        if u[2] < _REPLACEMENTS:
            f = y.slots_S[b]
            # The next slot that holds a spare copy: most hold none.
            for _ in range(num_slots):
                if y.count_E[y.slots_S[a]] > y.least_E[y.slots_S[a]]:
                    break
                a = (a + 1) % num_slots
            if may_replace(y, a, f):
                num = changes_of(y, a, f, changed, change)
                more = replace_charge(y, a, f)
                for i in range(num):
                    r = changed[i]
                    for w in range(len(goal_W)):
                        load = y.rank_load_RW[r, w] - goal_W[w]
                        moved = change[0, i] * y.load_EW[y.slots_S[a], w]
                        moved += change[1, i] * y.load_EW[f, w]
                        more += max(load + moved, 0.0) - max(load, 0.0)
                if more <= allowed:
                    replace(y, a, f)
        elif a // y.K != b // y.K and may_swap(y, a, b):
            g, h = a // y.K, b // y.K
            more = swap_charge(y, a, b)
            for w in range(len(goal_W)):
                move = y.share_EW[y.slots_S[a], w] - y.share_EW[y.slots_S[b], w]
                one, two = y.rank_load_RW[g, w] - goal_W[w], y.rank_load_RW[h, w] - goal_W[w]
                more += max(one - y.pace_R[g] * move, 0.0) - max(one, 0.0)
                more += max(two + y.pace_R[h] * move, 0.0) - max(two, 0.0)
            if more <= allowed:
                swap(y, a, b)
    rebuild(y)
