"""The planner against its peers: unseen traffic, moves, nodes, proof, time and scale."""

import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from eplb import metrics
from eplb.formats.traces import read_trace
from eplb.migration import migrate
from eplb.placement import Placement
from eplb.problem import Problem
from eplb.routes import RouteTrace
from eplb.solver import bounds, local_search, nodes
from eplb.solver.layer_planner import Settings
from eplb.solver.outlook import FUTURES, WINDOWS
from eplb.solver.solve import solve
from eplb.study.backtest import plan_ahead
from eplb.synthetic import SHAPES, Traffic, generate
from eplb.topology import Topology

from . import peers
from .cases import find
from .report import table

Loads = np.ndarray[Any, Any]
Planner = Callable[[Loads, int, int, Placement | None], Placement]

_REAL = [
    ("gpt-oss-20b decode", "gptoss-20b/routes.npz", 2400, 36, 4),
    ("gpt-oss-20b decode", "gptoss-20b/routes.npz", 2400, 40, 8),
    ("tiny-dsv3 prefill", "tiny-dsv3/routes.npz", 8192, 80, 16),
    ("tiny-dsv3 prefill", "tiny-dsv3/routes.npz", 8192, 72, 8),
]
_SYNTHETIC = [
    ("deepseek-v3", 288, 32), ("deepseek-v3", 288, 144), ("deepseek-v3", 320, 320),
    ("qwen3-235b", 144, 16), ("kimi-k2", 448, 64), ("mixtral", 16, 8), ("gpt-oss-120b", 136, 8),
    ("olmoe", 68, 4),
]  # fmt: skip
# Layers and seeds of each synthetic shape: all layers share the topics' walk, so seeds matter more.
_LAYERS, _SEEDS = 4, 3


def held_out() -> None:
    """Plan on the first 60 % of windows, score on the rest; no node limits."""
    planners = _planners()
    rows, gains = [], []
    for name, loads, num_slots, num_ranks in _cases():
        cut = int(0.6 * len(loads))
        scores = [
            _score(loads[cut:], plan(loads[:cut], num_slots, num_ranks, None))
            for plan in planners.values()
        ]
        seen = _score(loads[cut:], _auto(loads[cut:], num_slots, num_ranks, None))
        rows.append(
            [name, f"{num_slots}/{num_ranks}", *(f"{s:.4f}" for s in scores), f"{seen:.4f}"]
        )
        if name.startswith("synthetic") and "flashlb" in planners:
            gains.append(scores[0] - scores[list(planners).index("flashlb")])
    table("Held-out balancedness", ["trace", "slots/GPUs", *planners, "planned on it"], rows)
    if gains:
        print(
            f"\nsynthetic shapes: auto above FlashLB by {np.mean(gains):+.4f} on average, worst"
            f" {min(gains):+.4f}"
        )


def walk_forward() -> None:
    """Re-plan every 4 windows on the last 16, score the next 4; share of slots moved a re-plan."""
    planners = {
        **_planners(),
        "auto, 35 % of slots": lambda *args: _budgeted(*args, share=0.35),
    }
    head = ["trace", "slots/GPUs", "never re-plan", *(f"{n} (moved)" for n in planners)]
    rows = []
    for name, loads, num_slots, num_ranks in _cases(seeds=1):
        cells = [f"{_never(loads, num_slots, num_ranks):.4f}"]
        for plan in planners.values():
            score, moved = _walk(loads, num_slots, num_ranks, plan)
            cells.append(f"{score:.4f} ({moved:.0%})")
        rows.append([name, f"{num_slots}/{num_ranks}", *cells])
    table("Walk forward", head, rows)


def moving() -> None:
    """From a plan of the first half, re-planned and scored on the second half."""
    rows = []
    for name, path, window, num_slots, num_ranks in _REAL:
        loads = _real(path, window)
        if loads is None:
            continue
        half = len(loads) // 2
        stale = _auto(loads[:half], num_slots, num_ranks, None)
        one = _problem(loads[half:], num_slots, num_ranks, current=stale)
        begin = time.perf_counter()
        plan = solve(one)
        seconds = time.perf_counter() - begin
        cells = [f"{p['mean_balancedness']:.4f}" for p in plan.frontier]
        rows.append([name, f"{num_slots}/{num_ranks}", *cells, f"{seconds:.1f}"])
        for peer in ("flashlb", "vllm"):
            if (other := _peer(peer)) is not None:
                placed = other(loads[half:], num_slots, num_ranks, stale)
                moved = migrate(stale, placed).num_moves / placed.physical_to_logical.size
                text = f"{_score(loads[half:], placed):.4f} with {moved:.0%}"
                rows.append([f"{peer}", f"{num_slots}/{num_ranks}", *[""] * 6, text, ""])
    head = ["trace", "slots/GPUs", "0 %", "1 %", "2 %", "5 %", "10 %", "20 %", "unlimited", "s"]
    table("Balance after moving so many slots from a stale plan", head, rows)


def node_rules() -> None:
    """288 slots, 32 GPUs, 4 nodes, 8 groups, one window: strict, home and free."""
    rows, means = [], []
    for name, loads in _deepseek():
        cells = []
        for rule in ("strict", "home", "free"):
            one = Problem(loads, Topology(32, 4), 9, num_groups=8, node_rule=rule)
            plan = solve(one)
            cells.append(plan.summary["mean_balancedness"])
            if rule == "home":
                off = plan.summary["off_home_share"]
                ways = nodes.pairings(8, 4)
                groups = loads[0].reshape(loads.shape[1], 8, -1).sum(axis=2)
                balance = plan.summary["mean_balancedness"]
                least = np.mean([nodes.least_off_home(g, ways, balance).min() for g in groups])
                cells += [off, float(least)]
        means.append(cells)
        rows.append([name, *(f"{c:.4f}" for c in cells)])
    if means:
        rows.append(["mean", *(f"{c:.4f}" for c in np.mean(means, axis=0))])
    head = ["file", "strict", "home", "off home", "least off home at that balance", "free"]
    table("Node rules", head, rows)


def proof() -> None:
    """How close to their lower bound layers are, one window, strategy auto."""
    rows = []
    for num_ranks, slots in ((32, 9), (72, 4), (96, 3), (144, 2), (320, 1)):
        gaps, begin = [], time.perf_counter()
        for _, loads in _deepseek():
            plan = solve(Problem(loads, Topology(num_ranks), slots), settings=Settings(effort=1.0))
            assert plan.gap is not None
            gaps.append(plan.gap)
        if not gaps:
            return
        gap = np.concatenate(gaps)
        seconds = (time.perf_counter() - begin) / len(gaps)
        shares = [f"{np.mean(gap <= limit + 1e-5):.0%}" for limit in (0.001, 0.005)]
        rows.append([f"{num_ranks} × {slots}", *shares, f"{gap.mean():.3%}", f"{gap.max():.2%}",
                     f"{seconds:.2f}"])  # fmt: skip
    head = ["GPUs × slots", "within .1 %", "within .5 %", "mean gap", "largest", "s per 58 layers"]
    table("Layers proven near their bound (six files of 58 layers), strategy auto", head, rows)
    _proof_of_pairs()


def _proof_of_pairs() -> None:
    """Two slots a GPU, strategy exact: every 12th layer of each file, one after another."""
    rows = []
    for name, loads in _deepseek():
        for layer in range(0, loads.shape[1], 12):
            begin = time.perf_counter()
            one = Problem(loads[:, layer : layer + 1], Topology(144), 2)
            plan = solve(one, "exact")
            assert plan.gap is not None
            seconds = time.perf_counter() - begin
            rows.append([name, layer, f"{plan.gap[0]:.4%}", f"{seconds:.1f}"])
    within = sum(float(str(row[2]).rstrip("%")) <= 0.1001 for row in rows)
    head = ["file", "layer row", "gap", "s"]
    table(f"144 × 2, strategy exact: {within} of {len(rows)} within .1 %", head, rows)


def speed() -> None:
    """58 layers × 256 experts → 288 slots on 32 GPUs, warm, median of 5, in turns."""
    one_window = generate(SHAPES["deepseek-v3"], Traffic(num_windows=1)).tokens.astype(float)
    many = generate(SHAPES["deepseek-v3"], Traffic(num_windows=32)).tokens.astype(float)
    actions: dict[str, Callable[[], object]] = {
        "one window, counts and packing": lambda: _packed(one_window),
        "one window to proof": lambda: solve(_problem(one_window, 288, 32)),
        "32 windows, settings fixed": lambda: solve(
            _problem(many, 288, 32), settings=Settings(outlook=FUTURES)
        ),
        "32 windows, default with the back-test": lambda: plan_ahead(
            _problem(many, 288, 32), Settings()
        ),
    }
    for name in ("vllm", "flashlb"):
        if (peer := peers_plan(name)) is not None:
            actions[f"{name}, one window"] = lambda peer=peer: peer(one_window, 288, 32)  # type: ignore[misc]
            actions[f"{name}, 32 windows"] = lambda peer=peer: peer(many, 288, 32)  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(6):
        for name, action in actions.items():
            begin = time.perf_counter()
            action()
            times[name].append(time.perf_counter() - begin)
    rows = [[name, f"{statistics.median(values[1:]) * 1000:.0f}"] for name, values in times.items()]
    table("Time", ["what", "ms"], rows)


def scale() -> None:
    """Time and memory against size; the last is the largest wanted."""
    rows, points = [], []
    for layers, experts, slots, ranks, windows in (
        (8, 128, 160, 16, 16), (16, 256, 320, 32, 32), (60, 384, 448, 64, 32),
        (8, 512, 2048, 1024, 128),
    ):  # fmt: skip
        shape = replace(SHAPES["kimi-k2"], num_layers=layers, num_experts=experts)
        loads = generate(shape, Traffic(num_windows=windows)).tokens.astype(float)
        begin = time.perf_counter()
        solve(_problem(loads, slots, ranks), settings=Settings(outlook=WINDOWS))
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        points.append((layers * slots * windows, seconds))
        rows.append([layers, experts, slots, ranks, windows, f"{seconds:.2f}", f"{peak:.0f}"])
    size, seconds_ = np.log(np.array(points)).T
    exponent = np.polyfit(size, seconds_, 1)[0]
    head = ["layers", "experts", "slots", "GPUs", "windows", "s", "peak MB of the process"]
    table("Scale", head, rows)
    print(f"\ntime grows with layers × slots × windows to the power {exponent:.2f}")


def _cases(seeds: int = _SEEDS) -> Iterator[tuple[str, Loads, int, int]]:
    for name, path, window, num_slots, num_ranks in _REAL:
        loads = _real(path, window)
        if loads is not None:
            yield name, loads, num_slots, num_ranks
    for name, num_slots, num_ranks in _SYNTHETIC:
        for seed in range(seeds):
            shape = replace(SHAPES[name], num_layers=min(_LAYERS, SHAPES[name].num_layers))
            loads = generate(shape, Traffic(seed=seed)).tokens.astype(float)
            yield f"synthetic {name}, seed {seed}", loads, num_slots, num_ranks


def _real(path: str, window: int) -> Loads | None:
    file = find(path)
    if file is None:
        print(f"skipped: {path} is not under EPLB_DATA")
        return None
    trace = read_trace(str(file)).trace
    assert isinstance(trace, RouteTrace)
    return trace.windows(window_tokens=window).tokens.astype(float)


def _deepseek() -> Iterator[tuple[str, Loads]]:
    for name in ("decode_in1000out1000", "decode_in1800out100", "decode_in2000out100",
                 "prefill_in1000out1000", "prefill_in4096", "prefill_in512"):  # fmt: skip
        file = find(f"dsv3-sglang/{name}.json")
        if file is None:
            print(f"skipped: dsv3-sglang/{name}.json is not under EPLB_DATA")
            continue
        loads = read_trace(str(file)).trace.tokens.astype(float)  # type: ignore[union-attr]
        yield name, loads[:, loads.any(axis=(0, 2))]


def _planners() -> dict[str, Planner]:
    found: dict[str, Planner] = {"auto": _auto}
    for name in peers.PEERS:
        if (peer := _peer(name)) is not None:
            found[name] = peer
    return found


def peers_plan(name: str) -> Callable[..., Loads] | None:
    """A peer's planner, or None where it cannot be loaded."""
    try:
        return peers.load(name)
    except peers.PeerMissing as reason:
        print(f"skipped: {name} ({reason})")
        return None


def _peer(name: str) -> Planner | None:
    plan = peers_plan(name)
    if plan is None:
        return None

    def place(loads: Loads, num_slots: int, num_ranks: int, current: Placement | None) -> Placement:
        now = None if current is None else current.physical_to_logical
        slots = plan(loads, num_slots, num_ranks, current=now)
        return Placement(slots, loads.shape[2], num_ranks)

    return place


def _auto(loads: Loads, num_slots: int, num_ranks: int, current: Placement | None) -> Placement:
    return plan_ahead(_problem(loads, num_slots, num_ranks, current=current), Settings())[
        0
    ].placement


def _budgeted(
    loads: Loads, num_slots: int, num_ranks: int, current: Placement | None, share: float
) -> Placement:
    budget = None if current is None else int(share * loads.shape[1] * num_slots)
    one = _problem(loads, num_slots, num_ranks, current=current, max_moves=budget)
    return plan_ahead(one, Settings())[0].placement


def _problem(loads: Loads, num_slots: int, num_ranks: int, **limits: Any) -> Problem:
    return Problem(loads, Topology(num_ranks), num_slots // num_ranks, **limits)


def _packed(loads: Loads) -> None:
    one = _problem(loads, 288, 32)
    local_search.place(one, bounds.lower_bounds(one), Settings(), stop=lambda: True)


def _score(loads: Loads, placement: Placement) -> float:
    return metrics.measure(loads, placement).mean_balancedness


def _walk(loads: Loads, num_slots: int, num_ranks: int, plan: Planner) -> tuple[float, float]:
    """Balancedness, and the mean share of slots moved by a re-plan after the first."""
    current: Placement | None = None
    scores, moved = [], []
    for now in range(16, len(loads) - 3, 4):
        placed = plan(loads[now - 16 : now], num_slots, num_ranks, current)
        if current is not None:
            moved.append(migrate(current, placed).num_moves / placed.physical_to_logical.size)
        scores.append(_score(loads[now : now + 4], placed))
        current = placed
    return float(np.mean(scores)), float(np.mean(moved)) if moved else 0.0


def _never(loads: Loads, num_slots: int, num_ranks: int) -> float:
    """Planned once on the first 16 windows and kept."""
    placed = _auto(loads[:16], num_slots, num_ranks, None)
    return float(np.mean([_score(loads[n : n + 4], placed) for n in range(16, len(loads) - 3, 4)]))
