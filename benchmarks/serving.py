"""What it takes to serve a long trace under a plan."""

import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from eplb.formats.blocks import read_blocks
from eplb.formats.plans import write_plan
from eplb.plan import Plan
from eplb.problem import Problem
from eplb.simulator.replay import Score, evenly, replay, unseen
from eplb.solver.solve import solve
from eplb.synthetic import SHAPES, Traffic, generate
from eplb.topology import Topology
from eplb.trace import LoadTrace

from .report import medians, process, seconds, table

EPLB = [str(Path(sys.executable).parent / "eplb")]
_WINDOWS, _BLOCK = 10_000, 100


def serving() -> None:
    """Replay of 10,000 windows × 58 layers × 256 experts under a plan of 288 slots on 32 GPUs, in
    memory beside a plain NumPy scorer, and from a file in a process of its own."""
    block = generate(SHAPES["deepseek-v3"], Traffic(num_windows=_BLOCK))
    problem = Problem.from_trace(block, Topology(32, 4), 32, node_rule="free")
    plan = solve(problem, "deepseek")
    ours, plain = medians(
        [
            lambda: seconds(lambda: _replay(block, plan)),
            lambda: seconds(lambda: _plain(block, plan)),
        ],
        repeats=7,
    )
    numbers = block.tokens.size
    rows = [
        ["replay, in memory", f"{numbers / ours / 1e6:.0f}", "", ""],
        ["take_along_axis, in memory", f"{numbers / plain / 1e6:.0f}", "", ""],
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_plan(plan, f"{folder}/plan.json")
        for name, method in (("stored", zipfile.ZIP_STORED), ("packed", zipfile.ZIP_DEFLATED)):
            trace = f"{folder}/{name}.npz"
            _write(block, trace, method)
            size = Path(trace).stat().st_size
            read = seconds(lambda trace=trace: [None for _ in read_blocks(trace)])  # type: ignore[misc]
            run = process([*EPLB, "simulate", trace, "--plan", f"{folder}/plan.json", "-q",
                           "-o", f"{folder}/{name}.json"])  # fmt: skip
            total = numbers * (_WINDOWS // _BLOCK)
            rows += [
                [f"reading alone, {name} ({size / 2**20:.0f} MiB)", f"{total / read / 1e6:.0f}",
                 f"{read:.1f}", ""],
                [f"`eplb simulate`, {name}, three plans", f"{total / run.seconds / 1e6:.0f}",
                 f"{run.seconds:.1f}", f"{run.peak_mb:.0f}"],
            ]  # fmt: skip
            Path(trace).unlink()
    table(
        "Token counts served by one core; wanted 20 million a second, within 1,500 MB",
        ["what", "million a second", "seconds", "peak MB"],
        rows,
    )


def _replay(block: LoadTrace, plan: Plan) -> None:
    score = Score(block.layer_ids, Topology(32, 4))
    served = unseen([block], plan.layer_ids, 256)
    replay(served, {"plan": (score, evenly(plan.placement))})
    score.report().summary()


def _plain(block: LoadTrace, plan: Plan) -> float:
    placement = plan.placement
    share = block.tokens / placement.replica_count
    slots = np.take_along_axis(share, placement.physical_to_logical[None], axis=2)
    ranks = slots.reshape(*slots.shape[:2], 32, -1).sum(axis=3)
    return float((ranks.mean(axis=2) / ranks.max(axis=2)).mean())


def _write(block: LoadTrace, path: str, method: int) -> None:
    """The block's windows again and again, each time other by a token, in this project's NPZ."""
    shape = (_WINDOWS, *block.tokens.shape[1:])
    header = {"descr": "<u4", "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(path, "w", method) as archive:
        with archive.open("layer_ids.npy", "w") as file:
            np.lib.format.write_array(file, block.layer_ids)
        with archive.open("loads.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
            for first in range(0, _WINDOWS, _BLOCK):
                file.write((block.tokens + first).astype("<u4").tobytes())
