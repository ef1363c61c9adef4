"""What travels between ranks in dispatch and combine, by link, and how long it takes.

Copies of a token go over the fast links inside a node (intra) or over the network between nodes
(inter). Combine sends the results of the same copies back, so that who sent receives.

Where the tokens come from is seldom recorded: each rank in service is taken to be the source of an
equal share of the tokens of every expert.

Shapes: leading axes are the caller's, mostly (W, L); R ranks, N nodes. All amounts are of one step.
"""

from typing import NamedTuple

import numpy as np

from .._arrays import Floats
from ..hardware import Hardware
from ..topology import Topology


class Traffic(NamedTuple):
    """Copies of tokens that each rank sends and receives in dispatch, each of shape (..., R)."""

    intra_sent: Floats
    intra_received: Floats
    inter_sent: Floats
    inter_received: Floats


def direct_traffic(rank_tokens: Floats, topology: Topology) -> Traffic:
    """One copy for every assignment to another rank, as low-latency kernels send them; from the
    assignments of each rank in one step, (..., R)."""
    source, node_source, _ = _sources(topology)
    node = _on_ranks(_by_node(rank_tokens, topology), topology)
    total = rank_tokens.sum(axis=-1, keepdims=True)
    return Traffic(
        intra_sent=source * (node - rank_tokens),
        intra_received=rank_tokens * (node_source - source),
        inter_sent=source * (total - node),
        inter_received=rank_tokens * (1.0 - node_source),
    )


def relayed_traffic(
    rank_tokens: Floats,
    top_k: int,
    topology: Topology,
    node_visits: Floats | None = None,
    rank_visits: Floats | None = None,
) -> Traffic:
    """One copy of a token for every other node it visits, sent on inside that node to every rank it
    visits, as DeepEP's normal kernels do; from the assignments of each rank in one step, (..., R).

    `node_visits` (..., N) and `rank_visits` (..., R) are the tokens that visit each node and rank,
    counted from routes. Without them they are modelled: a token that chooses top_k times, each time
    independently and by load, visits a part with load share p with probability 1 − (1 − p)^top_k.
    Routing limited to groups visits fewer nodes than that. Copies from other nodes arrive evenly at
    the ranks of a node that are in service.
    """
    source, node_source, relay = _sources(topology)
    if node_visits is None:
        node_visits = _visits(_by_node(rank_tokens, topology), rank_tokens, top_k)
    if rank_visits is None:
        rank_visits = _visits(rank_tokens, rank_tokens, top_k)
    entering = _on_ranks(node_visits, topology) * (1.0 - node_source)
    elsewhere = node_visits.sum(axis=-1, keepdims=True) - _on_ranks(node_visits, topology)
    # The share of a node's tokens that a rank hands on: its own, and its part of those entering.
    hands_on = source + (1.0 - node_source) * relay
    others = _on_ranks(_by_node(rank_visits, topology), topology) - rank_visits
    return Traffic(
        intra_sent=hands_on * others,
        intra_received=rank_visits * (1.0 - hands_on),
        inter_sent=source * elsewhere,
        inter_received=entering * relay,
    )


def exchange_seconds(traffic: Traffic, copy_bytes: float, hardware: Hardware) -> Floats:
    """Seconds of one dispatch or combine with copies of so many bytes, of shape (...).

    Both links work at the same time and each sends while it receives; the rank with the most bytes
    one way over one link decides, and a latency is added where anything travels.
    """
    intra = np.maximum(traffic.intra_sent, traffic.intra_received).max(axis=-1)
    inter = np.maximum(traffic.inter_sent, traffic.inter_received).max(axis=-1)
    seconds = np.maximum(
        intra * (copy_bytes / hardware.intra_node_rate),
        inter * (copy_bytes / hardware.inter_node_rate),
    )
    travels = np.maximum(intra, inter) > 0
    total: Floats = seconds + np.where(travels, hardware.exchange_latency.value, 0.0)
    return total


def _sources(topology: Topology) -> tuple[Floats, Floats, Floats]:
    """Of each rank, (R,): the share of all tokens it is the source of, that of its node, and the
    share it takes of what enters its node."""
    source = np.zeros(topology.num_ranks)
    source[topology.live_ranks] = 1.0 / topology.num_live_ranks
    node_source = _on_ranks(_by_node(source, topology), topology)
    relay = np.divide(source, node_source, out=np.zeros_like(source), where=node_source > 0)
    return source, node_source, relay


def _by_node(values: Floats, topology: Topology) -> Floats:
    """Sums over the ranks of each node, (..., N)."""
    shape = (*values.shape[:-1], topology.num_nodes, topology.ranks_per_node)
    sums: Floats = values.reshape(shape).sum(axis=-1)
    return sums


def _on_ranks(values: Floats, topology: Topology) -> Floats:
    """The value of each rank's node, (..., R)."""
    spread: Floats = np.repeat(values, topology.ranks_per_node, axis=-1)
    return spread


def _visits(part: Floats, rank_tokens: Floats, top_k: int) -> Floats:
    """Tokens that visit each part of the ranks, modelled from its assignments."""
    total = rank_tokens.sum(axis=-1, keepdims=True)
    share = np.divide(part, total, out=np.zeros(part.shape), where=total > 0)
    visits: Floats = total / top_k * (1.0 - (1.0 - share) ** top_k)
    return visits
