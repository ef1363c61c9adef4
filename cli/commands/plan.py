"""`eplb plan`: from load traces to a checked placement."""

import time
from typing import TYPE_CHECKING, Any

import click

from .. import terminal
from ..options import Scenario, file_options, output_options, trace_arguments
from ..plan_options import move_options, rule_options, size_options
from ..planning import aligned, build_problem, resolve, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from eplb.model import Model
    from eplb.plan import Plan
    from eplb.problem import Problem
    from eplb.study.backtest import BackTest

    from ..loading import Loaded

_EPILOG = """\b
Balancedness is the mean over the largest rank load of a window and layer; 1 is perfect. The mean
of it over windows and layers is printed; efficiency is Σ mean ÷ Σ largest, proportional to time.
Held-out balancedness is of windows that were not planned for, by walking forward through the trace.

\b
Examples:
  eplb plan loads.json --gpus 32 --nodes 4 -o plan.json
  eplb plan mon.npz tue.npz --scenario decode.npz=0.5 --gpus 16 --redundant 16 -o plan.json
  eplb plan new.npz --gpus 32 --current plan.json --max-moves 200 --frontier -o next.json
  eplb plan routes.npz --window-tokens 8192 --gpus 8 --json > plan.json
"""


@click.command("plan", epilog=_EPILOG)
@trace_arguments
@click.option(
    "--scenario",
    "scenarios",
    type=Scenario(),
    multiple=True,
    help="A further trace to serve well; WEIGHT 1 counts as much as the timeline.",
)
@size_options
@click.option(
    "--current",
    default=None,
    metavar="PLAN",
    help="The plan that is live: ranks and slots are numbered so that least moves.",
)
@move_options
@click.option(
    "--frontier",
    is_flag=True,
    help="With --current: print balance against moves, 0 % to 20 % of slots and all.",
)
@rule_options
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0),
    default=None,
    metavar="S",
    help="Seconds after which layers not yet begun are packed without a search.",
)
@file_options("the plan")
@output_options
def command(**options: Any) -> int:  # fmt: skip
    """Choose redundant experts and place every copy.

    TRACE is recorded load: a file or folder that `eplb formats` lists, - for standard input.
    Several are one timeline in the order given.
    """
    from eplb.formats import files
    from eplb.formats.plans import plan_bytes, read_plan

    from ..loading import load
    from ..outputs import check_output
    from ..plan_summary import summarise

    quiet, begin = options["quiet"], time.monotonic()
    _check_options(options)
    model = resolve(options)
    if options["output"] is not None:
        read = [*options["traces"], *(path for path, _ in options["scenarios"])]
        check_output(options["output"], options["force"], read)
    current = None if options["current"] is None else read_plan(options["current"])
    loaded = load(
        options["traces"],
        options["scenarios"],
        options["windows"],
        options["window_tokens"],
        options["window_steps"],
        model,
        options["recorded_under"],
    )
    for note in loaded.notes:
        terminal.remark(note, quiet)
    _warn(loaded, options)
    live = None if current is None else aligned(current, loaded.trace.layer_ids)
    problem = build_problem(loaded.trace, live, options)
    deadline = None if options["time_limit"] is None else begin + options["time_limit"]
    with terminal.interruptible("placing the layers that are left without a search") as interrupt:
        plan, tested = _solve(
            problem, loaded, current, model, options,
            lambda: interrupt() or (deadline is not None and time.monotonic() > deadline),
        )  # fmt: skip
    data = plan_bytes(plan)
    if options["output"] is not None:
        files.write_bytes(options["output"], data, options["force"])
    if options["as_json"]:
        click.echo(data, nl=False)
    else:
        summarise(problem, plan, loaded, options, tested, time.monotonic() - begin)
    if interrupt.asked:
        terminal.remark("interrupted; layers that were not searched are marked stopped")
        return 130
    if plan.status is not None and "stopped" in plan.status:
        terminal.remark("--time-limit came first; layers that were not searched are marked stopped")
    return 0


def _check_options(options: dict[str, Any]) -> None:
    """Combinations that have no meaning here; the rest is judged where it is used."""
    from eplb.errors import InputError

    if options["frontier"] and options["strategy"] != "auto":
        raise InputError("--frontier needs --strategy auto: no other weighs balance and moves")
    if options["frontier"] and options["current"] is None:
        raise InputError("--frontier draws balance against moves from a live plan: --current PLAN")
    inputs = [*options["traces"], *(path for path, _ in options["scenarios"])]
    if options["current"] == "-" and "-" in inputs:
        raise InputError("standard input (-) can be read once only")


def _solve(
    problem: "Problem",
    loaded: "Loaded",
    current: "Plan | None",
    model: "Model | None",
    options: dict[str, Any],
    stop: "Callable[[], bool]",
) -> "tuple[Plan, BackTest | None]":
    from dataclasses import replace

    from eplb import metrics
    from eplb.solver.kernels import on_compile
    from eplb.solver.solve import solve
    from eplb.study.backtest import plan_ahead

    quiet, strategy = options["quiet"], options["strategy"]
    total = metrics.over_windows(problem.loads, problem.window_weight).sum(axis=1)
    progress = terminal.LayerProgress(total / problem.topology.num_live_ranks, quiet)
    how = settings(options)
    tested = None
    try:
        with on_compile(lambda: terminal.remark(
            "compiling the planner's kernels, once after installation (about 20 s)", quiet
        )):  # fmt: skip
            if strategy == "auto" and options["effort"] != "fast":
                plan, tested = plan_ahead(problem, how, stop, progress.layer)
            else:
                plan = solve(
                    problem,
                    strategy,
                    settings=how,
                    repair=options["repair"],
                    stop=stop,
                    progress=progress.layer,
                )
    finally:
        progress.close()
    trace = loaded.trace
    # What a live plan was made from is in what is kept of it.
    known = () if current is None else current.provenance.get("windows", ())
    facts = {
        "model": trace.model,
        "phase": trace.phase,
        "top_k": options["top_k"] or trace.top_k,
        # What maps of engines need beside the plan: how many rows they have.
        "decoder_layers": None if model is None else model.num_layers,
        # So that nobody takes these windows for unseen ones when the plan is scored.
        "windows": list(dict.fromkeys([*loaded.digests, *known])),
    }
    asked = {
        "windows": _slice(options["windows"]),
        "window_tokens": options["window_tokens"],
        "window_steps": options["window_steps"],
        "scenario_weights": [weight for _, weight in options["scenarios"]],
        "shared_experts": options["shared_experts"] or 0,
    }
    plan = replace(
        plan,
        options={**plan.options, **asked},
        provenance={**plan.provenance, **{k: v for k, v in facts.items() if v is not None}},
    )
    return plan, tested


def _warn(loaded: "Loaded", options: dict[str, Any]) -> None:
    """Say on standard error what makes the trace doubtful; what is normal is left to `inspect`,
    unless more is asked for."""
    from dataclasses import replace

    from eplb.findings import RULES, inspect

    trace = loaded.trace
    if options["top_k"] is not None:
        trace = replace(trace, top_k=options["top_k"])
    found = inspect(trace, loaded.routes)
    told = [f for f in found if options["verbose"] or not RULES[f.id].informs]
    for finding in told:
        text = f"{finding.id} {RULES[finding.id].title}: {finding.found}"
        terminal.remark(text, options["quiet"])
    if told:
        terminal.remark(f"`eplb explain {told[0].id}` says what it means", options["quiet"])


def _slice(windows: slice | None) -> str | None:
    if windows is None:
        return None
    first, end = ("" if edge is None else edge for edge in (windows.start, windows.stop))
    return f"{first}:{end}"
