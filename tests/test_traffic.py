"""What tokens reach, from their routes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb import traffic, visits
from eplb.errors import RefusedError
from eplb.placement import Placement, linear
from eplb.routes import RouteTrace
from eplb.traffic import Rule

from .strategies import placements

# Four experts on 2 nodes × 2 GPUs × 2 slots; experts 0 and 1 have a copy on either node, 2 lives on
# node 0 and 3 on node 1.
PLACEMENT = Placement(np.array([[0, 2, 1, 2, 0, 3, 1, 3]]), 4, 4, 2)
RULES: list[Rule] = ["even", "nearest"]


def routes(experts: object, source: list[int] | None = None, num_experts: int = 4) -> RouteTrace:
    """Routes of one layer, (T, k)."""
    return RouteTrace(
        np.asarray(experts)[:, None],
        num_experts,
        source_rank=None if source is None else np.array(source),
    )


def with_dead_ranks(placement: Placement) -> Placement:
    """The same copies with one more rank a node, which is out of service."""
    nodes, slots = placement.num_nodes, placement.slots_per_rank
    per_node = placement.num_ranks // nodes + 1
    rows = placement.physical_to_logical.reshape(placement.num_layers, nodes, -1)
    wider = np.pad(rows, [(0, 0), (0, 0), (0, slots)], constant_values=-1)
    return Placement(
        wider.reshape(placement.num_layers, -1),
        placement.num_logical_experts,
        nodes * per_node,
        nodes,
        excluded_ranks=tuple(range(per_node - 1, nodes * per_node, per_node)),
    )


@st.composite
def routed(draw: st.DrawFn) -> tuple[RouteTrace, Placement]:
    """Routes with gaps, from known and unknown ranks, and a placement for them."""
    placement = draw(placements())
    if draw(st.booleans()):
        placement = with_dead_ranks(placement)
    num_experts = placement.num_logical_experts
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (
        draw(st.integers(1, 12)),
        placement.num_layers,
        draw(st.integers(1, min(3, num_experts))),
    )
    source = rng.integers(0, placement.num_ranks, shape[0]) if draw(st.booleans()) else None
    return RouteTrace(rng.integers(-1, num_experts, shape), num_experts, source), placement


def share(placement: Placement, layer: int, rule: str, start: int, expert: int) -> np.ndarray:  # type: ignore[type-arg]
    """The share of an expert's tokens from one rank that each slot serves, word by word."""
    slots = np.flatnonzero(placement.physical_to_logical[layer] == expert)
    rank = slots // placement.slots_per_rank
    node = rank // (placement.num_ranks // placement.num_nodes)
    if rule == "nearest":
        own = start // (placement.num_ranks // placement.num_nodes)
        for near in (rank == start, node == own):
            if near.any():
                slots = slots[near]
                break
    shares = np.zeros(placement.num_slots)
    shares[slots] = 1 / len(slots)
    return shares


def outcomes(trace: RouteTrace, placement: Placement, rule: str, token: int, layer: int):  # type: ignore[no-untyped-def]
    """Every (probability, start, ranks that serve) of one token."""
    live = np.setdiff1d(np.arange(placement.num_ranks), placement.excluded_ranks)
    starts = live if trace.source_rank is None else trace.source_rank[[token]]
    experts = [e for e in trace.experts[token, layer].tolist() if e >= 0]
    for start in starts.tolist():
        shares = [share(placement, layer, rule, start, e) for e in experts]
        for slots in itertools.product(*[np.flatnonzero(s) for s in shares]):
            chance = np.prod([s[slot] for s, slot in zip(shares, slots, strict=True)])
            yield chance / len(starts), start, [s // placement.slots_per_rank for s in slots]


def test_even_split_reaches_nodes_by_chance() -> None:
    """Two experts with a copy on either node reach a node with probability 3/4 each; with unknown
    starts half of that is remote."""
    result = traffic.route_traffic(routes([[0, 1]]), PLACEMENT)
    assert result.node_visits.tolist() == [[[0.75, 0.75]]]
    assert result.remote_visits.tolist() == [[[0.375, 0.375]]]
    assert result.nodes_per_token.tolist() == [1.5]
    assert result.remote_nodes_per_token.tolist() == [0.75]
    assert result.remote_assignments_per_token.tolist() == [1.0]
    assert not result.measured
    assert not result.measured


def test_nearest_copies_keep_tokens_on_their_node() -> None:
    """From rank 3, experts 0 and 1 are served on node 1, and only expert 2 is remote."""
    result = traffic.route_traffic(routes([[0, 1], [2, 3]], [3, 3]), PLACEMENT, "nearest")
    assert result.node_visits.tolist() == [[[1.0, 2.0]]]
    assert result.remote_visits.tolist() == [[[1.0, 0.0]]]
    assert result.remote_assignments_per_token.tolist() == [0.5]
    assert result.measured
    assert result.measured


def test_nearest_prefers_the_own_gpu() -> None:
    """Expert 2 is on ranks 0 and 1: from rank 1 it stays there, from rank 2 either may serve it."""
    own = traffic.rank_visits(routes([[2]], [1]), PLACEMENT, "nearest")
    other = traffic.rank_visits(routes([[2]], [2]), PLACEMENT, "nearest")
    assert own.tolist() == [[[0.0, 1.0, 0.0, 0.0]]]
    assert other.tolist() == [[[0.5, 0.5, 0.0, 0.0]]]


def test_with_the_shares_of_the_plan_file_every_rank_is_counted_once() -> None:
    """Two experts on one GPU are one visit."""
    result = traffic.rank_visits(routes([[0, 1]], num_experts=2), linear(1, 2, 2, 1))
    assert result.tolist() == [[[1.0]]]


@pytest.mark.parametrize("rule", RULES)
@settings(deadline=None)
@given(routed())
def test_sums_over_every_outcome(rule: Rule, case: tuple[RouteTrace, Placement]) -> None:
    """Visits and remote assignments are those of all choices of copies and starts, by their
    probability."""
    trace, placement = case
    per_node = placement.num_ranks // placement.num_nodes
    shape = placement.num_layers, placement.num_nodes
    node_visits, remote, away = np.zeros(shape), np.zeros(shape), np.zeros(shape[0])
    rank_visits = np.zeros((shape[0], placement.num_ranks))
    for token, layer in np.ndindex(*trace.experts.shape[:2]):
        for chance, start, ranks in outcomes(trace, placement, rule, token, layer):
            nodes = sorted({rank // per_node for rank in ranks})
            far = [node for node in nodes if node != start // per_node]
            node_visits[layer, nodes] += chance
            remote[layer, far] += chance
            rank_visits[layer, sorted(set(ranks))] += chance
            away[layer] += chance * sum(rank // per_node != start // per_node for rank in ranks)
    result = traffic.route_traffic(trace, placement, rule)
    assert result.node_visits[0] == pytest.approx(node_visits)
    assert result.remote_visits[0] == pytest.approx(remote)
    assert result.remote_assignments[0] == pytest.approx(away)
    assert result.tokens[0].tolist() == (trace.experts >= 0).any(axis=2).sum(axis=0).tolist()
    assert traffic.rank_visits(trace, placement, rule)[0] == pytest.approx(rank_visits)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("source", [None, [0, 3, 2, 1, 3, 0, 2]])
def test_windows_and_blocks_add_up(
    rule: Rule, source: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut into windows, one of them empty, or scored in blocks, the sums stay what they are, and
    tokens before the first edge or behind the last are left out."""
    experts = np.random.default_rng(3).integers(-1, 4, (7, 2))
    trace, part = routes(experts, source), routes(experts[1:6], source and source[1:6])
    whole = traffic.route_traffic(part, PLACEMENT, rule)
    ranks = traffic.rank_visits(part, PLACEMENT, rule)
    monkeypatch.setattr(visits, "_BLOCK", 8)
    cut = traffic.route_traffic(trace, PLACEMENT, rule, [1, 2, 2, 6])
    assert cut.tokens[1].tolist() == [0.0]
    for name in ("tokens", "node_visits", "remote_visits", "remote_assignments"):
        assert getattr(cut, name).sum(axis=0) == pytest.approx(getattr(whole, name)[0])
    by_rank = traffic.rank_visits(trace, PLACEMENT, rule, [1, 2, 2, 6])
    assert by_rank.sum(axis=0) == pytest.approx(ranks[0])


@pytest.mark.parametrize("rule", RULES)
def test_ranks_out_of_service_start_and_serve_nothing(rule: Rule) -> None:
    """With one of two nodes out of service nothing is remote; with a copy on every GPU left, the
    nearest is on the one a token starts on."""
    placement = Placement(np.array([[0, 1, 1, 0, -1, -1, -1, -1]]), 2, 4, 2, excluded_ranks=(2, 3))
    result = traffic.route_traffic(routes([[0, 1]], num_experts=2), placement, rule)
    assert result.node_visits.tolist() == [[[1.0, 0.0]]]
    assert result.remote_visits.tolist() == [[[0.0, 0.0]]]
    by_rank = traffic.rank_visits(routes([[0, 1]], num_experts=2), placement, rule)[0, 0]
    assert by_rank.tolist() == ([0.75, 0.75, 0, 0] if rule == "even" else [0.5, 0.5, 0, 0])


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (RouteTrace(np.zeros((1, 2, 1), int), 4), r"2 layers and the plan 1"),
        (routes([[0]], num_experts=5), r"5 experts and the plan places 4"),
        (routes([[0]], [4]), r"names rank 4 and the plan is for 4 GPUs"),
        (routes([[0]], [-1]), r"names rank -1"),
    ],
)
def test_routes_of_something_else_are_refused(trace: RouteTrace, message: str) -> None:
    """Other layers, experts or ranks than the plan's are named."""
    for scored in (traffic.route_traffic, traffic.rank_visits):
        with pytest.raises(RefusedError, match=message):
            scored(trace, PLACEMENT)
