"""`eplb simulate`: what a trace would be like under saved plans, or plans made as it goes."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import click

from .. import terminal
from ..options import file_options, output_options, trace_arguments
from ..plan_options import move_options, rule_options, size_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eplb.plan import Plan
    from eplb.report import Report
    from eplb.simulator.loss import Loss


_EPILOG = """\b
With --plan the trace is replayed under saved plans, beside the engines' start (linear) and the
published greedy (deepseek, for the loads that the first plan was made for). With --replan-every the
trace is walked through: plans are made from the windows before and serve those that follow.

\b
No window is scored by a plan that saw it: plans know the windows they were made from, and these are
left out; --in-sample scores them all the same and says so.

\b
Examples:
  eplb plan loads.npz --windows :19 --gpus 8 -o plan.json
  eplb simulate loads.npz --plan plan.json
  eplb simulate loads.npz --gpus 8 --replan-every 4 --history 8 --policy below:0.9
  eplb simulate loads.npz --plan plan.json --what-if lose:5 --in-sample
"""


@click.command("simulate", epilog=_EPILOG)
@trace_arguments
@click.option(
    "--plan", "plans", multiple=True, metavar="PLAN", help="Replay under this plan; repeatable."
)
@click.option("--in-sample", is_flag=True, help="Score windows that a plan was made from, too.")
@click.option(
    "--what-if",
    "losses",
    multiple=True,
    metavar="lose:GPU",
    help="What the loss of this GPU does before anyone re-plans; repeatable; lose-node:N.",
)
@click.option(
    "--replan-every",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Walk forward, deciding every N windows whether to re-plan.",
)
@click.option(
    "--history",
    type=click.IntRange(min=1),
    default=None,
    metavar="H",
    help="Plan on the last H windows.  [default: 4 × --replan-every, at most half the trace]",
)
@click.option(
    "--policy",
    default="every",
    show_default=True,
    metavar="POLICY",
    help="When to re-plan: never, every (time), below:B (balancedness of the live plan).",
)
@size_options
@click.option(
    "--current",
    default=None,
    metavar="PLAN",
    help="With --replan-every: the plan that is live at the start.",
)
@move_options
@rule_options
@file_options("the report (JSON)")
@output_options
def command(**options: Any) -> int:
    """Replay a trace under saved plans, or re-plan as it goes, and report what it is worth."""
    from eplb.errors import InputError
    from eplb.formats import files

    if bool(options["plans"]) == (options["replan_every"] is not None):
        raise InputError(
            "either --plan PLAN, to replay under saved plans, or --replan-every N, to plan as the"
            " trace goes, is expected"
        )
    if options["output"] is not None:
        files.check_output(options["output"], options["force"])
    if options["plans"]:
        _replay(options)
    else:
        _walk(options)
    return 0


def _replay(options: dict[str, Any]) -> None:
    """Saved plans, the engines' start and the published greedy on the same windows."""
    from eplb.formats import files
    from eplb.formats.plans import read_plan
    from eplb.formats.reports import report_bytes

    from ..scoring import score

    plans = {path: read_plan(path) for path in options["plans"]}
    scored = score(options, plans, lost=_lost(options["losses"], next(iter(plans.values()))))
    name, report = next(iter(scored.reports.items()))
    others = {**scored.reports, **scored.beside}
    del others[name]
    data = report_bytes(
        report,
        {
            "plan": name,
            "in_sample": scored.in_sample,
            "left_out": scored.left_out,
            "beside": {other: other_report.summary() for other, other_report in others.items()},
            **(
                {"what_if": [_loss(*lost) for lost in scored.losses.items()]}
                if scored.losses
                else {}
            ),
        },
    )
    if options["output"] is not None:
        files.write_bytes(options["output"], data, options["force"])
    if options["as_json"]:
        click.echo(data, nl=False)
        return
    rows = [("scored", _windows(report, scored.left_out, scored.in_sample))]
    terminal.facts(rows)
    _table({**scored.reports, **scored.beside})
    terminal.facts([
        (f"lose {lost['lose']}" , _loss_text(lost, report))
        for lost in (_loss(*case) for case in scored.losses.items())
    ])  # fmt: skip


def _lost(cases: "Sequence[str]", plan: "Plan") -> dict[str, list[int]]:
    """The GPUs of each `lose:GPU` and `lose-node:N`, by what is lost."""
    from eplb.errors import InputError

    own = plan.placement
    per_node = own.num_ranks // own.num_nodes
    lost = {}
    for case in cases:
        verb, _, number = case.partition(":")
        if verb not in ("lose", "lose-node") or not number.isdigit():
            raise InputError(
                f"--what-if {case}; lose:GPU or lose-node:NODE, by number, is expected"
            )
        index = int(number)
        if verb == "lose":
            lost[f"GPU {index}"] = [index]
        elif index >= own.num_nodes:
            raise InputError(f"--what-if {case}; the nodes are numbered 0 to {own.num_nodes - 1}")
        else:
            lost[f"node {index}"] = list(range(index * per_node, (index + 1) * per_node))
    return lost


def _loss(name: str, case: "tuple[Loss, float, Report]") -> dict[str, Any]:
    """What the report says of one loss."""
    loss, share, report = case
    lost = [
        {"layer": int(report.layer_ids[layer]), "expert": int(expert)}
        for layer, expert in loss.lost
    ]
    return {"lose": name, "lost_load_share": share, "summary": report.summary(), "lost": lost}


def _loss_text(lost: dict[str, Any], report: "Report") -> str:
    before = report.summary()["mean_balancedness"]
    after = lost["summary"]["mean_balancedness"]
    layers = len({entry["layer"] for entry in lost["lost"]})
    gone = (
        f"{len(lost['lost'])} experts of {layers} layers have no copy left,"
        f" {lost['lost_load_share']:.1%} of all load"
        if lost["lost"]
        else "every expert has a copy left"
    )
    return f"{gone}; the rest at {after:.3f} mean balancedness, from {before:.3f}"


def _walk(options: dict[str, Any]) -> None:
    """Plans made as the trace goes, beside the same without re-planning and without planning."""
    from eplb.formats import files
    from eplb.formats.reports import report_bytes

    from ..walking import courses

    walked = courses(options)
    name, course = next(iter(walked.items()))
    beside = {other: own.report.summary() for other, own in walked.items() if other != name}
    data = report_bytes(course.report, {"plan": name, "in_sample": False, "beside": beside})
    if options["output"] is not None:
        files.write_bytes(options["output"], data, options["force"])
    if options["as_json"]:
        click.echo(data, nl=False)
        return
    taken = sum(a.placement is not b.placement for a, b in pairwise(course.stretches))
    terminal.facts([
        ("scored", f"{len(course.report.windows)} windows × {len(course.report.layer_ids)} layers,"
                   f" none seen by the plan that serves it; the first"
                   f" {course.stretches[0].first} are history"),
        ("re-plans", f"{taken} of {len(course.stretches) - 1} chances taken"),
    ])  # fmt: skip
    _table({other: own.report for other, own in walked.items()}, moves=True)


def _windows(report: "Report", left_out: int, in_sample: bool) -> str:
    """Which windows were scored, in a line."""
    text = f"{len(report.windows)} windows × {len(report.layer_ids)} layers"
    if in_sample:
        return f"{text}, in-sample: also those that a plan was made from"
    if left_out:
        return f"{text}; {left_out} that a plan was made from are left out"
    return text


def _table(reports: "dict[str, Report]", moves: bool = False) -> None:
    """One line a plan."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("plan")
    for title in ("mean", "worst layer", "95 % reach", "efficiency"):
        table.add_column(title, justify="right")
    if moves:
        table.add_column("moves", justify="right")
    for name, report in reports.items():
        figures = report.summary()
        keys = ("mean_balancedness", "worst_balancedness", "p95_balancedness", "efficiency")
        cells = [f"{figures[key]:.3f}" for key in keys]
        table.add_row(name, *cells, *([f"{figures['moves']:,}"] if moves else []))
    terminal.show(table)
