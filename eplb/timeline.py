"""Several traces as one: a timeline, scenarios beside it, shared experts among the routed ones."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .errors import InputError
from .routes import RouteTrace
from .trace import LoadTrace, how_layers_differ

_METADATA = ("num_groups", "top_k", "window_steps", "phase", "model")


def join(traces: Sequence[LoadTrace]) -> LoadTrace:
    """One timeline of several traces in the order given; what the first does not say of the model
    is taken from those that do.

    Raises
    ------
    InputError
        When they are of different models, layers or numbers of experts.
    """
    first = traces[0]
    for number, other in enumerate(traces[1:], start=2):
        _check_same_model(first, other, f"trace {number}")
        ours, theirs = first.window_steps, other.window_steps
        if ours is not None and theirs is not None and ours != theirs:
            raise InputError(
                f"trace {number} has windows of {theirs} engine steps and the first of {ours};"
                " --window-steps makes them alike"
            )
        unsaid = [key for key in _METADATA if getattr(first, key) is None]
        first = replace(first, **{key: getattr(other, key) for key in unsaid})
    return replace(
        first,
        tokens=np.concatenate([trace.tokens for trace in traces]),
        window_weight=np.concatenate([trace.window_weight for trace in traces]),
        scenario=np.concatenate([trace.scenario for trace in traces]),
    )


def add_scenario(timeline: LoadTrace, other: LoadTrace, weight: float) -> LoadTrace:
    """`timeline` with the windows of a further trace to serve well.

    The scenario's loads are scaled to the timeline's mean window total, so that `weight` alone
    says how much it counts: 1 is as much as the whole timeline.

    Raises
    ------
    InputError
        When it is of other layers or experts, carries no load, or `weight` is not above 0.
    """
    number = int(timeline.scenario.max()) + 1
    _check_same_model(timeline, other, f"scenario {number}")
    if not (np.isfinite(weight) and weight > 0):
        raise InputError(f"scenario {number} has weight {weight}; a number above 0 is expected")
    own = timeline.timeline()
    total = other.tokens.sum() / other.num_windows
    if total == 0:
        raise InputError(f"scenario {number} carries no load")
    scale = own.tokens.sum() / own.num_windows / total
    share = weight * own.window_weight.sum() / other.window_weight.sum()
    scaled = replace(
        other,
        tokens=other.tokens * scale,
        window_weight=other.window_weight * share,
        scenario=np.full(other.num_windows, number),
        window_steps=None,
        phase=None,
    )
    return join([timeline, scaled])


def with_shared_experts(trace: LoadTrace, num_shared: int) -> LoadTrace:
    """The trace with `num_shared` shared experts as routed ones, ids E to E + num_shared − 1, each
    loaded by every token; routing groups no longer divide such experts and are left aside.

    Raises
    ------
    InputError
        When the trace does not say how many experts a token has: tokens cannot be told then.
    """
    if trace.top_k is None:
        raise InputError(
            "shared experts are loaded by every token, and the trace does not say how many experts"
            " a token has: --top-k does"
        )
    every = trace.tokens.sum(axis=2, keepdims=True) / trace.top_k
    shared = np.repeat(every, num_shared, axis=2)
    return replace(
        trace,
        tokens=np.concatenate([trace.tokens, shared], axis=2),
        top_k=trace.top_k + num_shared,
        num_groups=None,
    )


def routes_with_shared_experts(routes: RouteTrace, num_shared: int) -> RouteTrace:
    """The routes with shared experts, which have the last ids, as experts of every token."""
    if not num_shared:
        return routes
    experts = routes.experts.astype(np.int32)
    shared = routes.num_experts + np.arange(num_shared, dtype=np.int32)
    every = np.where((experts >= 0).any(axis=2, keepdims=True), shared, np.int32(-1))
    return replace(
        routes,
        experts=np.concatenate([experts, every], axis=2),
        num_experts=routes.num_experts + num_shared,
        num_groups=None,
    )


def _check_same_model(first: LoadTrace, other: LoadTrace, name: str) -> None:
    if other.num_experts != first.num_experts:
        raise InputError(
            f"{name} has {other.num_experts} experts and the first {first.num_experts};"
            " traces planned together must be of one model"
        )
    if not np.array_equal(other.layer_ids, first.layer_ids):
        raise InputError(
            f"{name} and the first do not cover the same layers"
            f" ({how_layers_differ(first.layer_ids, other.layer_ids)});"
            " traces planned together must be of one model"
        )
    for key in ("num_groups", "top_k", "model"):
        ours, theirs = getattr(first, key), getattr(other, key)
        if ours is not None and theirs is not None and ours != theirs:
            raise InputError(f"{name} has {key} {theirs} and the first {ours}")
