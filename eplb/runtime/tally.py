"""Counting the ids that forwards gave their experts, many forwards at once."""

from typing import NamedTuple

import numpy as np
import torch

from .._arrays import Bools, Ints
from ..errors import InputError
from .batches import Batch

# Ids wait on their device until so many forwards or tokens of one shape have come: counting a
# decoding step by itself would cost a few percent of it. DeepSeek-V3 holds 15 MB until then.
_FORWARDS, _TOKENS = 64, 4096
# Counts of forwards kept on the device (30 MB for DeepSeek-V3) before they move to the host, which
# waits for it.
_FORWARDS_ON_DEVICE = 256


class Forward(NamedTuple):
    """One forward: its number, ids (T, top_k) by layer, tokens, and the number of its first
    request."""

    step: int
    ids: dict[int, torch.Tensor]
    batch: Batch
    first_request: int


class Routes(NamedTuple):
    """Experts (T, L, top_k), −1 for none, with the step and request of each token."""

    experts: Ints
    step: Ints
    request: Ints | None


class Tally:
    """The loads of windows of forwards, and on request the routes of all tokens.

    Parameters
    ----------
    num_experts
        E; ids from there on are counted in a column of their own.
    window_steps
        Forwards summed in a window.
    keep_routes
        Whether to keep routes too.

    Attributes
    ----------
    windows
        Of shape (L, E + 1) each; column E counts ids out of range. Complete after `settle`.
    routes
        Of all tokens that are no padding; complete after `settle`.
    notes
        Remarks on padding that was counted.
    """

    def __init__(self, num_experts: int, window_steps: int, keep_routes: bool) -> None:
        self.windows: list[Ints] = []
        self.routes: list[Routes] = []
        self.notes: list[str] = []
        self._num_experts, self._window_steps = num_experts, window_steps
        self._keep_routes = keep_routes
        self._waiting: list[Forward] = []
        self._shape: tuple[object, ...] = ()  # what those that wait have in common
        self._on_device: list[torch.Tensor] = []
        self._window: Ints | None = None
        self._in_window = 0

    def add(self, forward: Forward) -> None:
        """Count a forward, sooner or later."""
        batch = forward.batch
        given = next(iter(forward.ids.values())).shape
        shape = (given, batch.rows, batch.length, batch.real is None, batch.note)
        if shape != self._shape:
            self._count()
            self._shape = shape
        self._waiting.append(forward)
        count = len(self._waiting)
        if count == _FORWARDS or count * given[0] >= _TOKENS:
            self._count()

    def settle(self) -> None:
        """Count what waits, and bring it to the host.

        Raises
        ------
        InputError
            When the layers of a forward saw different numbers of tokens or experts.
        """
        self._count()
        for counts in self._on_device:
            for step in counts.cpu().numpy():
                self._window = step.copy() if self._window is None else self._window + step
                self._in_window += 1
                if self._in_window == self._window_steps:
                    self.windows.append(self._window)
                    self._window, self._in_window = None, 0
        self._on_device.clear()

    @torch.inference_mode()
    def _count(self) -> None:
        """Counts (N, L, E + 1) of the N forwards that wait, which are of one shape."""
        if not self._waiting:
            return
        ids = self._ids()
        real = self._real(ids.shape[2])
        ids = torch.where((ids >= 0) & (ids < self._num_experts), ids, self._num_experts)
        if real is not None:  # padding goes to one more column, since leaving it out would wait
            real = real.to(ids.device)
            ids = torch.where(real[:, None, :, None], ids, self._num_experts + 1)
        if self._keep_routes:
            self.routes.append(self._host_routes(ids))
        ids = ids.flatten(2)
        counts = ids.new_zeros((*ids.shape[:2], self._num_experts + 2))
        counts.scatter_add_(2, ids, ids.new_ones(()).expand_as(ids))
        self._on_device.append(counts[:, :, :-1])
        self._waiting.clear()
        if sum(map(len, self._on_device)) >= _FORWARDS_ON_DEVICE:
            self.settle()

    def _ids(self) -> torch.Tensor:
        """The ids that wait (N, L, T, top_k), on the device of the first."""
        layers = sorted(self._waiting[0].ids)
        first = self._waiting[0].ids[layers[0]]
        given = [(layer, forward.ids[layer]) for forward in self._waiting for layer in layers]
        for layer, ids in given:
            if ids.shape != first.shape:
                raise InputError(
                    f"layer {layer} routes [tokens, top_k] of {tuple(ids.shape)} and layer"
                    f" {layers[0]} {tuple(first.shape)}; a trace has the same in every layer"
                )
        stacked = torch.stack([ids.to(first.device) for _, ids in given]).long()
        return stacked.view(-1, len(layers), *first.shape)

    def _real(self, num_tokens: int) -> torch.Tensor | None:
        """Which tokens (N, T) that wait are no padding; None where all count."""
        batch = self._waiting[0].batch
        note = batch.note
        masks = [forward.batch.real for forward in self._waiting if forward.batch.real is not None]
        if masks and batch.rows * batch.length != num_tokens:
            masks = []
            note = (
                f"the experts saw {num_tokens} tokens of a batch of {batch.rows} × {batch.length}:"
                " padding could not be told from tokens and was counted"
            )
        if note is not None and note not in self.notes:
            self.notes.append(note)
        return torch.stack(masks).flatten(1) if masks else None

    def _host_routes(self, ids: torch.Tensor) -> Routes:
        num_experts = self._num_experts
        small = torch.int16 if num_experts < 2**15 - 1 else torch.int32
        experts = ids.transpose(1, 2).to(small).cpu().numpy()  # (N, T, L, top_k)
        keep: Bools = experts[:, :, 0, 0] <= num_experts
        batch, request = self._waiting[0].batch, None
        if batch.rows * batch.length == keep.shape[1]:
            row = np.arange(batch.rows).repeat(batch.length)
            first = np.array([forward.first_request for forward in self._waiting])
            request = (first[:, None] + row)[keep]
        steps = np.array([forward.step for forward in self._waiting])
        kept = experts[keep]
        kept[kept == num_experts] = -1
        return Routes(kept, steps.repeat(keep.sum(axis=1)), request)
