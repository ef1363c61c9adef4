"""Traces as the commands take them: read, cut, joined, scenarios added, dense layers dropped."""

from collections.abc import Sequence
from typing import NamedTuple

from eplb.errors import InputError, RefusedError
from eplb.formats.plans import read_plan
from eplb.formats.traces import Reading, read_trace
from eplb.model import Model
from eplb.routes import RouteTrace
from eplb.timeline import add_scenario, join
from eplb.trace import LoadTrace, how_layers_differ


class Loaded(NamedTuple):
    """One trace to plan from, and what is to be said of how it came about.

    `routes` are the token routes that its timeline was counted from, where one file alone is it;
    `digests` are of every window of the timeline and the scenarios.
    """

    trace: LoadTrace
    routes: RouteTrace | None
    names: tuple[str, ...]
    formats: tuple[str, ...]
    notes: tuple[str, ...]
    digests: tuple[str, ...]
    dropped_layers: tuple[int, ...]


def load(
    traces: Sequence[str],
    scenarios: Sequence[tuple[str, float]] = (),
    windows: slice | None = None,
    window_tokens: int | None = None,
    window_steps: int | None = None,
    model: Model | None = None,
    recorded_under: str | None = None,
) -> Loaded:
    """Several files as one timeline, with its scenarios.

    `windows` is of the timeline alone. Layers without load in any file are dropped.
    """
    cut = (window_tokens, window_steps)
    readings = [read(path, window_steps, model, recorded_under) for path in traces]
    whole = readings[0].trace if len(readings) == 1 else None
    notes = [
        f"{path}: {note}" for path, r in zip(traces, readings, strict=True) for note in r.notes
    ]
    timeline = join([count(path, r, *cut) for path, r in zip(traces, readings, strict=True)])
    if windows is not None:
        timeline = timeline.windows(windows)
    digests = timeline.window_digests()
    for path, weight in scenarios:
        reading = read(path, window_steps, model, recorded_under)
        readings.append(reading)
        notes += [f"{path}: {note}" for note in reading.notes]
        scenario = count(path, reading, *cut)
        digests += scenario.window_digests()
        timeline = add_scenario(timeline, scenario, weight)
    dense = timeline.dense_layers()
    if dense.all():
        raise InputError("no layer carries any load, so there is nothing to plan")
    return Loaded(
        trace=timeline.layers(~dense),
        routes=whole if isinstance(whole, RouteTrace) else None,
        names=(*traces, *(path for path, _ in scenarios)),
        formats=tuple(dict.fromkeys(reading.format for reading in readings)),
        notes=tuple(notes),
        digests=digests,
        dropped_layers=tuple(timeline.layer_ids[dense].tolist()),
    )


def read(
    path: str,
    window_steps: int | None = None,
    model: Model | None = None,
    recorded_under: str | None = None,
) -> Reading:
    """One file, told what the user knows of it."""
    if recorded_under is None:
        return read_trace(path, model=model, window_steps=window_steps)
    live = read_plan(recorded_under)
    reading = read_trace(
        path, model=model, window_steps=window_steps, recorded_under=live.placement
    )
    if reading.trace.layer_ids.tolist() != live.layer_ids.tolist():
        raise RefusedError(
            f"{path} and {recorded_under} do not cover the same layers"
            f" ({how_layers_differ(reading.trace.layer_ids, live.layer_ids)});"
            " it was not recorded under that plan"
        )
    return reading


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
