"""Traces as they are scored: window by window, with the routes they were counted from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from eplb._arrays import Floats, Ints
from eplb.formats.blocks import read_blocks, streams
from eplb.formats.model_config import read_model
from eplb.formats.source import Hints
from eplb.plan import Plan
from eplb.routes import RouteTrace
from eplb.timeline import routes_with_shared_experts
from eplb.trace import LoadTrace

from . import terminal
from .loading import count, load, read


class Recording(NamedTuple):
    """The windows of the traces, and the token routes they were counted from, with the first token
    of each window and the end of the last, where a single file of routes is all."""

    blocks: Iterable[LoadTrace]
    routes: RouteTrace | None
    edges: tuple[int, ...]

    def placed(self, layer_ids: Ints, num_shared: int) -> "Recording":
        """The same with the routes in the layers that a plan places, in its order, its shared
        experts among them; without routes where a layer lacks, as its loads will be refused."""
        routes = self.routes
        if routes is None or not np.isin(layer_ids, routes.layer_ids).all():
            return self._replace(routes=None)
        row = {layer: index for index, layer in enumerate(routes.layer_ids.tolist())}
        routes = routes.rows(np.array([row[layer] for layer in layer_ids.tolist()]))
        return self._replace(routes=routes_with_shared_experts(routes, num_shared))


def read_recording(options: Mapping[str, Any]) -> Recording:
    """What the options name, read at once only where it cannot be read in blocks."""
    (path, *others), windows = options["traces"], options["windows"]
    cut = (options["window_tokens"], options["window_steps"])
    if others or streams(path):
        return Recording(_blocks(options), None, ())
    model = None if options["model"] is None else read_model(options["model"])
    reading = read(path, options["window_steps"], model, options["recorded_under"])
    for note in reading.notes:
        terminal.remark(f"{path}: {note}", options["quiet"])
    trace = count(path, reading, *cut)
    edges: Sequence[int] = ()
    if isinstance(reading.trace, RouteTrace):
        edges = reading.trace.edges(*cut)
    if windows is not None:
        first, end, _ = windows.indices(trace.num_windows)
        trace, edges = trace.windows(windows), edges[first : end + 1]
    routes = reading.trace if isinstance(reading.trace, RouteTrace) else None
    return Recording([trace], routes, tuple(edges))


def _blocks(options: Mapping[str, Any]) -> Iterator[LoadTrace]:
    """The windows of all traces in order, a few at a time where the file allows it."""
    model = None if options["model"] is None else read_model(options["model"])
    cut = (options["window_tokens"], options["window_steps"])
    known = (model, options["recorded_under"])
    if options["windows"] is not None:
        loaded = load(options["traces"], (), options["windows"], *cut, *known)
        for note in loaded.notes:
            terminal.remark(note, options["quiet"])
        yield loaded.trace
        return
    for path in options["traces"]:
        plain = cut == (None, None) and options["recorded_under"] is None
        if plain and path != "-" and streams(path):
            yield from read_blocks(path, Hints(model=model))
            continue
        reading = read(path, options["window_steps"], *known)
        for note in reading.notes:
            terminal.remark(f"{path}: {note}", options["quiet"])
        yield count(path, reading, *cut)


def with_top_k(
    blocks: Iterable[LoadTrace], given: int | None, planned: int | None
) -> Iterator[LoadTrace]:
    """The trace with as many experts a token as are given, or as it says, or as were planned for:
    what shared experts are loaded with."""
    for trace in blocks:
        yield replace(trace, top_k=given or trace.top_k or planned)


def planned_for(plans: Mapping[str, Plan], options: Mapping[str, Any]) -> set[str]:
    """The digests of all windows that one of the plans was made from; what may hide some of them
    from being known again is remarked on."""
    seen: set[str] = set()
    for path, plan in plans.items():
        digests = plan.provenance.get("windows")
        if digests is None:
            terminal.remark(
                f"{path} does not say which windows it was made from: if the trace has them, its"
                " figures are in-sample",
                options["quiet"],
            )
        elif any(
            plan.options.get(key) != options[key] for key in ("window_tokens", "window_steps")
        ):
            terminal.remark(
                f"{path} was made from windows cut otherwise (--window-steps, --window-tokens), and"
                " traffic is known again only as it was cut: if the trace has some of it, the"
                " figures are in-sample",
                options["quiet"],
            )
        seen.update(digests or ())
    return seen


class Tally:
    """How many windows count, how many of them were served, and the mean load of those."""

    def __init__(self) -> None:
        self.num_read = self.num_served = 0
        self._weight, self._load = 0.0, np.zeros(())
        self._windows: list[Ints] = []

    def read(self, blocks: Iterable[LoadTrace]) -> Iterator[LoadTrace]:
        """Hand the windows of a trace on."""
        for trace in blocks:
            self.num_read += int((trace.window_weight > 0).sum())
            yield trace

    def served(self, blocks: Iterable[tuple[LoadTrace, Ints]]) -> Iterator[tuple[LoadTrace, Ints]]:
        """Hand the windows that are served on."""
        for trace, windows in blocks:
            self.num_served += trace.num_windows
            self._windows.append(windows)
            self._weight += trace.window_weight.sum()
            self._load = self._load + np.tensordot(trace.window_weight, trace.tokens, axes=1)
            yield trace, windows

    @property
    def windows(self) -> Ints:
        """The numbers of the windows served."""
        return np.concatenate(self._windows)

    @property
    def mean_load(self) -> Floats:
        """The weighted mean over the windows served, (L, E)."""
        return self._load / self._weight
