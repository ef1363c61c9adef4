"""Recorded routes: the experts that each token went to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import numpy as np

from ._arrays import Filled, Ints, frozen
from .errors import InputError
from .trace import LoadTrace, check_groups, check_top_k, checked_layer_ids

# No model has nearly as many experts; a number above is a mistake that would fill the memory.
_MOST_EXPERTS = 1_000_000
# Counts that routes may be cut into, windows × layers × experts: 16 GiB.
_MOST_COUNTS = 2**31


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
        object.__setattr__(self, "experts", frozen(experts, experts.dtype))
        layer_ids = np.arange(experts.shape[1]) if self.layer_ids is None else self.layer_ids
        object.__setattr__(
            self, "layer_ids", checked_layer_ids(np.asarray(layer_ids), experts.shape[1])
        )
        for name in ("source_rank", "request", "step"):
            column = getattr(self, name)
            if column is None:
                continue
            if np.asarray(column).shape != experts.shape[:1]:
                raise InputError(
                    f"{name} has shape {np.asarray(column).shape};"
                    f" one value for each of the {experts.shape[0]} tokens is expected"
                )
            object.__setattr__(self, name, frozen(column, np.int64))
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
