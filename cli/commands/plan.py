"""`eplb plan`: from load traces to a checked placement."""

import time
from typing import TYPE_CHECKING, Any

import click

from .. import terminal
from ..options import (
    Scenario,
    expert_bytes_option,
    file_options,
    output_options,
    trace_arguments,
)

if TYPE_CHECKING:
    from collections.abc import Callable

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

# Deployments that DeepSeek published; options that are given win over them.
_PROFILES: dict[str, dict[str, Any]] = {
    "deepseek-v3-prefill": {"nodes": 4, "gpus": 32, "redundant": "32", "groups": 8},
    "deepseek-v3-decode": {
        "nodes": 40, "gpus": 320, "redundant": "63", "shared_experts": 1, "node_rule": "free",
    },
    "deepseek-v3-decode-ep144": {
        "nodes": 18, "gpus": 144, "redundant": "32", "node_rule": "free",
    },
}  # fmt: skip

# What an effort multiplies restarts and trials by.
_EFFORTS = {"fast": 0.1, "default": 1.0, "best": 10.0}


@click.command("plan", epilog=_EPILOG)
@trace_arguments
@click.option(
    "--scenario",
    "scenarios",
    type=Scenario(),
    multiple=True,
    help="A further trace to serve well; WEIGHT 1 counts as much as the timeline.",
)
@click.option(
    "--profile",
    type=click.Choice(list(_PROFILES)),
    default=None,
    help="Sizes of a published deployment; other options win over it.",
)
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    default=None,
    metavar="R",
    help="EP ranks in all.  [default: 8]",
)
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Nodes they stand on.  [default: 1]",
)
@click.option(
    "--redundant",
    default=None,
    metavar="K|auto",
    help="Redundant experts a layer; auto: the knee of balance against slots."
    "  [default: one per GPU or the least number above that fills equal slots]",
)
@click.option(
    "--budget-gib",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    metavar="GIB",
    help="With --redundant auto: most memory for experts on a GPU.",
)
@click.option(
    "--groups",
    type=click.IntRange(min=1),
    default=None,
    metavar="G",
    help="Routing groups.  [default: from the trace, else 1]",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=None,
    metavar="K",
    help="Experts per token.  [default: from the trace]",
)
@click.option(
    "--shared-experts",
    type=click.IntRange(min=0),
    default=None,
    metavar="N",
    help="Shared experts as routed ones with the last ids, loaded by every token.",
)
@expert_bytes_option
@click.option(
    "--node-rule",
    type=click.Choice(["strict", "home", "free"]),
    default=None,
    help="strict: every copy of an expert on its home node; home: one copy at least;"
    " free: no rule.  [default: strict]",
)
@click.option(
    "--max-off-home",
    type=click.FloatRange(0, 1),
    default=None,
    metavar="SHARE",
    help="With home: most of the load that may be served off its home node.",
)
@click.option(
    "--current",
    default=None,
    metavar="PLAN",
    help="The plan that is live: ranks and slots are numbered so that least moves.",
)
@click.option(
    "--max-moves",
    type=click.IntRange(min=0),
    default=None,
    metavar="M",
    help="Expert copies that may be sent, over all layers.",
)
@click.option(
    "--max-bytes",
    type=click.IntRange(min=0),
    default=None,
    metavar="B",
    help="The same in bytes; needs --expert-bytes.",
)
@click.option(
    "--move-price",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="P",
    help="What one move must save, as a share of its layer's mean GPU load.",
)
@click.option(
    "--frontier",
    is_flag=True,
    help="With --current: print balance against moves, 0 % to 20 % of slots and all.",
)
@click.option(
    "--strategy",
    type=click.Choice(["auto", "exact", "deepseek", "linear"]),
    default="auto",
    show_default=True,
    help="auto: robust search; exact: every layer improved or proven in the recorded windows,"
    " seconds a layer, no node rule; deepseek: as published, ignores --node-rule; linear: slot p"
    " holds expert p mod E.",
)
@click.option("--repair", is_flag=True, help="Remove same-GPU copies from what deepseek placed.")
@click.option(
    "--exclude-gpu",
    "exclude_gpus",
    type=int,
    multiple=True,
    metavar="ID",
    help="A GPU out of service; it keeps its number and holds nothing.",
)
@click.option(
    "--gpu-speed",
    default=None,
    metavar="FILE",
    help="Relative speeds of the GPUs: a JSON or YAML list of numbers above 0.",
)
@click.option(
    "--survive",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Copies on N more GPUs for each expert, hottest first as far as slots allow.",
)
@click.option(
    "--effort",
    type=click.Choice(list(_EFFORTS)),
    default="default",
    show_default=True,
    help="How hard to search; fast makes no back-test.",
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0),
    default=None,
    metavar="S",
    help="Seconds after which layers not yet begun are packed without a search.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the search; the same input, options and seed give the same bytes.",
)
@file_options("the plan")
@output_options
def command(**options: Any) -> int:  # fmt: skip
    """Choose redundant experts and place every copy.

    TRACE is recorded load: JSON or NPZ as `eplb formats` lists them, - for standard input. Several
    files are one timeline in the order given.
    """
    from eplb.formats import files
    from eplb.formats.plans import plan_bytes, read_plan

    from ..loading import load
    from ..plan_summary import summarise

    quiet, begin = options["quiet"], time.monotonic()
    given = {key for key, value in options.items() if value not in (None, ())}
    for key, value in _PROFILES.get(options["profile"] or "", {}).items():
        if key not in given:
            options[key] = value
    _check_options(options)
    if options["output"] is not None:
        files.check_output(options["output"], options["force"])
    current = None if options["current"] is None else read_plan(options["current"])
    loaded = load(
        options["traces"],
        options["scenarios"],
        options["windows"],
        options["window_tokens"],
        options["window_steps"],
    )
    for note in loaded.notes:
        terminal.remark(note, quiet)
    _warn(loaded, options)
    problem = _problem(loaded, current, options)
    deadline = None if options["time_limit"] is None else begin + options["time_limit"]
    with terminal.interruptible("placing the layers that are left without a search") as interrupt:
        plan, tested = _solve(
            problem, loaded, options,
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
    """Combinations that have no meaning; what a problem can judge it judges itself."""
    from pathlib import Path

    from eplb.errors import InputError

    if options["repair"] and options["strategy"] != "deepseek":
        raise InputError("--repair mends what --strategy deepseek placed; no other needs it")
    if options["max_bytes"] is not None and options["expert_bytes"] is None:
        raise InputError("--max-bytes needs --expert-bytes, the bytes of one expert in one layer")
    if options["max_bytes"] is not None and options["max_moves"] is not None:
        raise InputError("--max-bytes and --max-moves exclude each other")
    if options["frontier"] and options["strategy"] != "auto":
        raise InputError("--frontier needs --strategy auto: no other weighs balance and moves")
    if options["frontier"] and options["current"] is None:
        raise InputError("--frontier draws balance against moves from a live plan: --current PLAN")
    if options["budget_gib"] is not None and options["redundant"] != "auto":
        raise InputError("--budget-gib is for --redundant auto")
    if options["budget_gib"] is not None and options["expert_bytes"] is None:
        raise InputError("--budget-gib needs --expert-bytes, the bytes of one expert in one layer")
    redundant = options["redundant"]
    if redundant is not None and redundant != "auto" and not redundant.isdigit():
        raise InputError(f"--redundant {redundant}; a whole number of 0 or more, or auto")
    inputs = [*options["traces"], *(path for path, _ in options["scenarios"])]
    output = options["output"]
    if output and any(p != "-" and Path(p).resolve() == Path(output).resolve() for p in inputs):
        raise InputError(f"-o {output} would overwrite a trace that is read; give another name")
    if options["current"] == "-" and "-" in inputs:
        raise InputError("standard input (-) can be read once only")


def _problem(loaded: "Loaded", current: "Plan | None", options: dict[str, Any]) -> "Problem":
    """What the options ask for, with --redundant auto resolved."""
    from dataclasses import replace

    from eplb.formats.speeds import read_speeds
    from eplb.problem import Problem
    from eplb.study.knee import find_knee
    from eplb.topology import Topology
    from eplb.trace import with_shared_experts

    trace, auto = loaded.trace, options["strategy"] == "auto"
    searched = auto or options["strategy"] == "exact"
    if options["top_k"] is not None:
        trace = replace(trace, top_k=options["top_k"])
    if options["shared_experts"]:
        trace = with_shared_experts(trace, options["shared_experts"])
    speed = None if options["gpu_speed"] is None else read_speeds(options["gpu_speed"])
    topology = Topology(
        options["gpus"] or 8, options["nodes"] or 1, speed, tuple(sorted(options["exclude_gpus"]))
    )
    max_moves = options["max_moves"]
    if options["max_bytes"] is not None:
        max_moves = options["max_bytes"] // options["expert_bytes"]
    redundant = options["redundant"]
    count = None if redundant in (None, "auto") else int(redundant)
    if redundant == "auto":
        # Any number will do to begin with, if the GPUs in service can hold every expert.
        slots = -(-trace.num_experts // topology.num_live_ranks)
        count = slots * topology.num_ranks - trace.num_experts
    problem = Problem.from_trace(
        trace,
        topology,
        count,
        num_groups=options["groups"],
        # The published strategies know no node rule, so none may forbid what they do.
        node_rule=(options["node_rule"] or ("strict" if auto else "free")) if searched else "free",
        max_off_home=options["max_off_home"],
        survive=options["survive"],
        current=None if current is None else _aligned(current, trace.layer_ids),
        max_moves=max_moves,
        move_price=options["move_price"],
        expert_bytes=options["expert_bytes"],
    )
    if redundant != "auto":
        return problem
    slots = None
    if options["budget_gib"] is not None:
        layer_bytes = problem.num_layers * options["expert_bytes"]
        slots = int(options["budget_gib"] * 2**30 / layer_bytes)
    knee = find_knee(problem, slots)
    curve = ", ".join(f"{count}: {balance:.3f}" for count, balance in knee.curve)
    terminal.remark(
        f"--redundant auto takes {knee.num_redundant}, the knee of balance over redundant experts"
        f" ({curve})",
        options["quiet"],
    )
    slots = (problem.num_experts + knee.num_redundant) // topology.num_ranks
    return replace(problem, slots_per_rank=slots)


def _solve(
    problem: "Problem", loaded: "Loaded", options: dict[str, Any], stop: "Callable[[], bool]"
) -> "tuple[Plan, BackTest | None]":
    from dataclasses import replace

    from eplb import metrics
    from eplb.solver.kernels import on_compile
    from eplb.solver.layer_planner import Settings
    from eplb.solver.solve import solve
    from eplb.study.backtest import plan_ahead

    quiet, strategy = options["quiet"], options["strategy"]
    total = metrics.over_windows(problem.loads, problem.window_weight).sum(axis=1)
    progress = terminal.LayerProgress(total / problem.topology.num_live_ranks, quiet)
    settings = Settings(effort=_EFFORTS[options["effort"]], seed=options["seed"])
    tested = None
    try:
        with on_compile(lambda: terminal.remark(
            "compiling the planner's kernels, once after installation (about 20 s)", quiet
        )):  # fmt: skip
            if strategy == "auto" and options["effort"] != "fast":
                plan, tested = plan_ahead(problem, settings, stop, progress.layer)
            else:
                plan = solve(
                    problem,
                    strategy,
                    settings=settings,
                    repair=options["repair"],
                    stop=stop,
                    progress=progress.layer,
                )
    finally:
        progress.close()
    trace = loaded.trace
    facts = {"model": trace.model, "phase": trace.phase, "top_k": options["top_k"] or trace.top_k}
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


def _aligned(current: "Plan", layer_ids: Any) -> Any:
    """The placement of a current plan, if it is of the same layers as the trace."""
    from eplb.errors import RefusedError
    from eplb.trace import how_layers_differ

    if current.layer_ids.tolist() != layer_ids.tolist():
        raise RefusedError(
            f"the current plan is of {len(current.layer_ids)} layers and the trace of"
            f" {len(layer_ids)} ({how_layers_differ(current.layer_ids, layer_ids)}); it was made"
            " for another model"
        )
    return current.placement


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
