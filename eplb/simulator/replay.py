"""A trace served by placements that are given."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from .. import metrics
from .._arrays import Floats, Ints
from ..errors import InputError, RefusedError
from ..placement import Placement
from ..report import Report
from ..timeline import with_shared_experts
from ..topology import Topology
from ..trace import LoadTrace, how_layers_differ

# From a trace of the placed layers, and the numbers of its windows, to the tokens that each slot
# serves, of shape (W, L, S).
Dispatch: TypeAlias = Callable[[LoadTrace, Ints], Floats]
# From the tokens of slots (W, L, S) and the steps of a window to modelled seconds a step, (W,).
Timer: TypeAlias = Callable[[Floats, int], Floats]


class Score:
    """What the windows served so far came to, by layer and window."""

    def __init__(self, layer_ids: Ints, topology: Topology, timer: Timer | None = None) -> None:
        self._layer_ids = layer_ids
        self._num_live = topology.num_live_ranks
        self.pace = np.ones(topology.num_ranks)
        self.pace[topology.live_ranks] = topology.pace
        self._timer = timer
        self._rank_load = np.zeros((len(layer_ids), topology.num_ranks))
        self._parts: list[_Part] = []

    def add(self, trace: LoadTrace, slot_load: Floats, windows: Ints, moves: int = 0) -> None:
        """Enter the windows of `trace`, which have these numbers and whose tokens went to slots
        like this, (W, L, S), after so many moves."""
        loads = metrics.by_rank(slot_load, len(self.pace))
        mean = loads.sum(axis=2) / self._num_live
        loads *= self.pace
        self._rank_load += np.tensordot(trace.window_weight, loads, axes=1)
        steps = trace.window_steps
        timed = self._timer is not None and steps is not None
        self._parts.append(
            _Part(
                windows=windows,
                window_weight=trace.window_weight,
                mean_load=mean,
                peak_load=metrics.peak_loads(loads),
                moves=np.array([moves, *[0] * (len(windows) - 1)]),
                step_tokens=None if steps is None else mean.mean(axis=1) / steps,
                step_seconds=self._timer(slot_load, steps) if timed else None,  # type: ignore[misc,arg-type]
            )
        )

    def report(
        self, expert_bytes: int | None = None, figures: Mapping[str, float] | None = None
    ) -> Report:
        """The report of all windows, with further named figures.

        Raises
        ------
        InputError
            When there is no window.
        """
        if not self._parts:
            raise InputError("no window is left to score")
        columns = {
            name: None if any(value is None for value in values) else np.concatenate(values)
            for name, values in zip(_Part._fields, zip(*self._parts, strict=True), strict=True)
        }
        weight = columns["window_weight"]
        assert weight is not None
        return Report(
            layer_ids=self._layer_ids,
            num_ranks=self._num_live,
            expert_bytes=expert_bytes,
            rank_load=self._rank_load / weight.sum(),
            figures=figures or {},
            **columns,  # type: ignore[arg-type]
        )


class _Part(NamedTuple):
    """Some windows; names and shapes as in `Report`."""

    windows: Ints
    window_weight: Floats
    mean_load: Floats
    peak_load: Floats
    moves: Ints
    step_tokens: Floats | None
    step_seconds: Floats | None


def evenly(placement: Placement) -> Dispatch:
    """Even split over the copies of a placement."""
    return lambda trace, _windows: metrics.slot_loads(trace.tokens, placement)


def replay(
    blocks: Iterable[tuple[LoadTrace, Ints]], serve: Mapping[str, tuple[Score, Dispatch]]
) -> None:
    """Serve the windows of `blocks`, each with their numbers, in every way and enter the scores."""
    for trace, windows in blocks:
        for score, dispatch in serve.values():
            score.add(trace, dispatch(trace, windows), windows)


def unseen(
    blocks: Iterable[LoadTrace],
    layer_ids: Ints,
    num_experts: int,
    seen: Collection[str] = (),
    num_shared: int = 0,
) -> Iterator[tuple[LoadTrace, Ints]]:
    """The windows of a trace, with their numbers, whose digests are not among `seen`: those that
    nobody planned for; of the layers placed, with `num_shared` shared experts as routed ones.
    Windows of weight 0 count for nothing and are left out.

    Raises
    ------
    RefusedError
        When the trace is of other layers or experts than the placement.
    """
    first = 0
    for block in blocks:
        new = block.window_weight > 0
        if seen:
            new &= np.array([digest not in seen for digest in block.window_digests()])
        if new.any():
            yield (
                of_layers(block.only(new), layer_ids, num_experts, num_shared),
                (first + np.flatnonzero(new)),
            )
        first += block.num_windows


def of_layers(
    trace: LoadTrace, layer_ids: Ints, num_experts: int, num_shared: int = 0
) -> LoadTrace:
    """The rows of a trace that a plan of these layers and experts places, in its order, with
    `num_shared` shared experts as routed ones.

    Raises
    ------
    RefusedError
        When the trace is of other experts, lacks one of the layers, or has load in another.
    """
    if trace.num_experts + num_shared != num_experts:
        shared = f" and {num_shared} shared ones" if num_shared else ""
        raise RefusedError(
            f"the trace has {trace.num_experts} experts{shared} and the plan {num_experts};"
            " the plan was made for another model"
        )
    dense = trace.dense_layers()
    other = ~np.isin(trace.layer_ids, layer_ids) & ~dense
    missing = np.setdiff1d(layer_ids, trace.layer_ids)
    if other.any() or len(missing):
        raise RefusedError(
            "the trace and the plan do not cover the same layers"
            f" ({how_layers_differ(trace.layer_ids[~dense], layer_ids)});"
            " the plan was made for another model"
        )
    row = {layer: index for index, layer in enumerate(trace.layer_ids.tolist())}
    own = trace.rows(np.array([row[layer] for layer in layer_ids.tolist()]))
    return with_shared_experts(own, num_shared) if num_shared else own
