"""A gate: the named figures of a report against limits, and against those of an earlier report."""

from collections.abc import Sequence

from ..errors import InputError
from ..formats.rules import Baseline
from ..formats.verdicts import Verdict
from ..report import Report
from .limits import COMPARISONS, FIGURES, Limit, Tolerance

# What must hold where a limit must not.
_OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}
_WORDS = {
    ">=": "at least {}",
    ">": "more than {}",
    "<=": "at most {}",
    "<": "less than {}",
    "==": "{}",
    "!=": "anything but {}",
}
# Which end of a figure a limit forbids.
_UPWARDS = {"<": -1, "<=": -1, ">": 1, ">=": 1}
# At the edge of the tolerance, what the arithmetic of the edge itself may be off by.
_ROUNDING = 1e-12
_FEW = 3


def judge_limits(report: Report, limits: Sequence[Limit]) -> tuple[list[Verdict], list[str]]:
    """A verdict on each limit, and what is odd about the limits.

    Raises
    ------
    InputError
        When the report lacks the figure of a limit.
    """
    summary = report.summary()
    verdicts, notes = [], []
    for limit in dict.fromkeys(limits):
        if limit.figure not in summary:
            raise InputError(
                f"{limit.text!r}: this report has no {limit.figure}, which needs"
                f" {FIGURES[limit.figure].needs}; it has {', '.join(summary)}"
            )
        found = summary[limit.figure]
        passed = not COMPARISONS[limit.operator](found, limit.value)
        must_be = _OPPOSITE[limit.operator]
        value, bound = _plain(found, limit.value)
        message = f"{limit.figure} is {value}; {_WORDS[must_be].format(bound)} is expected"
        verdicts.append(
            Verdict(
                f"limit/{limit.figure}", limit.text, limit.figure, found, must_be, limit.value,
                passed, False, message + ("" if passed else _blame(report, limit.figure, must_be)),
            )
        )  # fmt: skip
        if FIGURES[limit.figure].better * _UPWARDS.get(limit.operator, 0) > 0:
            way = "more" if FIGURES[limit.figure].better > 0 else "less"
            notes.append(f"{limit.text!r} fails good plans: {way} {limit.figure} is better")
    return verdicts, notes


def judge_baseline(
    report: Report, baseline: Baseline, tolerance: Tolerance, in_sample: bool = False
) -> tuple[list[Verdict], list[str]]:
    """A verdict on each figure that the report and the baseline share, and what is to be said of
    how alike they are.

    Raises
    ------
    InputError
        When they share none.
    """
    summary, earlier = report.summary(), baseline.summary
    notes = _unlike(report, baseline, in_sample)
    walked = earlier.get("moves", 0) > 0 and not summary["moves"]
    if walked:
        notes.append(
            f"{baseline.name} is of a walk that moved {earlier['moves']:,} copies; one plan moves"
            " nothing, so moves are not compared"
        )
    verdicts = []
    for name in dict.fromkeys([*summary, *earlier]):
        figure = FIGURES.get(name)
        if name not in summary or name not in earlier:
            where = baseline.name if name in earlier else "this report"
            notes.append(f"{name} is not compared: only {where} has it")
        elif figure is None:
            notes.append(f"{name} is not compared: which way is better is not known")
        elif figure.better and not (walked and name.startswith("move")):
            verdicts.append(_against(report, name, summary[name], baseline, tolerance))
    if not verdicts:
        raise InputError(
            f"{baseline.name} has none of the figures that could be compared:"
            f" {', '.join(name for name in summary if name in FIGURES and FIGURES[name].better)}"
        )
    return verdicts, notes


def _against(
    report: Report, name: str, found: float, baseline: Baseline, tolerance: Tolerance
) -> Verdict:
    """One figure against the same of an earlier report."""
    better, was = FIGURES[name].better, baseline.summary[name]
    allowed = tolerance.value * (abs(was) if tolerance.is_relative else 1.0)
    gain, slack = better * (found - was), _ROUNDING * max(abs(was), abs(found))
    passed, is_better = gain >= -allowed - slack, gain > allowed + slack
    must_be, bound = ">=" if better > 0 else "<=", was - better * allowed
    now, before, edge = _plain(found, was, bound)
    change = f" ({found / was - 1:+.2%})" if was and found != was else ""
    if passed:
        state = ", better" if is_better else ""
        message = f"{name} is {now}, in the baseline {before}{change}{state}"
    else:
        message = (
            f"{name} is {now}, in the baseline {before}{change}; {_WORDS[must_be].format(edge)} is"
            f" expected (tolerance {tolerance.text}){_blame(report, name, must_be)}"
        )
    return Verdict(
        f"baseline/{name}", f"{name} against the baseline", name, found, must_be, bound, passed,
        is_better, message,
    )  # fmt: skip


def _unlike(report: Report, baseline: Baseline, in_sample: bool) -> list[str]:
    """Where the baseline was scored on something else."""
    notes = []
    for what, then, now in (
        ("windows", baseline.num_windows, len(report.windows)),
        ("layers", baseline.num_layers, len(report.layer_ids)),
    ):
        if then is not None and then != now:
            notes.append(f"{baseline.name} was scored on {then} {what}, this plan on {now}")
    if baseline.in_sample is not None and baseline.in_sample != in_sample:
        which, other = ("the baseline", "this") if baseline.in_sample else ("this", "the baseline")
        notes.append(f"{which} is in-sample, scored also on windows planned for; {other} is not")
    return notes


def _blame(report: Report, name: str, must_be: str) -> str:
    """The layers that pull a figure of balance down, where it is too low."""
    if must_be not in (">", ">=") or not (name.endswith("balancedness") or name == "efficiency"):
        return ""
    ratio = report.balance.layer_balancedness
    worst = ratio.argsort(kind="stable")[:_FEW]
    named = ", ".join(f"{report.layer_ids[row]} ({ratio[row]:.3f})" for row in worst)
    return f"; worst layer{'s' if len(worst) > 1 else ''}: {named}"


def _plain(*values: float) -> list[str]:
    """The values in as few digits as tell them apart."""
    for digits in (4, 6, 9):
        texts = [_digits(value, digits) for value in values]
        if len(set(texts)) == len(set(values)):
            return texts
    return [repr(value) for value in values]


def _digits(value: float, digits: int) -> str:
    if value == int(value):
        return f"{int(value):,}"
    if abs(value) < 1e-3:
        return f"{value:.{digits}g}"
    return f"{value:,.{digits}f}".rstrip("0").rstrip(".")
