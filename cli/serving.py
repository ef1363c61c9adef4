"""How tokens find their copies: what the options of dispatch mean."""

from eplb._arrays import Floats
from eplb.placement import Placement
from eplb.simulator.active import dynamic_redundancy
from eplb.simulator.dispatch import best_split, expected_nearest_slots, nearest_slots
from eplb.simulator.replay import Dispatch, evenly
from eplb.trace import LoadTrace

from .recordings import Recording


def by_rule(rule: str, placement: Placement, pace: Floats, recording: Recording) -> Dispatch:
    """How tokens find their copies by the rule even, nearest or lp.

    Where the recording has token routes that say on which GPU each token starts, nearest is
    measured; else tokens are taken to start evenly on all.
    """
    if rule == "even":
        return evenly(placement)
    if rule == "lp":
        return lambda trace, _: best_split(trace.tokens, placement, pace).slot_load
    routes = recording.routes
    if routes is None or routes.source_rank is None:
        return lambda trace, _: expected_nearest_slots(trace.tokens, placement)
    slots = nearest_slots(routes, placement, recording.edges)
    return lambda _, windows: slots[windows]


def with_active_slots(
    placement: Placement, active_slots: int, pace: Floats, trace: LoadTrace
) -> dict[str, Dispatch]:
    """Choosing which hosted slots serve a window of the trace, by the one before it or, as a bound,
    by its own loads."""
    chosen = dynamic_redundancy(trace.tokens, placement, active_slots, pace=pace)
    return {
        f"{active_slots} active": lambda _, windows: chosen.slot_load[windows],
        f"{active_slots} active in hindsight": lambda _, windows: chosen.oracle_slot_load[windows],
    }
