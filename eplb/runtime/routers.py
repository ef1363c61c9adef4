"""Where a Hugging Face model says which experts each token goes to."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from ..errors import InputError

Take: TypeAlias = Callable[[int, torch.Tensor], None]

# What experts modules of transformers 5 call the ids in their forward.
_IDS = ("top_k_index", "router_indices")
_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)\.")
# These models hide a choice before the experts see it, so that counts would be wrong.
_HIDDEN = {"ZayaExperts": "a token that skips its experts is sent to expert 0 with weight 0"}


class Tap(NamedTuple):
    """One layer's place to listen at, its routed experts E, and whether ids above are no fault."""

    layer_id: int
    module: nn.Module
    num_experts: int
    zero_experts: bool

    def listen(self, take: Take) -> Any:
        """Hand the ids of every call, of shape (T, top_k), to `take`; returns torch's handle."""
        layer_id = self.layer_id
        if _gives_logits(self.module):
            top_k = int(self.module.top_k)  # type: ignore[arg-type]

            def after(module: nn.Module, args: Any, output: Any) -> None:
                # The module's own choice, made again: it hands on scores of all experts.
                take(layer_id, torch.topk(output[1], top_k, dim=1).indices)

            return self.module.register_forward_hook(after)
        name = _ids_argument(self.module)
        assert name is not None

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            take(layer_id, kwargs[name] if name in kwargs else args[1])

        return self.module.register_forward_pre_hook(before, with_kwargs=True)


def find_taps(model: nn.Module) -> list[Tap]:
    """The layers with experts of a model, ascending by their number.

    Raises
    ------
    InputError
        When there is none, two have one number, they differ in experts, or one cannot be trusted.
    """
    found: dict[int, tuple[str, Tap]] = {}
    for path, module in model.named_modules():
        if not (_gives_logits(module) or _ids_argument(module)):
            continue
        tap = _tap(path, module)
        other, _ = found.setdefault(tap.layer_id, (path, tap))
        if other != path:
            raise InputError(
                f"layer {tap.layer_id} has experts twice, at {other} and {path};"
                " record the part of the model that has one of them"
            )
    if not found:
        raise InputError(
            f"{type(model).__name__} has no experts to listen to: no module whose class ends in"
            f" 'Experts' and whose forward takes {' or '.join(_IDS)}, as the Mixture-of-Experts"
            " models of transformers 5 have"
        )
    taps = [found[layer_id][1] for layer_id in sorted(found)]
    for tap in taps:
        if tap.num_experts != taps[0].num_experts:
            raise InputError(
                f"layer {tap.layer_id} has {tap.num_experts} experts and layer"
                f" {taps[0].layer_id} {taps[0].num_experts}; a trace has the same in every layer"
            )
    return taps


def _gives_logits(module: nn.Module) -> bool:
    """Whether it is the router of Llama 4, whose experts all run and see no ids."""
    return type(module).__name__ == "Llama4Router"


def _ids_argument(module: nn.Module) -> str | None:
    """What an experts module calls the ids in its forward; None where it takes none."""
    if not type(module).__name__.endswith("Experts"):
        return None
    # The class's forward: a module's own may be a wrapper that takes anything.
    names = inspect.signature(type(module).forward).parameters
    return next((name for name in _IDS if name in names), None)


def _tap(path: str, module: nn.Module) -> Tap:
    kind = type(module).__name__
    if kind in _HIDDEN:
        raise InputError(f"{kind} at {path} cannot be recorded: {_HIDDEN[kind]}")
    if getattr(module, "_is_expert_parallel", False):
        raise InputError(
            f"{kind} at {path} holds one rank's experts only; record the model without expert"
            " parallelism"
        )
    number = _LAYER.search(path)
    if number is None:
        raise InputError(
            f"{kind} at {path!r} does not say its layer; a path like layers.3.mlp.experts is"
            " expected: record the model that has the layers"
        )
    routed = getattr(module, "num_routed_experts", None)  # LongCat: those that compute
    num_experts = getattr(module, "num_experts", None) if routed is None else routed
    if not isinstance(num_experts, int):
        raise InputError(f"{kind} at {path} does not say its number of experts (num_experts)")
    return Tap(int(number[1]), module, num_experts, zero_experts=routed is not None)
