"""A layer between its best placement and its best bound."""

import numpy as np

from .._arrays import Floats, Ints
from ..metrics import slot_peaks
from . import kernels
from .exact_kernels import ROUNDING


class Gap:
    """The best placement and the best bound of a layer so far."""

    tolerance = ROUNDING
    bound = 0.0
    peak = np.inf
    slots_S: Ints

    def __init__(self, load_EW: Floats, num_ranks: int, slots_per_rank: int) -> None:
        self.load_EW, self.num_ranks, self.slots_per_rank = load_EW, num_ranks, slots_per_rank

    @property
    def closed(self) -> bool:
        return self.peak <= self.bound * (1 + self.tolerance)

    @property
    def goal(self) -> float:
        """A peak that would be an improvement worth having, and closes the gap if refuted."""
        return self.peak * (1 - 0.9 * self.tolerance)

    def offer(self, slots_S: Ints) -> bool:
        """Whether the placement is better than the best so far, which it then becomes."""
        peak = float(self.peaks_W(slots_S).sum())
        if peak >= self.peak:
            return False
        self.slots_S, self.peak = slots_S.copy(), peak
        return True

    def peaks_W(self, slots_S: Ints) -> Floats:
        """Of each window, the busiest rank's load."""
        return slot_peaks(self.load_EW, slots_S, np.ones(self.num_ranks))

    def refuted(self, goal: float) -> None:
        """No placement is below `goal`."""
        self.bound = max(self.bound, goal * (1 - 1e-12))

    def greedy_counts(self) -> Ints:
        """Counts with the least largest copy, all windows added up."""
        load_E = self.load_EW.sum(axis=1)
        least_E = np.ones(len(load_E), np.int64)
        num_slots = self.num_ranks * self.slots_per_rank
        counts: Ints = kernels.greedy_counts(load_E, least_E, num_slots, self.num_ranks)
        return counts
