"""What a model's configuration says of its experts."""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from ._arrays import Bools, Ints
from .errors import RefusedError
from .routes import RouteTrace
from .trace import LoadTrace, how_layers_differ

AnyTrace = TypeVar("AnyTrace", LoadTrace, RouteTrace)


@dataclass(frozen=True)
class Model:
    """The structure of a model, as far as placing experts needs it.

    Parameters
    ----------
    name
        The model's type, in its own words.
    num_layers
        Decoder layers, dense ones included and MTP layers not.
    moe_layer_ids
        The decoder layers that have experts, ascending.
    num_experts
        Routed experts of each of them.
    top_k, num_groups
        Experts per token and routing groups; None when not said.
    mtp_layer_ids
        Multi-token-prediction layers with experts, numbered from `num_layers`.
    num_shared_experts
        Experts that every token visits.
    expert_matrices
        Outputs and inputs of each matrix of an expert; empty when not known.
    expert_bytes
        Bytes of one expert in one layer, scales included; None when not known.
    """

    name: str
    num_layers: int
    moe_layer_ids: tuple[int, ...]
    num_experts: int
    top_k: int | None = None
    num_groups: int | None = None
    mtp_layer_ids: tuple[int, ...] = ()
    num_shared_experts: int = 0
    expert_matrices: tuple[tuple[int, int], ...] = ()
    expert_bytes: int | None = None

    @property
    def all_layer_ids(self) -> tuple[int, ...]:
        """Every layer with experts: decoder layers, then multi-token-prediction layers."""
        return (*self.moe_layer_ids, *self.mtp_layer_ids)

    def describe(self, trace: AnyTrace) -> tuple[AnyTrace, list[str]]:
        """`trace` with the layer numbers, groups and top-k of this model, and remarks.

        Its rows are of all decoder layers, or of the layers with experts in their order, or they
        carry the model's own numbers.

        Raises
        ------
        RefusedError
            When the trace is of other experts, layers, groups or top-k.
        """
        if trace.num_experts != self.num_experts:
            raise RefusedError(
                f"the trace has {trace.num_experts} experts a layer and the model"
                f" ({self.name}) {self.num_experts}; it is of another model"
            )
        for key in ("num_groups", "top_k"):
            ours, theirs = getattr(self, key), getattr(trace, key)
            if ours is not None and theirs is not None and ours != theirs:
                raise RefusedError(
                    f"the trace has {key} {theirs} and the model ({self.name}) {ours};"
                    " it is of another model"
                )
        layer_ids, notes = self._numbers(trace.layer_ids, _dense(trace))
        changed: dict[str, Any] = {
            "layer_ids": layer_ids,
            "num_groups": trace.num_groups or self.num_groups,
        }
        if isinstance(trace, LoadTrace):
            changed["top_k"] = trace.top_k or self.top_k
        return replace(trace, **changed, model=trace.model or self.name), notes

    def _numbers(self, layer_ids: Ints, dense: Bools) -> tuple[Ints, list[str]]:
        """The model's numbers of the rows of a trace; `dense` marks rows that carry nothing."""
        moe, rows = np.array(self.moe_layer_ids), len(layer_ids)
        # Rows numbered from 0 may be the layers with experts in their order: no recorder numbers
        # them so unless it knows no other. Not so when just the rows of dense layers are empty:
        # then they are the first of all decoder layers.
        fits = dense.any() and np.isin(layer_ids[~dense], moe).all()
        if np.array_equal(layer_ids, np.arange(rows)) and not np.array_equal(layer_ids, moe):
            for ids in (self.moe_layer_ids, self.all_layer_ids):
                if rows == len(ids) and not fits:
                    return np.array(ids), [f"rows are taken for layers {_span(ids)} of the model"]
        unknown = ~np.isin(layer_ids, self.all_layer_ids) & ~dense
        if unknown.any():
            wrong = layer_ids[unknown]
            raise RefusedError(
                f"the trace has load in layer {wrong[0]}, which has no experts in the model"
                f" ({self.name}: {len(moe)} such layers, {_span(self.moe_layer_ids)});"
                f" the layers do not fit ({how_layers_differ(layer_ids[~dense], moe)})"
            )
        idle = tuple(layer for layer in self.moe_layer_ids if layer not in layer_ids[~dense])
        notes = (
            [f"no load in layers {_span(idle)}, which have experts in the model"] if idle else []
        )
        return layer_ids, notes


def _dense(trace: LoadTrace | RouteTrace) -> Bools:
    """Which rows carry nothing at all, of shape (L,)."""
    if isinstance(trace, LoadTrace):
        return trace.dense_layers()
    if trace.top_k > 1:
        for row in np.flatnonzero((trace.experts[0] == 0).all(axis=1)):
            if not trace.experts[:, row].any():
                raise RefusedError(
                    f"the routes of layer {trace.layer_ids[row]} name expert 0 only, {trace.top_k}"
                    " times for every token: what recorders write where a layer has no experts."
                    " −1 is expected there, or the layer left out"
                )
    if trace.experts.dtype.kind == "u":
        return np.zeros(trace.experts.shape[1], bool)
    empty: Bools = np.all(trace.experts < 0, axis=(0, 2))
    return empty


def _span(layer_ids: tuple[int, ...]) -> str:
    """Layer numbers in a few words."""
    first, last = layer_ids[0], layer_ids[-1]
    if layer_ids == tuple(range(first, last + 1)):
        return f"{first} to {last}"
    shown = ", ".join(map(str, layer_ids[:4]))
    return shown if len(layer_ids) <= 4 else f"{shown}, … {last}"
