"""Recording where a Hugging Face model routes its tokens, while it runs."""

import inspect
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from .._arrays import Ints
from ..errors import InputError
from ..routes import RouteTrace
from ..trace import LoadTrace
from .batches import Batch, has_cache, read_batch
from .routers import find_taps
from .tally import Forward, Tally


class LoadRecorder:
    """Counts the tokens of every expert in each forward of a model, within a `with` block.

    Hooks take the ids that the model hands to its own experts, so they are right whatever biases,
    groups or tables its router has. The model is not changed, and seldom waits for a
    count. Several blocks of one recorder add up.

    Parameters
    ----------
    model
        A Mixture-of-Experts model of transformers 5, or the part of one that is called as a whole.
    routes
        Whether to keep the experts of each token too.
    window_steps
        Forwards summed in one window; windows of 1 can be summed later (`LoadTrace.summed`).

    Raises
    ------
    InputError
        When the model has no experts whose ids can be taken.
    """

    def __init__(self, model: nn.Module, *, routes: bool = False, window_steps: int = 1) -> None:
        if window_steps < 1:
            raise InputError(f"window_steps is {window_steps}; 1 or more is expected")
        self._model, self._keeps_routes, self._window_steps = model, routes, window_steps
        self._taps = find_taps(model)
        self._num_experts = self._taps[0].num_experts
        self._zero_experts = self._taps[0].zero_experts
        self._arguments = list(inspect.signature(model.forward).parameters)
        self._handles: list[Any] = []
        # The forward under way: its tokens, and the ids of each layer so far.
        self._batch: Batch | None = None
        self._ids: dict[int, torch.Tensor] = {}
        self._num_steps = self._top_k = 0
        self._layer_ids: list[int] = []  # of the layers that run, as the first forward shows
        self._first_request = self._next_request = 0
        self._tally = Tally(self._num_experts, window_steps, routes)

    def __enter__(self) -> Self:
        if self._handles:
            raise InputError("this recorder records already; another one can record beside it")
        self._handles = [
            self._model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self._model.register_forward_hook(self._end),
            *(tap.listen(self._take) for tap in self._taps),
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._batch, self._ids = [], None, {}

    @property
    def notes(self) -> list[str]:
        """Remarks on what was counted although it may be padding."""
        self._tally.settle()
        return list(self._tally.notes)

    def loads(self) -> LoadTrace:
        """The loads of all full windows so far.

        Raises
        ------
        InputError
            When there is none, or the experts were given ids that they do not have.
        """
        self._settle()
        if not self._tally.windows:
            raise InputError(
                f"a window of {self._window_steps} forwards is longer than the recording, which"
                f" has {self._num_steps}"
            )
        counts = np.stack(self._tally.windows)
        self._check_ids(counts[:, :, -1].sum(axis=0))
        return LoadTrace(
            counts[:, :, :-1],
            # With experts that compute nothing, a token visits fewer than top_k of the others.
            top_k=None if self._zero_experts else self._top_k,
            window_steps=self._window_steps,
            **self._metadata(),
        )

    def routes(self) -> RouteTrace:
        """The experts of each token so far, without padding; `step` counts forwards from 0.

        `request` is the row of the batch, counted on where a forward starts without a cache; None
        where rows cannot be told.

        Raises
        ------
        InputError
            When routes were not asked for, or the experts were given ids that they do not have.
        """
        if not self._keeps_routes:
            raise InputError("routes were not kept; LoadRecorder(model, routes=True) keeps them")
        self._settle()
        kept = self._tally.routes
        experts = np.concatenate([routes.experts for routes in kept])
        self._check_ids((experts < 0).sum(axis=(0, 2)))
        requests = [routes.request for routes in kept if routes.request is not None]
        return RouteTrace(
            experts,
            self._num_experts,
            step=np.concatenate([routes.step for routes in kept]),
            request=np.concatenate(requests) if len(requests) == len(kept) else None,
            window_steps=self._window_steps,
            **self._metadata(),
        )

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Before a forward of the model; one that failed halfway is forgotten."""
        arguments = {**dict(zip(self._arguments, args, strict=False)), **kwargs} if args else kwargs
        self._batch, self._ids = read_batch(arguments), {}
        if self._keeps_routes:  # only then: some caches have to ask the device for their length
            if not has_cache(arguments):
                self._first_request = self._next_request
            self._next_request = self._first_request + self._batch.rows

    def _take(self, layer_id: int, ids: torch.Tensor) -> None:
        if self._batch is None:
            return  # run again for gradients, or without the model around it
        if layer_id in self._ids:
            raise InputError(
                f"layer {layer_id} ran its experts twice in one forward; such models cannot be"
                " recorded"
            )
        self._ids[layer_id] = ids

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        batch, self._batch = self._batch, None
        ids, self._ids = self._ids, {}
        if batch is None or not ids:
            return
        ran = sorted(ids)
        if not self._layer_ids:
            self._layer_ids, self._top_k = ran, ids[ran[0]].shape[1]
        if ran != self._layer_ids:
            odd = sorted(set(ran) ^ set(self._layer_ids))
            raise InputError(f"layers {odd} ran their experts in some forwards only")
        self._tally.add(Forward(self._num_steps, ids, batch, self._first_request))
        self._num_steps += 1

    def _settle(self) -> None:
        if not self._num_steps:
            raise InputError(
                f"no forward of {type(self._model).__name__} with experts ran inside the block:"
                " record the module that is called itself, before it is compiled, and without"
                " kernels that take the place of its experts"
            )
        self._tally.settle()

    def _check_ids(self, wrong: Ints) -> None:
        """Raise unless no id was out of range; `wrong` counts them by layer."""
        if wrong.any() and not self._zero_experts:
            layer = int(wrong.argmax())
            raise InputError(
                f"the experts of layer {self._layer_ids[layer]} were given {wrong[layer]} ids that"
                f" are not from 0 to {self._num_experts - 1}, as expert parallelism marks other"
                " ranks' tokens; record the model on one rank"
            )

    def _metadata(self) -> dict[str, Any]:
        config: Any = getattr(self._model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        groups = getattr(text, "n_group", None) or getattr(text, "num_expert_group", None)
        return {
            "layer_ids": np.array(self._layer_ids),
            "num_groups": groups,
            "model": getattr(config, "model_type", None) or type(self._model).__name__,
        }
