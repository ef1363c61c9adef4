"""A trace walked through with plans made as it goes: what the options of simulate mean there."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eplb.errors import InputError
from eplb.formats.plans import read_plan
from eplb.placement import Placement, linear
from eplb.simulator import policy
from eplb.simulator.forward import Course, Planner, walk
from eplb.solver.solve import solve
from eplb.trace import LoadTrace, with_shared_experts

from . import terminal
from .loading import load
from .planning import aligned, build_problem, resolve, settings


def courses(options: dict[str, Any]) -> dict[str, Course]:
    """The course of a trace under the policy that the options name, and beside it without any
    re-planning, under the published greedy, and as engines start."""
    model = resolve(options)
    loaded = load(
        options["traces"], (), options["windows"], options["window_tokens"],
        options["window_steps"], model, options["recorded_under"],
    )  # fmt: skip
    for note in loaded.notes:
        terminal.remark(note, options["quiet"])
    trace = _with_options(loaded.trace, options)
    live = None
    if options["current"] is not None:
        live = aligned(read_plan(options["current"]), trace.layer_ids)
    every = options["replan_every"]
    history = options["history"] or min(4 * every, max(1, trace.num_windows // 2))
    first = _problem(trace.windows(slice(history)), live, options)
    # --redundant auto is settled once, by what is known at the start.
    sized = {**options, "redundant": str(first.slots_per_rank * first.topology.num_ranks
                                         - first.num_experts), "budget_gib": None}  # fmt: skip
    decide = policy_named(options["policy"], first.topology.rank_speed)
    name = f"{options['strategy']}, {options['policy']}"
    plans: dict[str, tuple[Planner, policy.Policy]] = {name: (_planner(sized), decide)}
    if options["policy"] != "never":
        plans[f"{options['strategy']}, never"] = (_planner(sized), policy.never)
    if first.topology.is_plain:
        published = {**sized, "strategy": "deepseek", "max_moves": None, "max_bytes": None,
                     "move_price": 0.0, "survive": 0, "max_off_home": None}  # fmt: skip
        plans["deepseek, every"] = (_planner(published), policy.every)
        plans["linear"] = (_as_engines_start(first.slots_per_rank, published), policy.never)
    return {
        name: walk(
            trace, plan, decide, every, history, first.topology,
            None if name == "linear" else live, options["expert_bytes"],
        )
        for name, (plan, decide) in plans.items()
    }  # fmt: skip


def policy_named(text: str, rank_speed: tuple[float, ...] | None) -> policy.Policy:
    """The policy of a name: never, every, or below:B."""
    name, colon, value = text.partition(":")
    if not colon and name in ("never", "every"):
        return policy.never if name == "never" else policy.every
    if name == "below" and colon:
        try:
            limit = float(value)
        except ValueError:
            limit = 0.0
        if 0 < limit <= 1:
            return policy.below(limit, rank_speed)
        raise InputError(f"--policy {text}; a balancedness above 0, at most 1, is expected")
    raise InputError(f"--policy {text}; never, every, or below:B with a balancedness B are known")


def _with_options(trace: LoadTrace, options: Mapping[str, Any]) -> LoadTrace:
    if options["top_k"] is not None:
        trace = replace(trace, top_k=options["top_k"])
    num_shared = options["shared_experts"]
    return with_shared_experts(trace, num_shared) if num_shared else trace


def _problem(past: LoadTrace, live: Placement | None, options: dict[str, Any]) -> Any:
    """What is to be planned at one point of the walk."""
    own = {**options, "shared_experts": 0, "top_k": None}
    if live is None:
        own |= {"max_moves": None, "max_bytes": None, "move_price": 0.0}
    return build_problem(past, live, own)


def _planner(options: dict[str, Any]) -> Planner:
    def plan(past: LoadTrace, live: Placement | None) -> Placement:
        problem = _problem(past, live, options)
        made = solve(
            problem, options["strategy"], settings=settings(options), repair=options["repair"]
        )
        return made.placement

    return plan


def _as_engines_start(slots_per_rank: int, options: Mapping[str, Any]) -> Planner:
    num_ranks, num_nodes = options["gpus"] or 8, options["nodes"] or 1

    def plan(past: LoadTrace, _live: Placement | None) -> Placement:
        slots = slots_per_rank * num_ranks
        return linear(past.num_layers, past.num_experts, slots, num_ranks, num_nodes)

    return plan
