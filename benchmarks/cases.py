"""The traces that benchmarks plan for: the samples, and larger ones where they are at hand.

`EPLB_DATA` names a folder of further traces; a case whose file is not there is skipped by name.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from eplb.formats.traces import read_trace
from eplb.routes import RouteTrace
from eplb.trace import LoadTrace

SAMPLES = Path(__file__).parent.parent / "sample_loads"


class Case(NamedTuple):
    """A trace, what to place it on, and where it comes from."""

    name: str
    path: str
    num_slots: int
    num_ranks: int
    num_nodes: int = 1
    num_groups: int = 1
    window_tokens: int | None = None


CASES = [
    Case("tiny-dsv3 (sample)", "tiny-dsv3.npz", 72, 8),
    Case("tiny-dsv3 (sample)", "tiny-dsv3.npz", 80, 16),
    Case("tiny-dsv3 (sample)", "tiny-dsv3.npz", 80, 16, 4, 8),
    Case("synthetic DeepSeek-V3", "synthetic-deepseek-v3.npz", 288, 32),
    Case("synthetic Qwen3-235B", "synthetic-qwen3-235b.npz", 144, 16),
    Case("synthetic Mixtral", "synthetic-mixtral.json", 16, 8),
    Case("gpt-oss-20b decode", "gptoss-20b/routes.npz", 36, 4, window_tokens=2400),
    Case("gpt-oss-20b decode", "gptoss-20b/routes.npz", 40, 8, window_tokens=2400),
    Case("DeepSeek-V3 prefill", "dsv3-sglang/prefill_in4096.json", 288, 32),
    Case("DeepSeek-V3 prefill", "dsv3-sglang/prefill_in4096.json", 288, 32, 4, 8),
    Case("DeepSeek-V3 decode", "dsv3-sglang/decode_in1000out1000.json", 288, 32),
]


def find(path: str) -> Path | None:
    """The file of a case, or None where it is not at hand."""
    folders = [SAMPLES, *map(Path, filter(None, [os.environ.get("EPLB_DATA")]))]
    return next((folder / path for folder in folders if (folder / path).exists()), None)


def traces() -> Iterator[tuple[Case, LoadTrace]]:
    """Every case at hand with its trace, dense layers dropped; the others are named."""
    for case in CASES:
        path = find(case.path)
        if path is None:
            print(f"skipped: {case.name} ({case.path} is not under EPLB_DATA)")
            continue
        trace = read_trace(str(path)).trace
        if isinstance(trace, RouteTrace):
            trace = trace.windows(case.window_tokens)
        yield case, trace.layers(~trace.dense_layers())
