"""`eplb inspect`: what a trace holds and what is wrong with it."""

import json
from typing import TYPE_CHECKING, Any

import click

from .. import terminal
from ..options import model_option, output_options, trace_arguments

if TYPE_CHECKING:
    from eplb.findings import Finding
    from eplb.formats.traces import Reading

_EPILOG = """\b
Examples:
  eplb inspect loads.json
  eplb inspect loads.json --strict --ignore EP101
"""


@click.command("inspect", epilog=_EPILOG)
@trace_arguments
@model_option
@click.option("--strict", is_flag=True, help="Exit with 1 when anything is found.")
@click.option("--ignore", multiple=True, metavar="ID", help="Leave this finding out.")
@output_options
def command(
    traces: tuple[str, ...],
    windows: slice | None,
    window_tokens: int | None,
    window_steps: int | None,
    recorded_under: str | None,
    model: str | None,
    strict: bool,
    ignore: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Say what each TRACE holds and what is wrong with it.

    Every finding has an id, the numbers behind it and a remedy; `eplb explain ID` says more.
    """
    from eplb.errors import InputError
    from eplb.findings import RULES, inspect
    from eplb.formats.model_config import read_model
    from eplb.routes import RouteTrace

    from ..loading import count, read

    unknown = [name for name in ignore if name.upper() not in RULES]
    if unknown:
        raise InputError(f"no finding is called {unknown[0]!r}; {', '.join(RULES)} are known")
    ignored = {name.upper() for name in ignore}
    structure = None if model is None else read_model(model)
    reports, total = [], 0
    for path in traces:
        reading = read(path, window_steps, structure, recorded_under)
        routes = reading.trace if isinstance(reading.trace, RouteTrace) else None
        loads = count(path, reading, window_tokens, window_steps)
        if windows is not None:
            loads = loads.windows(windows)
        found = [f for f in inspect(loads, routes) if f.id not in ignored]
        total += len(found)
        facts = _facts(path, reading, loads)
        if as_json:
            reports.append({**facts, "findings": [_described(finding) for finding in found]})
        else:
            _print(facts, reading, found, remedies=not quiet, reasons=verbose)
    if as_json:
        click.echo(json.dumps({"format": "eplb-inspection", "version": 1, "traces": reports}))
    if strict and total:
        terminal.remark(f"{total} finding{'s' if total > 1 else ''} (--strict)")
        return 1
    return 0


def _facts(path: str, reading: "Reading", loads: Any) -> dict[str, Any]:
    tokens = loads.tokens.sum(axis=2)
    live = ~loads.dense_layers()
    return {
        "file": path,
        "format": reading.format,
        "num_windows": loads.num_windows,
        "num_layers": loads.num_layers,
        "num_experts": loads.num_experts,
        "layer_ids": loads.layer_ids.tolist(),
        "moe_layers": int(live.sum()),
        "num_groups": loads.num_groups,
        "top_k": loads.top_k,
        "model": loads.model,
        "phase": loads.phase,
        "assignments_a_window": float(tokens[:, live].mean()) if live.any() else 0.0,
        "notes": list(reading.notes),
    }


def _described(finding: "Finding") -> dict[str, str]:
    from eplb.findings import RULES

    rule = RULES[finding.id]
    return {
        "id": finding.id, "title": rule.title, "found": finding.found, "remedy": rule.remedy
    }  # fmt: skip


def _print(
    facts: dict[str, Any],
    reading: "Reading",
    found: "list[Finding]",
    remedies: bool,
    reasons: bool,
) -> None:
    from eplb.findings import RULES

    known = [
        f"{name} {facts[key]}"
        for key, name in (("model", "model"), ("phase", "phase"), ("top_k", "top-k"),
                          ("num_groups", "groups"))
        if facts[key] is not None
    ]  # fmt: skip
    rows = [
        ("trace", f"{facts['file']} ({facts['format']})"),
        ("holds", f"{facts['num_windows']} window{'s' if facts['num_windows'] > 1 else ''} ×"
                  f" {facts['num_layers']} layers ({facts['moe_layers']} with load) ×"
                  f" {facts['num_experts']} experts"),
        ("", f"{terminal.number(facts['assignments_a_window'])} token-expert assignments a window"
             " and layer"),
    ]  # fmt: skip
    if known:
        rows.append(("", ", ".join(known)))
    rows += [("note", note) for note in reading.notes]
    for finding in found:
        rows.append((finding.id, f"{RULES[finding.id].title}: {finding.found}"))
        if reasons:
            rows.append(("", RULES[finding.id].why))
        if remedies:
            rows.append(("", RULES[finding.id].remedy))
    if not found:
        rows.append(("found", "nothing wrong"))
    terminal.facts(rows)
