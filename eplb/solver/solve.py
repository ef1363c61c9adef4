"""Pick a strategy, run it, and attach score, bound, gap and status to what it placed."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Literal, get_args

import numpy as np
import xxhash

from .. import metrics
from .._arrays import Bools, Floats, Ints
from ..errors import InfeasibleError, InputError
from ..migration import migrate
from ..placement import Placement, linear
from ..plan import OPTIMAL_GAP, Plan, Status, gaps, placement_digest
from ..problem import Problem
from ..traffic import off_home_share
from . import bounds, hierarchical, local_search, moves
from .layer_planner import LayerPlanner, Settings
from .outlook import WINDOWS
from .pooling import Point, at_price, within
from .repair import repair as remove_duplicates

Strategy = Literal["auto", "exact", "deepseek", "linear"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

# `exact` closes layers of so many slots to the last digit, and larger ones to a tenth of a percent.
_SMALL, _PROOF_SMALL, _PROOF = 32, 1e-9, 1e-3


def solve(
    problem: Problem,
    strategy: Strategy = "auto",
    *,
    settings: Settings | None = None,
    repair: bool = False,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, float], None] = lambda layer, peak: None,
) -> Plan:
    """Place every copy of every expert.

    Parameters
    ----------
    problem
        The loads and limits.
    strategy
        `auto` (robust, the default), `exact` (`auto` for the recorded windows, then every layer
        improved or proven as far as the effort allows), `deepseek` (as published), `linear` (the
        engines' start). The latter two know no node rule: their bound is that of `free`.
    settings
        Of `auto`: what to plan for, effort and seed; the same problem, strategy and settings give
        the same plan.
    repair
        Remove same-rank copies from what `deepseek` placed.
    stop
        Asked before each layer; once true the rest is placed without a search and marked
        `stopped`.
    progress
        Hears of each finished layer: its row and its peak load, from any thread.

    Raises
    ------
    InputError
        When the strategy is unknown, or knows nothing of what the problem asks for.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"strategy {strategy!r}; {', '.join(STRATEGIES)} are known")
    settings = settings or Settings()
    searched = strategy in ("auto", "exact")
    if strategy != "auto":
        _check_plain(problem, strategy)
    if strategy == "exact":
        settings = settings._replace(outlook=WINDOWS)
    elif not searched:
        problem = replace(problem, node_rule="free")
    lower_bound = bounds.lower_bounds(problem)
    stopped = np.zeros(problem.num_layers, bool)
    frontier: list[dict[str, Any]] = []
    if searched:
        if problem.current is None or strategy == "exact":
            placed = local_search.place(problem, lower_bound, settings, stop, progress)
        else:
            placed, frontier = _replan(problem, lower_bound, settings, stop, progress)
        stopped = placed.stopped
        if strategy == "exact":
            lower_bound = _close_layers(problem, placed, lower_bound, settings, stop)
            if problem.current is not None:
                planner = LayerPlanner(problem, lower_bound, settings)
                for layer in range(problem.num_layers):
                    placed.slots[layer] = moves.renumbered(planner, layer, placed.slots[layer])
        placement = _placement(problem, placed.slots, placed.home if problem.binds_nodes else None)
    elif strategy == "deepseek":
        slots, home = hierarchical.place(problem)
        placement = _placement(problem, slots, home)
        if repair:
            placement = remove_duplicates(problem, placement, inside_nodes=home is not None)
    else:
        placement = linear(
            problem.num_layers,
            problem.num_experts,
            problem.num_slots,
            problem.topology.num_ranks,
            problem.topology.num_nodes,
        )
    speed = problem.topology.rank_speed
    balance = metrics.measure(problem.loads, placement, problem.window_weight, speed)
    summary = _summary(problem, placement, balance, lower_bound)
    _check(problem, placement, balance.peak_load, lower_bound, summary, searched or repair)
    return Plan(
        placement=placement,
        layer_ids=problem.layer_ids,
        peak_load=balance.peak_load,
        lower_bound=lower_bound,
        status=_statuses(balance.peak_load, lower_bound, stopped),
        mean_load=_six_digits(metrics.over_windows(problem.loads, problem.window_weight)),
        summary=summary,
        frontier=frontier,
        options=_options(problem, strategy, settings, repair),
        provenance={
            "eplb_version": version("eplb"),
            "num_windows": problem.num_windows,
            "loads_digest": xxhash.xxh3_128_hexdigest(problem.loads.astype("<f8").data),
            "problem_digest": problem.digest(),
            "placement_digest": placement_digest(placement, problem.layer_ids),
        },
    )


def _replan(
    problem: Problem,
    lower_bound: Floats,
    settings: Settings,
    stop: Callable[[], bool],
    progress: Callable[[int, float], None],
) -> tuple[local_search.Placed, list[dict[str, Any]]]:
    """The placement within the budget or at the price of moves, and what other budgets would
    give."""
    planner = LayerPlanner(problem, lower_bound, settings)
    found, stopped = moves.curves(planner, stop, progress)
    least = int(sum(min(point.cost for point in points) for points in found))
    if problem.max_moves is not None and problem.max_moves < least:
        raise InfeasibleError(
            f"a budget of {problem.max_moves} moves is too small for every GPU to hold what it"
            f" must; --max-moves {least} is the least found that is enough"
        )
    placements: dict[int | None, local_search.Placed] = {}

    def taken(points: list[Point]) -> local_search.Placed:
        slots = [moves.in_live_slots(planner, i, point.slots) for i, point in enumerate(points)]
        homes = [point.home for point in points]
        return local_search.Placed(np.array(slots), np.array(homes), stopped)

    total = problem.num_layers * problem.num_slots
    frontier = []
    for share in moves.FRONTIER:
        budget = int(share * total)
        if budget < least:
            continue
        points = within(found, budget if share < 1 else None)
        placed = placements[budget] = taken(points)
        placement = _placement(problem, placed.slots, placed.home if problem.binds_nodes else None)
        speed = problem.topology.rank_speed
        balance = metrics.measure(problem.loads, placement, problem.window_weight, speed)
        frontier.append(
            {
                "max_share": share,
                "moves": int(sum(point.cost for point in points)),
                "mean_balancedness": balance.mean_balancedness,
            }
        )
    if problem.max_moves is not None:
        return taken(within(found, problem.max_moves)), frontier
    if problem.move_price > 0:
        return taken(at_price(found, problem.move_price)), frontier
    return placements[total], frontier


def _check(
    problem: Problem,
    placement: Placement,
    peak_load: Floats,
    lower_bound: Floats,
    summary: Mapping[str, Any],
    bound_by_rules: bool,
) -> None:
    """What is true of every finished map, found again from the map alone: a failure is a fault of
    a strategy, and no plan is given then."""
    if bound_by_rules and not problem.obeyed_by(placement).all():
        raise AssertionError("a strategy broke a rule")
    if (lower_bound > peak_load * (1 + 1e-9)).any():
        raise AssertionError("a bound is above the peak load of a placement that obeys the rules")
    if problem.max_moves is not None and summary["moves"] > problem.max_moves:
        raise AssertionError("more moves than the budget")
    cap = problem.max_off_home
    if cap is not None and problem.binds_nodes and summary["off_home_share"] > cap + 1e-9:
        raise AssertionError("more load off home than the cap")


def _close_layers(
    problem: Problem,
    placed: local_search.Placed,
    lower_bound: Floats,
    settings: Settings,
    stop: Callable[[], bool],
) -> Floats:
    """Improve or prove every layer of `placed`, in place; gives the bounds that were proven."""
    from . import exact

    share = problem.window_weight / problem.window_weight.sum()
    bound = lower_bound.copy()
    tolerance = _PROOF_SMALL if problem.num_slots <= _SMALL else _PROOF

    def close(layer: int) -> None:
        if stop():
            placed.stopped[layer] = True
            return
        closed = exact.close(
            np.ascontiguousarray((problem.loads[:, layer, :] * share[:, None]).T),
            problem.topology.num_ranks,
            problem.slots_per_rank,
            placed.slots[layer],
            float(bound[layer]),
            tolerance,
            settings.effort,
        )
        by_rank = closed.slots_S.reshape(-1, problem.slots_per_rank)
        placed.slots[layer], bound[layer] = np.sort(by_rank, axis=1).ravel(), closed.bound

    local_search.for_each_layer(problem.num_layers, close)
    return bound


def _check_plain(problem: Problem, strategy: Strategy) -> None:
    """What only `auto` knows of: the others place for ranks that are all alike."""
    asked = {
        "node rules (--node-rule free leaves them out)": strategy == "exact"
        and problem.binds_nodes,
        "GPU speeds or excluded GPUs": not problem.topology.is_plain,
        "--survive": problem.survive > 0,
        "--max-off-home": problem.max_off_home is not None,
        "a budget or price of moves": problem.max_moves is not None or problem.move_price > 0,
    }
    for what, is_asked in asked.items():
        if is_asked:
            raise InputError(f"strategy {strategy} knows nothing of {what}; --strategy auto does")


def _options(
    problem: Problem, strategy: Strategy, settings: Settings, repair: bool
) -> Mapping[str, Any]:
    topology, auto = problem.topology, strategy in ("auto", "exact")
    return {
        "gpus": topology.num_ranks,
        "nodes": topology.num_nodes,
        "redundant": problem.slots_per_rank * topology.num_ranks - problem.num_experts,
        "groups": problem.num_groups,
        "node_rule": problem.node_rule if auto else None,
        "max_off_home": problem.max_off_home,
        "gpu_speed": topology.rank_speed,
        "exclude_gpu": list(topology.excluded_ranks),
        "survive": problem.survive,
        "max_moves": problem.max_moves,
        "move_price": problem.move_price,
        "expert_bytes": problem.expert_bytes,
        "strategy": strategy,
        "repair": repair,
        "outlook": settings.outlook.name if auto else None,
        "effort": settings.effort,
        "seed": settings.seed,
    }


def _placement(problem: Problem, slots: Ints, home: Ints | None) -> Placement:
    """The placement of slots on the live ranks, the others empty."""
    topology = problem.topology
    every = np.full((len(slots), topology.num_ranks, problem.slots_per_rank), -1, np.int32)
    every[:, topology.live_ranks] = slots.reshape(len(slots), -1, problem.slots_per_rank)
    return Placement(
        every.reshape(len(slots), -1),
        problem.num_experts,
        topology.num_ranks,
        topology.num_nodes,
        home_node=None if home is None else home.astype(np.int32),
        excluded_ranks=topology.excluded_ranks,
    )


def _statuses(peak: Floats, bound: Floats, stopped: Bools) -> list[Status]:
    proven = gaps(peak, bound) <= OPTIMAL_GAP
    return [
        "optimal" if layer_proven else "stopped" if layer_stopped else "heuristic"
        for layer_proven, layer_stopped in zip(proven, stopped, strict=True)
    ]


def _summary(
    problem: Problem,
    placement: Placement,
    balance: metrics.Balance,
    lower_bound: Floats,
) -> Mapping[str, Any]:
    num_moves = 0 if problem.current is None else migrate(problem.current, placement).num_moves
    summary = {
        "mean_balancedness": balance.mean_balancedness,
        "worst_balancedness": balance.worst_balancedness,
        "p95_balancedness": balance.p95_balancedness,
        "efficiency": balance.efficiency,
        "max_gap": float(gaps(balance.peak_load, lower_bound).max()),
        "moves": num_moves,
    }
    if problem.expert_bytes is not None:
        summary["moved_bytes"] = num_moves * problem.expert_bytes
    if problem.node_rule == "home" and problem.binds_nodes:
        summary["off_home_share"] = off_home_share(problem.loads, placement, problem.window_weight)
    return summary


def _six_digits(values: Floats) -> Floats:
    """Rounded to six significant digits: these loads explain, they are not planned with."""
    scale = 10.0 ** (5 - np.floor(np.log10(np.where(values > 0, values, 1.0))))
    rounded: Floats = np.round(values * scale) / scale
    return rounded
