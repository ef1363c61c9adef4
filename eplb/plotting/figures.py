"""Figures as matplotlib axes."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays import Floats, Ints
from ..errors import InputError
from ..plan import Plan
from ..report import Report
from .marks import (
    finish,
    ground_at_mean,
    layer_ticks,
    mark_replans,
    marked,
    own_axes,
    plain,
    styled,
    upright,
    whole_numbers,
)
from .palette import INK, MUTED, SERIES
from .series import KNOBS, SETTINGS, Sweep, Timeline, timeline_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# Loads of this share of the mean, and its inverse, have the full colour of the heat map.
_TWICE = 2.0
# Areas over so many windows are pixels in a vector file, which their outlines would make large.
_MANY = 500


def heat_map(
    rank_load: Floats,
    layer_ids: Ints,
    ax: "Axes | None" = None,
    out_of_service: Collection[int] = (),
) -> "Axes":
    """Each rank's load over the mean of its layer: a row a layer, a column a rank.

    Ranks at the mean have no colour, busier ones are orange and idler ones blue, fully so from
    twice and half the mean on; ranks out of service are grey. `rank_load` is of shape (L, R), as
    `Report.rank_load`.
    """
    ax = own_axes(ax)
    load = np.array(rank_load, np.float64)
    load[:, sorted(out_of_service)] = np.nan
    mean = np.nanmean(load, axis=1, keepdims=True)
    ratio = np.divide(load, mean, out=np.ones_like(load), where=(mean > 0) & ~np.isnan(load))
    octaves = np.log2(np.clip(ratio, 1 / _TWICE, _TWICE))
    octaves[np.isnan(load)] = np.nan
    image = ax.imshow(
        octaves,
        cmap=ground_at_mean(),
        vmin=-1,
        vmax=1,
        aspect="auto",
        interpolation="none",
        extent=(-0.5, load.shape[1] - 0.5, len(load) - 0.5, -0.5),
    )
    ax.set_xlabel("GPU")
    ax.set_ylabel("layer")
    layer_ticks(ax.yaxis, layer_ids)
    whole_numbers(ax.xaxis)
    bar = ax.figure.colorbar(image, ax=ax, location="top", pad=0.03, aspect=60)
    marks = {0.5: "≤ ½", 0.8: "0.8", 0.95: "0.95", 1.05: "1.05", 1.25: "1.25", 2.0: "≥ 2"}
    bar.set_ticks(list(np.log2(list(marks))), labels=list(marks.values()))
    bar.set_label("load ÷ mean of the layer")
    assert bar.solids is not None
    bar.solids.set_rasterized(True)  # else a path for each of its colours
    return ax


def balance_by_layer(reports: Mapping[str, Report], ax: "Axes | None" = None) -> "Axes":
    """Mean balancedness of each layer under each plan, and the least window below it."""
    ax = own_axes(ax)
    lines = []
    for style, (name, report) in styled(reports):
        ratio = report.balancedness
        x = np.arange(len(report.layer_ids))
        by_layer = report.balance.layer_balancedness
        lines += ax.plot(x, by_layer, label=plain(name), **marked(style, len(x)))
        ax.vlines(x, ratio.min(axis=0), by_layer, color=style["color"], alpha=0.35, linewidth=1)
    layer_ticks(ax.xaxis, next(iter(reports.values())).layer_ids)
    ax.set_xlabel("layer")
    ax.set_ylabel("balancedness")
    return finish(ax, lines)


def balance_over_time(
    sources: "Mapping[str, Report | Timeline]", ax: "Axes | None" = None
) -> "Axes":
    """Mean balancedness of each window, down to its worst layer, with re-plans marked."""
    ax = own_axes(ax)
    lines = []
    for style, (name, source) in styled(sources):
        line = source if isinstance(source, Timeline) else timeline_of(source)
        lines += ax.plot(
            line.windows, line.mean_balancedness, label=plain(name), **marked(style, len(line[0]))
        )
        ax.fill_between(
            line.windows, line.worst_balancedness, line.mean_balancedness,
            color=style["color"], alpha=0.12, linewidth=0, rasterized=len(line.windows) > _MANY,
        )  # fmt: skip
    mark_replans(ax, sources)
    ax.set_xlabel("window")
    ax.set_ylabel("balancedness")
    return finish(ax, lines)


def load_over_time(sources: "Mapping[str, Report | Timeline]", ax: "Axes | None" = None) -> "Axes":
    """Load of the busiest rank in each window, summed over layers, and the mean rank's below it,
    with re-plans marked."""
    ax = own_axes(ax)
    lines, floors = [], []
    for style, (name, source) in styled(sources):
        line = source if isinstance(source, Timeline) else timeline_of(source)
        lines += ax.plot(
            line.windows, line.peak_load, label=plain(name), **marked(style, len(line[0]))
        )
        floors.append(line)
    widest = max(floors, key=lambda line: len(line.windows))
    lines += ax.plot(
        widest.windows, widest.mean_load, color=MUTED[0], linestyle=":", label="mean GPU"
    )
    mark_replans(ax, sources)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("window")
    ax.set_ylabel("busiest GPU, tokens")
    return finish(ax, lines)


def moves_over_time(sources: "Mapping[str, Report | Timeline]", ax: "Axes | None" = None) -> "Axes":
    """Expert copies that each re-plan sent, at the window before which it sent them."""
    ax = own_axes(ax)
    lines = []
    for style, (name, source) in styled(sources):
        line = source if isinstance(source, Timeline) else timeline_of(source)
        sent = np.flatnonzero(line.moves)
        if len(sent):
            lines += ax.plot(
                line.windows[sent], line.moves[sent], linestyle="", marker=style["marker"],
                color=style["color"], label=plain(name),
            )  # fmt: skip
            low = np.zeros(len(sent))
            ax.plot(*upright(line.windows[sent], low, line.moves[sent]), color=style["color"])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("window")
    ax.set_ylabel("copies sent")
    return finish(ax, lines)


def bound_gaps(plan: Plan, ax: "Axes | None" = None) -> "Axes":
    """How far above its lower bound each layer's peak load is, in percent.

    Raises
    ------
    InputError
        When the plan carries no bound.
    """
    if plan.gap is None:
        raise InputError("the plan carries no lower bound, so there is no gap to draw")
    ax = own_axes(ax)
    x = np.arange(len(plan.layer_ids))
    ax.bar(x, 100 * plan.gap, color=SERIES[0][0], width=0.8)
    ax.margins(x=0.01)
    # Gaps of no size at all would fill the axes with the noise of rounding.
    ax.set_ylim(0, max(0.1, 110 * float(plan.gap.max())))
    layer_ticks(ax.xaxis, plan.layer_ids)
    ax.set_xlabel("layer")
    ax.set_ylabel("gap to bound, %")
    return finish(ax, [])


def sweep_curve(sweep: Sweep, ax: "Axes | None" = None) -> "Axes":
    """Mean balancedness over redundant experts, or over what else the sweep varies, the knee
    marked; a curve for each value of the other settings."""
    ax = own_axes(ax)
    knob, curves = _curves(sweep)
    lines: list[Line2D] = []
    for style, (name, points) in styled(curves):
        x, y = ([point[key] for point in points] for key in (knob, "mean_balancedness"))
        lines += ax.plot(x, y, label=plain(name), **marked(style, len(x)))
    if not any(curves):  # one curve needs no name
        lines = []
    knees = [point for points in curves.values() for point in points if is_knee(point, sweep)]
    if knees:
        lines += ax.plot(
            [point[knob] for point in knees], [point["mean_balancedness"] for point in knees],
            linestyle="", marker="o", markersize=13, markerfacecolor="none", markeredgewidth=1.8,
            color=INK[0], label="knee",
        )  # fmt: skip
        for point in knees:
            ax.annotate(
                f"{point[knob]:g}", (point[knob], point["mean_balancedness"]),
                xytext=(0, 11), textcoords="offset points", ha="center",
            )  # fmt: skip
    ax.margins(y=0.2)
    whole_numbers(ax.xaxis)
    titles = {"redundant": "redundant experts a layer", "max_moves": "moves", "gpus": "GPUs"}
    ax.set_xlabel(titles[knob])
    ax.set_ylabel("mean balancedness")
    return finish(ax, lines)


def is_knee(point: Mapping[str, Any], sweep: Sweep) -> bool:
    """Whether a point of a sweep has the settings of one of its knees."""
    return any(all(point.get(key) == value for key, value in knee.items()) for knee in sweep.knees)


def _curves(sweep: Sweep) -> tuple[str, dict[str, list[Mapping[str, Any]]]]:
    """What the horizontal axis has, and the points of each curve in its order."""
    varied = [key for key in SETTINGS if len({point.get(key) for point in sweep.points}) > 1]
    knob = next((key for key in KNOBS if key in varied), "redundant")
    points = [point for point in sweep.points if knob in point]
    if not points:
        raise InputError(f"no point of the sweep has {' or '.join(KNOBS)} to draw it over")
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for point in sorted(points, key=lambda point: float(point[knob])):
        own = [_setting(key, point[key]) for key in varied if key != knob and key in point]
        curves.setdefault(", ".join(own), []).append(point)
    return knob, curves


def _setting(key: str, value: Any) -> str:
    words = {"redundant": "redundant", "max_moves": "moves", "gpus": "GPUs", "nodes": "nodes"}
    return f"{value:g} {words[key]}" if key in words else str(value)
