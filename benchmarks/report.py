"""How benchmarks measure and print: medians of alternated runs, Markdown tables."""

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """One process: wall-clock seconds and peak resident memory in MB."""

    seconds: float
    peak_mb: float


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def process(command: Sequence[str], **env: str) -> Run:
    """Run a command to its end, its output thrown away."""
    begin = time.perf_counter()
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **env}
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}")
    return Run(time.perf_counter() - begin, usage.ru_maxrss / 1024)


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock seconds of a call."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def medians(actions: Sequence[Callable[[], float]], repeats: int) -> list[float]:
    """The median of each of several measurements, taken in turns so that noise hits all alike."""
    taken: list[list[float]] = [[] for _ in actions]
    for _ in range(repeats):
        for action, values in zip(actions, taken, strict=True):
            values.append(action())
    return [statistics.median(values) for values in taken]
