"""The only arithmetic on dispatch: what is served away from home."""

import numpy as np

from . import metrics
from ._arrays import Floats, Numbers
from .placement import Placement


def off_home_shares(
    tokens: Numbers, placement: Placement, window_weight: Floats | None = None
) -> Floats:
    """Of each layer, the share of its load that copies off the home node serve, (L,), under even
    split; from `tokens` (W, L, E)."""
    weight = np.ones(len(tokens)) if window_weight is None else window_weight
    mean = metrics.over_windows(tokens.astype(np.float64), weight)
    by_node = placement.rank_copies.reshape(
        placement.num_layers, placement.num_nodes, -1, placement.num_logical_experts
    ).sum(axis=2)
    at_home = np.take_along_axis(by_node, placement.home_node[:, None, :], axis=1)[:, 0]
    off = (mean * (1 - at_home / placement.replica_count)).sum(axis=1)
    total = mean.sum(axis=1)
    share: Floats = np.divide(off, total, out=np.zeros_like(off), where=total > 0)
    return share


def off_home_share(
    tokens: Numbers, placement: Placement, window_weight: Floats | None = None
) -> float:
    """The share of all load that is served off its home node, layers counted alike."""
    return float(off_home_shares(tokens, placement, window_weight).mean())
