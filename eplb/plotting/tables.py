"""The tables and the definitions of the page, as HTML."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from ..plan import Plan
from ..report import Report
from .figures import is_knee
from .series import SETTINGS, Sweep, Timeline

FIGURES = {
    "mean_balancedness": "mean balancedness",
    "worst_balancedness": "worst layer",
    "p95_balancedness": "reached by 95 %",
    "efficiency": "efficiency",
}

# Redundant experts named in a row of the table, those with most copies first.
_NAMED = 6

_DEFINITIONS = {
    "load": "Token-expert assignments of a window: a token routed to top-k experts counts k times."
    " Copies of an expert serve equal shares of its tokens.",
    "window": "The engine steps that are summed in one row of the trace.",
    "balancedness": "Mean GPU load ÷ largest GPU load, of one window and one layer; 1 is perfect."
    " GPUs out of service do not count.",
    "mean balancedness": "The mean of those ratios over windows and layers.",
    "worst layer": "The balancedness of the worst layer, its windows averaged.",
    "reached by 95 %": "The balancedness that 95 % of all pairs of a window and a layer reach or"
    " pass.",
    "efficiency": "Σ mean ÷ Σ largest GPU load. Layers run one after another, so this is the share"
    " of expert time in which no GPU waits, as far as time goes with load.",
    "busiest GPU": "All GPUs of a layer wait for the one with the largest load.",
    "lower bound, gap": "No placement that obeys the plan's options has a smaller mean largest load"
    " than the bound, on the windows planned for; gap is how far the plan is above it. optimal:"
    " proven equal to the bound; heuristic: not proven; stopped: ended before it was finished.",
    "redundant experts": "Slots beyond one copy of each expert; 38×3 is expert 38 with 3 copies.",
    "copies sent": "Expert copies that a GPU must receive in a re-plan because it held none.",
    "knee": "Where more stops paying: the point furthest above the line from the first to the last"
    " setting, or what the sweep's file marks.",
    "linear": "How engines start: slot p holds expert p mod E.",
    "deepseek": "The greedy that DeepSeek published, planned on the loads that the first plan was"
    " made for.",
}


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns, and any of words, are set to the left."""
    labels = "".join(
        f'<th scope="col"{_left(at < left or name == _WORDS)}>{escape(name)}</th>'
        for at, name in enumerate(head)
    )
    body = "\n".join(f"<tr>{_cells(row, head, left)}</tr>" for row in rows)
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{labels}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>\n"
    )


_WORDS = "redundant experts"


def _left(wanted: bool) -> str:
    return ' class="left"' if wanted else ""


def _cells(row: Sequence[str], head: Sequence[str], left: int) -> str:
    first = f'<th scope="row"{_left(left > 0)}>{escape(row[0])}</th>'
    return first + "".join(
        f"<td{_left(at < left or head[at] == _WORDS)}>{escape(cell)}</td>"
        for at, cell in enumerate(row[1:], 1)
    )


def summary_table(reports: Mapping[str, Report], plans: Mapping[str, Plan]) -> str:
    """One line for each placement that was scored."""
    extra = list(dict.fromkeys(key for report in reports.values() for key in report.figures))
    head = ["plan", *FIGURES.values(), *(key.replace("_", " ") for key in extra), "largest gap"]
    rows = []
    for name, report in reports.items():
        figures = report.summary()
        gap = plans[name].gap if name in plans else None
        rows.append([
            name,
            *(f"{figures[key]:.3f}" for key in FIGURES),
            *(f"{figures[key]:.4g}" if key in figures else "–" for key in extra),
            "–" if gap is None else f"{gap.max():.2%}",
        ])  # fmt: skip
    return table("The same windows under each plan", head, rows)


def walk_table(walks: Mapping[str, Timeline]) -> str:
    """One line for each report of plans made as the trace goes."""
    rows = [
        [
            name,
            f"{len(walk.windows)}",
            f"{walk.mean_balancedness.mean():.3f}",
            f"{walk.mean_load.sum() / walk.peak_load.sum() if walk.peak_load.any() else 1:.3f}",
            f"{np.count_nonzero(walk.moves)}",
            f"{walk.moves.sum():,}",
        ]
        for name, walk in walks.items()
    ]
    head = ["report", "windows", "mean balancedness", "efficiency", "re-plans", "copies sent"]
    return table("Plans made as the trace goes", head, rows)


def layer_table(plan: Plan, report: Report, before: Report | None) -> str:
    """One line a layer."""
    ratio, after = report.balancedness, report.balance.layer_balancedness
    first = None if before is None else before.balance.layer_balancedness
    busiest = None if report.rank_load is None else report.rank_load.argmax(axis=1)
    rows = []
    for at, layer in enumerate(plan.layer_ids.tolist()):
        rows.append([
            f"{layer}",
            *([] if first is None else [f"{first[at]:.3f}"]),
            f"{after[at]:.3f}",
            f"{ratio[:, at].min():.3f}",
            *([] if busiest is None else [f"{busiest[at]}"]),
            *([] if plan.gap is None else [f"{plan.gap[at]:.2%}"]),
            *([] if plan.status is None else [plan.status[at]]),
            _redundant(plan, at),
        ])  # fmt: skip
    head = [
        "layer",
        *([] if first is None else ["before"]),
        "balancedness" if first is None else "after",
        "worst window",
        *([] if busiest is None else ["busiest GPU"]),
        *([] if plan.gap is None else ["gap to bound"]),
        *([] if plan.status is None else ["status"]),
        _WORDS,
    ]
    return table("Balancedness, busiest GPU and redundant experts of each layer", head, rows, 0)


def _redundant(plan: Plan, row: int) -> str:
    count = plan.placement.replica_count[row]
    several = [e for e in (-count).argsort(kind="stable").tolist() if count[e] > 1]
    named = ", ".join(f"{expert}×{count[expert]}" for expert in several[:_NAMED])
    more = len(several) - _NAMED
    return (f"{named} and {more} more" if more > 0 else named) or "none"


def sweep_table(sweep: Sweep) -> str:
    """One line for each point, every figure that it has."""
    found = dict.fromkeys(key for point in sweep.points for key in point)
    keys = sorted(found, key=lambda key: SETTINGS.index(key) if key in SETTINGS else len(SETTINGS))
    rows = [
        [
            *(_amount(key, point[key]) if key in point else "–" for key in keys),
            "knee" if is_knee(point, sweep) else "",
        ]
        for point in sweep.points
    ]
    return table("Points of the sweep", [*(key.replace("_", " ") for key in keys), "mark"], rows, 0)


def _amount(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if "bytes" in key:
        return f"{value / 2**30:,.2f} GiB"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def definitions(names: Iterable[str]) -> str:
    """What the words of the page mean; those of placements only where they are on it."""
    shown = set(names)
    rows = "\n".join(
        f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>"
        for word, text in _DEFINITIONS.items()
        if word not in ("linear", "deepseek") or word in shown
    )
    return f"<dl>\n{rows}\n</dl>\n"
