"""The grammar of a gate: limits and tolerances."""

import numpy as np
import pytest

from eplb.errors import InputError
from eplb.report import Report
from eplb.study.limits import DEFAULT_TOLERANCE, FIGURES, Limit, parse_limit, parse_tolerance


@pytest.mark.parametrize(
    ("text", "figure", "sign", "value", "shown"),
    [
        ("mean_balancedness < 0.9", "mean_balancedness", "<", 0.9, "mean_balancedness < 0.9"),
        ("mean_balancedness<90%", "mean_balancedness", "<", 0.9, "mean_balancedness < 90%"),
        ("  efficiency <= .85 ", "efficiency", "<=", 0.85, "efficiency <= .85"),
        ("p95_balancedness < 7.5e-1", "p95_balancedness", "<", 0.75, "p95_balancedness < 7.5e-1"),
        ("worst_balancedness < 82.5 %", "worst_balancedness", "<", 0.825,
         "worst_balancedness < 82.5%"),
        ("moves > 200", "moves", ">", 200, "moves > 200"),
        ("moves != 0", "moves", "!=", 0, "moves != 0"),
        ("moved_bytes >= 1e9", "moved_bytes", ">=", 1e9, "moved_bytes >= 1e9"),
        ("off_home_share > 0", "off_home_share", ">", 0, "off_home_share > 0"),
        ("efficiency == 1.", "efficiency", "==", 1, "efficiency == 1."),
        ("step_seconds > +0.02", "step_seconds", ">", 0.02, "step_seconds > +0.02"),
    ],
)  # fmt: skip
def test_limits_that_can_be_set(
    text: str, figure: str, sign: str, value: float, shown: str
) -> None:
    """NAME OP NUMBER, blanks as you like, a percent sign where the figure is a share."""
    assert parse_limit(text) == Limit(figure, sign, value, shown)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no limit; NAME OP NUMBER, as 'mean_balancedness < 0.9', is"),
        ("mean_balancedness", "is no limit"),
        ("mean_balancedness <", "is no limit"),
        ("0.9 > mean_balancedness", "is no limit"),
        ("mean_balancedness < 0.9 and moves > 3", "is no limit"),
        ("mean_balancedness < nan", "is no limit"),
        ("moves > inf", "is no limit"),
        ("moves > 1,000", "is no limit"),
        ("moves > 1_000", "is no limit"),
        ("moves > ١", "is no limit"),
        ("mean_balancedness < 0.9%%", "is no limit"),
        ("mean_balancedness = 0.9", "= is no comparison; < <= > >= == != are"),
        ("mean_balancedness =< 0.9", "=< is no comparison"),
        ("mean_balancedness <> 0.9", "<> is no comparison"),
        ("mean_balance < 0.9", "no figure is called 'mean_balance'. mean_balancedness is meant?"),
        ("zzz < 0.9", "no figure is called 'zzz'. There are: mean_balancedness, worst_b"),
        ("Efficiency < 0.9", "no figure is called 'Efficiency'. efficiency is meant?"),
        ("max_gap > 5%", "max_gap is a figure of the plan, not of what a trace makes of it"),
        ("mean_balancedness < 90", "a share from 0 to 1, never 90; 90% is meant?"),
        ("mean_balancedness < 900", "a share from 0 to 1, never 900$"),
        ("mean_balancedness < 101%", "never 101%$"),
        ("efficiency < -0.1", "never -0.1$"),
        ("mean_balancedness < 0", "so this is never so"),
        ("efficiency > 100%", "so this is never so"),
        ("efficiency >= 0", "so this is always so"),
        ("off_home_share <= 1", "so this is always so"),
        ("moves > 5%", "moves is no share, so a percent sign means nothing here"),
        ("moves > 1e999", "1e999 is beyond all numbers"),
    ],
)
def test_limits_that_cannot(text: str, message: str) -> None:
    """What is not understood, or could not fail, is refused with the nearest thing that is."""
    message = message.replace("?", r"\?")
    with pytest.raises(InputError, match=message):
        parse_limit(text)


@pytest.mark.parametrize(
    ("text", "value", "is_relative"),
    [
        ("0.5%", 0.005, True),
        ("0.005", 0.005, False),
        (" 1 % ", 0.01, True),
        ("0", 0.0, False),
        ("0%", 0.0, True),
        ("5e-3", 0.005, False),
        (DEFAULT_TOLERANCE, 0.001, True),
    ],
)
def test_tolerances(text: str, value: float, is_relative: bool) -> None:
    """With a percent sign a share of the baseline, without one in the figure's own unit."""
    tolerance = parse_tolerance(text)
    assert (tolerance.value, tolerance.is_relative) == (value, is_relative)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no tolerance; 0.5% .* or 0.005 is"),
        ("half", "'half' is no tolerance"),
        ("nan", "'nan' is no tolerance"),
        ("0.5 percent", "is no tolerance"),
        ("-1%", "below 0, so that nothing could pass"),
        ("5", r"with a tolerance of 5 nothing could fail; 5% is meant\?"),
        ("1e999", "nothing could fail$"),
        ("100%", "nothing could fail$"),
    ],
)
def test_tolerances_that_are_none(text: str, message: str) -> None:
    """A tolerance that would pass anything, or nothing, is refused."""
    with pytest.raises(InputError, match=message):
        parse_tolerance(text)


def test_every_figure_of_a_report_is_known() -> None:
    """Limits can be set on whatever a report sums up, and all that may be missing says why."""
    ones = np.ones(2)
    report = Report(
        np.arange(1), np.arange(2), np.ones((2, 1)), np.ones((2, 1)), 4,
        expert_bytes=3, step_tokens=ones, step_seconds=ones,
    )  # fmt: skip
    plain = Report(np.arange(1), np.arange(2), np.ones((2, 1)), np.ones((2, 1)), 4)
    assert set(report.summary()) <= set(FIGURES)
    assert all(figure.needs for name, figure in FIGURES.items() if name not in plain.summary())
