"""Traces as the commands take them: read, cut, joined, scenarios added, dense layers dropped."""

from collections.abc import Sequence
from typing import NamedTuple

from eplb.errors import InputError
from eplb.formats.traces import Reading, read_trace
from eplb.trace import LoadTrace, RouteTrace, add_scenario, join


class Loaded(NamedTuple):
    """One trace to plan from, and what is to be said of how it came about.

    `routes` are the token routes that its timeline was counted from, where one file alone is it.
    """

    trace: LoadTrace
    routes: RouteTrace | None
    names: tuple[str, ...]
    formats: tuple[str, ...]
    notes: tuple[str, ...]
    dropped_layers: tuple[int, ...]


def load(
    traces: Sequence[str],
    scenarios: Sequence[tuple[str, float]] = (),
    windows: slice | None = None,
    window_tokens: int | None = None,
    window_steps: int | None = None,
) -> Loaded:
    """Several files as one timeline, with its scenarios.

    `windows` is of the timeline alone. Layers without load in any file are dropped.
    """
    cut = (window_tokens, window_steps)
    readings = [read_trace(path) for path in traces]
    whole = readings[0].trace if len(readings) == 1 else None
    notes = [
        f"{path}: {note}" for path, r in zip(traces, readings, strict=True) for note in r.notes
    ]
    timeline = join([count(path, r, *cut) for path, r in zip(traces, readings, strict=True)])
    if windows is not None:
        timeline = timeline.windows(windows)
    for path, weight in scenarios:
        reading = read_trace(path)
        readings.append(reading)
        notes += [f"{path}: {note}" for note in reading.notes]
        timeline = add_scenario(timeline, count(path, reading, *cut), weight)
    dense = timeline.dense_layers()
    if dense.all():
        raise InputError("no layer carries any load, so there is nothing to plan")
    return Loaded(
        trace=timeline.layers(~dense),
        routes=whole if isinstance(whole, RouteTrace) else None,
        names=(*traces, *(path for path, _ in scenarios)),
        formats=tuple(dict.fromkeys(reading.format for reading in readings)),
        notes=tuple(notes),
        dropped_layers=tuple(timeline.layer_ids[dense].tolist()),
    )


def count(
    path: str, reading: Reading, window_tokens: int | None, window_steps: int | None
) -> LoadTrace:
    """The windows of a file: routes are cut, counts are what they are."""
    if isinstance(reading.trace, RouteTrace):
        return reading.trace.windows(window_tokens, window_steps)
    if window_tokens is not None:
        raise InputError(
            f"{path} holds counts by window, which cannot be cut by tokens; --window-tokens is for"
            " token routes"
        )
    return reading.trace if window_steps is None else reading.trace.summed(window_steps)
