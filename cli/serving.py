"""How tokens find their copies: what the options of dispatch mean."""

from eplb._arrays import Floats, Ints
from eplb.placement import Placement
from eplb.simulator.active import DynamicRedundancy, dynamic_redundancy
from eplb.simulator.dispatch import best_split, expected_nearest_slots, nearest_slots
from eplb.simulator.replay import Dispatch, evenly
from eplb.trace import LoadTrace

from .recordings import Recording


def by_rule(
    rule: str, placement: Placement, layer_ids: Ints, pace: Floats, recording: Recording
) -> Dispatch:
    """How tokens of these layers find their copies by the rule even, nearest or lp.

    Where the recording has token routes that say on which GPU each token starts, nearest is
    measured; else tokens are taken to start evenly on all.
    """
    if rule == "even":
        return evenly(placement)
    if rule == "lp":
        return lambda trace, _: best_split(trace.tokens, placement, pace).slot_load
    routes = recording.routes_of(layer_ids)
    if routes is None or routes.source_rank is None:
        return lambda trace, _: expected_nearest_slots(trace.tokens, placement)
    slots = nearest_slots(routes, placement, recording.edges)
    return lambda _, windows: slots[windows]


def with_active_slots(placement: Placement, active_slots: int, pace: Floats) -> dict[str, Dispatch]:
    """Choosing which hosted slots serve, by the window before or, as a bound, by its own loads."""
    made: dict[int, DynamicRedundancy] = {}

    def choose(trace: LoadTrace) -> DynamicRedundancy:
        if id(trace) not in made:
            made.clear()
            made[id(trace)] = dynamic_redundancy(trace.tokens, placement, active_slots, pace=pace)
        return made[id(trace)]

    return {
        f"{active_slots} active": lambda trace, _: choose(trace).slot_load,
        f"{active_slots} active in hindsight": lambda trace, _: choose(trace).oracle_slot_load,
    }
