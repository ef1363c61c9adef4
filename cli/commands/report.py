"""`eplb report`: one page of figures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from .. import terminal
from ..options import file_options, model_option, trace_arguments

if TYPE_CHECKING:
    from eplb.plan import Plan
    from eplb.plotting import Sweep, Timeline

_EPILOG = """\b
The trace is replayed under the plans, beside the engines' start (linear) and the published greedy
(deepseek, for the loads that the first plan was made for). The page is about the first plan: GPU
load before and after, balancedness by layer, load over time, gap to bound, definitions. It is one
file, loads nothing from the network, and follows the reader's dark or light scheme.

\b
No window is scored by a plan that saw it: plans know the windows they were made from, and these are
left out; --in-sample scores them all the same and says so.

\b
Examples:
  eplb plan loads.npz --windows :19 --gpus 8 -o plan.json
  eplb report loads.npz --plan plan.json -o report.html
  eplb report loads.npz --plan new.json --plan live.json --walk walk.json -o report.html
"""


@click.command("report", epilog=_EPILOG)
@trace_arguments
@click.option(
    "--plan", "plans", multiple=True, required=True, metavar="PLAN",
    help="The plan that the page is about; further ones are beside it.",
)  # fmt: skip
@click.option("--in-sample", is_flag=True, help="Score windows that a plan was made from, too.")
@click.option(
    "--walk", "walks", multiple=True, metavar="REPORT",
    help="A report of plans made as the trace goes (simulate --replan-every): its re-plans are"
    " marked over time; repeatable.",
)  # fmt: skip
@click.option(
    "--sweep", default=None, metavar="SWEEP", help="What eplb sweep wrote: its curve and knee."
)
@model_option
@file_options("the page (HTML)")
@click.option("-q", "--quiet", is_flag=True, help="No remarks on standard error.")
def command(**options: Any) -> None:
    """Draw plans on a trace as one page of HTML, to read without a network."""
    from eplb.errors import InputError
    from eplb.formats import files
    from eplb.formats.plans import read_plan

    from ..outputs import check_output

    if options["output"] is None:
        raise InputError("where the page is to go is expected: -o report.html")
    read = [*options["traces"], *options["plans"], *options["walks"]]
    read += map(options.get, ("sweep", "model", "recorded_under"))
    check_output(options["output"], options["force"], read)

    from eplb.plotting import build_page
    from eplb.plotting.marks import require_matplotlib

    from ..scoring import score

    require_matplotlib()  # before the work, not after it
    plans = {path: read_plan(path) for path in options["plans"]}
    names = _labels([*plans, *options["walks"]])
    walks = {names[path]: _walk(path, next(iter(plans.values()))) for path in options["walks"]}
    sweep = None if options["sweep"] is None else _sweep(options["sweep"])
    scored = score(options, plans)
    # From what was before to what came after: the plan that the page is about is the last.
    own, *further = ((names[path], report) for path, report in scored.reports.items())
    reports = {**scored.beside, **dict(further), own[0]: own[1]}
    report = own[1]
    plural = "s" if len(report.windows) > 1 else ""
    traces = ", ".join(map(_name, options["traces"]))
    what = f"{len(report.windows)} window{plural} of {traces}"
    if scored.in_sample:
        what += ", in-sample: also those that a plan was made from"
    elif scored.left_out:
        what += f"; {scored.left_out} that a plan was made from are left out"
    named = {names[path]: plan for path, plan in plans.items()}
    data = build_page(named, reports, what, walks, sweep).encode("utf-8", "replace")
    files.write_bytes(options["output"], data, options["force"])
    terminal.facts([
        ("scored", what),
        ("written", f"{options['output']}, {terminal.size(len(data))}: open it in a browser"),
    ])  # fmt: skip


def _labels(paths: Sequence[str]) -> dict[str, str]:
    """What the page calls each file: its name, or its whole path where names are not distinct from
    each other and from what the plans are compared with."""
    from ..scoring import LINEAR, PUBLISHED

    short = {path: _name(path) for path in dict.fromkeys(paths)}
    names = [*short.values(), LINEAR, PUBLISHED]
    return short if len(set(names)) == len(names) else {path: path for path in paths}


def _name(path: str) -> str:
    return "standard input" if path == "-" else path.rpartition("/")[2]


def _walk(path: str, plan: "Plan") -> "Timeline":
    """The windows of a report file, which must be of the plan's layers."""
    from eplb.errors import RefusedError
    from eplb.plotting import timeline_of

    content = _content(path)
    walk = timeline_of(content, path)
    layers = [row.get("layer") for row in content.get("layers", []) if isinstance(row, dict)]
    if layers != plan.layer_ids.tolist():
        raise RefusedError(
            f"{path} is a report of {len(layers)} layers that are not the {len(plan.layer_ids)} of"
            " the plan: it is of another model"
        )
    return walk


def _sweep(path: str) -> "Sweep":
    from eplb.plotting import sweep_of

    return sweep_of(_content(path), path)


def _content(path: str) -> Any:
    from eplb.formats import files

    return files.parse_json(files.read_bytes(path), files.name_of(path))
