"""Plans scored on traces: what simulate, check and report have in common."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from eplb.errors import InputError, RefusedError
from eplb.placement import Placement, linear
from eplb.plan import Plan
from eplb.problem import Problem
from eplb.report import Report
from eplb.simulator.loss import Loss, lose, lost_share
from eplb.simulator.replay import Dispatch, Score, Timer, of_layers, replay, unseen
from eplb.solver.solve import solve
from eplb.timeline import join
from eplb.topology import Topology
from eplb.traffic import off_home_share, route_traffic

from . import terminal
from .recordings import Recording, Tally, planned_for, read_recording, with_top_k
from .serving import by_rule, with_active_slots

# What stands beside the plans without planning.
LINEAR, PUBLISHED = "linear", "deepseek"


class Scored(NamedTuple):
    """The report of each plan by its name, of what needs no planning beside them, and of the first
    plan after each loss asked for; and how many windows were left out because a plan was made from
    them.

    `losses` are by name: what is lost, the share of load that goes nowhere, and the report of the
    rest. `traffic_basis` says where figures of remote nodes come from, None without them.
    """

    reports: dict[str, Report]
    beside: dict[str, Report]
    losses: dict[str, tuple[Loss, float, Report]]
    left_out: int
    in_sample: bool
    traffic_basis: str | None


def score(
    options: Mapping[str, Any],
    plans: Mapping[str, Plan],
    beside: bool = True,
    lost: Mapping[str, Sequence[int]] | None = None,
    timer: Callable[[Topology], Timer] | None = None,
    dispatch: str = "even",
    active_slots: int | None = None,
) -> Scored:
    """What `plans` make of the traces that the options name, window by window.

    Windows that one of the plans was made from are left out, unless `in_sample` is among the
    options. With `beside`, the engines' start and the published greedy, for the loads that the
    first plan was made for, are scored on the same windows. `lost` are GPUs that the first plan is
    to lose, by a name for each case. Tokens go to copies as `dispatch` says (see
    `eplb.simulator.dispatch`); with `active_slots` the first plan is also scored with only so many
    slots of a GPU serving at a time, split evenly. `timer` models seconds on the machines it is
    given.

    Raises
    ------
    InputError
        When no window is left to score.
    RefusedError
        When the plans or the traces are of different models.
    """
    first = next(iter(plans.values()))
    num_shared = int(first.options.get("shared_experts") or 0)
    sizes = (first.layer_ids, first.placement.num_logical_experts)
    _check_alike(plans, options["quiet"])
    placements = {path: plan.placement for path, plan in plans.items()}
    free = _free_plans(first, options["quiet"]) if beside else {}
    losses = {name: lose(first.placement, ranks) for name, ranks in (lost or {}).items()}
    recording = read_recording(options).placed(first.layer_ids, num_shared)
    blocks = recording.blocks
    if num_shared:
        blocks = with_top_k(blocks, options.get("top_k"), first.provenance.get("top_k"))

    def empty(placement: Placement, plan: Plan = first) -> Score:
        machines = topology_of(plan, placement)
        return Score(first.layer_ids, machines, None if timer is None else timer(machines))

    def way(placement: Placement, plan: Plan = first) -> tuple[Score, Dispatch]:
        score = empty(placement, plan)
        return score, by_rule(dispatch, placement, score.pace, recording)

    num_ranks = first.placement.num_ranks
    serve = {
        path: way(plan.placement, first if plan.placement.num_ranks == num_ranks else plan)
        for path, plan in plans.items()
    }
    further = {name: way(placement) for name, placement in free.items()}
    if active_slots is not None:
        whole = join(list(blocks))  # planned for or not, as each window is one before another
        blocks, own = [whole], of_layers(whole, *sizes, num_shared)
        pace = empty(first.placement).pace
        for name, served in with_active_slots(first.placement, active_slots, pace, own).items():
            further[name] = (empty(first.placement), served)
    for name, loss in losses.items():
        left = replace(topology_of(first, first.placement), excluded_ranks=loss.ranks)
        further[name] = (Score(first.layer_ids, left), loss.dispatch)
    for name in further:
        if name in plans:
            raise InputError(
                f"a plan file named {name} would be mistaken for what stands beside plans by that"
                f" name: --plan ./{name}"
            )
    serve |= further
    placements |= free
    tally = Tally()
    unplanned = unseen(
        tally.read(blocks),
        *sizes,
        () if options["in_sample"] else planned_for(plans, options),
        num_shared,
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
        name: score.report(
            expert_bytes,
            _figures(placements[name], tally, recording, dispatch) if name in placements else {},
        )
        for name, (score, _) in serve.items()
        if name not in losses
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
        _traffic_basis(recording, first.placement, dispatch),
    )


def _figures(
    placement: Placement, tally: Tally, recording: Recording, rule: str
) -> dict[str, float]:
    """What a report has beside what follows from peaks: traffic between nodes, as far as counts or
    routes tell of it."""
    figures = {}
    if placement.num_nodes > 1 and rule == "even":
        figures["off_home_share"] = off_home_share(tally.mean_load[None], placement)
    if _traffic_basis(recording, placement, rule) is not None:
        assert recording.routes is not None
        named: Literal["even", "nearest"] = "nearest" if rule == "nearest" else "even"
        traffic = route_traffic(recording.routes, placement, named, recording.edges)
        served = traffic._replace(
            tokens=traffic.tokens[tally.windows],
            remote_visits=traffic.remote_visits[tally.windows],
            remote_assignments=traffic.remote_assignments[tally.windows],
        )
        figures |= {
            "remote_nodes_per_token": float(served.remote_nodes_per_token.mean()),
            "remote_assignments_per_token": float(served.remote_assignments_per_token.mean()),
        }
    return figures


def _traffic_basis(recording: Recording, placement: Placement, rule: str) -> str | None:
    """Where figures of remote nodes come from; counts do not tell them, nor does a program."""
    if recording.routes is None or placement.num_nodes == 1 or rule == "lp":
        return None
    if recording.routes.source_rank is not None:
        return "measured from token routes"
    return "expected from token routes, whose tokens are taken to start evenly on all GPUs"


def topology_of(plan: Plan, placement: Placement) -> Topology:
    """The machines of `placement`, with the speeds that `plan` was made for."""
    speed = plan.options.get("gpu_speed")
    return Topology(
        placement.num_ranks,
        placement.num_nodes,
        None if speed is None else tuple(speed),
        placement.excluded_ranks,
    )


def _check_alike(plans: Mapping[str, Plan], quiet: bool) -> None:
    """Plans that are scored side by side must be of one model; GPUs as fast as the first plan says
    serve all that have as many."""
    (first_path, first), *others = plans.items()
    for path, plan in others:
        same = plan.layer_ids.tolist() == first.layer_ids.tolist()
        if not same or plan.placement.num_logical_experts != first.placement.num_logical_experts:
            raise RefusedError(f"{path} and {first_path} are plans for different models")
        if plan.placement.num_ranks == first.placement.num_ranks:
            speed, other = (one.options.get("gpu_speed") for one in (first, plan))
            if speed != other:
                terminal.remark(
                    f"{path} was made for GPUs of other speeds than {first_path}, whose speeds are"
                    " taken for both",
                    quiet,
                )


def _free_plans(plan: Plan, quiet: bool) -> dict[str, Placement]:
    """What costs no planning on the same machines: the engines' start, and the published greedy for
    the loads that `plan` was made for."""
    own = plan.placement
    if own.excluded_ranks:
        terminal.remark("with GPUs out of service there is nothing to compare with", quiet)
        return {}
    sizes = (own.num_layers, own.num_logical_experts, own.num_slots, own.num_ranks, own.num_nodes)
    others = {LINEAR: linear(*sizes)}
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
    return {**others, PUBLISHED: solve(problem, "deepseek").placement}
