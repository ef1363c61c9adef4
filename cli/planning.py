"""What the options of planning make: the model, the machines, the problem."""

from typing import TYPE_CHECKING, Any

from . import terminal
from .plan_options import EFFORTS, PROFILES

if TYPE_CHECKING:
    from eplb.model import Model
    from eplb.plan import Plan
    from eplb.problem import Problem
    from eplb.solver.layer_planner import Settings
    from eplb.topology import Topology
    from eplb.trace import LoadTrace


def resolve(options: dict[str, Any]) -> "Model | None":
    """Fill in what a profile and the model's configuration say, and check that options go together;
    returns the model.

    What a problem can judge it judges itself.
    """
    from eplb.formats.model_config import read_model

    given = {key for key, value in options.items() if value not in (None, ())}
    for key, value in PROFILES.get(options["profile"] or "", {}).items():
        if key not in given:
            options[key] = value
    model = None if options["model"] is None else read_model(options["model"])
    if model is not None and options["expert_bytes"] is None:
        options["expert_bytes"] = model.expert_bytes
    _check(options)
    return model


def build_problem(trace: "LoadTrace", current: "Plan | None", options: dict[str, Any]) -> "Problem":
    """What the options ask for, with --redundant auto resolved."""
    from dataclasses import replace

    from eplb.problem import Problem
    from eplb.study.knee import find_knee
    from eplb.timeline import with_shared_experts

    auto = options["strategy"] == "auto"
    searched = auto or options["strategy"] == "exact"
    if options["top_k"] is not None:
        trace = replace(trace, top_k=options["top_k"])
    if options["shared_experts"]:
        trace = with_shared_experts(trace, options["shared_experts"])
    topology = build_topology(options)
    max_moves = options["max_moves"]
    if options["max_bytes"] is not None:
        max_moves = options["max_bytes"] // options["expert_bytes"]
    redundant = options["redundant"]
    count = None if redundant in (None, "auto") else int(redundant)
    if redundant == "auto":
        # Any number will do to begin with, if the GPUs in service can hold every expert.
        slots = -(-trace.num_experts // topology.num_live_ranks)
        count = slots * topology.num_ranks - trace.num_experts
    problem = Problem.from_trace(
        trace,
        topology,
        count,
        num_groups=options["groups"],
        # The published strategies know no node rule, so none may forbid what they do.
        node_rule=(options["node_rule"] or ("strict" if auto else "free")) if searched else "free",
        max_off_home=options["max_off_home"],
        survive=options["survive"],
        current=current,
        max_moves=max_moves,
        move_price=options["move_price"],
        expert_bytes=options["expert_bytes"],
    )
    if redundant != "auto":
        return problem
    slots = None
    if options["budget_gib"] is not None:
        layer_bytes = problem.num_layers * options["expert_bytes"]
        slots = int(options["budget_gib"] * 2**30 / layer_bytes)
    knee = find_knee(problem, slots)
    curve = ", ".join(f"{count}: {balance:.3f}" for count, balance in knee.curve)
    terminal.remark(
        f"--redundant auto takes {knee.num_redundant}, the knee of balance over redundant experts"
        f" ({curve})",
        options["quiet"],
    )
    slots = (problem.num_experts + knee.num_redundant) // topology.num_ranks
    return replace(problem, slots_per_rank=slots)


def build_topology(options: dict[str, Any]) -> "Topology":
    """The machines that the options name."""
    from eplb.formats.numbers import read_numbers
    from eplb.topology import Topology

    speed = None
    if options["gpu_speed"] is not None:
        speed = read_numbers(options["gpu_speed"], "the speed", "GPU")
    return Topology(
        options["gpus"] or 8, options["nodes"] or 1, speed, tuple(sorted(options["exclude_gpus"]))
    )


def settings(options: dict[str, Any]) -> "Settings":
    """How hard to search, and with which seed."""
    from eplb.solver.layer_planner import Settings

    return Settings(effort=EFFORTS[options["effort"]], seed=options["seed"])


def aligned(current: "Plan", layer_ids: Any) -> Any:
    """The placement of a current plan, if it is of the same layers as the trace."""
    from eplb.errors import RefusedError
    from eplb.trace import how_layers_differ

    if current.layer_ids.tolist() != layer_ids.tolist():
        raise RefusedError(
            f"the current plan is of {len(current.layer_ids)} layers and the trace of"
            f" {len(layer_ids)} ({how_layers_differ(current.layer_ids, layer_ids)}); it was made"
            " for another model"
        )
    return current.placement


def _check(options: dict[str, Any]) -> None:
    from eplb.errors import InputError

    if options["repair"] and options["strategy"] != "deepseek":
        raise InputError("--repair mends what --strategy deepseek placed; no other needs it")
    if options["max_bytes"] is not None and options["expert_bytes"] is None:
        raise InputError(
            "--max-bytes needs --expert-bytes, the bytes of one expert in one layer, or --model"
        )
    if options["max_bytes"] is not None and options["max_moves"] is not None:
        raise InputError("--max-bytes and --max-moves exclude each other")
    if options["budget_gib"] is not None and options["redundant"] != "auto":
        raise InputError("--budget-gib is for --redundant auto")
    if options["budget_gib"] is not None and options["expert_bytes"] is None:
        raise InputError(
            "--budget-gib needs --expert-bytes, the bytes of one expert in one layer, or --model"
        )
    redundant = options["redundant"]
    if (
        redundant is not None
        and redundant != "auto"
        and not (redundant.isascii() and redundant.isdigit())
    ):
        raise InputError(f"--redundant {redundant}; a whole number of 0 or more, or auto")
