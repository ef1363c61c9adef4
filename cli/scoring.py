"""Plans scored on traces: what simulate, check and report have in common."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from eplb._arrays import Floats, Ints
from eplb.errors import InputError, RefusedError
from eplb.formats.blocks import read_blocks, streams
from eplb.formats.model_config import read_model
from eplb.formats.source import Hints
from eplb.placement import Placement, linear
from eplb.plan import Plan
from eplb.problem import Problem
from eplb.report import Report
from eplb.simulator.loss import Loss, lose, lost_share
from eplb.simulator.replay import Score, Timer, evenly, replay, unseen
from eplb.solver.solve import solve
from eplb.topology import Topology
from eplb.trace import LoadTrace
from eplb.traffic import off_home_share

from . import terminal
from .loading import count, load, read


class Scored(NamedTuple):
    """The report of each plan by its name, of what needs no planning beside them, and of the first
    plan after each loss asked for; and how many windows were left out because a plan was made from
    them.

    `losses` are by name: what is lost, the share of load that goes nowhere, and the report of the
    rest.
    """

    reports: dict[str, Report]
    beside: dict[str, Report]
    losses: dict[str, tuple[Loss, float, Report]]
    left_out: int
    in_sample: bool


def score(
    options: Mapping[str, Any],
    plans: Mapping[str, Plan],
    beside: bool = True,
    lost: Mapping[str, Sequence[int]] | None = None,
    timer: Timer | None = None,
) -> Scored:
    """What `plans` make of the traces that the options name, window by window.

    Windows that one of the plans was made from are left out, unless `in_sample` is among the
    options. With `beside`, the engines' start and the published greedy, for the loads that the
    first plan was made for, are scored on the same windows. `lost` are GPUs that the first plan is
    to lose, by a name for each case.

    Raises
    ------
    InputError
        When no window is left to score.
    RefusedError
        When the plans or the traces are of different models.
    """
    first = next(iter(plans.values()))
    _check_alike(plans)
    placements = {path: plan.placement for path, plan in plans.items()}
    if beside:
        placements |= _free_plans(first, options["quiet"])
    losses = {name: lose(first.placement, ranks) for name, ranks in (lost or {}).items()}
    serve = {
        name: (Score(first.layer_ids, _topology(first, placement), timer), evenly(placement))
        for name, placement in placements.items()
    }
    for name, loss in losses.items():
        left = replace(_topology(first, first.placement), excluded_ranks=loss.ranks)
        serve[name] = (Score(first.layer_ids, left), loss.dispatch)
    tally = _Tally()
    unplanned = unseen(
        tally.read(_blocks(options)),
        first.layer_ids,
        first.placement.num_logical_experts,
        () if options["in_sample"] else _planned_for(plans, options["quiet"]),
        int(first.options.get("shared_experts") or 0),
    )
    replay(tally.served(unplanned), serve)
    if not tally.num_served:
        raise InputError(
            f"all {tally.num_read} windows of the trace were planned for, so they say nothing of"
            " what is to come: score another trace, plan on a part of this one (--windows :19), or"
            " take --in-sample"
        )
    expert_bytes = first.options.get("expert_bytes")
    reports = {
        name: serve[name][0].report(expert_bytes, _figures(placement, tally))
        for name, placement in placements.items()
    }
    return Scored(
        {name: report for name, report in reports.items() if name in plans},
        {name: report for name, report in reports.items() if name not in plans},
        {
            name: (loss, lost_share(loss, tally.mean_load), serve[name][0].report())
            for name, loss in losses.items()
        },
        tally.num_read - tally.num_served,
        options["in_sample"],
    )


class _Tally:
    """How many windows there were, how many of them were served, and the mean load of those."""

    def __init__(self) -> None:
        self.num_read = self.num_served = 0
        self._weight, self._load = 0.0, np.zeros(())

    def read(self, blocks: Iterable[LoadTrace]) -> Iterator[LoadTrace]:
        """Hand the windows of a trace on."""
        for trace in blocks:
            self.num_read += trace.num_windows
            yield trace

    def served(self, blocks: Iterable[tuple[LoadTrace, Ints]]) -> Iterator[tuple[LoadTrace, Ints]]:
        """Hand the windows that are served on."""
        for trace, windows in blocks:
            self.num_served += trace.num_windows
            self._weight += trace.window_weight.sum()
            self._load = self._load + np.tensordot(trace.window_weight, trace.tokens, axes=1)
            yield trace, windows

    @property
    def mean_load(self) -> Floats:
        """The weighted mean over the windows served, (L, E)."""
        return self._load / self._weight


def _figures(placement: Placement, tally: _Tally) -> dict[str, float]:
    """What a report has beside what follows from peaks: traffic between nodes, as far as counts
    tell of it."""
    if placement.num_nodes == 1:
        return {}
    return {"off_home_share": off_home_share(tally.mean_load[None], placement)}


def _topology(plan: Plan, placement: Placement) -> Topology:
    """The machines of `placement`, with the speeds that `plan` was made for."""
    speed = plan.options.get("gpu_speed")
    return Topology(
        placement.num_ranks,
        placement.num_nodes,
        None if speed is None else tuple(speed),
        placement.excluded_ranks,
    )


def _planned_for(plans: Mapping[str, Plan], quiet: bool) -> set[str]:
    """The digests of all windows that one of the plans was made from."""
    seen: set[str] = set()
    for path, plan in plans.items():
        digests = plan.provenance.get("windows")
        if digests is None:
            terminal.remark(
                f"{path} does not say which windows it was made from: if the trace has them, its"
                " figures are in-sample",
                quiet,
            )
        seen.update(digests or ())
    return seen


def _blocks(options: Mapping[str, Any]) -> Iterator[LoadTrace]:
    """The windows of all traces in order, a few at a time where the file allows it."""
    model = None if options["model"] is None else read_model(options["model"])
    cut = (options["window_tokens"], options["window_steps"])
    known = (model, options["recorded_under"])
    if options["windows"] is not None:
        loaded = load(options["traces"], (), options["windows"], *cut, *known)
        for note in loaded.notes:
            terminal.remark(note, options["quiet"])
        yield loaded.trace
        return
    for path in options["traces"]:
        plain = cut == (None, None) and options["recorded_under"] is None
        if plain and path != "-" and streams(path):
            yield from read_blocks(path, Hints(model=model))
            continue
        reading = read(path, options["window_steps"], *known)
        for note in reading.notes:
            terminal.remark(f"{path}: {note}", options["quiet"])
        yield count(path, reading, *cut)


def _check_alike(plans: Mapping[str, Plan]) -> None:
    """Plans that are scored side by side must be of one model."""
    (first_path, first), *others = plans.items()
    for path, plan in others:
        same = plan.layer_ids.tolist() == first.layer_ids.tolist()
        if not same or plan.placement.num_logical_experts != first.placement.num_logical_experts:
            raise RefusedError(f"{path} and {first_path} are plans for different models")


def _free_plans(plan: Plan, quiet: bool) -> dict[str, Placement]:
    """What costs no planning on the same machines: the engines' start, and the published greedy for
    the loads that `plan` was made for."""
    own = plan.placement
    if own.excluded_ranks:
        terminal.remark("with GPUs out of service there is nothing to compare with", quiet)
        return {}
    sizes = (own.num_layers, own.num_logical_experts, own.num_slots, own.num_ranks, own.num_nodes)
    others = {"linear": linear(*sizes)}
    if plan.mean_load is None:
        terminal.remark(
            "the plan does not keep the loads it was made for, so the published greedy is not"
            " beside it",
            quiet,
        )
        return others
    problem = Problem(
        plan.mean_load[None],
        Topology(own.num_ranks, own.num_nodes),
        own.slots_per_rank,
        layer_ids=plan.layer_ids,
        num_groups=int(plan.options.get("groups") or 1),
        node_rule="free",
    )
    return {**others, "deepseek": solve(problem, "deepseek").placement}
