"""Figures against limits and against a baseline."""

from typing import Any

import numpy as np
import pytest

from eplb.errors import InputError
from eplb.formats.rules import Baseline
from eplb.formats.verdicts import Verdict
from eplb.report import Report
from eplb.study.gate import judge_baseline, judge_limits
from eplb.study.limits import parse_limit, parse_tolerance


def _report(**further: Any) -> Report:
    """Two windows of three layers whose balancedness is 0.5, 0.9 and 0.7 in both: 0.7 on average,
    0.5 at worst and for 95 %; efficiency 300 ÷ (200 + 1000/9 + 1000/7) = 0.661."""
    ratio = np.array([0.5, 0.9, 0.7])
    peak = np.tile(100.0 / ratio, (2, 1))
    return Report(np.array([3, 4, 7]), np.arange(2), np.full((2, 3), 100.0), peak, 4, **further)


def _limit(text: str) -> Verdict:
    verdicts, notes = judge_limits(_report(), [parse_limit(text)])
    assert not notes
    (verdict,) = verdicts
    return verdict


@pytest.mark.parametrize(
    ("text", "passed", "message"),
    [
        ("worst_balancedness < 0.5", True, "worst_balancedness is 0.5; at least 0.5 is expected"),
        ("worst_balancedness <= 0.5", False, "is 0.5; more than 0.5 is expected; worst layers: 3 "),
        ("worst_balancedness < 50.1%", False,
         "is 0.5; at least 0.501 is expected; worst layers: 3 (0.500), 7 (0.700), 4 (0.900)"),
        ("moves > 0", True, "moves is 0; at most 0 is expected"),
        ("moves != 0", True, "moves is 0; 0 is expected"),
        ("moves == 0", False, "moves is 0; anything but 0 is expected"),
        ("efficiency < 0.6608", True, "is 0.660839; at least 0.6608 is expected"),
    ],
)  # fmt: skip
def test_a_limit_fails_where_it_is_true(text: str, passed: bool, message: str) -> None:
    """To the last digit; the message has what was found, what is expected and, for balance, the
    layers that are to blame."""
    verdict = _limit(text)
    assert verdict.passed == passed
    assert message in verdict.message
    assert verdict.rule == f"limit/{text.split()[0]}"


def test_found_and_limit_are_never_shown_alike() -> None:
    """Two numbers that differ in the ninth digit only are told apart."""
    verdict = _limit("mean_balancedness < 0.700000001")
    assert not verdict.passed
    assert "is 0.7; at least 0.700000001 is expected" in verdict.message


def test_the_same_limit_counts_once() -> None:
    """Test cases are told apart by their names."""
    limits = [parse_limit("moves > 3"), parse_limit("moves>3"), parse_limit("moves > 4")]
    assert [v.title for v in judge_limits(_report(), limits)[0]] == ["moves > 3", "moves > 4"]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("mean_balancedness > 0.9", "fails good plans: more mean_balancedness is better"),
        ("moves < 5", "fails good plans: less moves is better"),
    ],
)
def test_a_limit_the_wrong_way_round_is_named(text: str, note: str) -> None:
    """It is obeyed all the same: somebody may mean it."""
    _, (found,) = judge_limits(_report(), [parse_limit(text)])
    assert note in found


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("off_home_share", "a plan on several nodes"),
        ("moved_bytes", "the bytes of an expert: plan with --expert-bytes or --model"),
        ("step_noise_ceiling", "a trace that says how many steps a window has"),
        ("step_seconds", "a model of time"),
    ],
)
def test_a_figure_that_is_not_there_is_no_pass(name: str, needs: str) -> None:
    """The message says what it takes to have it and what there is."""
    with pytest.raises(InputError, match=f"has no {name}, which needs {needs}.*; it has mean_bal"):
        judge_limits(_report(), [parse_limit(f"{name} > 0.5")])


def _against(summary: dict[str, float], tolerance: str, **further: Any) -> dict[str, Verdict]:
    baseline = Baseline("old.json", summary)
    verdicts, _ = judge_baseline(_report(**further), baseline, parse_tolerance(tolerance))
    return {verdict.figure: verdict for verdict in verdicts}


@pytest.mark.parametrize(
    ("was", "tolerance", "passed", "is_better"),
    [
        (0.5, "0", True, False),
        (0.501, "0", False, False),
        (0.499, "0", True, True),
        (0.505, "0.005", True, False),  # 0.505 − 0.5 is a little more than 0.005 in floats
        (0.5051, "0.005", False, False),
        (0.495, "0.005", True, False),
        (0.4949, "0.005", True, True),
        (0.625, "20%", True, False),
        (0.626, "20%", False, False),
        (0.4, "25%", True, False),
        (0.399, "25%", True, True),
    ],
)
def test_the_edge_of_the_tolerance(
    was: float, tolerance: str, passed: bool, is_better: bool
) -> None:
    """At the edge is inside, on both sides; beyond it is worse, or better."""
    verdict = _against({"worst_balancedness": was}, tolerance)["worst_balancedness"]
    assert (verdict.passed, verdict.is_better) == (passed, is_better)


def test_less_is_better_for_costs() -> None:
    """Seconds that grew fail, seconds that fell are better; the edge is above the baseline."""
    seconds = {"step_seconds": np.full(2, 0.25)}
    grew = _against({"step_seconds": 0.2}, "1%", **seconds)["step_seconds"]
    assert (grew.passed, grew.must_be, grew.bound) == (False, "<=", pytest.approx(0.202))
    assert "is 0.25, in the baseline 0.2 (+25.00%); at most 0.202 is expected" in grew.message
    assert _against({"step_seconds": 0.3}, "1%", **seconds)["step_seconds"].is_better


def test_a_baseline_of_zero_has_no_percentage() -> None:
    """A relative tolerance of nothing is nothing, and nothing is divided by it."""
    worse = _against({"off_home_share": 0.0}, "5%", figures={"off_home_share": 0.1})
    assert not worse["off_home_share"].passed
    assert "is 0.1, in the baseline 0;" in worse["off_home_share"].message
    assert _against({"moves": 0}, "5%")["moves"].passed


def test_what_broke_says_where() -> None:
    """Found, before, by how much, expected, tolerance, layers."""
    verdict = _against({"mean_balancedness": 0.8}, "0.5%")["mean_balancedness"]
    assert verdict.message == (
        "mean_balancedness is 0.7, in the baseline 0.8 (-12.50%); at least 0.796 is expected"
        " (tolerance 0.5%); worst layers: 3 (0.500), 7 (0.700), 4 (0.900)"
    )
    assert (verdict.rule, verdict.bound) == ("baseline/mean_balancedness", pytest.approx(0.796))


def test_what_cannot_be_compared_is_named() -> None:
    """Figures of one side only, figures of no known direction, other windows, layers and sampling;
    what tells of the trace is left aside."""
    report = _report(step_tokens=np.full(2, 9.0), figures={"mystery": 1.0})
    summary = {
        "mean_balancedness": 0.7, "step_noise_ceiling": 0.1, "mystery": 2.0, "step_seconds": 1.0
    }  # fmt: skip
    baseline = Baseline("old.json", summary, num_windows=5, num_layers=58, in_sample=True)
    verdicts, notes = judge_baseline(report, baseline, parse_tolerance("0"))
    assert [verdict.figure for verdict in verdicts] == ["mean_balancedness"]
    assert notes == [
        "old.json was scored on 5 windows, this plan on 2",
        "old.json was scored on 58 layers, this plan on 3",
        "the baseline is in-sample, scored also on windows planned for; this is not",
        "worst_balancedness is not compared: only this report has it",
        "p95_balancedness is not compared: only this report has it",
        "efficiency is not compared: only this report has it",
        "moves is not compared: only this report has it",
        "mystery is not compared: which way is better is not known",
        "step_seconds is not compared: only old.json has it",
    ]


def test_a_walk_s_moves_are_no_baseline_for_one_plan() -> None:
    """One plan never moves anything, which is no improvement."""
    baseline = Baseline("walk.json", {"mean_balancedness": 0.7, "moves": 1311, "moved_bytes": 9})
    verdicts, notes = judge_baseline(_report(expert_bytes=3), baseline, parse_tolerance("0"))
    assert [verdict.figure for verdict in verdicts] == ["mean_balancedness"]
    assert "walk.json is of a walk that moved 1,311 copies" in notes[0]


@pytest.mark.parametrize("summary", [{}, {"step_seconds": 1.0}, {"other": 1.0}])
def test_a_baseline_that_has_nothing_in_common_is_refused(summary: dict[str, float]) -> None:
    """A gate that compares nothing would pass for ever."""
    with pytest.raises(InputError, match=r"old\.json has none of the figures .* mean_balancedness"):
        judge_baseline(_report(), Baseline("old.json", summary), parse_tolerance("0"))
