"""Recorded traffic: how many tokens went to each expert, or to which experts each token went."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import numpy as np
import xxhash

from ._arrays import Bools, Filled, Ints, Numbers, frozen
from .errors import InputError

# Above 2^53 a float64 no longer tells neighbouring integers apart, so sums would be wrong silently.
LARGEST_COUNT = 2**53
# No model has nearly as many experts; a number above is a mistake that would fill the memory.
_MOST_EXPERTS = 1_000_000
# Counts that routes may be cut into, windows × layers × experts: 16 GiB.
_MOST_COUNTS = 2**31
_METADATA = ("num_groups", "top_k", "window_steps", "phase", "model")


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


@dataclass(frozen=True, eq=False)
class RouteTrace:
    """The experts that each token was routed to.

    Parameters
    ----------
    experts
        Integers of shape (T, L, top_k) in time order; −1 where absent (unsigned: none absent).
    num_experts
        E; ids are below it.
    source_rank, request, step
        Of shape (T,): the rank a token started on, its request, its engine step; optional.
    layer_ids, num_groups, window_steps, phase, model
        As in `LoadTrace`.
    window_tokens
        Tokens that the recorder suggests for one window; None when it does not.

    Raises
    ------
    InputError
        When ids are out of range or the shapes do not fit together.
    """

    experts: Ints
    num_experts: int
    source_rank: Ints | None = None
    request: Ints | None = None
    step: Ints | None = None
    layer_ids: Filled = None
    num_groups: int | None = None
    window_steps: int | None = None
    window_tokens: int | None = None
    phase: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        experts = np.asarray(self.experts)
        if experts.ndim != 3 or 0 in experts.shape:
            raise InputError(
                f"routes of shape {experts.shape}; tokens × layers × top_k are expected,"
                " at least one of each"
            )
        if experts.dtype.kind not in "iu":
            raise InputError(f"routes are of type {experts.dtype}; integers are expected")
        if self.num_experts > _MOST_EXPERTS:
            raise InputError(
                f"num_experts is {self.num_experts}; {_MOST_EXPERTS} at most is expected"
            )
        low, high = int(experts.min()), int(experts.max())
        if low < -1 or high >= self.num_experts:
            wrong = low if low < -1 else high
            where = np.argwhere(experts == wrong)[0]
            hint = (
                "; 255 is a filler that some recorders write: drop those rows"
                if wrong == 255 and experts.dtype == np.uint8
                else ""
            )
            raise InputError(
                f"routes[{where[0]}][{where[1]}][{where[2]}] is expert {wrong};"
                f" ids from 0 to {self.num_experts - 1} (or −1 for none) are expected{hint}"
            )
        _set(self, "experts", frozen(experts, experts.dtype))
        layer_ids = np.arange(experts.shape[1]) if self.layer_ids is None else self.layer_ids
        _set(self, "layer_ids", checked_layer_ids(np.asarray(layer_ids), experts.shape[1]))
        for name in ("source_rank", "request", "step"):
            column = getattr(self, name)
            if column is None:
                continue
            if np.asarray(column).shape != experts.shape[:1]:
                raise InputError(
                    f"{name} has shape {np.asarray(column).shape};"
                    f" one value for each of the {experts.shape[0]} tokens is expected"
                )
            _set(self, name, frozen(column, np.int64))
        if self.step is not None and (np.diff(self.step) < 0).any():
            raise InputError("step goes backwards; tokens are expected in time order")
        check_groups(self.num_groups, self.num_experts)
        check_top_k(experts.shape[2], self.num_experts)

    @property
    def top_k(self) -> int:
        """Experts per token."""
        return int(self.experts.shape[2])

    def rows(self, index: Ints) -> "RouteTrace":
        """The layers of these rows, in this order."""
        return replace(self, experts=self.experts[:, index], layer_ids=self.layer_ids[index])

    def windows(
        self, window_tokens: int | None = None, window_steps: int | None = None
    ) -> LoadTrace:
        """Count the routes by windows of so many tokens or engine steps.

        A partial last window is dropped, and so are windows of steps without any token. With
        neither argument the trace's own `window_steps` or `window_tokens` decides, else every
        recorded step is a window, else the whole trace is one.

        Raises
        ------
        InputError
            When the trace has no steps to cut by, is shorter than one window, or would be cut into
            more windows than fit into memory.
        """
        window_tokens, window_steps = self._size(window_tokens, window_steps)
        edges = self.edges(window_tokens, window_steps)
        return LoadTrace(
            tokens=self._count(edges),
            layer_ids=self.layer_ids,
            num_groups=self.num_groups,
            top_k=self.top_k,
            window_steps=window_steps or self.window_steps,
            phase=self.phase,
            model=self.model,
        )

    def _size(
        self, window_tokens: int | None, window_steps: int | None
    ) -> tuple[int | None, int | None]:
        """Tokens or else steps of a window, from what is asked for and what the trace suggests."""
        if window_tokens is not None and window_steps is not None:
            raise InputError("--window-tokens and --window-steps exclude each other")
        if window_steps is not None and self.step is None:
            raise InputError(
                "the routes carry no engine steps, so --window-steps cannot cut them;"
                " --window-tokens can"
            )
        if window_tokens is None and window_steps is None:
            if self.step is not None:
                window_steps = self.window_steps or 1
            else:
                window_tokens = self.window_tokens or len(self.experts)
        return window_tokens, window_steps

    def edges(self, window_tokens: int | None = None, window_steps: int | None = None) -> list[int]:
        """First token of each window that `windows` makes, and the end of the last."""
        window_tokens, window_steps = self._size(window_tokens, window_steps)
        num_tokens = len(self.experts)
        size = window_tokens or window_steps or 0
        if size < 1:
            raise InputError(f"a window of {size}; 1 or more is expected")
        if window_tokens is not None:
            have, unit = num_tokens, "tokens"
            edges = list(range(0, num_tokens + 1, size))
        else:
            assert self.step is not None
            index = self.step - self.step[0]
            have, unit = int(index[-1]) + 1, "steps"
            end = int(np.searchsorted(index, have // size * size))
            # Only windows that hold tokens: steps may be numbered with gaps, or be times.
            starts = np.flatnonzero(np.diff(index[:end] // size, prepend=-1))
            edges = [*starts.tolist(), end]
        if len(edges) < 2:
            raise InputError(
                f"a window of {size} {unit} is longer than the trace, which has {have}"
            )
        return edges

    def _count(self, edges: Sequence[int]) -> Ints:
        num_layers = self.experts.shape[1]
        shape = (len(edges) - 1, num_layers, self.num_experts)
        if prod(shape) > _MOST_COUNTS:
            raise InputError(
                f"{shape[0]} windows × {shape[1]} layers × {shape[2]} experts are too many counts;"
                " --window-tokens or --window-steps with a larger number makes fewer windows"
            )
        tokens = np.zeros(shape, np.int64)
        for window, (first, end) in enumerate(pairwise(edges)):
            for layer in range(num_layers):
                ids = self.experts[first:end, layer].ravel().astype(np.int64)
                tokens[window, layer] = np.bincount(ids[ids >= 0], minlength=self.num_experts)
        return tokens


def join(traces: Sequence[LoadTrace]) -> LoadTrace:
    """One timeline of several traces in the order given; what the first does not say of the model
    is taken from those that do.

    Raises
    ------
    InputError
        When they are of different models, layers or numbers of experts.
    """
    first = traces[0]
    for number, other in enumerate(traces[1:], start=2):
        _check_same_model(first, other, f"trace {number}")
        ours, theirs = first.window_steps, other.window_steps
        if ours is not None and theirs is not None and ours != theirs:
            raise InputError(
                f"trace {number} has windows of {theirs} engine steps and the first of {ours};"
                " --window-steps makes them alike"
            )
        unsaid = [key for key in _METADATA if getattr(first, key) is None]
        first = replace(first, **{key: getattr(other, key) for key in unsaid})
    return replace(
        first,
        tokens=np.concatenate([trace.tokens for trace in traces]),
        window_weight=np.concatenate([trace.window_weight for trace in traces]),
        scenario=np.concatenate([trace.scenario for trace in traces]),
    )


def add_scenario(timeline: LoadTrace, other: LoadTrace, weight: float) -> LoadTrace:
    """`timeline` with the windows of a further trace to serve well.

    The scenario's loads are scaled to the timeline's mean window total, so that `weight` alone
    says how much it counts: 1 is as much as the whole timeline.

    Raises
    ------
    InputError
        When it is of other layers or experts, carries no load, or `weight` is not above 0.
    """
    number = int(timeline.scenario.max()) + 1
    _check_same_model(timeline, other, f"scenario {number}")
    if not (np.isfinite(weight) and weight > 0):
        raise InputError(f"scenario {number} has weight {weight}; a number above 0 is expected")
    own = timeline.timeline()
    total = other.tokens.sum() / other.num_windows
    if total == 0:
        raise InputError(f"scenario {number} carries no load")
    scale = own.tokens.sum() / own.num_windows / total
    share = weight * own.window_weight.sum() / other.window_weight.sum()
    scaled = replace(
        other,
        tokens=other.tokens * scale,
        window_weight=other.window_weight * share,
        scenario=np.full(other.num_windows, number),
        window_steps=None,
        phase=None,
    )
    return join([timeline, scaled])


def with_shared_experts(trace: LoadTrace, num_shared: int) -> LoadTrace:
    """The trace with `num_shared` shared experts as routed ones, ids E to E + num_shared − 1, each
    loaded by every token; routing groups no longer divide such experts and are left aside.

    Raises
    ------
    InputError
        When the trace does not say how many experts a token has: tokens cannot be told then.
    """
    if trace.top_k is None:
        raise InputError(
            "shared experts are loaded by every token, and the trace does not say how many experts"
            " a token has: --top-k does"
        )
    every = trace.tokens.sum(axis=2, keepdims=True) / trace.top_k
    shared = np.repeat(every, num_shared, axis=2)
    return replace(
        trace,
        tokens=np.concatenate([trace.tokens, shared], axis=2),
        top_k=trace.top_k + num_shared,
        num_groups=None,
    )


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


def _check_same_model(first: LoadTrace, other: LoadTrace, name: str) -> None:
    if other.num_experts != first.num_experts:
        raise InputError(
            f"{name} has {other.num_experts} experts and the first {first.num_experts};"
            " traces planned together must be of one model"
        )
    if not np.array_equal(other.layer_ids, first.layer_ids):
        raise InputError(
            f"{name} and the first do not cover the same layers"
            f" ({how_layers_differ(first.layer_ids, other.layer_ids)});"
            " traces planned together must be of one model"
        )
    for key in ("num_groups", "top_k", "model"):
        ours, theirs = getattr(first, key), getattr(other, key)
        if ours is not None and theirs is not None and ours != theirs:
            raise InputError(f"{name} has {key} {theirs} and the first {ours}")


def _at(where: Ints) -> str:
    return "loads" + "".join(f"[{i}]" for i in where)


def _name(value: object) -> str:
    return "NaN" if value != value else f"{value}"


def _set(value: object, name: str, array: object) -> None:
    object.__setattr__(value, name, array)
