"""What the commands print: data on standard output, remarks and progress on standard error."""

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from eplb.placement import Duplicate

# Progress is shown for work that takes longer than this.
PATIENCE_SECONDS = 2.0

# From no load to the busiest rank; for terminals and files without colour.
SHADES = " ░▒▓█"


def remark(text: str, quiet: bool = False) -> None:
    """A line of advice on standard error."""
    if not quiet:
        click.echo(f"eplb: {text}", err=True)


def console() -> "Console":
    """Standard output with styles where it is a terminal; rich obeys NO_COLOR by itself."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 100
    return Console(highlight=False, width=width)


def facts(rows: Sequence[tuple[str, str]]) -> None:
    """Print named facts, a line each; an empty name continues the fact above."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, Text(text))
    show(table)


def show(what: Any) -> None:
    """Print a table without the blanks that pad its last column."""
    out = console()
    with out.capture() as captured:
        out.print(what)
    click.echo("\n".join(line.rstrip() for line in captured.get().split("\n")), nl=False)


def heat_map(values: Any, names: Sequence[str], mean: Any) -> None:
    """Print rows of loads, (rows, columns), against each row's mean: darker is busier.

    More columns than fit are joined by their maximum, so that no busy rank is lost.
    """
    from rich.console import Group
    from rich.text import Text

    out = console()
    lines = []
    label = max(map(len, names)) + 1
    per_cell = -(-values.shape[1] // max(8, out.width - label - 16))
    for name, row, middle in zip(names, values, mean, strict=True):
        line = Text(name.rjust(label) + " ", style="dim")
        for start in range(0, len(row), per_cell):
            ratio = float(row[start : start + per_cell].max() / middle) if middle > 0 else 0.0
            line.append(_shade(ratio), style=_colour(ratio))
        line.append(f" {float(row.max() / middle) if middle > 0 else 1.0:.3f}", style="dim")
        lines.append(line)
    show(Group(*lines))


def _shade(ratio: float) -> str:
    """Half the mean load and less is blank, twice the mean and more is full."""
    return SHADES[min(len(SHADES) - 1, max(0, int((ratio - 0.5) / 1.5 * (len(SHADES) - 1) + 0.5)))]


def _colour(ratio: float) -> str:
    return "red" if ratio > 1.25 else "yellow" if ratio > 1.05 else "green"


class LayerProgress:
    """Layers done and their balancedness so far, on a terminal, once the work takes over two
    seconds. `mean_load` (L,) is the mean rank load of each layer."""

    def __init__(self, mean_load: Any, quiet: bool) -> None:
        self._mean_load = mean_load
        self._ratios: list[float] = []
        self._shown = sys.stderr.isatty() and not quiet
        self._begin = time.monotonic()
        self._lock = threading.Lock()
        self._bar: Progress | None = None
        self._task: Any = None

    def layer(self, row: int, peak: float) -> None:
        """One more layer is done, with this peak load; any thread may say so."""
        with self._lock:
            self._ratios.append(float(self._mean_load[row]) / peak if peak > 0 else 1.0)
            if not self._shown:
                return
            if self._bar is None and time.monotonic() - self._begin > PATIENCE_SECONDS:
                self._start()
            if self._bar is not None:
                self._bar.update(self._task, completed=len(self._ratios), best=self._best())

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("layers, balancedness so far {task.fields[best]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(
            "planning", total=len(self._mean_load), completed=len(self._ratios), best=self._best()
        )
        self._bar.start()

    def _best(self) -> str:
        return f"{sum(self._ratios) / len(self._ratios):.4f}"

    def close(self) -> None:
        """Take the bar away."""
        with self._lock:
            if self._bar is not None:
                self._bar.stop()


@contextmanager
def interruptible(what: str) -> "Iterator[Interrupt]":
    """Turn the first Ctrl-C into a request to finish quickly; a second one ends at once."""
    import signal

    interrupt = Interrupt()

    def ask(_signal: int, _frame: Any) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True
        remark(f"interrupted: {what}; once more to quit at once")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


class Interrupt:
    """Whether somebody pressed Ctrl-C."""

    asked = False

    def __call__(self) -> bool:
        return self.asked


def duplicates(twins: "Sequence[Duplicate]", layer_ids: Any) -> str:
    """Same-GPU copies in a line."""
    first = twins[0]
    return (
        f"{len(twins)} same-GPU cop{'ies' if len(twins) > 1 else 'y'}, wasted slots that some"
        f" engines cannot hold; first: layer {layer_ids[first.layer]}, GPU {first.rank}, expert"
        f" {first.expert} ×{first.copies}"
    )


def frontier(points: Sequence[Mapping[str, Any]], num_slots: int) -> list[tuple[str, str]]:
    """Balance against moves, a line each."""
    return [
        (
            "" if number else "frontier",
            f"{point['mean_balancedness']:.3f} with {point['moves']} moves"
            f" ({point['moves'] / num_slots:.1%} of all slots)",
        )
        for number, point in enumerate(points)
    ]


def size(num_bytes: float) -> str:
    """Bytes in the largest binary unit that keeps them above one."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 1024 or unit == "GiB":
            return f"{num_bytes:.0f} bytes" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    raise AssertionError


def number(value: float) -> str:
    """A load in at most two decimals, with thousands marked."""
    return f"{value:,.2f}".rstrip("0").rstrip(".")
