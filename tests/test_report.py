"""The figures of a report."""

import numpy as np
import pytest

from eplb.errors import InputError
from eplb.report import Report, step_ceiling


def _report(**others: object) -> Report:
    values: dict[str, object] = {
        "layer_ids": np.array([3, 4]),
        "windows": np.array([5, 7]),
        "mean_load": np.array([[4.0, 8.0], [4.0, 8.0]]),
        "peak_load": np.array([[8.0, 8.0], [4.0, 16.0]]),
        "num_ranks": 2,
    }
    return Report(**(values | others))  # type: ignore[arg-type]


def test_summary_by_hand() -> None:
    """Ratios .5, 1, 1, .5: their mean, the worst layer's mean, sums over sums."""
    summary = _report(moves=np.array([3, 4])).summary()
    assert summary == {
        "mean_balancedness": 0.75, "worst_balancedness": 0.75, "p95_balancedness": 0.5,
        "efficiency": pytest.approx(24 / 36), "moves": 7,
    }  # fmt: skip


def test_windows_count_by_their_weight() -> None:
    """A window of weight 3 counts as three."""
    summary = _report(window_weight=np.array([3.0, 1.0])).summary()
    assert summary["mean_balancedness"] == pytest.approx((3 * 0.75 + 0.75) / 4)
    assert summary["worst_balancedness"] == pytest.approx((3 * 0.5 + 1.0) / 4)


def test_what_is_known_is_in_the_summary() -> None:
    """Bytes, seconds and the ceiling of steps appear with what they need, and further figures."""
    report = _report(
        moves=np.array([0, 2]), expert_bytes=10, step_seconds=np.array([1.0, 3.0]),
        step_tokens=np.array([100.0, 100.0]), figures={"off_home_share": 0.25},
    )  # fmt: skip
    summary = report.summary()
    assert summary["moved_bytes"] == 20
    assert summary["step_seconds"] == 2.0
    assert summary["off_home_share"] == 0.25
    assert 0.9 < summary["step_noise_ceiling"] < 1


def test_the_ceiling_is_that_of_simulated_steps() -> None:
    """1 / (1 + z/√n) is what the mean over simulated even steps comes to, within a percent."""
    rng = np.random.default_rng(0)
    for num_ranks, tokens in ((8, 200), (32, 1000), (144, 400)):
        loads = rng.poisson(tokens, (4000, num_ranks))
        simulated = (loads.mean(axis=1) / loads.max(axis=1)).mean()
        assert step_ceiling(np.array([tokens]), num_ranks)[0] == pytest.approx(simulated, rel=0.01)
    assert step_ceiling(np.array([5.0]), 1)[0] == 1.0
    assert step_ceiling(np.array([0.0]), 8)[0] == 1.0  # as balanced as nothing is


@pytest.mark.parametrize(
    "wrong",
    [
        {"peak_load": np.ones((2, 3))},
        {"moves": np.array([1])},
        {"window_weight": np.array(["a", "b"])},
        {"windows": np.array([], int)},
    ],
)
def test_shapes_are_checked(wrong: dict[str, object]) -> None:
    """What does not fit together is no report."""
    with pytest.raises(InputError):
        _report(**wrong)
