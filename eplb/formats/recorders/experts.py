"""Of which experts counts are: how many there are, and counts by slot folded to experts."""

from dataclasses import replace

import numpy as np

from ...errors import RefusedError
from ...placement import Placement
from ...trace import LoadTrace
from ..source import Hints


def check_experts(num_experts: int, hints: Hints) -> None:
    """Raise `RefusedError` when there are other experts than the hints say."""
    known = hints.experts()
    if known is not None and known != num_experts:
        raise RefusedError(
            f"the recording has {num_experts} experts a layer, and {known} are expected; it is of"
            " another model"
        )


def largest_expert(what: str, largest: int, hints: Hints, notes: list[str]) -> int:
    """E, from the hints or else the largest id that `what` has, with a remark.

    Raises
    ------
    RefusedError
        When the largest id is beyond the experts that the hints say.
    """
    known = hints.experts()
    if known is None:
        notes.append(
            f"the {what} do not say how many experts there are; {largest + 1} is taken, the largest"
            " id + 1"
        )
        return largest + 1
    if largest >= known:
        raise RefusedError(
            f"the {what} name expert {largest}; ids from 0 to {known - 1} are expected, as the"
            f" model has {known} experts: it is of another model"
        )
    return known


def by_expert(trace: LoadTrace, hints: Hints) -> tuple[LoadTrace, list[str]]:
    """`trace` with its counts by logical expert, and remarks: where the placement that was live
    during the recording is given, the counts are by slot of it.

    Raises
    ------
    RefusedError
        When the counts are as many as neither the experts nor the slots, or the placement has
        other layers or experts.
    """
    live, expected, width = hints.recorded_under, hints.experts(), trace.num_experts
    if live is not None:
        _check_live(trace, live, expected)
        return _folded(trace, live), [
            f"counts of {width} slots are folded to {live.num_logical_experts} experts; right only"
            " if no expert was moved during the recording"
        ]
    if expected is None or width == expected:
        return trace, []
    if width > expected:
        raise RefusedError(
            f"there are {width} counts a layer and the model has {expected} experts: these are"
            " slots of a load balancer, or it is another model; --recorded-under PLAN, the plan or"
            " map that was live during the recording, folds slots back to experts"
        )
    raise RefusedError(
        f"there are {width} counts a layer and the model has {expected} experts; the recording is"
        " of another model"
    )


def _check_live(trace: LoadTrace, live: Placement, expected: int | None) -> None:
    if trace.num_experts != live.num_slots:
        hint = (
            "; that is the number of its experts: where no load balancer was active, leave"
            " --recorded-under away"
            if trace.num_experts == live.num_logical_experts
            else ""
        )
        raise RefusedError(
            f"there are {trace.num_experts} counts a layer, and the placement recorded under has"
            f" {live.num_slots} slots{hint}"
        )
    if trace.num_layers != live.num_layers:
        raise RefusedError(
            f"the recording has {trace.num_layers} layers and the placement recorded under"
            f" {live.num_layers}; it was not the one that was live"
        )
    if expected is not None and live.num_logical_experts != expected:
        raise RefusedError(
            f"the placement recorded under is of {live.num_logical_experts} experts and the model"
            f" has {expected}; it was not the one that was live"
        )


def _folded(trace: LoadTrace, live: Placement) -> LoadTrace:
    tokens, shape = trace.tokens, (trace.num_windows, trace.num_layers, live.num_logical_experts)
    folded = np.zeros(shape, tokens.dtype)
    for layer, expert in enumerate(live.physical_to_logical):
        dead = np.flatnonzero((expert < 0) & tokens[:, layer].any(axis=0))
        if len(dead):
            raise RefusedError(
                f"slot {dead[0]} has load in layer {trace.layer_ids[layer]}, and its rank is"
                " excluded in the placement recorded under; it was not the one that was live"
            )
        held = expert >= 0
        np.add.at(folded[:, layer].T, expert[held], tokens[:, layer, held].T)
    folded.setflags(write=False)  # a trace takes a read-only array over without a copy
    return replace(trace, tokens=folded)
