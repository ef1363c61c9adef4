"""Constants of the time model fitted to measured steps.

The fit minimises the squares of log(modelled / measured), so that an error of 10 % counts the same
in a short step and in a long one, and searches over the logarithms of the constants, which keeps
them above 0. It starts from the constants given and from slower and faster ones, since the longest
of several stages decides a step and hides the others. Where two explanations fit alike, the one
found from the constants given is taken.

A constant that no measured step depends on, or that another constant can stand in for, is not
fitted: it keeps its value, and that is said.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from .._arrays import Floats
from ..errors import InputError
from ..hardware import Constant, Hardware

# Modelled seconds, (n,), of the n measured steps with the constants it is given.
Model: TypeAlias = Callable[[Hardware], Floats]

# What a calibration fits unless told otherwise: all that makers do not publish.
FITTED = (
    "flop_efficiency",
    "hbm_efficiency",
    "layer_overhead",
    "intra_node_efficiency",
    "inter_node_efficiency",
    "exchange_latency",
)
# Searches start from the values given, and from fast and slow ones: a share of the nominal speed,
# and a multiple of the seconds given. What starts slow enough decides every step, so that the
# search sees it; what starts fast is out of its way.
_FAST, _SLOW = (0.9, 0.01), (0.01, 100.0)
# A search from elsewhere wins only with squares smaller by this factor, or this much a step.
_BETTER, _EQUAL = 0.99, 1e-12
# Least values; a fraction is at most 1.
_LEAST = {"fraction": 1e-4, "s": 1e-8}
_MOST = {"fraction": 1.0, "s": 1.0}
# How far inside those, in logarithms, a search starts.
_INSIDE = 1e-3
# Log change of the step times per log change of a constant below which no step depends on it.
_INSENSITIVE = 1e-4
# Least singular value, relative, of the normalised changes with which constants can be told apart.
_COLLINEAR = 1e-4
# Step of the differences that the changes are computed with.
_STEP = 1e-4
# A value given is not put back when that makes the error larger by this factor and this much.
_WORSE, _CLOSE = 1.01, 1e-6


class Calibration(NamedTuple):
    """What measured steps say of the constants.

    `fitted` has the new values and `uncertainty` their relative standard errors; `undetermined`
    says by name why a constant was not fitted. `error` is the relative root mean square of the
    modelled step times against the measured ones, `error_before` that of the constants given.
    """

    hardware: Hardware
    fitted: dict[str, float]
    uncertainty: dict[str, float]
    undetermined: dict[str, str]
    error: float
    error_before: float


def calibrate(
    model: Model,
    measured: Floats,
    hardware: Hardware,
    names: Sequence[str] = FITTED,
) -> Calibration:
    """The constants `names` of `hardware` with which `model` best gives the `measured` seconds.

    `model` returns the modelled seconds, (n,), of the n measured steps with the constants it is
    given; n may be less than the number of constants, of which some are then undetermined.

    Raises
    ------
    InputError
        When a measured time is not above 0, a constant cannot be fitted, or the model gives no time
        for a measured step.
    """
    measured = np.asarray(measured, np.float64)
    if measured.ndim != 1 or not len(measured):
        raise InputError(f"{measured.size} measured steps; a list of at least one is expected")
    if not (np.isfinite(measured) & (measured > 0)).all():
        raise InputError("a measured step time is not above 0 seconds")
    for name in names:
        if name not in FITTED:
            raise InputError(f"{name} is not fitted; {', '.join(FITTED)} can be")
    before = model(hardware)
    if before.shape != measured.shape:
        raise InputError(f"{len(measured)} step times were measured and {before.size} modelled")
    if not (before > 0).all():
        raise InputError("a measured step has no tokens to model its time from")
    problem = _Problem(model, measured, hardware)
    best, reasons = _determined(problem, tuple(names))
    return Calibration(
        hardware=problem.with_values(best),
        fitted=best,
        uncertainty=_uncertainty(problem, best, [name for name in best if name not in reasons]),
        undetermined=reasons,
        error=_error(problem, best),
        error_before=_error(problem, {}),
    )


class _Problem(NamedTuple):
    """The model, what was measured, and the constants to start from."""

    model: Model
    measured: Floats
    given: Hardware

    def with_values(self, values: Mapping[str, float]) -> Hardware:
        """The constants given, with these in place of theirs."""
        values = {n: min(v, _MOST[self.given.constants[n].unit]) for n, v in values.items()}
        source = f"fitted to {len(self.measured)} measured steps, from {self.given.name}"
        return self.given.with_values(values, source)

    def residuals(self, values: Mapping[str, float]) -> Floats:
        """log(modelled / measured) of each step, (n,)."""
        residual: Floats = np.log(self.model(self.with_values(values)) / self.measured)
        return residual


def _determined(
    problem: _Problem, names: tuple[str, ...]
) -> tuple[dict[str, float], dict[str, str]]:
    """The values that follow from what was measured, and why others do not, by name."""
    best = _search(problem, names)
    reasons: dict[str, str] = {}
    while unknown := _undetermined(problem, best):
        kept = _search(problem, tuple(name for name in best if name not in unknown))
        if _error(problem, kept) > _WORSE * _error(problem, best) + _CLOSE:
            # What was given contradicts what was measured, of which only this much is known.
            limits = {name: f"only a limit is known: {why}" for name, why in unknown.items()}
            return best, reasons | limits
        best, reasons = kept, reasons | unknown
    return best, reasons


def _error(problem: _Problem, values: Mapping[str, float]) -> float:
    """The relative root mean square error with these values."""
    return float(np.sqrt(np.mean(np.expm1(problem.residuals(values)) ** 2)))


def _search(problem: _Problem, names: tuple[str, ...]) -> dict[str, float]:
    """The values of `names` with the least squares, the best of all starts."""
    if not names:
        return {}
    from scipy.optimize import least_squares

    constants = [problem.given.constants[name] for name in names]
    low = np.log([_LEAST[constant.unit] for constant in constants])
    high = np.log([_MOST[constant.unit] for constant in constants])

    def values(logs: Floats) -> dict[str, float]:
        return {n: float(v) for n, v in zip(names, np.exp(np.minimum(logs, high)), strict=True)}

    fits = [
        least_squares(
            lambda logs: problem.residuals(values(logs)),
            np.clip(start, low + _INSIDE, high - _INSIDE),
            bounds=(low, high),
            xtol=1e-12,
            ftol=1e-12,
            gtol=1e-12,
        )
        for start in _starts(constants)
    ]
    best = fits[0]
    for fit in fits[1:]:
        if fit.cost < _BETTER * best.cost - _EQUAL * len(problem.measured):
            best = fit
    return values(best.x)


def _starts(constants: list[Constant]) -> Iterator[Floats]:
    """Logarithms to start from: the values given, all fast, all slow, and each one slow alone."""
    given = np.array([max(c.value, _LEAST[c.unit]) for c in constants])
    is_share = np.array([c.unit == "fraction" for c in constants])
    fast, slow = (np.where(is_share, share, given * multiple) for share, multiple in (_FAST, _SLOW))
    yield from (np.log(given), np.log(fast), np.log(slow))
    for alone in np.eye(len(constants), dtype=bool):
        yield np.log(np.where(alone, slow, fast))


def _changes(problem: _Problem, values: Mapping[str, float], step: float) -> Floats:
    """Log change of each step's time per log change of each constant, (n, number of values)."""
    here = problem.residuals(values)
    columns = [
        (problem.residuals({**values, name: value * np.exp(step)}) - here) / step
        for name, value in values.items()
    ]
    return np.stack(columns, axis=1)


def _sensitivity(problem: _Problem, values: Mapping[str, float]) -> Floats:
    """Root mean square of those changes, for each constant; the lesser of slower and faster. Where
    a stage stops deciding, slower counts and faster does not: the value is only a limit."""
    slower, faster = (
        np.sqrt(np.mean(_changes(problem, values, step) ** 2, axis=0)) for step in (-_STEP, _STEP)
    )
    at_most = [
        v * np.exp(_STEP) >= _MOST[problem.given.constants[n].unit] for n, v in values.items()
    ]
    least: Floats = np.where(at_most, slower, np.minimum(slower, faster))
    return least


def _undetermined(problem: _Problem, values: dict[str, float]) -> dict[str, str]:
    """Why some of the values do not follow from what was measured, by name."""
    from scipy.linalg import lstsq, qr

    if not values:
        return {}
    names, size = np.array(list(values)), _sensitivity(problem, values)
    changes = _changes(problem, values, -_STEP)
    reasons = {str(name): "no measured step depends on it" for name in names[size < _INSENSITIVE]}
    names, changes = names[size >= _INSENSITIVE], changes[:, size >= _INSENSITIVE]
    if not len(names):
        return reasons
    changes = changes / np.linalg.norm(changes, axis=0)
    _, triangle, order = qr(changes, mode="economic", pivoting=True)
    rank = int((np.abs(np.diag(triangle)) > _COLLINEAR).sum())
    kept = order[:rank]
    for column in order[rank:]:
        part = np.abs(lstsq(changes[:, kept], changes[:, column])[0])
        alike = ", ".join(sorted(names[kept[part > _COLLINEAR]]))
        reasons[str(names[column])] = f"it cannot be told apart from {alike}"
    return reasons


def _uncertainty(
    problem: _Problem, values: Mapping[str, float], names: list[str]
) -> dict[str, float]:
    """The relative standard errors of `names`; none without more steps than names."""
    spare = len(problem.measured) - len(names)
    if spare < 1 or not names:
        return {}
    changes = _changes(problem, values, -_STEP)[:, [name in names for name in values]]
    variance = float((problem.residuals(values) ** 2).sum()) / spare
    errors = np.sqrt(variance * np.diag(np.linalg.inv(changes.T @ changes)))
    return {name: float(error) for name, error in zip(names, errors, strict=True)}
