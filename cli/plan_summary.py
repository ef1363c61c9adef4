"""What `eplb plan` prints: a screen at most."""

from typing import TYPE_CHECKING, Any

from . import terminal

if TYPE_CHECKING:
    from eplb.plan import Plan
    from eplb.problem import Problem
    from eplb.study.backtest import BackTest
    from eplb.topology import Topology

    from .loading import Loaded

# What is to be said of a single slot a GPU, as in DeepSeek-V3's published decode deployment.
ONE_SLOT = (
    "with one slot a GPU rearranging is moot: a GPU serves one copy, so that balance depends on how"
    " many copies an expert has, not on where they are"
)
# Redundant experts that are named.
_HOTTEST = 5


def summarise(
    problem: "Problem",
    plan: "Plan",
    loaded: "Loaded",
    options: dict[str, Any],
    tested: "BackTest | None",
    seconds: float,
) -> None:
    """Print what was read, assumed and chosen, what it is worth, and what comes next."""
    from eplb import metrics
    from eplb.migration import migrate
    from eplb.placement import linear

    placement, topology = plan.placement, problem.topology
    start = linear(problem.num_layers, problem.num_experts,
                   problem.slots_per_rank * topology.num_ranks, topology.num_ranks,
                   topology.num_nodes)  # fmt: skip
    was = "the current plan" if problem.current else "the engines' start"
    same_ranks = problem.current is None or problem.current.num_ranks == topology.num_ranks
    base = problem.current if problem.current is not None and same_ranks else start
    before = metrics.measure(problem.loads, base, problem.window_weight, topology.rank_speed)
    after = metrics.measure(problem.loads, placement, problem.window_weight, topology.rank_speed)
    worst = int(after.layer_balancedness.argmin())
    rows = [("read", f"{', '.join(loaded.names)} ({', '.join(loaded.formats)}):"
                     f" {_shape(loaded.trace)}")]  # fmt: skip
    if loaded.dropped_layers:
        rows.append(("", f"dense layers dropped (no load): {_ids(loaded.dropped_layers)}"))
    if assumed := _assumed(problem, options):
        rows.append(("assumed", assumed))
    rows.append((
        "plan",
        f"{placement.num_slots} slots on {topology.num_ranks} GPUs, {problem.slots_per_rank} each,"
        f" {problem.num_redundant} redundant; {_rule(problem, options)}strategy"
        f" {options['strategy']}, {seconds:.1f} s",
    ))  # fmt: skip
    if is_moot(problem.slots_per_rank, topology):
        rows.append(("", ONE_SLOT))
    if topology.excluded_ranks:
        rows.append(("", f"out of service: GPU {_ids(topology.excluded_ranks)}"))
    rows += [("redundant" if i == 0 else "", text) for i, text in enumerate(_hottest(plan))]
    rows += [
        ("balance", f"{before.mean_balancedness:.3f} → {after.mean_balancedness:.3f} mean"
                    f" balancedness, from {was}"),
        ("", f"{before.layer_balancedness[worst]:.3f} → {after.layer_balancedness[worst]:.3f}"
             f" in the worst layer, {plan.layer_ids[worst]}; efficiency {before.efficiency:.3f}"
             f" → {after.efficiency:.3f}"),
    ]  # fmt: skip
    if options["strategy"] == "auto":
        rows.append(("held out", _held_out(problem, options, tested)))
    rows.append(("bound", _bound(plan)))
    if problem.binds_nodes and options["strategy"] == "auto":
        rows.append(("node rule", _cost_of_rule(problem, plan)))
    if problem.survive:
        rows.append(("survive", _survivors(problem, plan)))
    if twins := placement.duplicates():
        mend = "" if options["repair"] else "; --repair removes them"
        rows.append(("warning", terminal.duplicates(twins, plan.layer_ids) + mend))
    num_moves = migrate(problem.current or start, placement).num_moves
    weight = f", {terminal.size(num_moves * problem.expert_bytes)}" if problem.expert_bytes else ""
    kept = ""
    if problem.current is not None and num_moves == 0 and options["strategy"] == "auto":
        kept = ": keep the present plan, no change is worth a move within what was allowed"
    rows.append(("moves", f"{num_moves} of {placement.physical_to_logical.size} copies{weight},"
                          f" from {was}{kept}"))  # fmt: skip
    if options["frontier"]:
        rows += terminal.frontier(plan.frontier, placement.physical_to_logical.size)
    output = options["output"]
    rows.append(("wrote", output) if output else ("note", "nothing was written; -o FILE writes it"))
    rows.append(("next", f"eplb show {output}" if output else "add -o plan.json"))
    terminal.facts(rows)


def is_moot(slots_per_rank: int, topology: "Topology") -> bool:
    """Whether it makes no difference to balance which GPU holds which copy."""
    speed = topology.rank_speed
    return slots_per_rank == 1 and (speed is None or len(set(speed)) == 1)


def _held_out(problem: "Problem", options: dict[str, Any], tested: "BackTest | None") -> str:
    """What later windows can expect, or why that is not known."""
    from eplb.study.backtest import SHORTEST

    if tested is not None:
        text = (
            f"{tested.held_out:.3f} ± {tested.error:.3f} mean balancedness of windows not planned"
            f" for, by back-test (planned for: {tested.outlook})"
        )
        if problem.current is not None or problem.max_off_home is not None:
            text += "; of plans made afresh, without the live plan, its budget or a cap"
        if options["verbose"]:
            text += "; " + ", ".join(f"{name} {mean:.4f}" for name, mean in tested.tried.items())
        return text
    if options["effort"] == "fast":
        return "not estimated with --effort fast"
    loaded = int(((problem.scenario == 0) & (problem.loads.sum(axis=(1, 2)) > 0)).sum())
    if loaded >= SHORTEST:
        return "not known: the search was stopped before its back-test was done"
    return (
        f"not known: {loaded} window{'s are' if loaded > 1 else ' is'} too short a trace to tell"
        " how the plan holds on later traffic"
    )


def _survivors(problem: "Problem", plan: "Plan") -> str:
    """What the loss of GPUs would take with it."""
    import numpy as np

    assert plan.mean_load is not None
    lost = plan.placement.replica_count <= problem.survive
    if not lost.any():
        return f"every expert survives the loss of any {problem.survive} GPU(s)"
    total = plan.mean_load.sum()
    share = float(plan.mean_load[lost].sum() / total) if total > 0 else 0.0
    layer = int(lost.sum(axis=1).argmax())
    return (
        f"slots do not suffice: {int(lost.sum())} of {lost.size} experts, {share:.1%} of the load,"
        f" may be lost with {problem.survive} GPU(s); most in layer {plan.layer_ids[layer]}:"
        f" {_ids(tuple(np.flatnonzero(lost[layer])))}"
    )


def _shape(trace: Any) -> str:
    tokens = trace.tokens.sum(axis=2).mean()
    return (
        f"{trace.num_windows} window{'s' if trace.num_windows > 1 else ''} ×"
        f" {trace.num_layers} layer{'s' if trace.num_layers > 1 else ''} × {trace.num_experts}"
        " experts,"
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
    live = plan.placement.num_ranks - len(plan.placement.excluded_ranks)
    mean = float(plan.mean_load[worst].sum()) / live
    return (
        f"at most {gap.max():.2%} above the best possible (layer {plan.layer_ids[worst]}: busiest"
        f" GPU {terminal.number(float(peak[worst]))}, bound {terminal.number(float(bound[worst]))},"
        f" mean {terminal.number(mean)}); {proven} of {len(gap)} layers proven optimal"
    )


def _cost_of_rule(problem: "Problem", plan: "Plan") -> str:
    """How much time the rule costs at the least, beside the others, and what crosses nodes."""
    from eplb.solver.bounds import lower_bounds

    assert plan.mean_load is not None and plan.lower_bound is not None
    total = float(plan.mean_load.sum()) / problem.topology.num_live_ranks
    bound = {
        rule: float(lower_bounds(problem, strict=rule == "strict").sum())
        for rule in ("strict", "free")
    }
    most = {rule: min(total / value, 1.0) if value else 1.0 for rule, value in bound.items()}
    if problem.node_rule == "home":
        share = plan.summary["off_home_share"]
        return (
            f"home: {share:.1%} of the load is served off its home node; strict allows an"
            f" efficiency of at most {most['strict']:.3f}, free of at most {most['free']:.3f}"
        )
    text = f"strict allows an efficiency of at most {most['strict']:.3f}"
    if most["free"] - most["strict"] < 0.01:
        return text + "; another rule would do no better"
    return text + (
        f"; --node-rule home, redundant copies crossing nodes, would do better, and free allows"
        f" {most['free']:.3f}"
    )


def _ids(ids: tuple[int, ...]) -> str:
    import numpy as np

    from eplb.findings import listed

    return listed(np.array(ids))
