"""A trace walked through with plans made as it goes: what the options of simulate mean there."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from eplb import metrics
from eplb.errors import InputError
from eplb.formats.plans import read_plan
from eplb.placement import Placement, linear
from eplb.plan import Plan
from eplb.simulator import policy
from eplb.simulator.forward import Course, Planner, walk
from eplb.solver.solve import solve
from eplb.timeline import with_shared_experts
from eplb.trace import LoadTrace

from . import report_screen, terminal
from .loading import load
from .plan_summary import ONE_SLOT, is_moot
from .planning import aligned, build_problem, build_topology, resolve, settings
from .recordings import planned_for
from .timing import Clock, read_clock, say_untimed


def show(options: dict[str, Any]) -> None:
    """Plans made as the trace goes, beside the same without re-planning and without planning."""
    walked = courses(options)
    name, course = next(iter(walked.items()))
    beside = {other: own.report.summary() for other, own in walked.items() if other != name}
    if report_screen.write(
        options, course.report, {"plan": name, "in_sample": options["in_sample"], "beside": beside}
    ):
        return
    seen = ("in-sample: also those that the live plan was made from" if options["in_sample"]
            else "none seen by the plan that serves it")  # fmt: skip
    rows = [
        ("scored", f"{len(course.report.windows)} windows × {len(course.report.layer_ids)} layers,"
                   f" {seen}; the first {course.stretches[0].first} are history"),
        ("re-plans", f"{course.replaced} of {len(course.changes)} chances taken"),
    ]  # fmt: skip
    if is_moot(course.stretches[0].placement.slots_per_rank, build_topology(options)):
        rows.append(("note", ONE_SLOT))
    terminal.facts(rows)
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
    # Scenarios are not in time, and windows of weight 0 count for nothing.
    walked_through = (trace.scenario == trace.scenario.min()) & (trace.window_weight > 0)
    numbers = np.flatnonzero(walked_through)
    trace = trace.only(walked_through)
    every = options["replan_every"]
    history = options["history"] or min(4 * every, max(1, trace.num_windows // 2))
    live = None
    if options["current"] is not None:
        current = read_plan(options["current"])
        live = aligned(current, trace.layer_ids)
        if not options["in_sample"]:
            _check_unseen([loaded.digests[number] for number in numbers], history, current, options)
    first = _problem(trace.windows(slice(history)), live, options)
    # --redundant auto is settled once, by what is known at the start.
    sized = {**options, "redundant": str(first.slots_per_rank * first.topology.num_ranks
                                         - first.num_experts), "budget_gib": None}  # fmt: skip
    clock = read_clock(options, model, first.topology)
    if options["horizon"] is not None and options["policy"] != "worth-it":
        raise InputError("--horizon is for --policy worth-it")
    decide = policy_named(options["policy"], first.topology.rank_speed, clock, options)
    name = f"{options['strategy']}, {options['policy']}"
    plans: dict[str, tuple[Planner, policy.Policy]] = {name: (_planner(sized), decide)}
    if options["policy"] != "never":
        plans[f"{options['strategy']}, never"] = (_planner(sized), policy.never)
    if first.topology.is_plain:
        published = {**sized, "strategy": "deepseek", "repair": False, "max_moves": None,
                     "max_bytes": None, "move_price": 0.0, "survive": 0,
                     "max_off_home": None}  # fmt: skip
        # What was asked for may go by that name, with repairs.
        plans.setdefault("deepseek, every", (_planner(published), policy.every))
        plans["linear"] = (_as_engines_start(first.slots_per_rank, published), policy.never)
    timer = None if clock is None else clock.steps
    walked = {}
    for name, (plan, decide) in plans.items():
        start = None if name == "linear" else live
        course = walk(
            trace, plan, decide, every, history, first.topology, start, options["expert_bytes"],
            timer,
        )  # fmt: skip
        report = replace(course.report, windows=numbers[course.report.windows])
        course = course._replace(report=report)
        walked[name] = course if clock is None else _timed(course, clock)
    say_untimed(next(iter(walked.values())).report, clock, options["quiet"])
    return walked


def _check_unseen(
    digests: list[str], history: int, current: Plan, options: Mapping[str, Any]
) -> None:
    """Raise `InputError` when the live plan was made from windows that would be served."""
    path = options["current"]
    seen = planned_for({path: current}, options)
    served = [window for window in range(history, len(digests)) if digests[window] in seen]
    if not served:
        return
    last = served[-1] + 1
    later = (
        f"--history {last} serves later ones only" if last < len(digests) else "walk another trace"
    )
    raise InputError(
        f"{path} was made from {len(served)} of the {len(digests) - history} windows that are to be"
        f" served: {later}, or take --in-sample"
    )


def _timed(course: Course, clock: Clock) -> Course:
    """The course with the seconds that its moves took, and the constants."""
    seconds = sum(clock.moves(old, new) for old, new in course.changes if old is not new)
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
