"""When to re-plan: from the recent past, the live placement and a candidate to what serves next.

A policy gets the loads that may be seen, the live placement, and a function that plans on them; it
returns the live placement to keep it. Planning costs, so a policy that need not look does not call.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from .. import metrics
from ..placement import Placement
from ..trace import LoadTrace

Policy: TypeAlias = Callable[[LoadTrace, Placement, Callable[[], Placement]], Placement]


def never(_recent: LoadTrace, live: Placement, _plan: Callable[[], Placement]) -> Placement:
    """Keep what was planned first."""
    return live


def every(_recent: LoadTrace, _live: Placement, plan: Callable[[], Placement]) -> Placement:
    """Take every new plan."""
    return plan()


def below(balancedness: float, rank_speed: Sequence[float] | None = None) -> Policy:
    """Re-plan when the live placement has less mean balancedness than this on the recent past."""

    def decide(recent: LoadTrace, live: Placement, plan: Callable[[], Placement]) -> Placement:
        now = metrics.measure(recent.tokens, live, recent.window_weight, rank_speed)
        return plan() if now.mean_balancedness < balancedness else live

    return decide


def worth_it(
    seconds: Callable[[LoadTrace, Placement], float],
    moving: Callable[[Placement, Placement], float],
    horizon: float,
) -> Policy:
    """Re-plan when the seconds saved over `horizon` windows exceed those that moving takes.

    `seconds` is the modelled time of a window like the recent ones under a placement, `moving` the
    modelled time to get from one placement to another. The candidate has seen the recent past and
    the live placement has not, so that the saving is an upper estimate.
    """

    def decide(recent: LoadTrace, live: Placement, plan: Callable[[], Placement]) -> Placement:
        candidate = plan()
        saved = (seconds(recent, live) - seconds(recent, candidate)) * horizon
        return candidate if saved > moving(live, candidate) else live

    return decide
