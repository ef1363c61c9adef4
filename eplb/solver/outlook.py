"""What traffic a layer is planned for: the recorded windows, or windows to come made from them.

Traffic drifts: its level moves, and a plan for past windows is late. `FUTURES` plans for twice as
many windows around the present level: each recorded window's deviation from the mean, a little
enlarged, added to that level and subtracted from it. Mirroring matters: what rose may fall. Which
outlook serves a trace better is found by back-test on the trace itself (`eplb.study.backtest`).
"""

from typing import NamedTuple

import numpy as np

from .._arrays import Floats


class Outlook(NamedTuple):
    """How windows to plan for are made.

    `recency` is how far the level is moved from the mean of all windows towards the last ones, 0
    to 1; `dilation` enlarges the deviations; `swing` is how many standard deviations above its mean
    an expert is sized for.
    """

    name: str
    mirrored: bool
    recency: float
    dilation: float
    swing: float


# The constants were chosen by walk-forward tests on the training parts of two recorded and nine
# synthetic traces, in a region that is flat around them.
WINDOWS = Outlook("windows", mirrored=False, recency=0.0, dilation=1.0, swing=0.67)
FUTURES = Outlook("futures", mirrored=True, recency=0.8, dilation=1.15, swing=1.3)
OUTLOOKS = {outlook.name: outlook for outlook in (WINDOWS, FUTURES)}

# Windows until what was recorded counts half in the present level.
_HALF_LIFE = 1.0


def windows_to_plan(
    loads: Floats, window_weight: Floats, is_timeline: np.ndarray, outlook: Outlook
) -> tuple[Floats, Floats]:
    """The windows to plan a layer for, (V, E), and their weights, (V,), which add up to 1.

    `loads` is (W, E). Only windows of the timeline, (W,), are moved; scenarios stay as they are.
    Every window made has the mean total of those it is made from.
    """
    share = window_weight / window_weight.sum()
    own = loads[is_timeline]
    totals = own.sum(axis=1)
    if not outlook.mirrored or (totals > 0).sum() < 2:
        return loads, share
    own, weight, totals = own[totals > 0], share[is_timeline][totals > 0], totals[totals > 0]
    part = own / totals[:, None]
    mean = (part * (weight / weight.sum())[:, None]).sum(axis=0)
    recent = 0.5 ** (np.arange(len(part))[::-1] / _HALF_LIFE)
    level = mean + outlook.recency * ((part * (recent / recent.sum())[:, None]).sum(axis=0) - mean)
    swing = outlook.dilation * (part - mean)
    made = np.maximum(np.concatenate([level + swing, level - swing]), 0.0)
    made *= float((totals * weight).sum() / weight.sum()) / made.sum(axis=1, keepdims=True)
    made_weight = np.tile(weight / 2 * share[is_timeline].sum() / weight.sum(), 2)
    return (
        np.concatenate([made, loads[~is_timeline]]),
        np.concatenate([made_weight, share[~is_timeline]]),
    )
