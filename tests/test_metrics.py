"""Loads of ranks and how even they are."""

import numpy as np
import pytest
from hypothesis import given

from eplb import metrics
from eplb.placement import Placement, linear

from .helpers import random_loads
from .strategies import placements

# The example of the plan file: two windows, two layers, four experts on 2 GPUs × 3 slots.
TOKENS = np.array([[[12, 0, 7, 9], [3, 3, 8, 14]], [[10, 1, 9, 8], [2, 4, 9, 13]]])
PLACEMENT = Placement(np.array([[0, 1, 2, 0, 1, 3], [0, 2, 3, 1, 2, 3]]), 4, 2)


def test_a_hand_solved_example() -> None:
    """The worked example of the plan file, computed by hand."""
    balance = metrics.measure(TOKENS, PLACEMENT)
    assert balance.peak_load.tolist() == [14.75, 14.5]
    assert balance.mean_balancedness == pytest.approx(0.958, abs=5e-4)
    assert balance.worst_balancedness == pytest.approx((14 / 15 + 14 / 14.5) / 2)
    assert balance.efficiency == pytest.approx(56 / 58.5)


def test_balancedness_is_over_ranks_not_layers() -> None:
    """Two layers with ranks at 100 and 200 tokens are at 0.75, however alike the layers are."""
    tokens = np.array([[[100, 200], [100, 200]]])
    loads = metrics.rank_loads(tokens, linear(2, 2, 2, 2))
    assert metrics.balancedness(loads).tolist() == [[0.75, 0.75]]


def test_a_layer_without_load_is_balanced() -> None:
    """Nothing to serve is served evenly."""
    loads = metrics.rank_loads(np.zeros((1, 1, 2)), linear(1, 2, 2, 2))
    assert metrics.balancedness(loads).tolist() == [[1.0]]


@given(placements())
def test_no_token_is_lost_or_made(placement: Placement) -> None:
    """The loads of the ranks add up to the tokens, whatever the copies."""
    tokens = random_loads(1, 3, placement.num_layers, placement.num_logical_experts)
    loads = metrics.rank_loads(tokens, placement)
    assert loads.sum(axis=2) == pytest.approx(tokens.sum(axis=2))


def test_blocks_of_windows_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long traces are scored block by block."""
    tokens = random_loads(2, 7, 2, 4)
    whole = metrics.rank_loads(tokens, PLACEMENT)
    monkeypatch.setattr(metrics, "_BLOCK", 24)
    assert (metrics.rank_loads(tokens, PLACEMENT) == whole).all()


def test_excluded_ranks_do_not_count_in_the_mean() -> None:
    """With one of three ranks out of service, two equal ranks are perfectly balanced."""
    placement = Placement(np.array([[0, 1, -1, -1, 2, 3]]), 4, 3, excluded_ranks=(1,))
    balance = metrics.measure(np.ones((1, 1, 4)), placement)
    assert balance.mean_balancedness == 1.0


def test_p95_is_reached_by_95_percent_of_windows_and_layers() -> None:
    """Of a hundred pairs five may be below."""
    tokens = np.ones((100, 1, 2))
    tokens[:6, 0, 0] = np.arange(2, 8)
    balance = metrics.measure(tokens, linear(1, 2, 2, 2))
    ratios = metrics.balancedness(metrics.rank_loads(tokens, linear(1, 2, 2, 2)))
    assert (ratios >= balance.p95_balancedness).mean() >= 0.95
    assert (ratios > balance.p95_balancedness).mean() < 0.96


def test_windows_count_by_weight() -> None:
    """A window of weight 0 does not matter."""
    tokens = np.array([[[1, 1]], [[1, 9]]])
    weight = np.array([1.0, 0.0])
    assert metrics.measure(tokens, linear(1, 2, 2, 2), weight).mean_balancedness == 1.0
