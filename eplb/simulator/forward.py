"""A trace served by plans that are made anew as it goes, never on the windows they serve."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .. import metrics
from ..errors import InputError
from ..migration import migrate
from ..placement import Placement
from ..report import Report
from ..topology import Topology
from ..trace import LoadTrace
from ..walk import Stretch, walk_forward
from .policy import Policy
from .replay import Score, Timer

# From the loads that may be seen and the live placement (None at first) to a placement.
Planner = Callable[[LoadTrace, Placement | None], Placement]


class Course(NamedTuple):
    """The report of a walk, which placement served which windows, and which was live before."""

    report: Report
    stretches: list[Stretch]
    live: Placement | None

    @property
    def replaced(self) -> int:
        """How often a live placement was replaced."""
        return sum(old is not new for old, new in self.changes)

    @property
    def changes(self) -> list[tuple[Placement, Placement]]:
        """The placement that was live and the one that came next, at every chance to re-plan."""
        placements = [self.live, *(stretch.placement for stretch in self.stretches)]
        return [(old, new) for old, new in pairwise(placements) if old is not None and new]


def edges(num_windows: int, replan_every: int, history: int) -> list[int]:
    """Where a walk may re-plan: after the first `history` windows, then every `replan_every`.

    Raises
    ------
    InputError
        When no window would be left to serve.
    """
    if history >= num_windows:
        raise InputError(
            f"a history of {history} windows leaves none to serve; the trace has {num_windows}"
        )
    return [*range(history, num_windows, replan_every), num_windows]


def walk(
    trace: LoadTrace,
    plan: Planner,
    policy: Policy,
    replan_every: int,
    history: int,
    topology: Topology,
    live: Placement | None = None,
    expert_bytes: int | None = None,
    timer: Timer | None = None,
) -> Course:
    """Walk through `trace`: at every edge `policy` decides, from the last `history` windows,
    whether what `plan` makes of them replaces the live placement.

    Without a `live` placement the first plan is taken as it is and its moves are not counted; where
    the ranks in service cannot serve it, the first plan replaces it whatever the policy.
    """
    score, stretches = Score(trace.layer_ids, topology, timer), []

    def next_placement(seen: slice, current: Placement | None) -> Placement:
        past, current = trace.windows(seen), current or live
        if current is None or not _can_serve(topology, current):
            return plan(past, current)
        standing = current
        return policy(
            past.windows(slice(-replan_every, None)), current, lambda: plan(past, standing)
        )

    before = live
    for stretch in walk_forward(
        edges(trace.num_windows, replan_every, history), next_placement, history
    ):
        changed = before is not None and stretch.placement is not before
        moves = migrate(before, stretch.placement).num_moves if changed and before else 0
        served = trace.windows(slice(stretch.first, stretch.end))
        score.add(
            served,
            metrics.slot_loads(served.tokens, stretch.placement),
            np.arange(stretch.first, stretch.end),
            moves,
        )
        stretches.append(stretch)
        before = stretch.placement
    return Course(score.report(expert_bytes), stretches, live)


def _can_serve(topology: Topology, placement: Placement) -> bool:
    """Whether the ranks in service are those that the placement has copies on."""
    same = placement.num_ranks == topology.num_ranks
    return same and set(topology.excluded_ranks) <= set(placement.excluded_ranks)
