"""What slots and ranks serve under each dispatch rule."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from eplb import metrics, traffic
from eplb.errors import InputError, RefusedError
from eplb.placement import Placement, linear
from eplb.routes import RouteTrace
from eplb.simulator import dispatch

from ..helpers import random_loads
from ..strategies import placements

# Three experts on 2 GPUs × 2 slots: expert 0 has a copy on either.
TWO = Placement(np.array([[0, 1, 0, 2]]), 3, 2)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, Placement, np.ndarray]:  # type: ignore[type-arg]
    """Loads with zeros and ties, a placement for them and the pace of its ranks."""
    placement = draw(placements())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 3)), placement.num_layers, placement.num_logical_experts
    kind = draw(st.sampled_from(["skewed", "flat", "sparse", "tiny"]))
    loads = {
        "skewed": lambda: np.ceil(1000 * rng.lognormal(0, 2, shape)),
        "flat": lambda: np.full(shape, 7),
        "sparse": lambda: rng.integers(0, 2, shape) * rng.integers(0, 10**12, shape),
        "tiny": lambda: 1e-9 * rng.random(shape),
    }[kind]()
    pace = rng.random(placement.num_ranks) + 0.5 if draw(st.booleans()) else None
    return loads, placement, np.ones(placement.num_ranks) if pace is None else pace


def captive(load: np.ndarray, placement: Placement, layer: int, pace: np.ndarray) -> float:  # type: ignore[type-arg]
    """The largest load that has no copy outside a set of ranks, per time they have together."""
    ranks = range(placement.num_ranks)
    worst = 0.0
    for size in range(1, placement.num_ranks + 1):
        for chosen in itertools.combinations(ranks, size):
            outside = np.setdiff1d(ranks, chosen)
            inside = ~(placement.rank_copies[layer][outside] > 0).any(axis=0)
            worst = max(worst, load[inside].sum() / (1 / pace[list(chosen)]).sum())
    return float(worst)


def reference(load: np.ndarray, placement: Placement, layer: int, pace: np.ndarray) -> float:  # type: ignore[type-arg]
    """The same optimum from a linear program written down plainly."""
    ranks, experts = np.nonzero(placement.rank_copies[layer])
    a_ub = np.zeros((placement.num_ranks, len(ranks) + 1))
    a_ub[ranks, np.arange(len(ranks))] = pace[ranks]
    a_ub[:, -1] = -1
    a_eq = np.zeros((len(load), len(ranks) + 1))
    a_eq[experts, np.arange(len(ranks))] = 1
    total = max(load.sum(), 1e-300)
    answer = linprog(np.eye(len(ranks) + 1)[-1], a_ub, np.zeros(len(a_ub)), a_eq, load / total)
    return float(answer.fun * total)


def test_a_hand_solved_split() -> None:
    """Of expert 0's 10 tokens, 7 go to the GPU that has 3 others and 3 to the one that has 7."""
    best = dispatch.best_split(np.array([[[10, 3, 7]]]), TWO)
    assert best.slot_load[0, 0] == pytest.approx([7, 3, 3, 7])
    assert best.peak[0, 0] == pytest.approx(10)
    assert best.lower_bound[0, 0] == pytest.approx(10)


def test_captive_load_cannot_be_split_away() -> None:
    """A GPU with 20 tokens of its own keeps them; all of expert 0 goes to the other."""
    best = dispatch.best_split(np.array([[[10, 20, 0]]]), TWO)
    assert best.slot_load[0, 0] == pytest.approx([0, 20, 10, 0])


def test_a_slow_gpu_is_given_less() -> None:
    """A GPU that takes twice as long for a token serves a third of what can be split."""
    best = dispatch.best_split(np.array([[[9, 0, 0]]]), TWO, np.array([2.0, 1.0]))
    assert best.slot_load[0, 0] == pytest.approx([3, 0, 6, 0])
    assert best.peak[0, 0] == pytest.approx(6)


@settings(deadline=None)
@given(cases())
def test_the_optimum_is_exact(case: tuple[np.ndarray, Placement, np.ndarray]) -> None:  # type: ignore[type-arg]
    """The peak is that of the minimum cut over all sets of ranks and that of a plain linear
    program; the bound proves it; no token is lost, and no slot serves less than nothing."""
    loads, placement, pace = case
    best = dispatch.best_split(loads, placement, pace)
    ranks = metrics.by_rank(best.slot_load, placement.num_ranks)
    assert (ranks * pace).max(axis=2).tolist() == best.peak.tolist()
    assert (best.slot_load >= 0).all()
    assert served(best.slot_load, placement) == pytest.approx(loads)
    for window, layer in np.ndindex(*loads.shape[:2]):
        load, peak = loads[window, layer], best.peak[window, layer]
        assert peak == pytest.approx(captive(load, placement, layer, pace), rel=1e-9, abs=0)
        assert peak == pytest.approx(reference(load, placement, layer, pace), rel=1e-6, abs=0)
        assert best.lower_bound[window, layer] == pytest.approx(peak, rel=1e-9, abs=0)


@settings(deadline=None)
@given(cases())
def test_no_rule_beats_the_optimum(case: tuple[np.ndarray, Placement, np.ndarray]) -> None:  # type: ignore[type-arg]
    """Even split and nearest copies serve every token and peak no lower than the best split."""
    loads, placement, pace = case
    least = dispatch.best_split(loads, placement, pace).peak
    for slots in (
        metrics.slot_loads(loads, placement),
        dispatch.expected_nearest_slots(loads, placement),
    ):
        assert served(slots, placement) == pytest.approx(loads)
        peak = (metrics.by_rank(slots, placement.num_ranks) * pace).max(axis=2)
        assert (peak >= least * (1 - 1e-9)).all()


@settings(deadline=None)
@given(cases())
def test_slots_add_up_to_ranks(case: tuple[np.ndarray, Placement, np.ndarray]) -> None:  # type: ignore[type-arg]
    """There is one even split."""
    loads, placement, _ = case
    ranks = metrics.by_rank(metrics.slot_loads(loads, placement), placement.num_ranks)
    assert ranks == pytest.approx(metrics.rank_loads(loads, placement))


@settings(deadline=None)
@given(cases())
def test_batches_add_up_to_no_less_than_their_window(
    case: tuple[np.ndarray, Placement, np.ndarray],  # type: ignore[type-arg]
) -> None:
    """The optimum of a window bounds what its batches come to, each at its own optimum."""
    loads, placement, pace = case
    batches = dispatch.best_split(loads, placement, pace).peak.sum(axis=0)
    window = dispatch.best_split(loads.sum(axis=0, keepdims=True), placement, pace).peak[0]
    assert (window <= batches * (1 + 1e-9)).all()


@settings(deadline=None)
@given(placements(), st.integers(0, 2**32 - 1))
def test_nearest_copies_token_by_token(placement: Placement, seed: int) -> None:
    """What slots serve is the sum over tokens, each split over the copies nearest to it."""
    rng = np.random.default_rng(seed)
    num_experts = placement.num_logical_experts
    experts = rng.integers(-1, num_experts, (9, placement.num_layers, min(2, num_experts)))
    source = rng.integers(0, placement.num_ranks, 9)
    expected = np.zeros((2, placement.num_layers, placement.num_slots))
    per_node = placement.num_ranks // placement.num_nodes
    for token, layer, k in np.argwhere(experts >= 0):
        slots = np.flatnonzero(placement.physical_to_logical[layer] == experts[token, layer, k])
        rank = slots // placement.slots_per_rank
        for near in (rank == source[token], rank // per_node == source[token] // per_node):
            if near.any():
                slots = slots[near]
                break
        expected[int(token >= 4), layer, slots] += 1 / len(slots)
    routes = RouteTrace(experts, num_experts, source)
    assert dispatch.nearest_slots(routes, placement, [0, 4, 9]) == pytest.approx(expected)


@settings(deadline=None)
@given(placements())
def test_expected_nearest_is_the_mean_over_starts(placement: Placement) -> None:
    """Tokens of every expert from every rank, counted or expected, come to the same."""
    num_experts, num_ranks = placement.num_logical_experts, placement.num_ranks
    experts = np.tile(np.arange(num_experts), num_ranks)[:, None, None]
    experts = np.repeat(experts, placement.num_layers, axis=1)
    routes = RouteTrace(experts, num_experts, np.repeat(np.arange(num_ranks), num_experts))
    assert dispatch.nearest_slots(routes, placement) == pytest.approx(
        dispatch.expected_nearest_slots(routes.windows().tokens, placement)
    )


def test_blocks_of_windows_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many windows are counted, and solved, block by block."""
    placement = linear(2, 4, 6, 3)
    tokens = random_loads(5, 7, 2, 4)
    rng = np.random.default_rng(5)
    routes = RouteTrace(rng.integers(-1, 4, (30, 2, 2)), 4, rng.integers(0, 3, 30))
    edges = list(range(0, 31, 5))
    whole, peak = (
        dispatch.nearest_slots(routes, placement, edges),
        dispatch.best_split(tokens, placement).peak,
    )
    monkeypatch.setattr(dispatch, "_BLOCK", 30)
    monkeypatch.setattr(dispatch, "_VARIABLES", 12)
    assert (dispatch.nearest_slots(routes, placement, edges) == whole).all()
    assert dispatch.best_split(tokens, placement).peak == pytest.approx(peak)


def test_ranks_out_of_service_serve_nothing() -> None:
    """Dead slots have no load under any rule, and the others all of it."""
    placement = Placement(np.array([[0, 1, -1, -1, 0, 2]]), 3, 3, excluded_ranks=(1,))
    tokens = np.array([[[10, 3, 7]]])
    assert dispatch.best_split(tokens, placement).slot_load[0, 0] == pytest.approx(
        [7, 3, 0, 0, 3, 7]
    )
    assert metrics.slot_loads(tokens, placement)[0, 0].tolist() == [5, 3, 0, 0, 5, 7]
    assert dispatch.expected_nearest_slots(tokens, placement)[0, 0].tolist() == [5, 3, 0, 0, 5, 7]


def test_nearest_needs_to_know_where_tokens_start() -> None:
    """Without source ranks it says so; routes of another model are refused."""
    with pytest.raises(InputError, match=r"source_rank.*--dispatch even"):
        dispatch.nearest_slots(RouteTrace(np.zeros((1, 1, 1), int), 3), TWO)
    with pytest.raises(RefusedError, match="4 experts"):
        dispatch.nearest_slots(RouteTrace(np.zeros((1, 1, 1), int), 4, np.zeros(1, int)), TWO)


def served(slot_load: np.ndarray, placement: Placement) -> np.ndarray:  # type: ignore[type-arg]
    """Tokens of each expert that its slots serve together."""
    total = np.zeros((*slot_load.shape[:2], placement.num_logical_experts))
    for layer, slot in np.argwhere(placement.physical_to_logical >= 0):
        total[:, layer, placement.physical_to_logical[layer, slot]] += slot_load[:, layer, slot]
    return total


def test_measured_nearest_traffic_and_loads_agree() -> None:
    """What is served on another node is the same by slots as by traffic."""
    placement = linear(1, 4, 8, 4, 2)
    rng = np.random.default_rng(8)
    routes = RouteTrace(rng.integers(0, 4, (50, 1, 1)), 4, np.full(50, 3))
    slots = dispatch.nearest_slots(routes, placement)
    away = traffic.route_traffic(routes, placement, "nearest").remote_assignments
    assert metrics.by_rank(slots, 4)[0, 0, :2].sum() == pytest.approx(away[0, 0])
