"""Reports as the commands write and print them."""

from collections.abc import Mapping
from typing import Any

import click
from rich.table import Table

from eplb.formats import files
from eplb.formats.reports import report_bytes
from eplb.report import Report

from . import terminal

_COLUMNS = {
    "mean": "mean_balancedness",
    "worst layer": "worst_balancedness",
    "95 % reach": "p95_balancedness",
    "efficiency": "efficiency",
}


def write(options: Mapping[str, Any], report: Report, facts: Mapping[str, Any]) -> bool:
    """Write the report where it is asked for; whether it was printed instead of a text."""
    data = report_bytes(report, facts)
    if options["output"] is not None:
        files.write_bytes(options["output"], data, options["force"])
    if options["as_json"]:
        click.echo(data, nl=False)
    return bool(options["as_json"])


def table(reports: Mapping[str, Report], moves: bool = False) -> None:
    """One line a plan."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("plan")
    for title in _COLUMNS:
        shown.add_column(title, justify="right")
    timed = all(report.step_seconds is not None for report in reports.values())
    if timed:
        shown.add_column("step, ms", justify="right")
    if moves:
        shown.add_column("moves", justify="right")
    for name, report in reports.items():
        figures = report.summary()
        cells = [f"{figures[key]:.3f}" for key in _COLUMNS.values()]
        if timed:
            cells.append(f"{figures['step_seconds'] * 1e3:.3f}")
        if moves:
            cells.append(f"{figures['moves']:,}")
        shown.add_row(name, *cells)
    terminal.show(shown)


def further(report: Report, traffic_basis: str | None = None) -> list[tuple[str, str]]:
    """What a report says beside its table."""
    figures, rows = report.summary(), []
    if "off_home_share" in figures and figures["off_home_share"] > 0:
        rows.append(("off home", f"{figures['off_home_share']:.1%} of all load is served off its"
                                 " home node"))  # fmt: skip
    if traffic_basis is not None:
        rows.append(("traffic", f"{figures['remote_nodes_per_token']:.2f} other nodes a token,"
                                f" {figures['remote_assignments_per_token']:.2f} assignments on"
                                f" them ({traffic_basis})"))  # fmt: skip
    if "step_noise_ceiling" in figures:
        rows.append(("ceiling", f"{figures['step_noise_ceiling']:.3f} balancedness of single steps"
                                " that no even split passes on average (modelled)"))  # fmt: skip
    if "step_seconds" in figures:
        rows.append(("step", f"{figures['step_seconds'] * 1e3:.3f} ms in layers with experts on"
                             f" {report.constants['hardware']} (modelled)"))  # fmt: skip
    return rows
