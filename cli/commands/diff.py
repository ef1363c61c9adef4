"""`eplb diff`: what changes from one plan to another."""

import json
from typing import TYPE_CHECKING, Any

import click

from .. import terminal
from ..options import expert_bytes_option, output_options

if TYPE_CHECKING:
    from eplb.plan import Plan

_FEW = 8

_EPILOG = """\b
Slots are compared as sets: a GPU that holds the same experts in another order has not changed. A
move is one copy that a GPU must receive because it held none of that expert.

\b
Examples:
  eplb diff old.json new.json
  eplb diff old.json new.json --expert-bytes 44040192 --json
"""


@click.command("diff", epilog=_EPILOG)
@click.argument("old_file", metavar="PLAN_A")
@click.argument("new_file", metavar="PLAN_B")
@expert_bytes_option("the plan")
@output_options
def command(
    old_file: str,
    new_file: str,
    expert_bytes: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Compare what each GPU holds in two plans; exit with 1 when that differs."""
    from eplb.errors import RefusedError
    from eplb.formats.plans import read_plan
    from eplb.migration import migrate
    from eplb.trace import how_layers_differ

    old, new = read_plan(old_file), read_plan(new_file)
    if old.layer_ids.tolist() != new.layer_ids.tolist():
        raise RefusedError(
            f"{old_file} and {new_file} do not cover the same layers"
            f" ({how_layers_differ(old.layer_ids, new.layer_ids)});"
            " they are plans for different models"
        )
    change = migrate(old.placement, new.placement)
    layers = _by_layer(old, change)
    expert_bytes = expert_bytes or new.options.get("expert_bytes")
    summary = {
        "moves": change.num_moves,
        "copies_added": _copies(change.copies_added),
        "copies_dropped": _copies(change.copies_dropped),
        "layers_changed": len(layers),
    }
    if expert_bytes is not None:
        summary["moved_bytes"] = change.num_moves * expert_bytes
    if as_json:
        document = {
            "format": "eplb-diff", "version": 1, "summary": summary, "layers": layers,
            "duplicates": {"PLAN_A": _duplicates(old), "PLAN_B": _duplicates(new)},
        }  # fmt: skip
        click.echo(json.dumps(document))
    else:
        _print(old, new, summary, layers, verbose)
    if layers:
        terminal.remark("the plans differ", quiet)
    return int(bool(layers))


def _copies(changed: Any) -> int:
    return int(changed[:, 2].sum())


def _by_layer(plan: "Plan", change: Any) -> list[dict[str, Any]]:
    """What changes in each layer that does."""
    layers: dict[int, dict[str, Any]] = {}

    def of(row: int) -> dict[str, Any]:
        return layers.setdefault(
            int(row),
            {"layer": int(plan.layer_ids[row]), "added": {}, "dropped": {}, "received": {}},
        )

    for row, expert, copies in change.copies_added:
        of(row)["added"][str(expert)] = int(copies)
    for row, expert, copies in change.copies_dropped:
        of(row)["dropped"][str(expert)] = int(copies)
    for row, rank, expert in change.received:
        of(row)["received"].setdefault(str(rank), []).append(int(expert))
    for row, _rank in change.changed:
        of(row)
    return [layers[row] for row in sorted(layers)]


def _duplicates(plan: "Plan") -> list[dict[str, int]]:
    """Same-GPU copies as JSON names them."""
    return [
        {"layer": int(plan.layer_ids[d.layer]), "gpu": d.rank, "expert": d.expert,
         "copies": d.copies}
        for d in plan.placement.duplicates()
    ]  # fmt: skip


def _print(
    old: "Plan", new: "Plan", summary: dict[str, Any], layers: list[dict[str, Any]], verbose: bool
) -> None:
    weight = f", {terminal.size(summary['moved_bytes'])}" if "moved_bytes" in summary else ""
    total = new.placement.physical_to_logical.size
    rows = [
        ("diff", f"{summary['moves']} moves of {total} slots{weight};"
                 f" +{summary['copies_added']} −{summary['copies_dropped']} copies,"
                 f" {summary['layers_changed']} of {old.placement.num_layers} layers"),
    ]  # fmt: skip
    for name in ("num_ranks", "num_nodes", "slots_per_rank"):
        was, now = getattr(old.placement, name), getattr(new.placement, name)
        if was != now:
            rows.append((name.replace("num_", "").replace("_per_rank", " a GPU"), f"{was} → {now}"))
    if {"mean_balancedness"} <= set(old.summary) & set(new.summary):
        rows.append(("balance", f"{old.summary['mean_balancedness']:.3f} →"
                                f" {new.summary['mean_balancedness']:.3f} mean balancedness, each"
                                " on the trace it was planned for"))  # fmt: skip
    for name, plan in (("PLAN_A", old), ("PLAN_B", new)):
        if twins := plan.placement.duplicates():
            rows.append(("warning", f"{name}: {terminal.duplicates(twins, plan.layer_ids)}"))
    shown = layers if verbose else layers[:_FEW]
    for fact in shown:
        parts = [f"+{n}×{e}" if n > 1 else f"+{e}" for e, n in fact["added"].items()]
        parts += [f"−{n}×{e}" if n > 1 else f"−{e}" for e, n in fact["dropped"].items()]
        moves = sum(map(len, fact["received"].values()))
        rows.append((f"layer {fact['layer']}", f"{moves} moves"
                     + (f"; copies {' '.join(parts)}" if parts else "")))  # fmt: skip
        if verbose:
            rows += [
                ("", f"GPU {rank} receives {' '.join(map(str, experts))}")
                for rank, experts in fact["received"].items()
            ]
    if len(layers) > len(shown):
        rows.append(("", f"and {len(layers) - len(shown)} more layers; -v shows all"))
    if not layers:
        rows.append(("same", "every GPU holds the same experts"))
    terminal.facts(rows)
