"""A sweep as its options say it: the points asked for, made or taken from a file, and written."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from eplb.errors import InfeasibleError, InputError, RefusedError
from eplb.formats import files
from eplb.formats.plans import read_plan
from eplb.formats.sweeps import read_points, sweep_bytes
from eplb.plan import Plan
from eplb.problem import Problem, legal_redundant
from eplb.routes import RouteTrace
from eplb.study.knee import knees
from eplb.study.runs import Skipped, Task, run
from eplb.study.sweep import Point, Setting, Study, digest, study_of, usual_redundant
from eplb.topology import Topology
from eplb.trace import LoadTrace

from . import terminal
from .counts import numbers
from .loading import Loaded, load
from .planning import aligned, build_problem, resolve, settings

# The options that take several values here; one value of each makes a point.
AXES = ("gpus", "nodes", "redundant", "max_moves")


class Swept(NamedTuple):
    """The studies by the name of their trace, the points there are, those that cannot be and why,
    and the knee of each curve; no knees while there are points to come."""

    studies: dict[str, Study]
    points: list[Point]
    skipped: list[dict[str, Any]]
    knee: list[dict[str, Any]] | None
    num_tasks: int


class Progress(Protocol):
    """Who hears of points as they are done."""

    def start(self, total: int, done: int) -> None:
        """So many points in all, of which so many are there already."""

    def advance(self) -> None:
        """One more is done."""


def sweep(options: dict[str, Any], stop: Callable[[], bool], progress: Progress) -> Swept:
    """Make the points that the options ask for, and write the file as they come.

    Raises
    ------
    InfeasibleError
        When no point asked for can be.
    RefusedError
        When the file to resume from is of another trace or other options.
    """
    studies, tasks = _asked(options)
    kept = _kept(options, list(studies.values()), tasks)
    found: dict[int, Point | Skipped] = dict(kept)
    missing = [number for number in range(len(tasks)) if number not in found]
    progress.start(len(tasks), len(kept))

    def written(is_whole: bool) -> Swept:
        swept = _sorted(studies, tasks, found, is_whole, options["each"])
        if options["output"] is not None and swept.points:
            data = sweep_bytes(swept.points, swept.skipped, swept.knee)
            files.write_bytes(options["output"], data, force=True)
        return swept

    jobs = options["jobs"] or len(os.sched_getaffinity(0))
    done = run(list(studies.values()), [tasks[n] for n in missing], stop, jobs, options["ray"])
    for number, outcome in done:
        found[missing[number]] = outcome
        progress.advance()
        written(is_whole=False)
    swept = written(is_whole=len(found) == len(tasks))
    if not swept.points and swept.knee is not None:
        raise InfeasibleError(f"no point can be: {swept.skipped[0]['reason']}")
    return swept


def _asked(options: dict[str, Any]) -> tuple[dict[str, Study], list[Task]]:
    """The study of each trace by its name, and all points of all of them in order."""
    own = dict.fromkeys(AXES) | {"budget_gib": None}
    single = {**options, **own}
    model = resolve(single)
    if options["budget_gib"] is not None and single["expert_bytes"] is None:
        raise InputError(
            "--budget-gib needs --expert-bytes, the bytes of one expert in one layer, or --model"
        )
    if options["kv_bytes_per_token"] is not None and single["expert_bytes"] is None:
        raise InputError(
            "--kv-bytes-per-token weighs experts against the cache and needs --expert-bytes, the"
            " bytes of one expert in one layer, or --model"
        )
    current = None if options["current"] is None else read_plan(options["current"])
    traces = options["traces"]
    if options["each"] and len(set(traces)) < len(traces):
        raise InputError("a trace is named twice; --each sweeps every one by itself")
    studies: dict[str, Study] = {}
    tasks: list[Task] = []
    for paths in [(path,) for path in traces] if options["each"] else [traces]:
        loaded = load(
            paths, (), options["windows"], options["window_tokens"], options["window_steps"],
            model, options["recorded_under"],
        )  # fmt: skip
        for note in loaded.notes:
            terminal.remark(note, options["quiet"])
        asked, problem = _base(loaded.trace, current, options, single)
        auto = options["strategy"] == "auto"
        tasks += [Task(len(studies), setting) for setting in asked]
        studies[" ".join(paths)] = study_of(
            problem,
            _routes(loaded, single) if len(paths) == 1 else None,
            strategy=options["strategy"],
            settings=settings(options),
            repair=options["repair"],
            back_test=auto and options["effort"] != "fast",
            kv_bytes_per_token=options["kv_bytes_per_token"],
            budget_bytes=_bytes(options["budget_gib"]),
        )
    return studies, tasks


def _base(
    trace: LoadTrace, current: Plan | None, options: dict[str, Any], single: dict[str, Any]
) -> tuple[list[Setting], Problem]:
    """The points of a trace in order, and its problem in the sizes of the first that can be."""
    live = None if current is None else aligned(current, trace.layer_ids)
    num_experts = trace.num_experts + (single["shared_experts"] or 0)
    asked = dict.fromkeys(
        Setting(num_ranks, num_nodes, count, moves)
        for num_ranks, num_nodes in _machines(options, single)
        for count in _counts(options, num_ranks, num_experts)
        for moves in _budgets(options, single)
    )
    reason = "none of the numbers that --redundant names fills equal slots"
    for setting in asked:
        own = {"gpus": setting.gpus, "nodes": setting.nodes, "redundant": str(setting.redundant)}
        try:
            # The budget of moves is set point by point.
            problem = build_problem(trace, live, {**single, **own, "max_bytes": None})
        except InfeasibleError as error:
            reason = reason if setting is not next(iter(asked)) else str(error)
            continue
        # One curve after the other: the numbers of redundant experts vary fastest.
        return sorted(
            asked, key=lambda s: (s.gpus, s.nodes, s.max_moves or 0, s.redundant)
        ), problem
    raise InfeasibleError(f"no point can be: {reason}")


def _routes(loaded: Loaded, single: Mapping[str, Any]) -> RouteTrace | None:
    """The routes that a trace was counted from, where its windows are all of them and nothing was
    added, of the layers that carry load."""
    routes = loaded.routes
    if routes is None or single["windows"] is not None or single["shared_experts"]:
        return None
    rows = np.flatnonzero(np.isin(routes.layer_ids, loaded.trace.layer_ids))
    if len(rows) == len(routes.layer_ids):
        return routes
    return replace(routes, experts=routes.experts[:, rows], layer_ids=routes.layer_ids[rows])


def _machines(options: Mapping[str, Any], single: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Ranks and nodes of each machine; one number of nodes goes with every number of ranks."""
    gpus = numbers(options["gpus"]) or [single["gpus"] or 8]
    nodes = numbers(options["nodes"]) or [single["nodes"] or 1]
    if len(nodes) == 1:
        nodes *= len(gpus)
    if len(nodes) != len(gpus):
        raise InputError(
            f"--nodes has {len(nodes)} numbers and --gpus {len(gpus)}; one for all, or one for"
            " each, in the same order, is expected"
        )
    return list(zip(gpus, nodes, strict=True))


def _counts(options: Mapping[str, Any], num_ranks: int, num_experts: int) -> list[int]:
    """The numbers of redundant experts to try on so many ranks."""
    topology = Topology(num_ranks, excluded_ranks=tuple(sorted(options["exclude_gpus"])))
    if options["redundant"] is None:
        return usual_redundant(num_experts, topology)
    found = numbers(options["redundant"], legal_redundant(num_experts, topology))
    if not found:
        first, last, _ = options["redundant"][0]
        least = legal_redundant(num_experts, topology)[0]
        terminal.remark(
            f"no number of redundant experts from {first} to {last} fills equal slots of"
            f" {num_ranks} GPUs; {least} is the least, and each {num_ranks} more",
            options["quiet"],
        )
    return found


def _budgets(options: Mapping[str, Any], single: Mapping[str, Any]) -> list[int | None]:
    """The budgets of moves to try."""
    if options["max_bytes"] is None:
        return [*numbers(options["max_moves"])] or [None]
    if options["max_moves"] is not None:
        raise InputError("--max-bytes and --max-moves exclude each other")
    return [options["max_bytes"] // single["expert_bytes"]]


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * 2**30)


def _kept(
    options: Mapping[str, Any], studies: Sequence[Study], tasks: Sequence[Task]
) -> dict[int, Point]:
    """The points that the file to resume from holds already, by the number of their task."""
    path = options["output"]
    if not options["resume"] or not os.path.exists(path):
        return {}
    there = {point["digest"]: point for point in read_points(path)}
    kept: dict[int, Point] = {}
    for number, task in enumerate(tasks):
        try:
            point = there.get(digest(studies[task.study], task.setting))
        except InfeasibleError:
            continue
        if point is not None:
            kept[number] = {key: value for key, value in point.items() if key != "trace"}
    if there and not kept:
        raise RefusedError(
            f"{path} has no point of this trace under these options, made by this version of"
            f" eplb, so there is nothing to resume ({len(there)} others are in it); --force"
            " without --resume overwrites it"
        )
    unused = len(there) - len(kept)
    text = f"{len(kept)} of {len(tasks)} points are taken from {path}"
    if unused:
        text += f"; {unused} there are of another trace or of options not asked for: left out"
    terminal.remark(text, options["quiet"])
    return kept


def _sorted(
    studies: dict[str, Study],
    tasks: Sequence[Task],
    found: Mapping[int, Point | Skipped],
    is_whole: bool,
    names_traces: bool,
) -> Swept:
    """What was found, in the order in which it was asked for."""
    # Names of files may be no text, which JSON cannot hold.
    names = [name.encode(errors="backslashreplace").decode() for name in studies]
    points: list[Point] = []
    skipped: list[dict[str, Any]] = []
    for number in sorted(found):
        outcome, task = found[number], tasks[number]
        name = {"trace": names[task.study]} if names_traces else {}
        if isinstance(outcome, Skipped):
            skipped.append({**name, **task.setting._asdict(), "reason": outcome.reason})
        else:
            points.append({**name, **outcome})
    return Swept(studies, points, skipped, knees(points) if is_whole else None, len(tasks))
