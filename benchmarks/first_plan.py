"""From a trace to a plan: known answers, equality with the published greedy, time and memory."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson

from eplb import metrics
from eplb.formats.traces import read_trace, write_trace
from eplb.placement import Placement
from eplb.problem import Problem
from eplb.solver.solve import Strategy, solve
from eplb.synthetic import SHAPES, Traffic, generate
from eplb.topology import Topology

from . import peers
from .cases import traces
from .report import medians, process, seconds, table

PYTHON = sys.executable
EPLB = [str(Path(PYTHON).parent / "eplb")]

_PUBLISHED = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
_PUBLISHED_MAP = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]
_EIGHT = [[600, 560, 120, 120, 20, 10, 10, 10]]


def examples() -> None:
    """Known answers: the published example, and eight experts on eight GPUs of two slots."""
    published = Problem(np.array([_PUBLISHED]), Topology(8, 2), 2, num_groups=4)
    same = solve(published, "deepseek").placement.physical_to_logical.tolist() == _PUBLISHED_MAP
    print(f"published example: strategy deepseek gives the published map: {same}")
    eight = Problem(np.array([_EIGHT]), Topology(8), 2)
    rows: list[list[object]] = []
    for strategy in ("linear", "deepseek", "auto"):
        plan = solve(eight, strategy)
        assert plan.peak_load is not None
        twins = len(plan.placement.duplicates())
        rows.append([f"eplb {strategy}", f"{plan.peak_load[0]:.2f}", twins])
    for name, peer in _peers():
        placement = Placement(peer(eight.loads, 16, 8), 8, 8)
        peak = metrics.measure(eight.loads, placement).peak_load[0]
        rows.append([name, f"{peak:.2f}", len(placement.duplicates())])
    rows.append(["mean (bound)", "181.25", ""])
    table("Eight experts, 8 GPUs × 2 slots: busiest GPU", ["planner", "tokens", "twins"], rows)


def parity() -> None:
    """Strategy deepseek against the same greedy in an engine's wheel, map for map."""
    try:
        published = peers.load("vllm")
    except peers.PeerMissing as reason:
        print(f"skipped: parity ({reason})")
        return
    rows = []
    for case, trace in traces():
        one = _problem(case.num_slots, case.num_ranks, case.num_nodes, case.num_groups, trace)
        ours = solve(one, "deepseek").placement.physical_to_logical
        theirs = published(
            one.loads, case.num_slots, case.num_ranks, case.num_nodes, case.num_groups
        )
        equal = (ours == theirs).all(axis=1)
        load = one.loads.sum(axis=0).astype(np.float32)
        clear = np.array([len(np.unique(row)) == len(row) for row in load])
        counts = [f"{int(equal[some].sum())} of {int(some.sum())}" for some in (clear, ~clear)]
        rows.append([case.name, _size(case), *counts])
    head = ["trace", "slots/GPUs", "equal, of layers without ties", "equal, of those with ties"]
    table("Layers whose map equals that of vLLM's default policy", head, rows)
    print(
        "\nThe engines add up packs in float64 and the original in float32, as here: where sums"
        "\npass 2^24 the two can differ without a tie."
    )


def balance() -> None:
    """In-window balancedness of every strategy and peer; twins are same-GPU copies."""
    peers_here = _peers()
    head = ["trace", "slots/GPUs", "linear", "deepseek", "auto", *(n for n, _ in peers_here),
            "twins of deepseek", "auto's largest gap"]  # fmt: skip
    rows = []
    for case, trace in traces():
        one = _problem(case.num_slots, case.num_ranks, case.num_nodes, case.num_groups, trace)
        strategies: list[Strategy] = ["linear", "deepseek", "auto"]
        plans = [solve(one, strategy) for strategy in strategies]
        figures = [f"{plan.summary['mean_balancedness']:.4f}" for plan in plans]
        for _, peer in peers_here:
            table_ = peer(
                one.loads, case.num_slots, case.num_ranks, case.num_nodes, case.num_groups
            )
            placement = Placement(table_, one.num_experts, case.num_ranks)
            figures.append(f"{metrics.measure(one.loads, placement).mean_balancedness:.4f}")
        twins = len(plans[1].placement.duplicates())
        gap = plans[2].summary["max_gap"]
        rows.append([case.name, _size(case), *figures, twins, f"{gap:.2%}"])
    table("Mean balancedness in the windows planned for", head, rows)


def shell() -> None:
    """`eplb plan` from the shell: 58 × 256 experts, 32 windows, 288 slots on 32 GPUs."""
    with tempfile.TemporaryDirectory() as folder:
        trace = str(Path(folder) / "loads.npz")
        write_trace(generate(SHAPES["deepseek-v3"], Traffic(num_windows=32)), trace)
        command = [*EPLB, "plan", trace, "--gpus", "32", "--json"]
        process(command)
        runs = [process(command) for _ in range(5)]
        times = sorted(run.seconds for run in runs)
        memory = max(run.peak_mb for run in runs)
        for nodes in ("1", "4"):
            free = sorted(process([*command, "--nodes", nodes]).seconds for _ in range(3))
            print(f"with --nodes {nodes}: median {free[1]:.2f} s")
    table(
        "eplb plan, 58 × 256, 32 windows, 288 slots on 32 GPUs (kernels compiled)",
        ["figure", "measured", "wanted"],
        [
            ["wall clock, median of 5", f"{times[2]:.2f} s ({times[0]:.2f} to {times[-1]:.2f})",
             "under 3 s"],
            ["peak memory", f"{memory:.0f} MB", "under 500 MB"],
        ],
    )  # fmt: skip


def startup() -> None:
    """`eplb --help` against importing what any such tool imports."""
    base = [PYTHON, "-c", "import click, rich.console, json"]
    process([*EPLB, "--help"])
    ours, theirs = medians(
        [lambda: process([*EPLB, "--help"]).seconds, lambda: process(base).seconds], repeats=11
    )
    table(
        "Start-up, median of 11 in turns",
        ["command", "seconds", "wanted"],
        [
            ["`eplb --help`", f"{ours:.3f}", "under 0.25"],
            ["`python -c 'import click, rich.console, json'`", f"{theirs:.3f}", ""],
            ["ratio", f"{ours / theirs:.2f}", "under 2"],
        ],
    )


def compilation() -> None:
    """The first plan after installation, with an empty kernel cache, and the second."""
    with tempfile.TemporaryDirectory() as folder:
        trace = str(Path(folder) / "loads.json")
        write_trace(generate(SHAPES["mixtral"], Traffic(num_windows=4)), trace)
        command = [*EPLB, "plan", trace, "--gpus", "8", "--json"]
        cache = {"NUMBA_CACHE_DIR": folder}
        first, second = process(command, **cache).seconds, process(command, **cache).seconds
    table(
        "Kernel compilation",
        ["run", "seconds", "wanted"],
        [
            ["first run", f"{first:.1f}", ""],
            ["second run, kernels cached", f"{second:.2f}", ""],
            ["compilation: the difference", f"{first - second:.1f}", "under 20"],
        ],
    )


def reading() -> None:
    """A 200 MB JSON trace: reading it against parsing it alone, and the same trace as NPZ."""
    rng = np.random.default_rng(0)
    loads = rng.poisson(900, (3500, 58, 256))
    with tempfile.TemporaryDirectory() as folder:
        path, npz = (str(Path(folder) / f"loads.{ending}") for ending in ("json", "npz"))
        Path(path).write_bytes(orjson.dumps({"loads": loads}, option=orjson.OPT_SERIALIZE_NUMPY))
        np.savez(npz, loads=loads)
        size = Path(path).stat().st_size / 1e6
        data = Path(path).read_bytes()
        parse, read, fast = medians(
            [
                lambda: seconds(lambda: orjson.loads(data)),
                lambda: seconds(lambda: read_trace(path)),
                lambda: seconds(lambda: read_trace(npz)),
            ],
            repeats=3,
        )
    table(
        f"Reading {size:.0f} MB of JSON ({loads.size:,} loads), median of 3 in turns",
        ["step", "seconds", "ratio", "wanted"],
        [
            ["orjson.loads alone", f"{parse:.2f}", "1.00", ""],
            ["read_trace", f"{read:.2f}", f"{read / parse:.2f}", "under 2"],
            ["read_trace of NPZ", f"{fast:.2f}", f"{fast / parse:.2f}", ""],
        ],
    )


def _problem(num_slots: int, num_ranks: int, num_nodes: int, num_groups: int, trace) -> Problem:  # type: ignore[no-untyped-def]
    return Problem(
        trace.tokens, Topology(num_ranks, num_nodes), num_slots // num_ranks,
        layer_ids=trace.layer_ids, num_groups=num_groups,
    )  # fmt: skip


def _size(case) -> str:  # type: ignore[no-untyped-def]
    nodes = f", {case.num_nodes} nodes, {case.num_groups} groups" if case.num_nodes > 1 else ""
    return f"{case.num_slots}/{case.num_ranks}{nodes}"


def _peers() -> list[tuple[str, Callable[..., np.ndarray]]]:
    """The peers that can be loaded here; the others are named."""
    found = []
    for name in peers.PEERS:
        try:
            found.append((name, peers.load(name)))
        except peers.PeerMissing as reason:
            print(f"skipped: {name} ({reason})")
    return found
