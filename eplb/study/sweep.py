"""What more slots, GPUs or moves buy: plans of several sizes, scored on traffic they have not seen.

Every point of a sweep is the plan that would be made of the first part of a trace, measured on the
rest: how even it is, the memory it takes, what it moves, and what the loss of a GPU or node would
take with it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import xxhash

from .. import metrics
from .._arrays import Floats
from ..errors import InfeasibleError
from ..placement import Placement
from ..plan import Plan
from ..problem import Problem, check_slots
from ..routes import RouteTrace
from ..solver.layer_planner import Settings
from ..solver.solve import Strategy, solve
from ..topology import Topology
from ..traffic import off_home_share, route_traffic
from .backtest import SHORTEST, plan_ahead
from .survival import survival

# The figures of one point, as the sweep file has them; docs/sweep.md names them.
Point: TypeAlias = dict[str, Any]

# The part of the windows that is planned for, in fifths; the rest is scored.
_HISTORY_FIFTHS = 3
# Without numbers to try, a curve goes to so many slots a GPU beyond the least.
_MORE_SLOTS = 4
_BALANCE = ("mean_balancedness", "worst_balancedness", "p95_balancedness", "efficiency")


class Setting(NamedTuple):
    """The sizes of one point: ranks, nodes, redundant experts a layer, and expert copies that may
    be sent (None without a limit)."""

    gpus: int
    nodes: int
    redundant: int
    max_moves: int | None = None


@dataclass(frozen=True, eq=False)
class Study:
    """What the points of a sweep have in common.

    Parameters
    ----------
    problem
        The windows planned for and every limit; its own sizes give way to those of a setting.
    ahead, ahead_weight
        The windows scored, (W, L, E), and their weights, (W,); None where the trace is too short
        to keep any back, and the windows planned for are scored.
    routes, tokens
        Token routes with the layers of the problem, and the first of the tokens scored and the end
        of the last; None where only counts are known.
    strategy, settings, repair
        As in `solve`.
    back_test
        Whether the outlook is chosen by back-test, as `eplb plan` does; for `auto` only.
    kv_bytes_per_token
        Bytes that a token's cached keys and values take on a GPU; None when unknown.
    budget_bytes
        The most that the experts of a GPU may take; None without a limit.
    """

    problem: Problem
    ahead: Floats | None = None
    ahead_weight: Floats | None = None
    routes: RouteTrace | None = None
    tokens: tuple[int, int] = (0, 0)
    strategy: Strategy = "auto"
    settings: Settings = field(default_factory=Settings)
    repair: bool = False
    back_test: bool = False
    kv_bytes_per_token: int | None = None
    budget_bytes: int | None = None


def study_of(problem: Problem, routes: RouteTrace | None = None, **how: Any) -> Study:
    """The study of a problem: the first 60 % of the windows of its timeline that carry load, and
    its scenarios, are planned for, the rest is scored.

    `routes` are those that the problem's windows were counted from, all of them from the first
    token on and of the same layers; `how` are the other fields of a study.
    """
    timeline = np.flatnonzero((problem.scenario == 0) & problem.loads.any(axis=(1, 2)))
    if len(timeline) < SHORTEST:
        return Study(problem, **_traffic_of(routes, problem.loads, 0), **how)
    later = timeline[len(timeline) * _HISTORY_FIFTHS // 5 :]
    seen = np.setdiff1d(np.arange(problem.num_windows), later)
    weight = problem.window_weight[seen]
    past = replace(
        problem,
        loads=problem.loads[seen],
        window_weight=weight if weight.any() else None,
        scenario=problem.scenario[seen],
    )
    weight = problem.window_weight[later]
    return Study(
        past,
        problem.loads[later],
        weight if weight.any() else None,
        **_traffic_of(routes, problem.loads, int(later[0])),
        **how,
    )


def _traffic_of(routes: RouteTrace | None, loads: Floats, first: int) -> dict[str, Any]:
    """The routes of the windows from `first` on, by the number of assignments before them."""
    if routes is None:
        return {}
    counted = (routes.experts >= 0).sum(axis=(1, 2)).cumsum()
    begin = int(np.searchsorted(counted, loads[:first].sum(), side="right"))
    end = int(np.searchsorted(counted, loads.sum())) + 1
    # The ranks that tokens started on are those of one size only, and sizes are what varies.
    return {"routes": replace(routes, source_rank=None), "tokens": (begin, end)}


def usual_redundant(num_experts: int, topology: Topology) -> list[int]:
    """The numbers of redundant experts to try where none are named: the least that fills equal
    slots of the ranks in service, and those of a few slots a rank more."""
    least = -(-num_experts // topology.num_live_ranks)
    slots = range(least, min(least + _MORE_SLOTS, num_experts) + 1)
    return [count * topology.num_ranks - num_experts for count in slots]


def resized(study: Study, setting: Setting) -> Problem:
    """The problem of a study in the sizes of a setting.

    Raises
    ------
    InfeasibleError
        When no placement has them, or they take more memory than the budget.
    """
    problem = study.problem
    topology = replace(problem.topology, num_ranks=setting.gpus, num_nodes=setting.nodes)
    num_slots = problem.num_experts + setting.redundant
    check_slots(problem.num_experts, num_slots, topology)
    slots_per_rank = num_slots // setting.gpus
    needed = slots_per_rank * problem.num_layers * (problem.expert_bytes or 0)
    if study.budget_bytes is not None and needed > study.budget_bytes:
        raise InfeasibleError(
            f"{slots_per_rank} slots a GPU and layer are {needed / 2**30:.2f} GiB a GPU, more than"
            f" --budget-gib {study.budget_bytes / 2**30:.4g}"
        )
    return replace(
        problem, topology=topology, slots_per_rank=slots_per_rank, max_moves=setting.max_moves
    )


def plan_at(study: Study, setting: Setting, stop: Callable[[], bool] = lambda: False) -> Plan:
    """The plan of a setting, from the windows planned for.

    Raises
    ------
    InfeasibleError
        When no placement has these sizes, or a budget is out of reach.
    """
    problem = resized(study, setting)
    if study.back_test:
        return plan_ahead(problem, study.settings, stop)[0]
    return solve(problem, study.strategy, settings=study.settings, repair=study.repair, stop=stop)


def held_out(study: Study, placement: Placement) -> metrics.Balance | None:
    """How even a placement is on the windows kept back; None where there are none."""
    if study.ahead is None:
        return None
    speed = study.problem.topology.rank_speed
    return metrics.measure(study.ahead, placement, study.ahead_weight, speed)


def measure(study: Study, setting: Setting, stop: Callable[[], bool] = lambda: False) -> Point:
    """The point of a setting: its plan, and what that is worth.

    Raises
    ------
    InfeasibleError
        When no placement has these sizes, or a budget is out of reach.
    """
    problem = resized(study, setting)
    plan = plan_at(study, setting, stop)
    ahead = held_out(study, plan.placement)
    point: Point = {
        **setting._asdict(),
        "slots_per_gpu": problem.slots_per_rank,
        "held_out": None if ahead is None else {key: getattr(ahead, key) for key in _BALANCE},
        "planned": {key: plan.summary[key] for key in (*_BALANCE, "max_gap")},
        **_memory(study, problem),
    }
    if problem.current is not None:
        point |= {key: plan.summary[key] for key in ("moves", "moved_bytes") if key in plan.summary}
    loads, weight = problem.loads, problem.window_weight
    if study.ahead is not None:
        loads, weight = study.ahead, study.ahead_weight
    if setting.nodes > 1:
        point["off_home_share"] = off_home_share(loads, plan.placement, weight)
        point |= _traffic(study, plan.placement)
    weight = np.ones(len(loads)) if weight is None else weight
    return {
        **point,
        **survival(plan.placement, metrics.over_windows(loads, weight)),
        "digest": digest(study, setting),
    }


def scored(point: Point) -> dict[str, float]:
    """How even a point is on the windows kept back, else on those planned for."""
    balance: dict[str, float] = point["held_out"] or point["planned"]
    return balance


def digest(study: Study, setting: Setting) -> str:
    """xxh3-128 of all that a point depends on: one with this digest need not be made again.

    Raises
    ------
    InfeasibleError
        When no placement has these sizes, or they take more memory than the budget.
    """
    state = xxhash.xxh3_128(resized(study, setting).digest().encode())
    if study.ahead is not None:
        state.update(study.ahead.astype("<f8").data)
        weight = study.ahead_weight
        state.update(b"" if weight is None else weight.astype("<f8").data)
    if study.routes is not None:
        state.update(np.ascontiguousarray(study.routes.experts[slice(*study.tokens)]).data)
    how = (study.strategy, study.repair, study.back_test, tuple(study.settings))
    of_bytes = (study.problem.expert_bytes, study.kv_bytes_per_token)
    state.update(repr((how, of_bytes, version("eplb"))).encode())
    return state.hexdigest()


def _traffic(study: Study, placement: Placement) -> dict[str, float]:
    """What a token sends to other nodes than its own, layers counted alike."""
    if study.routes is None:
        return {}
    traffic = route_traffic(study.routes, placement, edges=study.tokens)
    return {
        "remote_nodes_per_token": float(traffic.remote_nodes_per_token.mean()),
        "remote_assignments_per_token": float(traffic.remote_assignments_per_token.mean()),
    }


def _memory(study: Study, problem: Problem) -> dict[str, int]:
    """Bytes of experts on a GPU in service, those of them beyond an equal share of one copy each,
    and the cached tokens that these displace."""
    if problem.expert_bytes is None:
        return {}
    layer_bytes = problem.num_layers * problem.expert_bytes
    more, num_ranks = problem.num_redundant * layer_bytes, problem.topology.num_live_ranks
    sizes = {
        "bytes_per_gpu": problem.slots_per_rank * layer_bytes,
        "redundant_bytes_per_gpu": -(-more // num_ranks),
    }
    if study.kv_bytes_per_token is not None:
        sizes["kv_tokens_lost_per_gpu"] = -(-more // (num_ranks * study.kv_bytes_per_token))
    return sizes
