"""A placement with its score, its bound and where it came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import xxhash

from ._arrays import Floats, Ints, frozen
from .errors import InputError
from .placement import Placement
from .trace import checked_layer_ids

Status = Literal["optimal", "heuristic", "stopped"]

# A layer whose peak is this close to its bound is proven optimal: the sums are of float64 numbers.
OPTIMAL_GAP = 1e-9


@dataclass(frozen=True, eq=False)
class Plan:
    """A placement and what is known of it; only the placement is always there.

    Parameters
    ----------
    placement
        Where the experts live.
    layer_ids
        Of shape (L,): the model's own layer numbers.
    peak_load
        Of shape (L,): the weighted mean over windows of the busiest rank's load, in tokens.
    lower_bound
        Of shape (L,): no placement that obeys the options has a smaller `peak_load`.
    status
        Of each layer: `optimal` (gap ≤ 1e-9), `heuristic`, or `stopped` before it was finished.
    mean_load
        Of shape (L, E): mean tokens a window of each expert, to explain the plan with.
    summary
        Named figures, as the plan file has them.
    frontier
        With a live placement: what other budgets of moves would give, each `max_share` of all
        slots, `moves` and `mean_balancedness`.
    options
        The resolved planning options.
    provenance
        What planned it, on what: versions, digests, the trace's facts.
    extra
        Keys of a plan file that this version does not know, kept as they are.
    """

    placement: Placement
    layer_ids: Ints
    peak_load: Floats | None = None
    lower_bound: Floats | None = None
    status: Sequence[Status] | None = None
    mean_load: Floats | None = None
    summary: Mapping[str, float] = field(default_factory=dict)
    frontier: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        num_layers = self.placement.num_layers
        object.__setattr__(
            self, "layer_ids", checked_layer_ids(np.asarray(self.layer_ids), num_layers)
        )
        shapes = {
            "peak_load": (num_layers,),
            "lower_bound": (num_layers,),
            "mean_load": (num_layers, self.placement.num_logical_experts),
        }
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is None:
                continue
            if np.asarray(value).shape != shape:
                raise InputError(f"{name} has shape {np.asarray(value).shape}; {shape} is expected")
            if not np.isfinite(value).all() or (np.asarray(value) < 0).any():
                raise InputError(f"{name} must be finite and not negative")
            object.__setattr__(self, name, frozen(value, np.float64))
        if self.status is not None:
            object.__setattr__(self, "status", tuple(self.status))
            known = get_args(Status)
            if len(self.status) != num_layers or any(s not in known for s in self.status):
                raise InputError(f"status must be one of {known} for each of {num_layers} layers")

    @property
    def gap(self) -> Floats | None:
        """Of shape (L,): peak over bound, less 1; None when the plan carries no bound."""
        if self.peak_load is None or self.lower_bound is None:
            return None
        return gaps(self.peak_load, self.lower_bound)


def gaps(peak_load: Floats, lower_bound: Floats) -> Floats:
    """Peak over bound, less 1, never below 0 by rounding; 0 where there is no load."""
    ratio = np.divide(peak_load, lower_bound, out=np.ones_like(peak_load), where=lower_bound > 0)
    return np.maximum(ratio - 1.0, 0.0)


def placement_digest(placement: Placement, layer_ids: Ints) -> str:
    """xxh3-128 of which expert each slot of each layer holds, over which ranks and nodes."""
    state = xxhash.xxh3_128()
    sizes = (placement.num_logical_experts, placement.num_ranks, placement.num_nodes)
    state.update(repr((placement.physical_to_logical.shape, *sizes)).encode())
    for array in (placement.physical_to_logical, placement.home_node, layer_ids):
        state.update(array.astype(array.dtype.newbyteorder("<")).data)
    return state.hexdigest()
