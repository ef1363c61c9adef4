"""What serving a trace was like, or would be, under one placement or several in turn."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

from . import metrics
from ._arrays import Filled, Floats, Ints, Numbers, frozen
from .errors import InputError


@dataclass(frozen=True, eq=False)
class Report:
    """Loads of the busiest rank by window and layer, and what it took.

    Parameters
    ----------
    layer_ids
        Of shape (L,): the model's own layer numbers.
    windows
        Of shape (W,): the number of each window that was scored, among those read.
    mean_load, peak_load
        Of shape (W, L): the mean and the largest load of a rank in service, in tokens that a rank
        of mean speed serves.
    num_ranks
        Ranks in service.
    window_weight
        Of shape (W,); 1 by default.
    moves
        Of shape (W,): expert copies sent before each window; 0 by default.
    expert_bytes
        Bytes of one copy, to weigh moves with; None when unknown.
    rank_load
        Of shape (L, R): the mean over windows of each rank's load, as served; None when not kept.
    step_tokens
        Of shape (W,): mean assignments of a rank in one step and layer; None when a trace does not
        say how many steps a window has.
    step_seconds
        Of shape (W,): modelled time of one engine step; None without a model of time.
    figures
        Named figures beside those that follow from loads: shares, traffic, seconds.
    constants
        The constants of the time model, by name.

    Raises
    ------
    InputError
        When the shapes do not fit together.
    """

    layer_ids: Ints
    windows: Ints
    mean_load: Floats
    peak_load: Floats
    num_ranks: int
    window_weight: Filled = None
    moves: Filled = None
    expert_bytes: int | None = None
    rank_load: Floats | None = None
    step_tokens: Floats | None = None
    step_seconds: Floats | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        num_windows = len(self.windows)
        if self.window_weight is None:
            object.__setattr__(self, "window_weight", np.ones(num_windows))
        if self.moves is None:
            object.__setattr__(self, "moves", np.zeros(num_windows, np.int64))
        shapes: dict[str, tuple[int, ...]] = {
            "layer_ids": (len(self.layer_ids),),
            "windows": (num_windows,),
            "mean_load": (num_windows, len(self.layer_ids)),
            "peak_load": (num_windows, len(self.layer_ids)),
            "window_weight": (num_windows,),
            "moves": (num_windows,),
            "step_tokens": (num_windows,),
            "step_seconds": (num_windows,),
        }
        for name, shape in shapes.items():
            value: Numbers | None = getattr(self, name)
            if value is None:
                continue
            value = np.asarray(value)
            if value.shape != shape or value.dtype.kind not in "iuf":
                raise InputError(f"{name} has shape {value.shape}; numbers of {shape} are expected")
            kind = np.float64 if value.dtype.kind == "f" else np.int64
            object.__setattr__(self, name, frozen(value, kind))
        if not num_windows or not len(self.layer_ids):
            raise InputError("a report needs at least one window and one layer")

    @property
    def balancedness(self) -> Floats:
        """Mean over busiest rank load, of shape (W, L)."""
        return metrics.ratios(self.mean_load, self.peak_load)

    @property
    def balance(self) -> metrics.Balance:
        """The aggregates over windows and layers."""
        return metrics.aggregate(self.mean_load, self.peak_load, self.window_weight)

    def summary(self) -> dict[str, float]:
        """The named figures of the whole, as the report file has them."""
        balance = self.balance
        figures: dict[str, float] = {
            "mean_balancedness": balance.mean_balancedness,
            "worst_balancedness": balance.worst_balancedness,
            "p95_balancedness": balance.p95_balancedness,
            "efficiency": balance.efficiency,
            "moves": int(self.moves.sum()),
        }
        if self.expert_bytes is not None:
            figures["moved_bytes"] = int(self.moves.sum()) * self.expert_bytes
        if self.step_tokens is not None:
            ceiling = step_ceiling(self.step_tokens, self.num_ranks)
            figures["step_noise_ceiling"] = float(metrics.over_windows(ceiling, self.window_weight))
        if self.step_seconds is not None:
            figures["step_seconds"] = float(
                metrics.over_windows(self.step_seconds, self.window_weight)
            )
        return {**figures, **self.figures}


def step_ceiling(step_tokens: Floats, num_ranks: int) -> Floats:
    """The balancedness of single steps that no even split passes on average, from the mean
    assignments of a rank in a step.

    A step's rank loads scatter by their square roots, as counts of independent tokens do, and the
    largest of R of them lies z standard errors above the mean: 1 / (1 + z / √n). Modelled: tokens
    of one request are not independent, so that real steps scatter more. z is Blom's approximation
    of the expected largest of R normal numbers.
    """
    z = NormalDist().inv_cdf((num_ranks - 0.375) / (num_ranks + 0.25)) if num_ranks > 1 else 0.0
    root = np.sqrt(step_tokens)
    # Without a token every split is even, as everywhere.
    ceiling: Floats = np.divide(root, root + z, out=np.ones_like(root), where=root > 0)
    return ceiling
