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
    from eplb.plan import Plan
    from eplb.problem import Problem

    from ..loading import Loaded

_HOTTEST = 5

_EPILOG = """\b
Balancedness is the mean over the largest rank load of a window and layer; 1 is perfect. The mean
of it over windows and layers is printed; efficiency is Σ mean ÷ Σ largest, proportional to time.

\b
Examples:
  eplb plan loads.json --gpus 32 --nodes 4 -o plan.json
  eplb plan mon.npz tue.npz --scenario decode.npz=0.5 --gpus 16 --redundant 16 -o plan.json
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
    type=click.IntRange(min=0),
    default=None,
    metavar="K",
    help="Redundant experts a layer.  [default: one per GPU or the least number above"
    " that fills equal slots]",
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
@expert_bytes_option
@click.option(
    "--node-rule",
    type=click.Choice(["strict", "free"]),
    default="strict",
    show_default=True,
    help="strict: every copy of an expert on its home node; free: no rule.",
)
@click.option(
    "--current", default=None, metavar="PLAN", help="The plan that is live, to count what moves."
)
@click.option(
    "--strategy",
    type=click.Choice(["auto", "deepseek", "linear"]),
    default="auto",
    show_default=True,
    help="auto: robust search; deepseek: as published, ignores --node-rule;"
    " linear: slot p holds expert p mod E.",
)
@click.option("--repair", is_flag=True, help="Remove same-GPU copies from what deepseek placed.")
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
    from eplb.errors import InputError
    from eplb.formats import files
    from eplb.formats.plans import plan_bytes, read_plan
    from eplb.problem import Problem
    from eplb.topology import Topology

    from ..loading import load

    quiet, begin = options["quiet"], time.monotonic()
    if options["repair"] and options["strategy"] != "deepseek":
        raise InputError("--repair mends what --strategy deepseek placed; no other needs it")
    if options["output"] is not None:
        files.check_output(options["output"], options["force"])
    topology = Topology(options["gpus"] or 8, options["nodes"] or 1)
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
    problem = Problem.from_trace(
        loaded.trace,
        topology,
        options["redundant"],
        num_groups=options["groups"],
        node_rule=options["node_rule"],
        current=None if current is None else _aligned(current, loaded.trace.layer_ids),
        expert_bytes=options["expert_bytes"],
    )
    _warn(loaded, options["top_k"], quiet)
    with terminal.interruptible("placing the layers that are left without a search") as interrupt:
        plan = _solve(problem, loaded, options, interrupt)
    data = plan_bytes(plan)
    if options["output"] is not None:
        files.write_bytes(options["output"], data, options["force"])
    if options["as_json"]:
        click.echo(data, nl=False)
    else:
        _summarise(problem, plan, loaded, options, time.monotonic() - begin)
    if interrupt.asked:
        terminal.remark("interrupted; layers that were not searched are marked stopped")
        return 130
    return 0


def _solve(
    problem: "Problem", loaded: "Loaded", options: dict[str, Any], interrupt: terminal.Interrupt
) -> "Plan":
    from dataclasses import replace

    from eplb import metrics
    from eplb.solver.kernels import on_compile
    from eplb.solver.local_search import Settings
    from eplb.solver.solve import solve

    total = metrics.over_windows(problem.loads, problem.window_weight).sum(axis=1)
    progress = terminal.LayerProgress(total / problem.topology.num_ranks, options["quiet"])
    try:
        with on_compile(lambda: terminal.remark(
            "compiling the planner's kernels, once after installation (about 15 s)",
            options["quiet"],
        )):  # fmt: skip
            plan = solve(
                problem,
                options["strategy"],
                settings=Settings(seed=options["seed"]),
                repair=options["repair"],
                stop=interrupt,
                progress=progress.layer,
            )
    finally:
        progress.close()
    trace = loaded.trace
    facts = {"model": trace.model, "phase": trace.phase, "top_k": options["top_k"] or trace.top_k}
    cut = {
        "windows": _slice(options["windows"]),
        "window_tokens": options["window_tokens"],
        "window_steps": options["window_steps"],
        "scenario_weights": [weight for _, weight in options["scenarios"]],
    }
    return replace(
        plan,
        options={**plan.options, **cut},
        provenance={**plan.provenance, **{k: v for k, v in facts.items() if v is not None}},
    )


def _aligned(current: "Plan", layer_ids: Any) -> Any:
    """The placement of a current plan, if it is of the same layers as the trace."""
    from eplb.errors import RefusedError

    if current.layer_ids.tolist() != layer_ids.tolist():
        odd = sorted(set(current.layer_ids.tolist()) ^ set(layer_ids.tolist()))
        raise RefusedError(
            f"the current plan is of {len(current.layer_ids)} layers and the trace of"
            f" {len(layer_ids)} (in one only: {odd[:8]}); it was made for another model"
        )
    return current.placement


def _warn(loaded: "Loaded", top_k: int | None, quiet: bool) -> None:
    """Say on standard error what makes the trace doubtful; what is normal is left to `inspect`."""
    from dataclasses import replace

    from eplb.findings import RULES, inspect

    trace = loaded.trace
    if top_k is not None:
        trace = replace(trace, top_k=top_k)
    doubtful = [finding for finding in inspect(trace) if not RULES[finding.id].informs]
    for finding in doubtful:
        terminal.remark(f"{finding.id} {RULES[finding.id].title}: {finding.found}", quiet)
    if doubtful:
        terminal.remark(f"`eplb explain {doubtful[0].id}` says what it means", quiet)


def _summarise(
    problem: "Problem", plan: "Plan", loaded: "Loaded", options: dict[str, Any], seconds: float
) -> None:
    from eplb import metrics
    from eplb.migration import migrate
    from eplb.placement import linear

    trace, placement = loaded.trace, plan.placement
    topology = problem.topology
    start = linear(problem.num_layers, problem.num_experts, problem.num_slots,
                   topology.num_ranks, topology.num_nodes)  # fmt: skip
    before = metrics.measure(problem.loads, problem.current or start, problem.window_weight)
    after = metrics.measure(problem.loads, placement, problem.window_weight)
    worst = int(after.layer_balancedness.argmin())
    rows = [
        ("read", f"{', '.join(loaded.names)} ({', '.join(loaded.formats)}): {_shape(trace)}"),
    ]
    if loaded.dropped_layers:
        rows.append(("", f"dense layers dropped (no load): {_ids(loaded.dropped_layers)}"))
    if assumed := _assumed(problem, options):
        rows.append(("assumed", assumed))
    rows.append((
        "plan",
        f"{problem.num_slots} slots on {topology.num_ranks} GPUs, {problem.slots_per_rank} each,"
        f" {problem.num_redundant} redundant; {_rule(problem, options)}strategy"
        f" {options['strategy']}, {seconds:.1f} s",
    ))  # fmt: skip
    rows += [("redundant" if i == 0 else "", text) for i, text in enumerate(_hottest(plan))]
    was = "the current plan" if problem.current else "the engines' start"
    rows += [
        ("balance", f"{before.mean_balancedness:.3f} → {after.mean_balancedness:.3f} mean"
                    f" balancedness, from {was}"),
        ("", f"{before.layer_balancedness[worst]:.3f} → {after.layer_balancedness[worst]:.3f}"
             f" in the worst layer, {plan.layer_ids[worst]}; efficiency {before.efficiency:.3f}"
             f" → {after.efficiency:.3f}"),
        ("bound", _bound(plan)),
    ]  # fmt: skip
    if problem.binds_nodes and options["strategy"] == "auto":
        rows.append(("", _cost_of_rule(problem, plan)))
    if twins := placement.duplicates():
        mend = "" if options["repair"] else "; --repair removes them"
        rows.append(("warning", terminal.duplicates(twins, plan.layer_ids) + mend))
    moves = migrate(problem.current or start, placement).num_moves
    weight = f", {terminal.size(moves * problem.expert_bytes)}" if problem.expert_bytes else ""
    rows.append(("moves", f"{moves} of {placement.physical_to_logical.size} copies{weight},"
                          f" from {was}"))  # fmt: skip
    output = options["output"]
    rows.append(("wrote", output) if output else ("note", "nothing was written; -o FILE writes it"))
    rows.append(("next", f"eplb show {output}" if output else "add -o plan.json"))
    terminal.facts(rows)


def _shape(trace: Any) -> str:
    tokens = trace.tokens.sum(axis=2).mean()
    return (
        f"{trace.num_windows} window{'s' if trace.num_windows > 1 else ''} ×"
        f" {trace.num_layers} layers × {trace.num_experts} experts,"
        f" {terminal.number(tokens)} assignments a window"
    )


def _assumed(problem: "Problem", options: dict[str, Any]) -> str:
    parts = []
    if options["gpus"] is None:
        parts.append("8 GPUs")
    if options["nodes"] is None:
        parts.append("1 node")
    if options["redundant"] is None:
        parts.append(f"{problem.num_redundant} redundant experts")
    if problem.topology.num_nodes > 1 and 1 < problem.num_groups != problem.groups_on_nodes:
        parts.append(
            f"no groups to keep whole ({problem.num_groups} do not divide over"
            f" {problem.topology.num_nodes} nodes)"
        )
    return ", ".join(parts)


def _rule(problem: "Problem", options: dict[str, Any]) -> str:
    if problem.topology.num_nodes == 1:
        return ""
    if options["strategy"] != "auto":
        return "no node rule; "
    return f"node rule {problem.node_rule}; "


def _hottest(plan: "Plan") -> list[str]:
    """The experts with most copies, and among those the hottest first."""
    import numpy as np

    count, mean = plan.placement.replica_count, plan.mean_load
    assert mean is not None
    share = mean / np.maximum(mean.sum(axis=1, keepdims=True), 1e-300)
    order = np.lexsort((-share.ravel(), -count.ravel()))[:_HOTTEST]
    lines = []
    for layer, expert in zip(*np.unravel_index(order, count.shape), strict=True):
        if count[layer, expert] > 1:
            lines.append(
                f"layer {plan.layer_ids[layer]}, expert {expert}: {count[layer, expert]} copies for"
                f" {share[layer, expert]:.1%} of its layer's load"
            )
    return lines


def _bound(plan: "Plan") -> str:
    gap, peak, bound = plan.gap, plan.peak_load, plan.lower_bound
    assert gap is not None and peak is not None and bound is not None
    assert plan.status is not None and plan.mean_load is not None
    worst = int(gap.argmax())
    proven = list(plan.status).count("optimal")
    mean = float(plan.mean_load[worst].sum()) / plan.placement.num_ranks
    return (
        f"at most {gap.max():.2%} above the best possible (layer {plan.layer_ids[worst]}: busiest"
        f" GPU {terminal.number(float(peak[worst]))}, bound {terminal.number(float(bound[worst]))},"
        f" mean {terminal.number(mean)}); {proven} of {len(gap)} layers proven optimal"
    )


def _cost_of_rule(problem: "Problem", plan: "Plan") -> str:
    """What `strict` holds balancedness to, beside what would be possible without it."""
    from dataclasses import replace

    import numpy as np

    from eplb.solver.bounds import lower_bounds

    assert plan.mean_load is not None and plan.lower_bound is not None
    mean = plan.mean_load.sum(axis=1) / plan.placement.num_ranks
    free = lower_bounds(replace(problem, node_rule="free"))
    most, most_free = (float(np.mean(mean / np.maximum(b, 1e-300)))
                       for b in (plan.lower_bound, free))  # fmt: skip
    return (
        f"--node-rule strict allows a mean balancedness of at most {min(most, 1):.3f}; free,"
        f" copies crossing nodes, at most {min(most_free, 1):.3f}"
    )


def _ids(ids: tuple[int, ...]) -> str:
    import numpy as np

    from eplb.findings import listed

    return listed(np.array(ids))


def _slice(windows: slice | None) -> str | None:
    if windows is None:
        return None
    first, end = ("" if edge is None else edge for edge in (windows.start, windows.stop))
    return f"{first}:{end}"
