"""A trace walked through with plans made as it goes: what the options of simulate mean there."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from eplb import metrics
from eplb.errors import InputError
from eplb.formats.plans import read_plan
from eplb.placement import Placement, linear
from eplb.simulator import policy
from eplb.simulator.forward import Course, Planner, walk
from eplb.solver.solve import solve
from eplb.trace import LoadTrace, with_shared_experts

from . import report_screen, terminal
from .loading import load
from .planning import aligned, build_problem, resolve, settings
from .timing import Clock, read_clock


def show(options: dict[str, Any]) -> None:
    """Plans made as the trace goes, beside the same without re-planning and without planning."""
    walked = courses(options)
    name, course = next(iter(walked.items()))
    beside = {other: own.report.summary() for other, own in walked.items() if other != name}
    if report_screen.write(
        options, course.report, {"plan": name, "in_sample": False, "beside": beside}
    ):
        return
    taken = sum(a.placement is not b.placement for a, b in pairwise(course.stretches))
    terminal.facts([
        ("scored", f"{len(course.report.windows)} windows × {len(course.report.layer_ids)} layers,"
                   f" none seen by the plan that serves it; the first"
                   f" {course.stretches[0].first} are history"),
        ("re-plans", f"{taken} of {len(course.stretches) - 1} chances taken"),
    ])  # fmt: skip
    report_screen.table({other: own.report for other, own in walked.items()}, moves=True)
    terminal.facts(report_screen.further(course.report))


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
    clock = read_clock(options, model, first.topology)
    decide = policy_named(options["policy"], first.topology.rank_speed, clock, options)
    name = f"{options['strategy']}, {options['policy']}"
    plans: dict[str, tuple[Planner, policy.Policy]] = {name: (_planner(sized), decide)}
    if options["policy"] != "never":
        plans[f"{options['strategy']}, never"] = (_planner(sized), policy.never)
    if first.topology.is_plain:
        published = {**sized, "strategy": "deepseek", "max_moves": None, "max_bytes": None,
                     "move_price": 0.0, "survive": 0, "max_off_home": None}  # fmt: skip
        plans["deepseek, every"] = (_planner(published), policy.every)
        plans["linear"] = (_as_engines_start(first.slots_per_rank, published), policy.never)
    timer = None if clock is None else clock.steps
    walked = {}
    for name, (plan, decide) in plans.items():
        start = None if name == "linear" else live
        course = walk(
            trace, plan, decide, every, history, first.topology, start, options["expert_bytes"],
            timer,
        )  # fmt: skip
        walked[name] = course if clock is None else _timed(course, start, clock)
    return walked


def _timed(course: Course, start: Placement | None, clock: Clock) -> Course:
    """The course with the seconds that its moves took, and the constants."""
    placements = [start, *(stretch.placement for stretch in course.stretches)]
    seconds = sum(
        clock.moves(old, new)
        for old, new in pairwise(placements)
        if old is not None and new is not None and old is not new
    )
    report = replace(
        course.report,
        figures={**course.report.figures, "moving_seconds": seconds},
        constants=clock.constants(),
    )
    return course._replace(report=report)


def policy_named(
    text: str,
    rank_speed: tuple[float, ...] | None,
    clock: Clock | None,
    options: Mapping[str, Any],
) -> policy.Policy:
    """The policy of a name: never, every, below:B or worth-it.

    Raises
    ------
    InputError
        When there is no such policy, or it needs a model of time.
    """
    name, colon, value = text.partition(":")
    if not colon and name in ("never", "every"):
        return policy.never if name == "never" else policy.every
    if not colon and name == "worth-it":
        if clock is None:
            raise InputError("--policy worth-it weighs seconds: --hardware and --model give them")
        return _worth_it(clock, options["horizon"] or options["replan_every"])
    if name == "below" and colon:
        try:
            limit = float(value)
        except ValueError:
            limit = 0.0
        if 0 < limit <= 1:
            return policy.below(limit, rank_speed)
        raise InputError(f"--policy {text}; a balancedness above 0, at most 1, is expected")
    raise InputError(
        f"--policy {text}; never, every, below:B with a balancedness B, and worth-it are known"
    )


def _worth_it(clock: Clock, horizon: int) -> policy.Policy:
    """Re-plan when the seconds saved over so many windows exceed those of moving."""

    def seconds(recent: LoadTrace, placement: Placement) -> float:
        if recent.window_steps is None:
            raise InputError(
                "the trace does not say how many engine steps a window has (window_steps), so"
                " --policy worth-it cannot tell what a window takes"
            )
        slot_load = metrics.slot_loads(recent.tokens, placement)
        step = clock.steps(slot_load, recent.window_steps).mean()
        return float(step) * recent.window_steps

    return policy.worth_it(seconds, clock.moves, horizon)


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
