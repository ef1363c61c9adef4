"""How long a migration takes, by link.

A copy that a rank must receive comes from its own node where a rank in service there held one, and
over the network otherwise. All that hold it there share the sending evenly.
"""

from typing import NamedTuple

import numpy as np

from .._arrays import Bools, Floats, Ints, Numbers
from ..hardware import Hardware
from ..migration import migrate
from ..placement import Placement
from ..topology import Topology


class Moving(NamedTuple):
    """Bytes that each rank sends or receives, whichever is more, and seconds.

    `seconds` is modelled: layer after layer, as engines move, each as long as its busiest rank and
    link. `bound_seconds` is a bound: by these sources and links no order of copies is faster.
    `num_unsourced` copies were on no rank in service and must be read from the checkpoint, which is
    not in the seconds.
    """

    intra_bytes: Floats  # (L, R)
    inter_bytes: Floats  # (L, R)
    layer_seconds: Floats  # (L,)
    seconds: float
    bound_seconds: float
    num_unsourced: int


class _Flow(NamedTuple):
    """Copies that each rank receives and sends over one kind of link, each of shape (L, R)."""

    received: Floats
    sent: Floats


def moving(
    old: Placement,
    new: Placement,
    topology: Topology,
    expert_bytes: float,
    hardware: Hardware,
    relay: bool = True,
) -> Moving:
    """What moving from `old` to `new` sends over each link of `topology`, and how long it takes.

    With `relay` an expert enters a node once: the ranks there that need it receive equal parts over
    the network and pass them on inside. Without, each receives all of it over the network.

    Raises
    ------
    RefusedError
        When the two are of different numbers of layers or experts.
    """
    flows, num_unsourced = _flows(old, new, topology, relay)
    rates = (hardware.intra_node_rate, hardware.inter_node_rate)
    intra, inter = (np.maximum(*flow) * expert_bytes for flow in flows)
    layer = np.maximum(intra.max(axis=1) / rates[0], inter.max(axis=1) / rates[1])
    bound = max(
        float(way.sum(axis=0).max()) * expert_bytes / rate
        for flow, rate in zip(flows, rates, strict=True)
        for way in flow
    )
    return Moving(intra, inter, layer, float(layer.sum()), bound, num_unsourced)


def _flows(
    old: Placement, new: Placement, topology: Topology, relay: bool
) -> tuple[tuple[_Flow, _Flow], int]:
    """What goes over the links inside nodes and between them, and the copies without a source."""
    received = migrate(old, new).received
    per_node = topology.ranks_per_node
    num_ranks = max(old.num_ranks, new.num_ranks)
    num_nodes = -(-num_ranks // per_node)
    shape = (old.num_layers, num_nodes * per_node, old.num_logical_experts)
    needs, holds = np.zeros(shape, bool), np.zeros(shape, bool)
    needs[tuple(received.T)] = True
    holds[:, : old.num_ranks] = old.rank_copies > 0
    holds[:, list(topology.excluded_ranks)] = False

    def of_nodes(on_rank: Bools) -> Ints:
        count: Ints = on_rank.reshape(shape[0], num_nodes, per_node, -1).sum(axis=2)
        return count

    def of_ranks(on_rank: Bools, on_node: Numbers) -> Floats:
        shares: Floats = (on_rank * np.repeat(on_node, per_node, axis=1)).sum(axis=2)
        return shares[:, :num_ranks]

    wanted, held = of_nodes(needs), of_nodes(holds)  # (L, N, E)
    holders = held.sum(axis=1, keepdims=True)
    local = np.where(held > 0, wanted, 0)
    remote = np.where((held == 0) & (holders > 0), wanted, 0)
    entering = np.minimum(remote, 1) if relay else remote
    # The part of an expert that each receiver gets over the network; the rest its node mates pass
    # on, and it passes as much on to them.
    part = entering / np.maximum(remote, 1)
    passed = of_ranks(needs, np.where(remote > 0, 1 - part, 0))
    intra = _Flow(
        received=of_ranks(needs, local > 0) + passed,
        sent=of_ranks(holds, local / np.maximum(held, 1)) + passed,
    )
    sent = entering.sum(axis=1, keepdims=True) / np.maximum(holders, 1)
    inter = _Flow(
        received=of_ranks(needs, part),
        sent=of_ranks(holds, np.repeat(sent, num_nodes, axis=1)),
    )
    return (intra, inter), int(np.where(holders == 0, wanted, 0).sum())
