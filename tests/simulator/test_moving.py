"""How long a migration takes: hand-counted copies, limits and lost experts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb.errors import RefusedError
from eplb.migration import migrate
from eplb.placement import Placement, linear
from eplb.simulator.moving import moving
from eplb.topology import Topology

from ..strategies import placements
from ..test_hardware import hardware

MB = 1e6


def test_copies_of_one_node_and_of_another() -> None:
    """GPU 1 takes expert 0 from its node mate; GPUs 2 and 3 take expert 1 from the other node, once
    over the network, half each, and pass their halves to each other."""
    old = Placement(np.array([[0, 0, 1, 1, 2, 2, 3, 3]]), 4, 4, 2)
    new = Placement(np.array([[0, 0, 1, 0, 2, 1, 3, 1]]), 4, 4, 2)
    it = moving(old, new, Topology(4, 2), MB, hardware())
    assert it.intra_bytes.tolist() == [[MB, MB, MB / 2, MB / 2]]
    assert it.inter_bytes.tolist() == [[0, MB, MB / 2, MB / 2]]
    assert it.seconds == pytest.approx(MB / 40e9)  # GPU 1 sends expert 1 over the network
    assert it.layer_seconds.tolist() == [it.seconds]
    plain = moving(old, new, Topology(4, 2), MB, hardware(), relay=False)
    assert plain.inter_bytes.tolist() == [[0, 2 * MB, MB, MB]]
    assert plain.intra_bytes.tolist() == [[MB, MB, 0, 0]]
    assert plain.seconds == pytest.approx(2 * it.seconds)


def test_holders_share_the_sending() -> None:
    """Both GPUs of a node that hold an expert send half of it."""
    old = Placement(np.array([[0, 1, 0, 1, 2, 3]]), 4, 3)
    new = Placement(np.array([[0, 1, 0, 2, 0, 3]]), 4, 3)
    it = moving(old, new, Topology(3), MB, hardware())
    assert it.intra_bytes.tolist() == [[MB / 2, MB, MB]]
    assert not it.inter_bytes.any()


def test_layers_are_moved_one_after_another() -> None:
    """Two layers take the sum of both; here every GPU is as busy in each, so that the bound is no
    less. A placement that stays takes no time."""
    old = Placement(np.array([[0, 1, 2, 3], [0, 1, 2, 3]]), 4, 2)
    new = Placement(np.array([[2, 1, 0, 3], [0, 3, 2, 1]]), 4, 2)
    it = moving(old, new, Topology(2), MB, hardware())
    assert it.layer_seconds == pytest.approx([MB / 200e9, MB / 200e9])
    assert it.seconds == pytest.approx(2 * MB / 200e9)
    assert it.bound_seconds == pytest.approx(it.seconds)
    assert moving(old, old, Topology(2), MB, hardware()).seconds == 0


def test_experts_of_lost_gpus_have_no_source() -> None:
    """A GPU out of service sends nothing; what it alone held is counted, not timed."""
    old = linear(1, 4, 4, 4, 2)
    new = Placement(np.array([[0, 1, 2, 3, -1, -1, 1, 0]]), 4, 4, 2, excluded_ranks=(2,))
    it = moving(old, new, Topology(4, 2, excluded_ranks=(2,)), MB, hardware())
    assert it.num_unsourced == 1  # expert 2, for GPU 1
    assert it.inter_bytes[0].tolist() == [MB, MB, 0, 2 * MB]
    # GPU 1 receives expert 3 from GPU 3, which receives 1 and 0 and sends 3


def _shuffled(placement: Placement, seed: int) -> Placement:
    """The same copies on other ranks."""
    rng = np.random.default_rng(seed)
    slots = rng.permuted(placement.physical_to_logical, axis=1)
    return Placement(slots, placement.num_logical_experts, placement.num_ranks, placement.num_nodes)


def _copied(old: Placement, new: Placement, relay: bool) -> tuple[np.ndarray, np.ndarray]:
    """Bytes over the links inside nodes and between them, of shape (L, R), copy by copy."""
    count = np.zeros((2, 2, old.num_layers, old.num_ranks))  # link, way
    node = np.arange(old.num_ranks) // (old.num_ranks // old.num_nodes)

    def send(layer: int, source: int, target: int, part: float) -> None:
        link = int(node[source] != node[target])
        count[link, 0, layer, source] += part * MB
        count[link, 1, layer, target] += part * MB

    received = migrate(old, new).received.tolist()
    for layer, rank, expert in received:
        holders = np.flatnonzero(old.rank_copies[layer, :, expert]).tolist()
        near = [holder for holder in holders if node[holder] == node[rank]]
        mates = [r for at, r, e in received if (at, e) == (layer, expert) and node[r] == node[rank]]
        alone = near or not relay
        for source in near or holders:
            send(layer, source, rank, 1 / len(near or holders) / (1 if alone else len(mates)))
        for mate in [] if alone else mates:
            if mate != rank:
                send(layer, mate, rank, 1 / len(mates))
    busier = count.max(axis=1)
    return busier[0], busier[1]


@given(placements(), st.integers(0, 99), st.booleans())
def test_bytes_are_those_of_every_copy(old: Placement, seed: int, relay: bool) -> None:
    """Following each part of each copy from sender to receiver gives the same bytes by link."""
    new, topology = _shuffled(old, seed), Topology(old.num_ranks, old.num_nodes)
    it = moving(old, new, topology, MB, hardware(), relay)
    intra, inter = _copied(old, new, relay)
    assert it.intra_bytes == pytest.approx(intra)
    assert it.inter_bytes == pytest.approx(inter)
    assert it.num_unsourced == 0
    assert (it.seconds > 0) == (migrate(old, new).num_moves > 0)
    assert it.bound_seconds <= it.seconds + 1e-15


@given(placements(), st.integers(0, 99))
def test_faster_links_never_take_longer(old: Placement, seed: int) -> None:
    """Nor does entering a node once cross more often; at infinite speed nothing takes time."""
    new, topology = _shuffled(old, seed), Topology(old.num_ranks, old.num_nodes)
    it, plain = (moving(old, new, topology, MB, hardware(), relay) for relay in (True, False))
    assert it.inter_bytes.sum() <= plain.inter_bytes.sum() + 1
    for name in ("intra_node_efficiency", "inter_node_efficiency"):
        assert moving(old, new, topology, MB, hardware(**{name: 1.0})).seconds <= it.seconds
    limit = hardware(intra_node_bw=math.inf, inter_node_bw=math.inf)
    assert moving(old, new, topology, MB, limit).seconds == 0


def test_other_models_are_refused() -> None:
    """Placements of different models have no migration between them."""
    with pytest.raises(RefusedError, match="different models"):
        moving(linear(1, 4, 4, 4), linear(2, 4, 4, 4), Topology(4), MB, hardware())
