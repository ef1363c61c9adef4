"""What travels in dispatch and combine: every token followed, limits, and measured visits."""

from itertools import product

import numpy as np
import pytest

from eplb.simulator.exchange import Traffic, direct_traffic, exchange_seconds, relayed_traffic
from eplb.topology import Topology

from ..test_hardware import hardware

LOADS = [[10.0, 20, 30, 40], [100, 0, 0, 0], [0, 0, 5, 5]]
TOPOLOGIES = [Topology(4, 2), Topology(4, 1), Topology(4, 4), Topology(4, 2, excluded_ranks=(1,))]


def _followed(loads: np.ndarray, topology: Topology, top_k: int, relay: bool) -> Traffic:
    """The same by following every possible token from every source."""
    node, live = topology.node_of_rank, topology.live_ranks.tolist()
    share = loads / loads.sum()
    count = {key: np.zeros(4) for key in Traffic._fields}

    def send(source: int, target: int, copies: float) -> None:
        link = "intra" if node[source] == node[target] else "inter"
        if source != target:
            count[f"{link}_sent"][source] += copies
            count[f"{link}_received"][target] += copies

    for source, *choice in product(live, *[range(4)] * top_k):
        tokens = loads.sum() / top_k / len(live) * share[choice].prod()
        if not relay:
            for target in choice:
                send(source, target, tokens)
            continue
        for visited in sorted({int(node[target]) for target in choice}):
            mates = [rank for rank in live if node[rank] == visited]
            doors = [source] if node[source] == visited else mates
            for door in doors:
                send(source, door, tokens / len(doors))
                for target in sorted({t for t in choice if node[t] == visited}):
                    send(door, target, tokens / len(doors))
    return Traffic(**count)


@pytest.mark.parametrize("relay", [False, True])
@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
@pytest.mark.parametrize("loads", LOADS, ids=str)
def test_every_token_followed(loads: list[float], topology: Topology, relay: bool) -> None:
    """Copies by link, way and rank are those of all possible tokens, each by its probability."""
    served = np.array(loads)
    served[list(topology.excluded_ranks)] = 0
    for top_k in (1, 2, 3):
        expected = _followed(served, topology, top_k, relay)
        found = (
            relayed_traffic(served, top_k, topology) if relay else direct_traffic(served, topology)
        )
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-9)


def test_sending_once_a_node_never_crosses_more() -> None:
    """Without de-duplication at least as many copies cross, and as many when a token has one
    expert; what is sent is received."""
    rng, topology = np.random.default_rng(4), Topology(16, 4)
    loads = rng.random((30, 3, 16)) * 100
    direct = direct_traffic(loads, topology)
    for top_k in (1, 2, 8):
        relayed = relayed_traffic(loads, top_k, topology)
        assert (relayed.inter_received <= direct.inter_received.sum(-1, keepdims=True)).all()
        crossing = relayed.inter_sent.sum(-1), direct.inter_sent.sum(-1)
        assert (crossing[0] <= crossing[1] + 1e-9).all()
        assert top_k > 1 or crossing[0] == pytest.approx(crossing[1])
        for traffic in (relayed, direct):
            assert traffic.intra_sent.sum(-1) == pytest.approx(traffic.intra_received.sum(-1))
            assert traffic.inter_sent.sum(-1) == pytest.approx(traffic.inter_received.sum(-1))


def test_visits_counted_from_routes_are_taken() -> None:
    """Routing limited to groups visits fewer nodes than independent choices: given visits replace
    the modelled ones. Four nodes that half of 80 tokens visit each send 3/4 of that over the
    network."""
    topology, loads = Topology(8, 4), np.full((1, 8), 80.0)
    traffic = relayed_traffic(
        loads, 8, topology, node_visits=np.full((1, 4), 40.0), rank_visits=np.full((1, 8), 30.0)
    )
    assert traffic.inter_received.sum() == pytest.approx(4 * 40 * 0.75)
    assert traffic.inter_sent == pytest.approx(4 * 40 * 0.75 / 8)
    assert traffic.intra_received.sum() == pytest.approx(8 * 30 / 2)
    assert traffic.inter_sent.sum() < relayed_traffic(loads, 8, topology).inter_sent.sum()


def test_one_node_uses_no_network_and_one_gpu_no_link() -> None:
    """Nothing crosses where there is nothing to cross, and an exchange of nothing takes no time."""
    loads = np.full(8, 64.0)
    for traffic in (direct_traffic(loads, Topology(8)), relayed_traffic(loads, 2, Topology(8))):
        assert not traffic.inter_sent.any()
        assert not traffic.inter_received.any()
        assert traffic.intra_received.any()
    alone = direct_traffic(np.array([64.0]), Topology(1))
    assert exchange_seconds(alone, 1000, hardware()) == 0


def test_the_busiest_link_decides() -> None:
    """The most bytes one way over one link, at that link's speed, and the latency."""
    traffic = Traffic(*(np.array(each, float) for each in ([9, 0], [0, 50], [0, 5], [1, 0])))
    # 50 kB at 200 GB/s or 5 kB at 40 GB/s
    assert exchange_seconds(traffic, 1000, hardware()) == pytest.approx(0.25e-6 + 20e-6)
    slow = hardware(inter_node_efficiency=0.2)  # 5 kB at 10 GB/s
    assert exchange_seconds(traffic, 1000, slow) == pytest.approx(0.5e-6 + 20e-6)
