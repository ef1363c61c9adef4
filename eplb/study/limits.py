"""What a gate can be asked: the figures it knows, limits on them, tolerances."""

import difflib
import operator
import re
from collections.abc import Callable
from math import isfinite
from typing import NamedTuple

from ..errors import InputError


class Figure(NamedTuple):
    """What is known of a named figure: whether more of it is better (1), less (−1), or neither (0),
    because it tells of the trace; whether it is a share from 0 to 1; what a report needs to have
    it."""

    better: int
    is_share: bool
    needs: str = ""


# Which way is worse is decided here and nowhere else.
FIGURES = {
    "mean_balancedness": Figure(1, True),
    "worst_balancedness": Figure(1, True),
    "p95_balancedness": Figure(1, True),
    "efficiency": Figure(1, True),
    "moves": Figure(-1, False),
    "moved_bytes": Figure(-1, False, "the bytes of an expert: plan with --expert-bytes or --model"),
    "off_home_share": Figure(-1, True, "a plan on several nodes, scored with its traffic"),
    "remote_nodes_per_token": Figure(-1, False, "token routes and a plan on several nodes"),
    "remote_assignments_per_token": Figure(-1, False, "token routes and a plan on several nodes"),
    "step_seconds": Figure(-1, False, "a model of time"),
    "step_noise_ceiling": Figure(0, True, "a trace that says how many steps a window has"),
}
# Figures that people know from plans; no replay has them.
_OF_PLANS = ("held_out_balancedness", "held_out_error", "max_gap")

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
# Limits on shares that say nothing.
_IDLE: dict[tuple[str, float], str] = {
    ("<", 0): "never so",
    (">", 1): "never so",
    (">=", 0): "always so",
    ("<=", 1): "always so",
}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_LIMIT = re.compile(rf"\s*([A-Za-z]\w*)\s*([<>=!]+)\s*({_NUMBER})\s*(%?)\s*", re.ASCII)
_TOLERANCE = re.compile(rf"\s*({_NUMBER})\s*(%?)\s*", re.ASCII)

# Wide enough for sums in another order on another machine, and for nothing that anybody would
# notice: the same plan on the same trace gives the same figures.
DEFAULT_TOLERANCE = "0.1%"


class Limit(NamedTuple):
    """`figure` must not be, say, `<` `value`."""

    figure: str
    operator: str
    value: float
    text: str


class Tolerance(NamedTuple):
    """How much worse than a baseline a figure may be: a share of the baseline, or as it is."""

    value: float
    is_relative: bool
    text: str


def parse_limit(text: str) -> Limit:
    """The limit that `NAME OP NUMBER` sets: the gate fails where it is true.

    Raises
    ------
    InputError
        When it is not of that form, no report has such a figure, or it never or always holds.
    """
    match = _LIMIT.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r} is no limit; NAME OP NUMBER, as 'mean_balancedness < 0.9', is")
    name, sign, number, percent = match.groups()
    if sign not in COMPARISONS:
        raise InputError(f"{text!r}: {sign} is no comparison; {' '.join(COMPARISONS)} are")
    _check_name(name)
    is_share, value = FIGURES[name].is_share, float(number)
    if percent:
        if not is_share:
            raise InputError(f"{text!r}: {name} is no share, so a percent sign means nothing here")
        value /= 100
    if is_share and not 0 <= value <= 1:
        hint = f"; {number}% is meant?" if not percent and 1 < value <= 100 else ""
        raise InputError(f"{text!r}: {name} is a share from 0 to 1, never {number}{percent}{hint}")
    if not isfinite(value):
        raise InputError(f"{text!r}: {number} is beyond all numbers")
    if is_share and (sign, value) in _IDLE:
        raise InputError(
            f"{text!r}: {name} is a share from 0 to 1, so this is {_IDLE[sign, value]}"
        )
    return Limit(name, sign, value, f"{name} {sign} {number}{percent}")


def _check_name(name: str) -> None:
    if name in FIGURES:
        return
    if name in _OF_PLANS:
        raise InputError(
            f"{name} is a figure of the plan, not of what a trace makes of it; `eplb show` has it."
            f" Here are: {', '.join(FIGURES)}"
        )
    near = difflib.get_close_matches(name, FIGURES, n=1)
    meant = f" {near[0]} is meant?" if near else ""
    raise InputError(f"no figure is called {name!r}.{meant} There are: {', '.join(FIGURES)}")


def parse_tolerance(text: str) -> Tolerance:
    """A tolerance: `0.5%` of the baseline's figure, or `0.005` in the figure's own unit.

    Raises
    ------
    InputError
        When it is neither, or so wide that nothing could fail.
    """
    match = _TOLERANCE.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r} is no tolerance; 0.5% (of the baseline) or 0.005 is")
    number, percent = match.groups()
    value = float(number) / 100 if percent else float(number)
    if value < 0:
        raise InputError(f"a tolerance of {text} is below 0, so that nothing could pass")
    if value >= 1:
        hint = "" if percent else f"; {number}% is meant?" if float(number) < 100 else ""
        raise InputError(f"with a tolerance of {text} nothing could fail{hint}")
    return Tolerance(value, bool(percent), f"{number}{percent}")
