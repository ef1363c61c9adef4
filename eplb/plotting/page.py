"""One page of HTML with every figure in it: no scripts, nothing from the network."""

from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from . import figures, tables
from .marks import require_matplotlib
from .series import Sweep, Timeline
from .sheet import style_sheet
from .svg import inline_svg, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..plan import Plan
    from ..report import Report

# With more ranks than this a heat map takes the whole width of the page.
_NARROW_RANKS = 64

# The browser itself then refuses whatever is not in the file.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def build_page(
    plans: "Mapping[str, Plan]",
    reports: "Mapping[str, Report]",
    scored: str = "",
    walks: Mapping[str, Timeline] | None = None,
    sweep: Sweep | None = None,
) -> str:
    """The page about the first of `plans`, as it served what `reports` say, by name and from what
    was before to what came after; the same bytes for the same input.

    Parameters
    ----------
    plans
        By name; each has its report under the same name.
    reports
        Of the plans and of what they are compared with: the first of them is "before".
    scored
        What was scored, in a line.
    walks
        Reports of plans made as the trace goes, to draw over the same windows.
    sweep
        Balance against redundant experts, GPUs or moves.
    """
    require_matplotlib()
    name, plan = next(iter(plans.items()))
    first = next(iter(reports))
    before = None if first == name else first
    walks = walks or {}
    sections = [
        _summary(name, before, plans, reports, scored),
        _heat_maps(name, plans, reports),
        _by_layer(reports),
        _over_time(reports, walks),
        _sweep(sweep),
        _gaps(name, plan),
        _section(
            "Layer by layer",
            tables.layer_table(plan, reports[name], None if before is None else reports[before]),
            f"{name}, before: {before}." if before else f"{name}.",
        ),
        _section("Definitions", tables.definitions(reports)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}: expert placement</title>\n<style>\n{style_sheet()}</style>\n"
        "</head>\n<body>\n<main>\n" + "".join(sections) + "</main>\n</body>\n</html>\n"
    )


def _section(title: str, body: str, note: str = "") -> str:
    note = f'<p class="note">{escape(note)}</p>\n' if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{note}{body}</section>\n"


def _summary(
    name: str,
    before: str | None,
    plans: "Mapping[str, Plan]",
    reports: "Mapping[str, Report]",
    scored: str,
) -> str:
    own = plans[name].placement
    nodes = f" on {own.num_nodes} nodes" if own.num_nodes > 1 else ""
    facts = (
        f"{own.num_layers} layers × {own.num_logical_experts} experts in {own.num_slots} slots,"
        f" {own.slots_per_rank} on each of {own.num_ranks} GPUs{nodes}."
    )
    figures_of = {key: report.summary() for key, report in reports.items()}
    tiles = ""
    for key, title in tables.FIGURES.items():
        value = f"{figures_of[name][key]:.3f}"
        if before is not None:
            value = f"{figures_of[before][key]:.3f} → {value}"
        tiles += f"<li><b>{value}</b><span>{escape(title)}</span></li>\n"
    wait = "All GPUs of a layer wait for the busiest one. Summed over layers, it carries "
    wait += f"{1 / figures_of[name]['efficiency']:.3f} times the mean load under {name}"
    if before is not None:
        wait += f" and {1 / figures_of[before]['efficiency']:.3f} times under {before}"
    return (
        f"<header><h1>{escape(name)}</h1>\n<p>{escape(facts)}</p>\n"
        + (f'<p class="note">Scored: {escape(scored)}.</p>\n' if scored else "")
        + f'</header>\n<ul class="tiles">\n{tiles}</ul>\n<p>{escape(wait)}.</p>\n'
        + tables.summary_table(reports, plans)
    )


def _heat_maps(subject: str, plans: "Mapping[str, Plan]", reports: "Mapping[str, Report]") -> str:
    drawn = ""
    for number, (name, report) in enumerate(reports.items()):
        load = report.rank_load
        if load is None:
            continue
        out = plans[name].placement.excluded_ranks if name in plans else ()
        order = "after, " if name == subject else "before, " if number == 0 else ""
        wide = load.shape[1] > _NARROW_RANKS
        height = float(np.clip(1.0 + 0.085 * len(load), 2.0, 6.0))

        def draw(ax: "Axes", report: "Report" = report, out: tuple[int, ...] = out) -> None:
            assert report.rank_load is not None
            figures.heat_map(report.rank_load, report.layer_ids, ax, out)

        drawn += _figure(
            f"load-{number}",
            f"Heat map of GPU load by layer under {name}",
            f"{order}{name}: mean load of each GPU over the mean of its layer",
            [draw],
            (10.5 if wide else 6.2, height),
            wide,
        )
    return _section(
        "GPU load, before and after",
        f'<div class="figures">\n{drawn}</div>\n',
        "Orange GPUs carry more than the mean of their layer, blue ones less; a GPU at the mean has"
        " no colour. Grey GPUs are out of service.",
    )


def _by_layer(reports: "Mapping[str, Report]") -> str:
    return _section(
        "Balancedness by layer",
        _figure(
            "by-layer",
            "Balancedness of each layer under each plan",
            "Mean over windows; thin lines reach down to the worst window",
            [lambda ax: figures.balance_by_layer(reports, ax)],
            (10.5, 3.2),
            True,
        ),
    )


def _over_time(reports: "Mapping[str, Report]", walks: Mapping[str, Timeline]) -> str:
    sources: dict[str, Report | Timeline] = {**reports, **walks}
    draws: list[Callable[[Axes], object]] = [
        lambda ax: figures.balance_over_time(sources, ax),
        lambda ax: figures.load_over_time(sources, ax),
    ]
    if any(walk.moves.any() for walk in walks.values()):
        draws.append(lambda ax: figures.moves_over_time(sources, ax))
    note = "" if walks else (
        "Saved plans are never re-planned. The report of a trace that is walked through"
        " (simulate --replan-every), given as --walk, is drawn here with its re-plans marked."
    )  # fmt: skip
    return _section(
        "Load over time",
        _figure(
            "over-time",
            "Balancedness and load of the busiest GPU in each window, re-plans marked",
            "Above: mean balancedness of each window, shaded down to its worst layer. Below: load"
            " of the busiest GPU, summed over layers; the dotted line is the mean GPU. Dashed lines"
            " mark re-plans",
            draws,
            (10.5, 2.4 * len(draws)),
            True,
        )
        + (tables.walk_table(walks) if walks else ""),
        note,
    )


def _sweep(sweep: Sweep | None) -> str:
    title = "What more would give"
    if sweep is None:
        return _section(title, "", "What eplb sweep writes, given as --sweep, is drawn here.")
    return _section(
        title,
        _figure(
            "sweep",
            "Mean balancedness over the settings of the sweep, its knee marked",
            "Mean balancedness at each setting, of windows kept back where the sweep kept any;"
            " rings mark the knees",
            [lambda ax: figures.sweep_curve(sweep, ax)],
            (10.5, 3.2),
            True,
        )
        + tables.sweep_table(sweep),
    )


def _gaps(name: str, plan: "Plan") -> str:
    title = "Gap to bound"
    if plan.gap is None:
        return _section(title, "", f"{name} carries no lower bound.")
    worst = int(plan.gap.argmax())
    return _section(
        title,
        _figure(
            "gaps",
            "Gap of each layer's peak load to its lower bound",
            f"{name}: peak load over lower bound, less 1, on the windows planned for",
            [lambda ax: figures.bound_gaps(plan, ax)],
            (10.5, 2.4),
            True,
        ),
        f"At most {plan.gap[worst]:.2%} above the best possible, in layer {plan.layer_ids[worst]}.",
    )


def _figure(
    name: str,
    label: str,
    caption: str,
    draws: "list[Callable[[Axes], object]]",
    size: tuple[float, float],
    wide: bool,
) -> str:
    """A figure of axes one above the other, which share the horizontal axis."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the reader's own settings are: the same bytes
        matplotlib.rcParams.update(style())  # type: ignore[arg-type]
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(draws), sharex=len(draws) > 1, squeeze=False)[:, 0]
        for number, (ax, draw) in enumerate(zip(axes, draws, strict=True)):
            draw(ax)
            if number < len(draws) - 1:
                ax.set_xlabel("")
            if number and ax.get_legend() is not None and ax.get_legend().get_texts():
                ax.get_legend().remove()  # the names are above the first
        picture = inline_svg(figure, name, label)
    return (
        f'<figure id="{name}"{" class=wide" if wide else ""}>\n{picture}'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>\n"
    )
