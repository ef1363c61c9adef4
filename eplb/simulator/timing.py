"""Seconds of a layer and of an engine step, modelled from the tokens of each slot.

A rank computes its experts in the longer of two times: its matrix products, whose rows are padded
to tiles expert by expert, and reading the weights of the experts that have a token at all. The
layer waits for the slowest rank, and for dispatch before and combine behind it. All of it is
*modelled*: nothing here was measured unless the constants were.

Shapes: leading axes are the caller's, mostly (W, L); S slots, R ranks. All amounts are of one step.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .._arrays import Floats, Numbers
from ..errors import InputError
from ..hardware import Hardware
from ..model import Model
from ..topology import Topology
from .exchange import Traffic, direct_traffic, exchange_seconds, relayed_traffic

# Slots of all layers in a block of `window_timing`: 2^20 float64 are 8 MB.
_BLOCK = 2**20
# Bytes of a weight, scales included, below which it is not BF16.
_FP8_BYTES = 1.5
# Bytes of an activation by precision; FP8 has a 4-byte scale for every 128 values, as in DeepEP.
_VALUE_BYTES = {"fp8": 1 + 4 / 128, "bf16": 2.0}


@dataclass(frozen=True)
class ExpertShape:
    """The size of an expert and of what travels to it.

    Parameters
    ----------
    hidden_size, expert_width
        Inputs of an expert, and the width between its matrices.
    expert_bytes
        Bytes of its weights, scales included.
    top_k
        Experts per token.
    precision
        Of its matrix products: fp8 or bf16.
    dispatch_precision
        Of the tokens on their way there: fp8 or bf16; they return in bf16.
    gated
        Whether it has three matrices (up, gate, down) rather than two.

    Raises
    ------
    InputError
        When a size is not above 0 or a precision unknown.
    """

    hidden_size: int
    expert_width: int
    expert_bytes: float
    top_k: int
    precision: str = "fp8"
    dispatch_precision: str = "fp8"
    gated: bool = True

    def __post_init__(self) -> None:
        for key in ("hidden_size", "expert_width", "expert_bytes", "top_k"):
            if not getattr(self, key) > 0:
                raise InputError(f"{key} is {getattr(self, key)}; a number above 0 is expected")
        for key in ("precision", "dispatch_precision"):
            if getattr(self, key) not in _VALUE_BYTES:
                raise InputError(f"{key} is {getattr(self, key)!r}; fp8 or bf16 is expected")

    @property
    def row_flops(self) -> float:
        """FLOP of one token in one expert."""
        return 2.0 * (3 if self.gated else 2) * self.hidden_size * self.expert_width

    @property
    def dispatch_bytes(self) -> float:
        """Bytes of a token on its way to an expert."""
        return self.hidden_size * _VALUE_BYTES[self.dispatch_precision]

    @property
    def combine_bytes(self) -> float:
        """Bytes of a result on its way back."""
        return self.hidden_size * _VALUE_BYTES["bf16"]


def expert_shape(model: Model) -> ExpertShape:
    """The size of a model's experts, from its configuration.

    Weights of up to a byte a value are multiplied in FP8, others in BF16.

    Raises
    ------
    InputError
        When the configuration does not say it.
    """
    if not model.expert_matrices or model.expert_bytes is None or model.top_k is None:
        raise InputError(
            f"the configuration of the model ({model.name}) does not tell the size of its experts"
            " and of what is sent to them, which a model of time needs"
        )
    width, hidden = model.expert_matrices[0]
    values = sum(outputs * inputs for outputs, inputs in model.expert_matrices)
    return ExpertShape(
        hidden_size=hidden,
        expert_width=width,
        expert_bytes=model.expert_bytes,
        top_k=model.top_k,
        precision="fp8" if model.expert_bytes < _FP8_BYTES * values else "bf16",
        gated=len(model.expert_matrices) == 3,
    )


class Work(NamedTuple):
    """What each rank computes in one step, each of shape (..., R)."""

    tokens: Floats  # assignments
    rows: Floats  # assignments padded to tiles, expert by expert
    active: Floats  # experts with a token, whose weights are read


class Timing(NamedTuple):
    """Seconds of the stages of a layer in one step, modelled, each of shape (...)."""

    other: Floats
    dispatch: Floats
    compute: Floats
    combine: Floats

    @property
    def total(self) -> Floats:
        """One stage after another."""
        return self.other + self.dispatch + self.compute + self.combine


def rank_work(
    slot_tokens: Numbers, num_ranks: int, window_steps: int, tile_rows: int, split: int = 1
) -> Work:
    """The work of each rank in the mean step of a window, (..., R), from the tokens that each slot
    serves in the whole window, (..., S).

    A slot with x tokens in the mean step is active in a share a of the steps: 1 − e^−x if the steps
    are independent (Poisson), and min(1, x) where the window is a single step. While active it
    computes ⌈x / tile⌉ tiles. With `split` micro-batches the work is that of one.
    """
    mean = slot_tokens / (window_steps * split)
    active = np.minimum(mean, 1.0) if window_steps == 1 else -np.expm1(-mean)
    rows = active * np.ceil(mean / tile_rows) * tile_rows
    by_rank = (*mean.shape[:-1], num_ranks, -1)
    return Work(*(values.reshape(by_rank).sum(axis=-1) for values in (mean, rows, active)))


def product_seconds(work: Work, shape: ExpertShape, hardware: Hardware) -> Floats:
    """Seconds that each rank's matrix products take, (..., R)."""
    seconds: Floats = work.rows * (shape.row_flops / hardware.flop_rate(shape.precision))
    return seconds


def weight_seconds(work: Work, shape: ExpertShape, hardware: Hardware) -> Floats:
    """Seconds that reading the weights of each rank's active experts takes, (..., R)."""
    seconds: Floats = work.active * (shape.expert_bytes / hardware.hbm_rate)
    return seconds


def rank_seconds(
    work: Work, shape: ExpertShape, hardware: Hardware, pace: Floats | None = None
) -> Floats:
    """Seconds that each rank computes in one step of a layer, (..., R): 0 without a token.

    `pace` (R,) is the time of each rank for the same work, relative to the constants; None when
    they hold for all.
    """
    seconds = np.maximum(
        product_seconds(work, shape, hardware), weight_seconds(work, shape, hardware)
    )
    if pace is not None:
        seconds *= pace
    seconds += np.where(work.tokens > 0, hardware.layer_overhead.value, 0.0)
    return seconds


def layer_timing(
    work: Work,
    traffic: Traffic,
    shape: ExpertShape,
    hardware: Hardware,
    pace: Floats | None = None,
    other_seconds: float = 0.0,
) -> Timing:
    """The stages of each layer in one step; `other_seconds` is what attention and the rest of the
    layer take, which is given and not modelled."""
    compute = rank_seconds(work, shape, hardware, pace).max(axis=-1)
    return Timing(
        other=np.full_like(compute, other_seconds),
        dispatch=exchange_seconds(traffic, shape.dispatch_bytes, hardware),
        compute=compute,
        combine=exchange_seconds(traffic, shape.combine_bytes, hardware),
    )


def window_timing(
    slot_tokens: Numbers,
    window_steps: int,
    topology: Topology,
    shape: ExpertShape,
    hardware: Hardware,
    *,
    relayed: bool = True,
    split: int = 1,
    other_seconds: float = 0.0,
) -> Timing:
    """The stages of each layer in the mean step of each window, (W, L), from the tokens that each
    slot serves in the whole window, (W, L, S); of one of `split` micro-batches.

    Dispatch sends a token to a node once (`relayed`) or to each of its experts. The constants are
    those of a rank of mean speed.

    Raises
    ------
    RefusedError
        When the hardware does not join as many GPUs as a node of `topology` has.
    """
    hardware.check(topology)
    pace = np.ones(topology.num_ranks)
    pace[topology.live_ranks] = topology.pace
    blocks = []
    block = max(1, _BLOCK // max(1, slot_tokens[0].size))
    for first in range(0, len(slot_tokens), block):
        part = slot_tokens[first : first + block]
        work = rank_work(
            part, topology.num_ranks, window_steps, int(hardware.tile_rows.value), split
        )
        traffic = (
            relayed_traffic(work.tokens, shape.top_k, topology)
            if relayed
            else direct_traffic(work.tokens, topology)
        )
        blocks.append(layer_timing(work, traffic, shape, hardware, pace, other_seconds))
    return Timing(*(np.concatenate(stage) for stage in zip(*blocks, strict=True)))


def step_seconds(layers: Timing) -> Floats:
    """Seconds of a step, of shape (...), whose layers (..., L) run one after another."""
    seconds: Floats = layers.total.sum(axis=-1)
    return seconds


def overlapped_seconds(half: Timing) -> Floats:
    """Seconds of a step, of shape (...), as two equal micro-batches of which one computes while the
    other's tokens travel; `half` is the timing of one of them, (..., L).

    Two streams each do the work of both halves. A layer takes the longer stream, and the shorter
    one of a half is not hidden once in the pass: at its beginning and end a stream has nothing to
    do. Never less than either stream alone, never more than the halves one after the other.
    """
    computing = half.other + half.compute
    travelling = half.dispatch + half.combine
    longer = 2.0 * np.maximum(computing, travelling).sum(axis=-1)
    seconds: Floats = longer + np.minimum(computing, travelling)[..., 0]
    return seconds
