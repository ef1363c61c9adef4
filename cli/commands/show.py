"""`eplb show`: a plan explained."""

import json
from typing import TYPE_CHECKING, Any

import click

from .. import terminal
from ..options import output_options

if TYPE_CHECKING:
    from eplb.placement import Duplicate
    from eplb.plan import Plan

# Layers of the heat map and the table that fit a screen; --verbose shows all.
_FEW = 12

_EPILOG = """\b
Loads are the mean tokens of the windows that were planned for. Heat map: a row a layer, a column a
GPU, darker is busier; the number is the busiest GPU over the mean.

\b
Examples:
  eplb show plan.json
  eplb show plan.json --layer 12
  eplb show plan.json --json
"""


@click.command("show", epilog=_EPILOG)
@click.argument("plan_file", metavar="PLAN")
@click.option("--layer", type=int, default=None, metavar="ID", help="One layer, GPU by GPU.")
@output_options
def command(plan_file: str, layer: int | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Explain a plan: layers, GPUs, redundant experts and why, bound and gap."""
    from eplb.errors import InputError
    from eplb.formats.plans import read_plan

    plan = read_plan(plan_file)
    rows = list(range(plan.placement.num_layers))
    if layer is not None:
        rows = [row for row in rows if plan.layer_ids[row] == layer]
        if not rows:
            raise InputError(
                f"the plan has no layer {layer}; it covers"
                f" {int(plan.layer_ids.min())} to {int(plan.layer_ids.max())}"
            )
    for key in plan.extra:
        terminal.remark(f"unknown key {key!r} was left aside", quiet)
    if "placement_digest" not in plan.provenance:
        terminal.remark("the plan carries no digest, so it was not checked for edits", quiet)
    twins = plan.placement.duplicates()
    described = [_layer(plan, row, [twin for twin in twins if twin.layer == row]) for row in rows]
    if as_json:
        click.echo(json.dumps({
            "format": "eplb-description", "version": 1, "summary": dict(plan.summary),
            "frontier": list(plan.frontier), "options": dict(plan.options), "layers": described,
        }))  # fmt: skip
        return
    if layer is not None:
        _print_layer(plan, rows[0], described[0])
    else:
        _print_plan(plan, plan_file, described, twins, verbose)


def _layer(plan: "Plan", row: int, twins: "list[Duplicate]") -> dict[str, Any]:
    """Everything known of one layer."""
    placement, mean_load = plan.placement, plan.mean_load
    count = placement.replica_count[row]
    slots = placement.physical_to_logical[row].reshape(placement.num_ranks, -1)
    fact: dict[str, Any] = {
        "layer": int(plan.layer_ids[row]),
        "gpus": [[int(e) for e in own if e >= 0] for own in slots],
        "redundant": [
            {"expert": int(e), "copies": int(count[e])} for e in (-count).argsort(kind="stable")
            if count[e] > 1
        ],
        "duplicates": [
            {"gpu": twin.rank, "expert": twin.expert, "copies": twin.copies} for twin in twins
        ],
    }  # fmt: skip
    gap = plan.gap
    if plan.peak_load is not None:
        fact["peak_load"] = float(plan.peak_load[row])
    if plan.lower_bound is not None and gap is not None:
        fact |= {"lower_bound": float(plan.lower_bound[row]), "gap": float(gap[row])}
    if plan.status is not None:
        fact["status"] = plan.status[row]
    if mean_load is not None:
        total = float(mean_load[row].sum())
        num_live = placement.num_ranks - len(set(placement.excluded_ranks))
        per_slot = total / (num_live * placement.slots_per_rank)
        fact["mean_gpu_load"] = total / num_live
        fact["gpu_loads"] = _gpu_loads(plan)[row].tolist()
        for copies in fact["redundant"]:
            load = float(mean_load[row][copies["expert"]])
            copies["load_share"] = load / total if total else 0.0
            copies["slots_worth"] = load / per_slot if per_slot else 0.0
        fact["redundant"].sort(key=lambda c: (-c["copies"], -c["load_share"], c["expert"]))
    return fact


def _gpu_loads(plan: "Plan") -> Any:
    """Mean load of each GPU, of shape (L, R)."""
    from eplb import metrics

    assert plan.mean_load is not None
    return metrics.rank_loads(plan.mean_load[None], plan.placement)[0]


def _print_plan(
    plan: "Plan",
    name: str,
    layers: list[dict[str, Any]],
    twins: "list[Duplicate]",
    verbose: bool,
) -> None:
    placement, summary = plan.placement, plan.summary
    nodes = f" on {placement.num_nodes} nodes" if placement.num_nodes > 1 else ""
    rows = [
        ("plan", f"{name}: {placement.num_layers} layers ×"
                 f" {placement.num_logical_experts} experts in {placement.num_slots} slots,"
                 f" {placement.slots_per_rank} on each of {placement.num_ranks} GPUs{nodes}"),
    ]  # fmt: skip
    if placement.excluded_ranks:
        out = ", ".join(map(str, sorted(set(placement.excluded_ranks))))
        rows.append(("", f"out of service: GPU {out}"))
    if plan.options.get("strategy"):
        rule = plan.options.get("node_rule")
        rows.append(("", f"strategy {plan.options['strategy']}"
                         + (f", node rule {rule}" if rule and nodes else "")))  # fmt: skip
    if "mean_balancedness" in summary:
        parts = [
            f"{summary[key]:.3f} {text}"
            for key, text in (("mean_balancedness", "mean"), ("worst_balancedness", "worst layer"),
                              ("p95_balancedness", "reached by 95 % of windows and layers"),
                              ("efficiency", "efficiency"))
            if key in summary
        ]  # fmt: skip
        rows.append(("balance", ", ".join(parts)))
    if "held_out_balancedness" in summary:
        error = f" ± {summary['held_out_error']:.3f}" if "held_out_error" in summary else ""
        rows.append(("held out", f"{summary['held_out_balancedness']:.3f}{error} mean balancedness"
                                 " of windows not planned for, by back-test"))  # fmt: skip
    if plan.gap is not None and plan.status is not None:
        worst = int(plan.gap.argmax())
        counts = ", ".join(
            f"{list(plan.status).count(status)} {status}"
            for status in ("optimal", "heuristic", "stopped") if status in plan.status
        )  # fmt: skip
        rows.append(("bound", f"at most {plan.gap[worst]:.2%} above the best possible (layer"
                              f" {plan.layer_ids[worst]}); layers: {counts}"))  # fmt: skip
    count = placement.replica_count
    rows.append(("redundant", f"{int((count > 1).sum())} of {count.size} experts have more than one"
                              f" copy, {int(count.max())} at most"))  # fmt: skip
    if summary.get("moves"):
        weight = summary.get("moved_bytes")
        rows.append(("moves", f"{summary['moves']} copies"
                              + (f", {terminal.size(weight)}" if weight else "")
                              + ", from the plan that was current"))  # fmt: skip
    rows += terminal.frontier(plan.frontier, placement.physical_to_logical.size)
    if twins:
        rows.append(("warning", terminal.duplicates(twins, plan.layer_ids)))
    terminal.facts(rows)
    _print_layers(plan, name, layers, verbose)


def _print_layers(plan: "Plan", name: str, layers: list[dict[str, Any]], verbose: bool) -> None:
    """The layers furthest from their bound, or all, and their heat map."""
    order = range(len(layers))
    if not verbose and len(layers) > _FEW:
        worst = sorted(order, key=lambda row: -layers[row].get("gap", 0.0))[:_FEW]
        order = sorted(worst)  # type: ignore[assignment]
        click.echo(f"\nthe {_FEW} layers with the largest gap; -v shows all {len(layers)}")
    else:
        click.echo()
    _table(layers, list(order))
    if plan.mean_load is not None:
        click.echo("\nmean load of each GPU")
        loads = _gpu_loads(plan)[list(order)]
        names = [f"layer {layers[row]['layer']}" for row in order]
        terminal.heat_map(loads, names, [layers[row]["mean_gpu_load"] for row in order])
    first = layers[order[0]]["layer"]
    click.echo(f"\nnext: eplb show {name} --layer {first}")


def _table(layers: list[dict[str, Any]], order: list[int]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold cyan")
    for name in ("layer", "busiest GPU", "bound", "gap", "status"):
        table.add_column(name, justify="left" if name == "status" else "right")
    table.add_column("redundant experts (×copies)", no_wrap=True, overflow="ellipsis")
    for row in order:
        fact = layers[row]
        table.add_row(
            str(fact["layer"]),
            terminal.number(fact["peak_load"]) if "peak_load" in fact else "–",
            terminal.number(fact["lower_bound"]) if "lower_bound" in fact else "–",
            f"{fact['gap']:.2%}" if "gap" in fact else "–",
            fact.get("status", "–"),
            Text(" ".join(f"{c['expert']}×{c['copies']}" for c in fact["redundant"])),
        )
    terminal.show(table)


def _print_layer(plan: "Plan", row: int, fact: dict[str, Any]) -> None:
    rows = [("layer", f"{fact['layer']}" + (f": {fact['status']}" if "status" in fact else ""))]
    if "peak_load" in fact:
        text = f"{terminal.number(fact['peak_load'])} tokens on the busiest GPU"
        if "gap" in fact:
            text += f", bound {terminal.number(fact['lower_bound'])}, gap {fact['gap']:.2%}"
        if "mean_gpu_load" in fact:
            text += f", mean {terminal.number(fact['mean_gpu_load'])}"
        rows.append(("peak", text))
    for number, copies in enumerate(fact["redundant"]):
        text = f"expert {copies['expert']}: {copies['copies']} copies"
        if "load_share" in copies:
            text += (
                f"; {copies['load_share']:.1%} of the load, {copies['slots_worth']:.1f} times what"
                " a slot carries on average"
            )
        rows.append(("" if number else "redundant", text))
    for number, own in enumerate(fact["gpus"]):
        load = (
            f"{terminal.number(fact['gpu_loads'][number])} tokens: " if "gpu_loads" in fact else ""
        )
        held = load + " ".join(map(str, own))
        rows.append((f"GPU {number}", held if own else "out of service"))
    terminal.facts(rows)
    for twin in fact["duplicates"]:
        terminal.remark(f"GPU {twin['gpu']} holds expert {twin['expert']} {twin['copies']} times")
