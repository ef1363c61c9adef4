"""Planning live: the placement for the loads that vLLM counted since it asked last."""

import numpy as np

from ..errors import EplbError
from ..placement import Placement, linear
from ..problem import Problem
from ..topology import Topology
from .vllm_policies import Asked, logger

# Of the search of `eplb plan`: a third of the time, within a percent of the balance.
_EFFORT = 0.1
# What a move must save, as a share of the layer's mean rank load: about what sending one expert
# costs, spread over the thousands of steps until the next plan.
_MOVE_PRICE = 3e-4


def plan_live(asked: Asked) -> Placement:
    """The placement planned from the loads that vLLM counted, near the live one.

    Without any load it is the live one, and what is planned is thrown away: at start-up that
    checks the sizes, and has the search compiled before there is traffic.
    """
    from ..solver.layer_planner import Settings
    from ..solver.solve import solve

    current, loaded = _current(asked), bool(asked.load.any())
    num_experts = asked.load.shape[1]
    slots_per_rank = asked.num_slots // asked.num_ranks
    # vLLM's own policy keeps routing groups on nodes by the same test; more slots a GPU than a node
    # has experts would hold copies twice.
    bound = asked.num_groups % asked.num_nodes == 0 and (
        slots_per_rank * asked.num_nodes <= num_experts
    )
    problem = Problem(
        loads=(asked.load if loaded else np.ones_like(asked.load))[None],
        topology=Topology(asked.num_ranks, asked.num_nodes),
        slots_per_rank=slots_per_rank,
        num_groups=asked.num_groups if bound else 1,
        node_rule="strict" if bound else "free",
        current=current,
        move_price=0.0 if current is None else _MOVE_PRICE,
    )
    plan = solve(problem, settings=Settings(effort=_EFFORT))
    if not loaded:
        return current or linear(
            len(asked.load), num_experts, asked.num_slots, asked.num_ranks, asked.num_nodes
        )
    logger.info(
        "eplb: planned %d layers × %d experts: efficiency %.4f, %d moves, placement digest %s",
        *asked.load.shape,
        plan.summary["efficiency"],
        plan.summary["moves"],
        plan.provenance["placement_digest"],
    )
    return plan.placement


def _current(asked: Asked) -> Placement | None:
    """The live placement; None where ranks came or went, and there is none of this size."""
    if asked.old is None or asked.old.shape != (len(asked.load), asked.num_slots):
        return None
    try:
        return Placement(asked.old, asked.load.shape[1], asked.num_ranks, asked.num_nodes)
    except EplbError:
        return None
