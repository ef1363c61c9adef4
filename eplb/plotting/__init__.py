"""Pictures of plans, reports and sweeps: matplotlib axes for notebooks, and one page of HTML.

Every figure function draws on the axes it is given, or on axes of its own, and returns them. They
need matplotlib, which comes with `pip install 'eplb[plot]'`.
"""

from .figures import (
    balance_by_layer,
    balance_over_time,
    bound_gaps,
    heat_map,
    load_over_time,
    moves_over_time,
    sweep_curve,
)
from .page import build_page
from .series import Sweep, Timeline, sweep_of, timeline_of

__all__ = [
    "Sweep",
    "Timeline",
    "balance_by_layer",
    "balance_over_time",
    "bound_gaps",
    "build_page",
    "heat_map",
    "load_over_time",
    "moves_over_time",
    "sweep_curve",
    "sweep_of",
    "timeline_of",
]
