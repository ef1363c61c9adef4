"""The slots of a layer that are active, window by window, and what switching some does.

All windows go side by side, each with a state of its own. Axes: W windows, E experts, R ranks,
S slots, C most copies; n changes, each in one window. Slot −1 is none.
"""

from copy import copy

import numpy as np

from .._arrays import Bools, Floats, Ints
from ..placement import Placement

_STATE = ("active", "copies", "count", "used", "served")


class Switches:
    """The active slots of a layer in every window, (W, S), `limit` on a rank at most; from the
    loads of experts (W, E) and the pace of ranks (R,)."""

    def __init__(
        self, placement: Placement, layer: int, load: Floats, limit: int, pace: Floats
    ) -> None:
        self.load, self.limit, self.pace = load, limit, pace
        self.expert = placement.physical_to_logical[layer]
        self.rank = np.arange(placement.num_slots) // placement.slots_per_rank
        self.slots = placement.logical_to_physical[layer]  # (E, C)
        self.in_rank = np.arange(placement.slots_per_rank)
        self.num_hosts = (placement.rank_copies[layer] > 0).sum(axis=0)
        num_windows, num_experts = load.shape
        self.active: Bools = np.zeros((num_windows, placement.num_slots), bool)
        self.copies = np.zeros((num_windows, num_experts, len(pace)), np.int32)
        self.count = np.zeros((num_windows, num_experts), np.int32)
        self.used = np.zeros((num_windows, len(pace)), np.int32)
        self.served = np.zeros((num_windows, len(pace)))

    def copy(self) -> "Switches":
        """The same with a state of its own."""
        other = copy(self)
        for name in _STATE:
            setattr(other, name, getattr(self, name).copy())
        return other

    def take(self, other: "Switches", where: Bools) -> None:
        """Take over the state of another in the windows marked in `where`, (W,)."""
        for name in _STATE:
            getattr(self, name)[where] = getattr(other, name)[where]

    def peaks(self) -> Floats:
        """The largest load × pace of each window, (W,)."""
        peaks: Floats = (self.served * self.pace).max(axis=1)
        return peaks

    def assign(self) -> bool:
        """Give every expert an active slot, on its least loaded rank by falling load; whether all
        of them got one. Those without a choice go first."""
        windows = np.arange(len(self.load))
        choice = np.broadcast_to(self.num_hosts > 1, self.load.shape)
        for expert in np.lexsort((-self.load, choice), axis=-1).T:
            slots = self.slots[expert]
            rank = self.rank[slots]
            taken = self.served[windows[:, None], rank] + self.load[windows, expert][:, None]
            full = (slots < 0) | (self.used[windows[:, None], rank] >= self.limit)
            cost = np.where(full, np.inf, taken * self.pace[rank])
            slot = slots[windows, cost.argmin(axis=1)]
            stuck = full.all(axis=1)
            self.switch(windows[~stuck], slot[~stuck], True)
            for window in windows[stuck]:
                if not self._make_room(window, int(expert[window])):
                    return False
        return True

    def fill(self) -> None:
        """Switch on what there is room for, by falling load."""
        windows = np.arange(len(self.load))
        heat = np.where(self.expert >= 0, self.load[:, self.expert], -np.inf)
        for slot in np.argsort(-heat, axis=1, kind="stable").T:
            room = self.used[windows, self.rank[slot]] < self.limit
            free = room & (self.expert[slot] >= 0) & ~self.active[windows, slot]
            self.switch(windows[free], slot[free], True)

    def switch(self, window: Ints, slot: Ints, to: bool) -> None:
        """Switch one slot in each of these windows, which are distinct."""
        expert, rank, step = self.expert[slot], self.rank[slot], 1 if to else -1
        load = self.load[window, expert]
        for sign in (-1, 1):
            share = load / np.maximum(self.count[window, expert], 1)
            self.served[window] += sign * self.copies[window, expert] * share[:, None]
            if sign < 0:
                self.active[window, slot] = to
                self.copies[window, expert, rank] += step
                self.count[window, expert] += step
                self.used[window, rank] += step

    def difference(self, window: Ints, off: Ints, on: Ints) -> Floats:
        """What switching a slot off and one on, both of one expert, adds to each rank, (n, R)."""
        expert = self.expert[np.maximum(off, on)]
        now, count = self.copies[window, expert], self.count[window, expert]
        then = now.astype(np.float64)
        for slot, step in ((off, -1), (on, 1)):
            some = np.flatnonzero(slot >= 0)
            then[some, self.rank[slot[some]]] += step
        new_count = count - (off >= 0) + (on >= 0)
        load = np.where(np.maximum(off, on) >= 0, self.load[window, expert], 0.0)
        difference: Floats = then * (load / new_count)[:, None] - now * (load / count)[:, None]
        return difference

    def active_on(self, window: Ints, rank: Ints, label: Ints | None = None) -> tuple[Ints, Ints]:
        """The active slots of a rank in each window, flat: labels (the windows) and slots."""
        slots = rank[:, None] * len(self.in_rank) + self.in_rank
        row, column = np.nonzero(self.active[window[:, None], slots])
        return (window if label is None else label)[row], slots[row, column]

    def inactive_copies(self, window: Ints, slot: Ints) -> tuple[Ints, Ints]:
        """Of the expert in each slot, the slots that are not active, flat: positions and slots."""
        slots = self.slots[self.expert[slot]]
        row, column = np.nonzero((slots >= 0) & ~self.active[window[:, None], slots])
        return row, slots[row, column]

    def _make_room(self, window: int, expert: int) -> bool:
        """Give an expert a slot although its ranks are full, by moving others along a shortest
        chain of ranks to one with room; whether there is one."""
        slots = self.slots[expert]
        arrived = {int(self.rank[slot]): (-1, int(slot)) for slot in slots[slots >= 0]}
        queue = list(arrived)
        for rank in queue:
            if self.used[window, rank] < self.limit:
                break
            _, active = self.active_on(np.array([window]), np.array([rank]))
            for slot in active.tolist():
                for other in self.slots[self.expert[slot]].tolist():
                    target = int(self.rank[other])
                    if other >= 0 and target not in arrived:
                        arrived[target] = (slot, other)
                        queue.append(target)
        else:
            return False
        one = np.array([window])
        off, on = arrived[rank]
        while off >= 0:
            self.switch(one, np.array([on]), True)
            self.switch(one, np.array([off]), False)
            off, on = arrived[int(self.rank[off])]
        self.switch(one, np.array([on]), True)
        return True
