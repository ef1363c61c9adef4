"""What is wrong, or worth knowing, about a recorded trace.

Recorded loads are often bad in ways that a plan would hide: counts of one rank only, warm-up
counted in, filler ids, totals multiplied by the ranks that saw the same token. Every finding has a
stable id, the numbers that led to it and a remedy.
"""

from collections.abc import Iterator
from math import sqrt
from typing import NamedTuple

import numpy as np

from ._arrays import Bools, Floats, Ints
from .routes import RouteTrace
from .trace import LoadTrace

# A placement is worth no more than its loads are known: the share of an expert's load that is
# noise, one standard error, above which EP109 warns.
TRUSTED_ERROR = 0.10
# EP110 warns when the halves around the best split differ by more than this share of all tokens,
# and by more than three times what sampling alone would make.
REGIME_SHIFT = 0.10
_REGIME_NOISE = 3.0
# EP105 tolerates rounding of averaged loads, not tokens lost on the way.
_TOTALS_TOLERANCE = 1e-6
# Fewer different loads than this can be multiples of a number, or the same again, by chance.
_TELLING_LOADS = 8


class Rule(NamedTuple):
    """What a finding id means: `title`, `why` it matters and the `remedy`.

    A rule that only `informs` tells what is normal in good traces too.
    """

    title: str
    why: str
    remedy: str
    informs: bool = False


RULES = {
    "EP101": Rule(
        "layers without any load",
        "Recorders that number all decoder layers write zeros for dense layers. There is nothing to"
        " place in them.",
        "Nothing to do: they are dropped, and the plan names the layers it covers. If a layer is"
        " not dense, its recording failed: record again.",
        informs=True,
    ),
    "EP102": Rule(
        "layers whose experts all have the same load",
        "A real router never spreads tokens perfectly evenly. Such rows come from a simulated"
        " router, a recorder that fills gaps, or an average that was spread.",
        "Record with the real router. Every placement of these layers is equally good.",
    ),
    "EP103": Rule(
        "experts that no token reached",
        "An expert without load is planned as free of cost. Either the trace is too short for rare"
        " experts, or the model has dead ones.",
        "Record more tokens, of the traffic you serve. A dead expert does no harm.",
        informs=True,
    ),
    "EP104": Rule(
        "counts of one rank only",
        "All load lies in one block of neighbouring experts, the same in every layer, and the rest"
        " is zero: the recorder saw only the experts of one rank.",
        "Sum the files of all ranks, or record with a mode that gathers over ranks.",
    ),
    "EP105": Rule(
        "layers whose totals disagree",
        "Every token visits every layer and picks top_k experts in each, so all layers of a window"
        " must add up to the same number. Some counts were lost or made up.",
        "Record again with nothing dropped: no capacity limit, no padding, one recorder for all"
        " layers.",
    ),
    "EP106": Rule(
        "counts that are all multiples of one number",
        "Tokens were counted once for each of several ranks that saw them. Proportions are right,"
        " totals are not, and error bars are too small.",
        "Divide the loads by the number, or record on one of the ranks that see the same tokens.",
    ),
    "EP107": Rule(
        "a warm-up head: first windows that are identical",
        "Engines run the same dummy batch before they serve. Those windows say nothing of traffic.",
        "Leave them out with --windows.",
    ),
    "EP108": Rule(
        "filler ids counted as tokens",
        "A token cannot go to one expert twice, so no expert can have more than 1 / top_k of a"
        " window's load, and no row of routes can name an expert twice. Padding was counted.",
        "Mask padding and dense layers in the recorder, or drop the rows.",
    ),
    "EP109": Rule(
        "too few tokens to trust",
        "Loads are counts of a random process. With few tokens an expert looks hot or cold by"
        " chance, and a plan follows the noise.",
        "Record more tokens, or use fewer, longer windows.",
    ),
    "EP110": Rule(
        "windows whose regimes differ",
        "Traffic changes over the trace by far more than chance: another workload, prefill and"
        " decode mixed, or a new phase.",
        "Plan from the regime you will serve with --windows, or give both as --scenario files with"
        " weights.",
    ),
    "EP111": Rule(
        "windows without any load",
        "An idle window adds nothing to a plan but counts in the mean over windows.",
        "Leave them out with --windows, or record only while serving.",
    ),
    "EP112": Rule(
        "one window only",
        "Drift cannot be seen in a single sum, so the plan cannot be made robust to it and its"
        " balance on later traffic cannot be estimated.",
        "Record several windows: --window-tokens or --window-steps cut routes; several files are"
        " several windows.",
        informs=True,
    ),
}


class Finding(NamedTuple):
    """One thing found: the id of its rule and what was found, with numbers."""

    id: str
    found: str


def inspect(trace: LoadTrace, routes: RouteTrace | None = None) -> list[Finding]:
    """What is wrong or worth knowing about a trace, in the order of ids; with the token routes
    that it was counted from, also about them.

    Of a trace with scenarios it is about the timeline alone: scenarios are meant to differ, and
    their loads are scaled.
    """
    trace = trace.timeline()
    loads = trace.tokens.astype(np.float64)
    live = ~trace.dense_layers()
    found = list(_layers(trace, loads, live))
    if live.any():
        found += _experts(trace, loads[:, live], routed=routes is not None)
        found += _totals(trace, loads[:, live])
        found += _windows(trace, loads[:, live])
    if routes is not None:
        found += _repeated_ids(routes)
    return sorted(found)


def relative_error(tokens_of_expert: float) -> float:
    """One standard error of an expert's load, as a share of it, from that many counted tokens."""
    return 1 / sqrt(tokens_of_expert) if tokens_of_expert > 0 else float("inf")


def _layers(trace: LoadTrace, loads: Floats, live: Bools) -> Iterator[Finding]:
    if not live.all():
        dense = trace.layer_ids[~live]
        yield Finding("EP101", f"{_count(len(dense), 'layer')} without load: {listed(dense)}")
    constant = live & (loads == loads[:, :, :1]).all(axis=(0, 2)) & (trace.num_experts > 1)
    if constant.any():
        ids = trace.layer_ids[constant]
        yield Finding("EP102", f"{_count(len(ids), 'layer')} with equal loads: {listed(ids)}")


def _experts(trace: LoadTrace, loads: Floats, routed: bool) -> Iterator[Finding]:
    hit = loads.sum(axis=0) > 0
    first, last = np.flatnonzero(hit.any(axis=0))[[0, -1]]
    num_experts = trace.num_experts
    # The smallest block that a rank could hold; experts at its edges may have gone without load.
    width = next(
        w for w in range(1, num_experts + 1) if num_experts % w == 0 and first // w == last // w
    )
    if width < num_experts:
        rank = int(first // width)
        yield Finding(
            "EP104",
            f"all load is on experts {rank * width} to {(rank + 1) * width - 1} of {num_experts},"
            f" in every layer: those of rank {rank} of {num_experts // width}",
        )
        return
    if not hit.all():
        never = (~hit).sum(axis=1)
        worst = int(np.argmax(never))
        yield Finding(
            "EP103",
            f"{_count(int(never.sum()), 'expert')} of {hit.size} never hit; most in layer"
            f" {_live_ids(trace)[worst]}: {listed(np.flatnonzero(~hit[worst]))}",
        )
    # Routes are checked token by token; and where some name fewer experts, totals say less.
    if trace.top_k and not routed:
        share = loads.max(axis=2) / np.maximum(loads.sum(axis=2), 1e-300)
        window, layer = np.unravel_index(int(np.argmax(share)), share.shape)
        if share[window, layer] > (1 + _TOTALS_TOLERANCE) / trace.top_k:
            yield Finding(
                "EP108",
                f"expert {int(loads[window, layer].argmax())} has"
                f" {share[window, layer]:.1%} of window {window} in layer"
                f" {_live_ids(trace)[layer]}; with top-{trace.top_k} routing"
                f" {1 / trace.top_k:.1%} is the most possible",
            )


def _totals(trace: LoadTrace, loads: Floats) -> Iterator[Finding]:
    totals = loads.sum(axis=2)
    low, high = totals.min(axis=1), totals.max(axis=1)
    off = (high - low) > _TOTALS_TOLERANCE * high + trace.num_experts * _rounding(loads)
    if off.any():
        window = int(np.argmax((high - low) / np.maximum(high, 1e-300)))
        ids = _live_ids(trace)
        yield Finding(
            "EP105",
            f"in {_count(int(off.sum()), 'window')} of {len(off)}; window {window}:"
            f" layer {ids[int(totals[window].argmin())]} has {low[window]:.6g} and layer"
            f" {ids[int(totals[window].argmax())]} {high[window]:.6g}",
        )
    # Equal loads are what every layer gives where each token goes to all experts.
    varied = loads[:, _varied(loads)].ravel()
    if len(varied) and _are_counts(loads):
        factor = int(np.gcd.reduce(varied.astype(np.int64)))
        if factor > 1 and _tell(varied):
            yield Finding("EP106", f"every load is a multiple of {factor}")


def _rounding(loads: Floats) -> float:
    """Half a unit of the last decimal that averages are written with; 0 for counts and for
    averages that are written in full."""
    if _are_counts(loads):
        return 0.0
    for digits in range(1, 6):
        if (np.round(loads, digits) == loads).all():
            return float(0.5 * 10.0**-digits)
    return 0.0


def _are_counts(loads: Floats) -> bool:
    """Whether all are whole; they may be stored as floats."""
    return bool((loads == np.floor(loads)).all())


def _varied(loads: Floats) -> Bools:
    """Which layers tell experts apart, of shape (L,)."""
    varied: Bools = (loads != loads[:, :, :1]).any(axis=(0, 2))
    return varied


def _tell(loads: Floats) -> bool:
    """Whether there are enough different loads for a pattern in them to mean something."""
    return len(np.unique(loads[loads > 0])) >= _TELLING_LOADS


def _windows(trace: LoadTrace, loads: Floats) -> Iterator[Finding]:
    totals = loads.sum(axis=(1, 2))
    idle = np.flatnonzero(totals == 0)
    if len(idle):
        yield Finding("EP111", f"{_count(len(idle), 'window')} without load: {listed(idle)}")
    num_windows, num_layers, num_experts = loads.shape
    if num_windows == 1:
        yield Finding("EP112", "drift cannot be seen in one window")
    else:
        same = (loads == loads[:1]).all(axis=(1, 2))
        head = num_windows if same.all() else int(np.argmin(same))
        if head > 1 and _tell(loads[0, _varied(loads)]):
            yield Finding(
                "EP107",
                f"windows 0 to {head - 1} are identical"
                + ("" if head == num_windows else f"; --windows {head}: leaves them out"),
            )
        yield from _regimes(loads)
    if _are_counts(loads):
        # The error of an average expert in one window; fractions are averages of unknown counts.
        per_window = float(totals.mean()) / num_layers / num_experts
        per_trace = per_window * num_windows
        if relative_error(per_window) > TRUSTED_ERROR:
            yield Finding(
                "EP109",
                f"an average expert has {per_window:.3g} tokens a window, known to"
                f" ±{relative_error(per_window):.0%}, and {per_trace:.3g} in all, known to"
                f" ±{relative_error(per_trace):.0%} (one standard error)",
            )


def _regimes(loads: Floats) -> Iterator[Finding]:
    """The split in time that explains most: whose sides differ, in total variation of the experts'
    shares, by the most for their lengths."""
    window = np.flatnonzero(loads.any(axis=(1, 2)))  # idle windows are of no regime
    loads = loads[window]
    if len(loads) < 4:
        return
    before = np.cumsum(loads, axis=0)
    best, split_shift_chance = 0.0, (0, 0.0, 0.0)
    for split in range(1, len(loads)):
        left, right = before[split - 1], before[-1] - before[split - 1]
        n_left, n_right = (np.maximum(side.sum(axis=1), 1e-300) for side in (left, right))
        p_left, p_right = left / n_left[:, None], right / n_right[:, None]
        shift = 0.5 * np.abs(p_left - p_right).sum(axis=1).mean()
        # Mean absolute difference of two binomial shares of the same expert, summed over experts.
        share = (left + right) / (n_left + n_right)[:, None]
        variance = share * (1 - share) * (1 / n_left + 1 / n_right)[:, None]
        chance = 0.5 * np.sqrt(2 / np.pi * variance).sum(axis=1).mean()
        # The shorter a side, the more it differs by drift alone.
        weight = sqrt(split * (len(loads) - split))
        if (shift - _REGIME_NOISE * chance) * weight > best:
            best = float((shift - _REGIME_NOISE * chance) * weight)
            split_shift_chance = (split, float(shift), float(chance))
    split, shift, chance = split_shift_chance
    if split and shift > REGIME_SHIFT:
        yield Finding(
            "EP110",
            f"windows {window[0]}:{window[split - 1] + 1} and {window[split]}:{window[-1] + 1}"
            f" differ by {shift:.1%} of all tokens (chance alone: {chance:.1%})",
        )


def _repeated_ids(trace: RouteTrace) -> Iterator[Finding]:
    """Rows of routes that name an expert twice; a padded row often holds one id throughout."""
    if trace.top_k == 1:
        return
    ordered = np.sort(trace.experts, axis=2)
    twice = ((ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] != -1)).any(axis=2)
    if twice.any():
        token, layer = np.argwhere(twice)[0]
        yield Finding(
            "EP108",
            f"{_count(int(twice.sum()), 'route')} of {twice.size} name an expert twice; first:"
            f" token {token}, layer {trace.layer_ids[layer]},"
            f" experts {trace.experts[token, layer].tolist()}",
        )


def _live_ids(trace: LoadTrace) -> Ints:
    ids: Ints = trace.layer_ids[~trace.dense_layers()]
    return ids


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def listed(numbers: Ints, most: int = 12) -> str:
    """Numbers in a few words, runs joined: "0-2, 5, 9 and 31 more"."""
    runs: list[str] = []
    values = [int(n) for n in numbers]
    start = 0
    for i in range(1, len(values) + 1):
        if i < len(values) and values[i] == values[i - 1] + 1:
            continue
        first, last = values[start], values[i - 1]
        runs.append(f"{first}" if first == last else f"{first}-{last}")
        start = i
    if len(runs) <= most:
        return ", ".join(runs)
    return f"{', '.join(runs[:most])} and more"
