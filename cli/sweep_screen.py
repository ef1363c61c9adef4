"""What `eplb sweep` shows: the table of points, and progress while they are made."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from eplb.study.sweep import Point, scored

from . import terminal
from .sweeping import Swept

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


def name_of(point: Point) -> str:
    """The sizes of a point in words."""
    moves = "" if point["max_moves"] is None else f", {point['max_moves']} moves"
    trace = f"{point['trace']}, " if "trace" in point else ""
    return f"{trace}{point['gpus']} GPUs, {point['redundant']} redundant{moves}"


def _is_at(point: Point, knee: Point) -> bool:
    return all(point.get(key) == value for key, value in knee.items())


def summarise(swept: Swept, options: dict[str, Any]) -> None:
    """What was scored, the table of points, and what comes next."""
    rows = []
    for number, (name, study) in enumerate(swept.studies.items()):
        problem = study.problem
        layers, experts = problem.num_layers, problem.num_experts
        text = f"{name}: {layers} layers × {experts} experts; "
        if study.ahead is None:
            plural = "s" if problem.num_windows > 1 else ""
            text += (f"{problem.num_windows} window{plural}, too few to keep any back: scored on"
                     " what was planned for (in-sample)")  # fmt: skip
        else:
            text += (
                f"planned for {problem.num_windows} windows, scored on the {len(study.ahead)} later"
            )
        rows.append(("" if number else "read", text))
    for number, knee in enumerate(swept.knee or ()):
        point = next(point for point in swept.points if _is_at(point, knee))
        text = f"{name_of(point)}: {scored(point)['mean_balancedness']:.3f} mean balancedness"
        if "bytes_per_gpu" in point:
            text += f", {terminal.size(point['bytes_per_gpu'])} of experts a GPU"
        rows.append(("" if number else "knee", text))
    if options["output"] is not None:
        rows.append(("wrote", options["output"]))
    terminal.facts(rows)
    _table(swept.points, swept.knee or ())


# Title of a column, in two lines, and what it says of a point; one that says nothing of any point
# is left out.
_COLUMNS: list[tuple[str, Callable[[Point], str | None]]] = [
    ("\nGPUs", lambda point: str(point["gpus"])),
    ("\nredundant", lambda point: str(point["redundant"])),
    ("move\nbudget", lambda point: _count(point["max_moves"])),
    ("\nmean", lambda point: _ratio(scored(point)["mean_balancedness"])),
    ("worst\nlayer", lambda point: _ratio(scored(point)["worst_balancedness"])),
    (
        "\nplanned",
        lambda point: _planned(point),
    ),
    ("GiB a\nGPU", lambda point: _gib(point.get("bytes_per_gpu"))),
    ("KV\nlost", lambda point: _count(point.get("kv_tokens_lost_per_gpu"))),
    ("other\nnodes", lambda point: _few(point.get("remote_nodes_per_token"))),
    ("off\nhome", lambda point: _share(point.get("off_home_share"))),
    ("\nmoves", lambda point: _count(point.get("moves"))),
    ("GPU\nloss", lambda point: _loss(point, "gpu")),
    ("node\nloss", lambda point: _loss(point, "node")),
]


def _table(points: Sequence[Point], knees: Sequence[Point]) -> None:
    """Two lines of titles, and a line a point; < marks knees. As wide as it must be: no figure is
    ever cut off."""
    by_trace: dict[str | None, list[Point]] = {}
    for point in points:
        by_trace.setdefault(point.get("trace"), []).append(point)
    for trace, own in by_trace.items():
        click.echo("" if trace is None else f"\n{trace}")
        cells = {title: [say(point) for point in own] for title, say in _COLUMNS}
        columns = [
            [*title.split("\n"), *(text or "" for text in texts)]
            for title, texts in cells.items()
            if any(texts)
        ]
        columns.append(["", "", *("<" if any(_is_at(p, k) for k in knees) else "" for p in own)])
        padded = [[text.rjust(max(map(len, column))) for text in column] for column in columns]
        for line in zip(*padded, strict=True):
            click.echo("  ".join(line).rstrip())


def _planned(point: Point) -> str | None:
    """The balance of the windows planned for, where others are scored."""
    return None if point["held_out"] is None else _ratio(point["planned"]["mean_balancedness"])


def _ratio(value: float) -> str:
    return f"{value:.3f}"


def _few(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def _count(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _gib(value: int | None) -> str | None:
    return None if value is None else f"{value / 2**30:.2f}"


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"


def _loss(point: Point, name: str) -> str | None:
    loss = point[f"worst_{name}_loss"]
    if loss is None:
        return None
    return f"{point[f'survive_any_{name}'] / point['experts']:.0%} −{loss['lost_share']:.1%}"


class PointProgress:
    """Points done, on a terminal, once the work takes over two seconds."""

    def __init__(self, quiet: bool) -> None:
        self._shown = sys.stderr.isatty() and not quiet
        self._begin = time.monotonic()
        self._total = self._done = 0
        self._bar: Bar | None = None

    def start(self, total: int, done: int) -> None:
        self._total, self._done = total, done

    def advance(self) -> None:
        self._done += 1
        self.look()

    def look(self) -> None:
        """Show what there is to show; called now and then while points are under way."""
        late = time.monotonic() - self._begin > terminal.PATIENCE_SECONDS
        if self._bar is None and self._shown and late and self._total:
            self._open()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done)

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        self._bar = Progress(
            TextColumn("planning"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("points"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.add_task("", total=self._total, completed=self._done)
        self._bar.start()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
