"""The only arithmetic on loads.

Even split: every copy of an expert serves an equal share of its tokens. Balancedness is the mean
rank load over the largest, for one window and one layer; 1 is perfect. Two aggregates are in use
and kept apart by name: `mean_balancedness` (the mean of those ratios, as SGLang reports it) and
`efficiency` (Σ mean ÷ Σ max, as vLLM reports it), which is proportional to time because layers run
one after another.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ._arrays import Floats, Ints, Numbers
from .placement import Placement

# Numbers per block of windows in `rank_loads`: 2^22 float64 are 32 MB.
_BLOCK = 2**22


class Balance(NamedTuple):
    """How even a placement is on some loads; every value but `peak_load` lies in (0, 1]."""

    mean_balancedness: float
    worst_balancedness: float
    p95_balancedness: float
    efficiency: float
    layer_balancedness: Floats  # (L,)
    peak_load: Floats  # (L,), tokens


def even_split(tokens: Numbers, replica_count: Ints) -> Floats:
    """Tokens that each copy serves: `tokens` (..., E) over `replica_count` (..., E)."""
    share: Floats = tokens / replica_count
    return share


def slot_loads(tokens: Numbers, placement: Placement) -> Floats:
    """Tokens that each slot serves under even split, (W, L, S), from `tokens` (W, L, E)."""
    slots = placement.physical_to_logical
    share = even_split(tokens, placement.replica_count)
    on_slot: Floats = np.take_along_axis(share, np.maximum(slots, 0)[None], axis=2)
    on_slot *= slots >= 0
    return on_slot


def by_rank(slot_load: Floats, num_ranks: int) -> Floats:
    """Tokens that each rank serves, (..., R), from those of its slots, (..., S)."""
    loads: Floats = slot_load.reshape(*slot_load.shape[:-1], num_ranks, -1).sum(axis=-1)
    return loads


def rank_loads(tokens: Numbers, placement: Placement) -> Floats:
    """Tokens that each rank serves under even split, (W, L, R), from `tokens` (W, L, E)."""
    num_windows, num_layers, _ = tokens.shape
    loads = np.empty((num_windows, num_layers, placement.num_ranks))
    block = max(1, _BLOCK // max(1, placement.physical_to_logical.size))
    for first in range(0, num_windows, block):
        part = slice(first, first + block)
        loads[part] = by_rank(slot_loads(tokens[part], placement), placement.num_ranks)
    return loads


def peak_loads(rank_load: Floats) -> Floats:
    """The busiest rank's load, of shape (W, L), from `rank_load` (W, L, R)."""
    peaks: Floats = rank_load.max(axis=2)
    return peaks


def slot_peaks(load_EW: Floats, slots: Ints, pace: Floats) -> Floats:
    """The busiest rank's load of each window, (W,), for one layer whose ranks, each with its
    `pace` (R,), hold `slots` (S,): what `rank_loads` gives, for a search that has no placement."""
    count = np.bincount(slots, minlength=len(load_EW))
    on_slot = even_split(load_EW, count[:, None])[slots]
    by_rank = on_slot.reshape(len(pace), -1, load_EW.shape[1]).sum(axis=1)
    peaks: Floats = (by_rank * pace[:, None]).max(axis=0)
    return peaks


def balancedness(rank_load: Floats) -> Floats:
    """Mean over busiest rank load, of shape (W, L), from `rank_load` (W, L, R); 1 where a layer
    carries no load."""
    return ratios(rank_load.mean(axis=2), peak_loads(rank_load))


def ratios(mean: Floats, peak: Floats) -> Floats:
    """Balancedness from mean and busiest rank loads of one shape."""
    ratio: Floats = np.divide(mean, peak, out=np.ones_like(peak), where=peak > 0)
    return ratio


def over_windows(values: Floats, window_weight: Floats) -> Floats:
    """The weighted mean over windows of `values` (W, ...)."""
    weight = window_weight / window_weight.sum()
    mean: Floats = (values * weight.reshape(-1, *[1] * (values.ndim - 1))).sum(axis=0)
    return mean


def aggregate(mean: Floats, peak: Floats, window_weight: Floats | None = None) -> Balance:
    """The balance of mean and busiest rank loads, each (W, L), windows counted by their weight.

    `p95_balancedness` is the value that 95 % of (window, layer) pairs reach or pass;
    `worst_balancedness` is that of the worst layer, its windows averaged.
    """
    weight = np.ones(len(mean)) if window_weight is None else window_weight
    ratio = ratios(mean, peak)
    by_layer = over_windows(ratio, weight)
    busiest = over_windows(peak, weight)
    total = over_windows(mean, weight)
    return Balance(
        mean_balancedness=float(by_layer.mean()),
        worst_balancedness=float(by_layer.min()),
        p95_balancedness=float(np.quantile(ratio, 0.05, method="lower")),
        efficiency=float(total.sum() / busiest.sum()) if busiest.any() else 1.0,
        layer_balancedness=by_layer,
        peak_load=busiest,
    )


def measure(
    tokens: Numbers,
    placement: Placement,
    window_weight: Floats | None = None,
    rank_speed: Sequence[float] | None = None,
) -> Balance:
    """How even `placement` is on `tokens` (W, L, E), each window counted by `window_weight` (W,).

    With `rank_speed` (R,) loads are in tokens that a rank of mean speed would serve in the time.
    """
    loads = rank_loads(tokens, placement)
    live = np.setdiff1d(np.arange(placement.num_ranks), placement.excluded_ranks)
    mean = loads.sum(axis=2) / len(live)
    if rank_speed is not None:
        speed = np.asarray(rank_speed, np.float64)
        loads = loads * (speed[live].mean() / speed)
    return aggregate(mean, peak_loads(loads), window_weight)
