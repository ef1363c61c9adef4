"""Recorded loads: how many tokens went to each expert."""

from dataclasses import dataclass, replace

import numpy as np
import xxhash

from ._arrays import Bools, Filled, Ints, Numbers, frozen
from .errors import InputError

# Above 2^53 a float64 no longer tells neighbouring integers apart, so sums would be wrong silently.
LARGEST_COUNT = 2**53


@dataclass(frozen=True, eq=False)
class LoadTrace:
    """Token-expert assignments by window, layer and logical expert.

    Parameters
    ----------
    tokens
        Of shape (W, L, E); a token routed to top_k experts counts top_k times. int64, or float64
        where the source is an average.
    layer_ids
        Of shape (L,): the model's own layer numbers (DeepSeek-V3: 3 to 60); 0 to L−1 by default.
    window_weight
        Of shape (W,): how much each window counts in a mean over windows; 1 by default.
    scenario
        Of shape (W,): which scenario each window belongs to; 0, the timeline itself, by default.
    num_groups
        Routing groups (G), contiguous blocks of E / G ids; None when unknown.
    top_k
        Experts per token; None when unknown.
    window_steps
        Engine steps summed in one window; None when unknown.
    phase, model
        What was recorded, in the recorder's words.

    Raises
    ------
    InputError
        When a load is negative, not finite or above 2^53, or the shapes do not fit together.
    """

    tokens: Numbers
    layer_ids: Filled = None
    window_weight: Filled = None
    scenario: Filled = None
    num_groups: int | None = None
    top_k: int | None = None
    window_steps: int | None = None
    phase: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        tokens = np.asarray(self.tokens)
        if tokens.ndim != 3 or 0 in tokens.shape:
            raise InputError(
                f"loads of shape {tokens.shape}; windows × layers × experts are expected,"
                " at least one of each"
            )
        if tokens.dtype.kind not in "iuf":
            raise InputError(f"loads are of type {tokens.dtype}; numbers are expected")
        if tokens.dtype.kind == "f":
            tokens = frozen(tokens, np.float64)  # narrow floats cannot be compared with 2^53
        _check_loads(tokens)
        exact = np.int64 if tokens.dtype.kind in "iu" else np.float64
        num_windows, num_layers, num_experts = tokens.shape
        _set(self, "tokens", frozen(tokens, exact))
        layer_ids = np.arange(num_layers) if self.layer_ids is None else np.asarray(self.layer_ids)
        weight = np.ones(num_windows) if self.window_weight is None else self.window_weight
        scenario = np.zeros(num_windows, int) if self.scenario is None else self.scenario
        if np.asarray(scenario).dtype.kind not in "iu":
            raise InputError(
                f"scenario is of type {np.asarray(scenario).dtype}; whole numbers are expected"
            )
        _set(self, "layer_ids", checked_layer_ids(layer_ids, num_layers))
        _set(self, "window_weight", frozen(weight, np.float64))
        _set(self, "scenario", frozen(scenario, np.int64))
        for name in ("window_weight", "scenario"):
            if getattr(self, name).shape != (num_windows,):
                raise InputError(
                    f"{name} has shape {getattr(self, name).shape};"
                    f" one value for each of the {num_windows} windows is expected"
                )
        if not (np.isfinite(self.window_weight).all() and (self.window_weight >= 0).all()):
            raise InputError("window_weight must be finite and not negative")
        if not self.window_weight.any():
            raise InputError("every window has weight 0; at least one must count")
        check_groups(self.num_groups, num_experts)
        check_top_k(self.top_k, num_experts)
        if self.window_steps is not None and self.window_steps < 1:
            raise InputError(f"window_steps is {self.window_steps}; 1 or more is expected")

    @property
    def num_windows(self) -> int:
        """W."""
        return int(self.tokens.shape[0])

    @property
    def num_layers(self) -> int:
        """L."""
        return int(self.tokens.shape[1])

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.tokens.shape[2])

    def windows(self, keep: slice) -> "LoadTrace":
        """The windows of a Python slice.

        Raises
        ------
        InputError
            When the slice holds no window.
        """
        if not len(range(*keep.indices(self.num_windows))):
            first, end = ("" if edge is None else edge for edge in (keep.start, keep.stop))
            raise InputError(
                f"no window in {first}:{end}; the trace has {self.num_windows} windows"
            )
        return self.only(keep)

    def timeline(self) -> "LoadTrace":
        """The windows of the lowest scenario, which are the timeline itself."""
        own = self.scenario == self.scenario.min()
        return self if own.all() else self.only(own)

    def only(self, keep: slice | Bools) -> "LoadTrace":
        """The windows of a slice, or those marked in a mask of shape (W,)."""
        return replace(
            self,
            tokens=self.tokens[keep],
            window_weight=self.window_weight[keep],
            scenario=self.scenario[keep],
        )

    def summed(self, window_steps: int) -> "LoadTrace":
        """Neighbouring windows added up to windows of so many engine steps; a partial last one is
        dropped.

        Raises
        ------
        InputError
            When windows of the trace cannot make up such a window, or do not fill one.
        """
        if self.window_steps is None:
            raise InputError(
                "the counts do not say how many engine steps a window has, so --window-steps cannot"
                " add windows up"
            )
        size = window_steps // self.window_steps
        if window_steps != size * self.window_steps:
            raise InputError(
                f"windows of {self.window_steps} steps do not add up to {window_steps};"
                f" --window-steps {max(size, 1) * self.window_steps} would be the nearest that does"
            )
        count = self.num_windows // size
        if not count:
            raise InputError(
                f"a window of {window_steps} steps is longer than the trace, which has"
                f" {self.num_windows * self.window_steps}"
            )
        kept = self.only(slice(count * size))
        if size == 1:
            return kept
        return replace(
            kept,
            tokens=kept.tokens.reshape(count, size, self.num_layers, -1).sum(axis=1),
            window_weight=kept.window_weight.reshape(count, size).mean(axis=1),
            scenario=kept.scenario[::size],
            window_steps=window_steps,
        )

    def window_digests(self) -> tuple[str, ...]:
        """xxh3-64 of the loads of each window in the order of layers, those without load and layer
        numbers left aside, so that a window is known again whatever it is read from."""
        digests = []
        order = np.argsort(self.layer_ids)
        for window in self.tokens:
            loads = window[order][window[order].any(axis=1)].astype("<f8")
            digests.append(xxhash.xxh3_64_hexdigest(loads.data))
        return tuple(digests)

    def dense_layers(self) -> Bools:
        """Which layers carry no load in any window, of shape (L,): dense layers, as recorders
        that number all decoder layers write them."""
        dense: Bools = np.logical_not(self.tokens.any(axis=(0, 2)))
        return dense

    def layers(self, keep: Bools) -> "LoadTrace":
        """The layers marked in `keep`, of shape (L,)."""
        if keep.all():
            return self
        return self.rows(np.flatnonzero(keep))

    def rows(self, index: Ints) -> "LoadTrace":
        """The layers of these rows, in this order."""
        if np.array_equal(index, np.arange(self.num_layers)):
            return self
        return replace(self, tokens=self.tokens[:, index], layer_ids=self.layer_ids[index])


def how_layers_differ(ours: Ints, theirs: Ints) -> str:
    """In a few words, what two different lists of layer ids do not share."""
    odd = sorted(set(ours.tolist()) ^ set(theirs.tolist()))
    return f"in one only: {odd[:8]}" if odd else "the same in another order"


def checked_layer_ids(layer_ids: Numbers, num_layers: int) -> Ints:
    """`layer_ids` as a read-only array of `num_layers` distinct integers, or an `InputError`."""
    if layer_ids.shape != (num_layers,) or layer_ids.dtype.kind not in "iu":
        raise InputError(
            f"layer_ids has shape {layer_ids.shape} and type {layer_ids.dtype};"
            f" one integer for each of the {num_layers} layers is expected"
        )
    if len(np.unique(layer_ids)) != num_layers:
        raise InputError("layer_ids names a layer twice")
    return frozen(layer_ids, np.int64)


def check_groups(num_groups: int | None, num_experts: int) -> None:
    """Raise `InputError` unless routing groups divide the experts."""
    if num_groups is None:
        return
    if num_groups < 1 or num_experts % num_groups:
        legal = [g for g in range(1, num_experts + 1) if num_experts % g == 0]
        nearest = min(legal, key=lambda g: (abs(g - num_groups), g))
        raise InputError(
            f"{num_experts} experts do not divide into {num_groups} groups;"
            f" --groups {nearest} (num_groups in a file) would be the nearest that does"
        )


def check_top_k(top_k: int | None, num_experts: int) -> None:
    """Raise `InputError` unless a token can go to `top_k` different experts."""
    if top_k is not None and not 1 <= top_k <= num_experts:
        raise InputError(f"top_k is {top_k}; 1 to {num_experts} (the experts) is expected")


def _check_loads(tokens: Numbers) -> None:
    if tokens.dtype.kind == "f" and not np.isfinite(tokens).all():
        where = np.argwhere(~np.isfinite(tokens))[0]
        raise InputError(f"{_at(where)} is {_name(tokens[tuple(where)])}; loads must be finite")
    if tokens.dtype.kind != "u" and tokens.min() < 0:
        where = np.argwhere(tokens < 0)[0]
        raise InputError(
            f"{_at(where)} is {tokens[tuple(where)]}; loads are counts and cannot be negative"
        )
    if tokens.max() > LARGEST_COUNT:
        where = np.argwhere(tokens > LARGEST_COUNT)[0]
        raise InputError(
            f"{_at(where)} is {tokens[tuple(where)]}; loads above 2^53 ({LARGEST_COUNT})"
            " cannot be added exactly: divide all loads by a constant"
        )
    if tokens.sum(axis=(0, 2), dtype=np.float64).max() > LARGEST_COUNT:
        raise InputError(
            f"the loads of a layer add up to more than 2^53 ({LARGEST_COUNT}), beyond which sums"
            " are not exact: divide all loads by a constant"
        )


def _at(where: Ints) -> str:
    return "loads" + "".join(f"[{i}]" for i in where)


def _name(value: object) -> str:
    return "NaN" if value != value else f"{value}"


def _set(value: object, name: str, array: object) -> None:
    object.__setattr__(value, name, array)
