"""The only arithmetic on dispatch: to which copies, ranks and nodes tokens go.

A dispatch rule says which copy of an expert serves a token: `even`, any copy with equal
probability; `nearest`, the copies on the token's own GPU, else those on its node, else all of them,
evenly. A token reaches a part of the machine (a node or a rank) when one of its experts is served
there. Experts choose their copies independently, so that a token reaches a part with probability
1 − Π(1 − share of the expert's tokens that copies there serve), the product taken over its experts.
That is summed, which is exact; nothing is sampled.

Axes: W windows, L layers, E experts, R ranks, N nodes, T tokens, P parts (all nodes or all ranks).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from . import metrics
from ._arrays import Floats, Ints, Numbers
from .errors import RefusedError
from .placement import Placement
from .routes import RouteTrace
from .visits import Pass, Tokens, all_starts, own_and_others, with_absent

Rule: TypeAlias = Literal["even", "nearest"]


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


class RouteTraffic(NamedTuple):
    """What the tokens of each window reach in dispatch, summed over its tokens.

    A token counts once for every node it reaches; remote is another node than the one it starts on.
    Measured where the routes say on which rank each token starts, else expected with tokens that
    start evenly on the ranks in service.
    """

    tokens: Floats  # (W, L): tokens with an expert in the layer
    node_visits: Floats  # (W, L, N): tokens that reach each node
    remote_visits: Floats  # (W, L, N): those of them that start on another node
    remote_assignments: Floats  # (W, L): assignments that another node serves
    measured: bool

    @property
    def nodes_per_token(self) -> Floats:
        """Nodes that a token reaches, its own included, (L,)."""
        return self._per_token(self.node_visits.sum(axis=2))

    @property
    def remote_nodes_per_token(self) -> Floats:
        """Nodes other than its own that a token reaches, (L,): what crosses the network where a
        token is sent once to each node and relayed inside it."""
        return self._per_token(self.remote_visits.sum(axis=2))

    @property
    def remote_assignments_per_token(self) -> Floats:
        """Assignments of a token that another node serves, (L,): what crosses the network where
        each is sent by itself."""
        return self._per_token(self.remote_assignments)

    def _per_token(self, values: Floats) -> Floats:
        total, tokens = values.sum(axis=0), self.tokens.sum(axis=0)
        mean: Floats = np.divide(total, tokens, out=np.zeros_like(total), where=tokens > 0)
        return mean


def route_traffic(
    routes: RouteTrace,
    placement: Placement,
    rule: Rule = "even",
    edges: Sequence[int] | None = None,
) -> RouteTraffic:
    """What tokens reach under `placement`, whose rows are the layers of the routes in their order.

    `edges` are the first token of each window and the end of the last; by default all tokens are
    one window. A token that starts on a rank out of service is near to the rest of its node.

    Raises
    ------
    RefusedError
        When the routes are of other layers, experts or ranks than the placement.
    """
    check_routes(routes, placement)
    num_nodes, per_node = placement.num_nodes, placement.num_ranks // placement.num_nodes
    node = np.arange(num_nodes)
    start = None if routes.source_rank is None else routes.source_rank // per_node
    weight = start_weight(placement).reshape(num_nodes, per_node).sum(axis=1)
    tokens = Tokens(routes, start, edges)
    shape = (tokens.num_windows, placement.num_layers)
    routed, away = np.zeros(shape), np.zeros(shape)
    own, remote = (np.zeros((*shape, num_nodes)) for _ in range(2))
    for layer in range(placement.num_layers):
        copies = placement.rank_copies[layer].reshape(num_nodes, per_node, -1).sum(axis=1)
        share = _shares(copies, node, rule)
        here, there = own_and_others(share, weight, start is not None)
        tokens.turn_to(layer)
        routed[:, layer] = tokens.routed()
        own[:, layer] = tokens.reaching(here)
        remote[:, layer] = tokens.reaching(there)
        served_away = with_absent(1.0 - share[node % len(share), :, node], 0.0)
        away[:, layer] = tokens.adding(served_away if start is not None else weight @ served_away)
    return RouteTraffic(routed, own + remote, remote, away, start is not None)


def rank_visits(
    routes: RouteTrace,
    placement: Placement,
    rule: Rule = "even",
    edges: Sequence[int] | None = None,
) -> Floats:
    """Tokens that reach each rank, (W, L, R), the one they start on included; measured or expected
    as in `route_traffic`.

    Raises
    ------
    RefusedError
        When the routes are of other layers, experts or ranks than the placement.
    """
    check_routes(routes, placement)
    num_ranks, per_node = placement.num_ranks, placement.num_ranks // placement.num_nodes
    tokens = Tokens(routes, routes.source_rank if rule == "nearest" else None, edges)
    visits = np.zeros((tokens.num_windows, placement.num_layers, num_ranks))
    for layer in range(placement.num_layers):
        missed = with_absent(1.0 - rank_shares(placement, layer, rule), 1.0)
        if rule == "nearest" and routes.source_rank is None:
            passes = all_starts(missed, start_weight(placement), per_node)
        else:
            passes = [Pass(missed if rule == "nearest" else missed[0], np.ones(num_ranks))]
        tokens.turn_to(layer)
        visits[:, layer] = tokens.reaching(passes)
    return visits


def rank_shares(placement: Placement, layer: int, rule: Rule) -> Floats:
    """Of an expert's tokens that start on one rank, the share that each rank serves, (R, E, R):
    start, expert, server. Only one start, (1, E, R), where the rule does not ask for it."""
    node = np.arange(placement.num_ranks) // (placement.num_ranks // placement.num_nodes)
    return _shares(placement.rank_copies[layer], node, rule)


def start_weight(placement: Placement) -> Floats:
    """The share of all tokens that starts on each rank, (R,), where it is not recorded: the same on
    all ranks in service."""
    weight = np.zeros(placement.num_ranks)
    live = np.setdiff1d(np.arange(placement.num_ranks), placement.excluded_ranks)
    weight[live] = 1.0 / len(live)
    return weight


def check_routes(routes: RouteTrace, placement: Placement) -> None:
    """Raise `RefusedError` unless the rows, experts and ranks of routes are the placement's."""
    layers = routes.experts.shape[1]
    if layers != placement.num_layers:
        raise RefusedError(
            f"the routes have {layers} layers and the plan {placement.num_layers};"
            " the plan was made for another model"
        )
    if routes.num_experts != placement.num_logical_experts:
        raise RefusedError(
            f"the routes are of {routes.num_experts} experts and the plan places"
            f" {placement.num_logical_experts}; the plan was made for another model"
        )
    if routes.source_rank is None:
        return
    low, high = int(routes.source_rank.min()), int(routes.source_rank.max())
    if low < 0 or high >= placement.num_ranks:
        raise RefusedError(
            f"source_rank names rank {low if low < 0 else high} and the plan is for"
            f" {placement.num_ranks} GPUs, numbered from 0; routes without source_rank fit any plan"
        )


def _shares(copies: Ints, node: Ints, rule: Rule) -> Floats:
    """Shares of each part, (P or 1, E, P), from the copies (P, E) on each part and its node."""
    even: Floats = (copies / copies.sum(axis=0)).T[None]
    if rule == "even":
        return even
    assert rule == "nearest", rule
    same_node = node[:, None] == node
    on_node = (same_node.astype(np.int64) @ copies)[:, :, None]
    near = same_node[:, None] * copies.T / np.maximum(on_node, 1)
    far: Floats = np.where(on_node > 0, near, even)
    here = np.eye(len(node))[:, None]
    shares: Floats = np.where(copies[:, :, None] > 0, here, far)
    return shares
