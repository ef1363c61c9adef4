"""What the loss of a GPU or a node would take with it."""

from typing import Any

import numpy as np

from .._arrays import Floats, Numbers
from ..placement import Placement
from ..simulator.loss import lose, lost_share


def survival(placement: Placement, tokens: Floats) -> dict[str, Any]:
    """Of all experts of all layers, how many have copies on two GPUs or nodes at least, and what
    the one GPU and the one node whose loss takes most of `tokens` (L, E) take with them."""
    num_layers, num_experts = placement.num_layers, placement.num_logical_experts
    on_gpu = placement.rank_copies.astype(bool)
    on_node = on_gpu.reshape(num_layers, placement.num_nodes, -1, num_experts).max(axis=2)
    figures: dict[str, Any] = {"experts": num_layers * num_experts}
    for name, held in (("gpu", on_gpu), ("node", on_node)):
        figures[f"survive_any_{name}"] = int((held.sum(axis=1) > 1).sum())
        figures[f"worst_{name}_loss"] = _worst_loss(name, held, placement, tokens)
    return figures


def _worst_loss(
    name: str, held: Numbers, placement: Placement, tokens: Floats
) -> dict[str, Any] | None:
    """What the loss of the worst part, a GPU or a node, takes; None where nothing would be left.
    `held` (L, P, E) says which experts a part holds."""
    live = np.flatnonzero(held.any(axis=(0, 2)))
    if len(live) < 2:
        return None
    alone = held[:, live] & (held.sum(axis=1) == 1)[:, None]
    worst = int(live[np.einsum("lpe,le->p", alone, tokens).argmax()])
    size = placement.num_ranks // held.shape[1]
    loss = lose(placement, range(worst * size, (worst + 1) * size))
    return {name: worst, "experts": len(loss.lost), "lost_share": lost_share(loss, tokens)}
