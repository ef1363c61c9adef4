"""What curves are drawn from, taken out of reports and of the content of JSON files."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from .._arrays import Floats, Ints
from ..errors import InputError
from ..report import Report

# What a sweep varies, in the order in which they are chosen for the horizontal axis.
KNOBS = ("redundant", "max_moves", "gpus")
# What tells its points apart.
SETTINGS = ("trace", *KNOBS, "nodes")


class Timeline(NamedTuple):
    """What each window of a trace was like, of shape (W,) throughout.

    `peak_load` is the busiest rank's load, which the others wait for, summed over layers, and
    `mean_load` what it would be in perfect balance; `moves` are copies sent before the window.
    """

    windows: Ints
    mean_balancedness: Floats
    worst_balancedness: Floats
    mean_load: Floats
    peak_load: Floats
    moves: Ints


class Sweep(NamedTuple):
    """Points of a sweep, each the named figures of one setting, and the settings of its knees, one
    a curve."""

    points: tuple[Mapping[str, Any], ...]
    knees: tuple[Mapping[str, Any], ...] = ()


def timeline_of(source: "Report | Mapping[str, Any]", name: str = "the report") -> Timeline:
    """The windows of a report, or of the content of a report file (JSON).

    Raises
    ------
    InputError
        When the content is no report, or its rows lack a figure; the message begins with `name`.
    """
    if isinstance(source, Report):
        ratio = source.balancedness
        return Timeline(
            source.windows,
            ratio.mean(axis=1),
            ratio.min(axis=1),
            source.mean_load.sum(axis=1),
            source.peak_load.sum(axis=1),
            source.moves,
        )
    rows = _rows(source, "eplb-report", "windows", name)
    if not rows:
        raise InputError(f"{name}: the report has no windows to draw")
    columns = {
        key: np.array([_number(row, key, f"{name}: window {at}") for at, row in enumerate(rows)])
        for key in ("window", "mean_balancedness", "worst_balancedness", "efficiency", "moves")
    }
    peak = np.array([_sum(row, f"{name}: window {at}") for at, row in enumerate(rows)])
    return Timeline(
        columns["window"].astype(np.int64),
        columns["mean_balancedness"],
        columns["worst_balancedness"],
        columns["efficiency"] * peak,
        peak,
        columns["moves"].astype(np.int64),
    )


def sweep_of(content: Mapping[str, Any], name: str = "the sweep") -> Sweep:
    """The points of the content of a sweep file (JSON) that have a balancedness, and its knee.

    Raises
    ------
    InputError
        When the content is no sweep, or has no such point; the message begins with `name`.
    """
    rows = _rows(content, "eplb-sweep", "points", name)
    points = tuple(point for row in rows if "mean_balancedness" in (point := _point(row)))
    if not points:
        raise InputError(f"{name}: no point of the sweep has a mean_balancedness to draw")
    knee = content.get("knee")
    marks = [
        mark if isinstance(mark, Mapping) else {"redundant": mark}
        for mark in (knee if isinstance(knee, list) else [knee])
        if mark is not None
    ]
    knees = ({key: mark[key] for key in SETTINGS if key in mark} for mark in marks)
    return Sweep(points, tuple(knee for knee in knees if knee))


def _point(row: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a point and those of its figures that are numbers; of its balance, that of
    windows kept back where there are any."""
    balance = row.get("held_out") or row.get("planned")
    figures = {**(balance if isinstance(balance, Mapping) else {}), **row}
    trace = {"trace": row["trace"]} if isinstance(row.get("trace"), str) else {}
    return trace | {key: float(value) for key, value in figures.items() if _is_number(value)}


def _rows(content: Any, format_: str, key: str, name: str) -> list[Mapping[str, Any]]:
    """The list of objects under `key` of a file of this format."""
    if not isinstance(content, Mapping) or content.get("format") != format_:
        found = content.get("format") if isinstance(content, Mapping) else type(content).__name__
        raise InputError(f"{name}: the format is {found!r}; {format_!r} is expected")
    if content.get("version") != 1:
        raise InputError(
            f"{name}: it is version {content.get('version')!r}; this eplb reads version 1"
        )
    rows = content.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise InputError(f"{name}: {key!r} must be a list of objects")
    return rows


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(row: Mapping[str, Any], key: str, where: str) -> float:
    value = row.get(key)
    if not _is_number(value):
        raise InputError(f"{where}: {key} is {value!r}; a number is expected")
    return float(value)


def _sum(row: Mapping[str, Any], where: str) -> float:
    """The busiest rank's load summed over layers."""
    loads = row.get("peak_load")
    if not isinstance(loads, Sequence) or not loads or not all(map(_is_number, loads)):
        raise InputError(f"{where}: peak_load must be a list of numbers, one a layer")
    return float(sum(loads))
