"""What a plan gives to an engine: its rows, checked, and the file made of them."""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..._arrays import Ints
from ...errors import InputError
from ...findings import listed
from ...model import Model
from ...plan import Plan
from .constraints import note, refused, twins
from .rows import MOST_LAYERS


class Export(NamedTuple):
    """A file for an engine: its bytes, the settings that the engine starts with beside it, a line
    each, and remarks."""

    data: bytes
    flags: tuple[str, ...]
    notes: tuple[str, ...]


class Chosen(NamedTuple):
    """The rows of a plan that a map takes, in the order of layers.

    `table` holds the expert of each slot, int64 of shape (rows, S); `num_layers` is the number of
    decoder layers where it is known.
    """

    table: Ints
    layer_ids: Ints
    num_experts: int
    num_ranks: int
    num_layers: int | None
    notes: list[str]

    @property
    def num_redundant(self) -> int:
        """Slots of a layer beyond one for each expert."""
        return int(self.table.shape[1]) - self.num_experts


def choose(
    plan: Plan,
    model: Model | None,
    *,
    unchecked: str,
    takes_mtp: bool = False,
    holds_twins: bool = False,
) -> Chosen:
    """The rows of `plan` for an engine that may take rows of multi-token-prediction layers and
    may hold an expert twice on a GPU; `unchecked` says what happens when a layer is missing.

    Raises
    ------
    RefusedError
        When the engine would start with something else than the plan.
    """
    placement = plan.placement
    if placement.excluded_ranks:
        gpus = listed(np.unique(placement.excluded_ranks))
        live = placement.num_ranks - len(set(placement.excluded_ranks))
        raise refused(
            "EP202",
            f"GPU {gpus} is out of service in this plan and its slots are empty, which no map can"
            f" say; plan for the {live} GPUs that are left (--gpus {live})",
        )
    _check_experts(plan, model)
    _check_layers(plan, model)
    order = np.argsort(plan.layer_ids)
    num_layers = stated_layers(plan) if model is None else model.num_layers
    notes: list[str] = []
    if not takes_mtp and num_layers is not None:
        is_draft = plan.layer_ids[order] >= num_layers
        drafts = plan.layer_ids[order][is_draft] if model is None else np.array(model.mtp_layer_ids)
        if len(drafts):
            text = f"layer {listed(drafts)} has no row; the engine places it by itself"
            notes.append(note("EP207", text))
        order = order[~is_draft]
        if not len(order):
            raise refused("EP203", f"the plan has none of the {num_layers} decoder layers")
    layer_ids = plan.layer_ids[order]
    if model is None:
        notes.append(
            note(
                "EP206",
                f"it was not checked that {_layers(layer_ids)} are all that have experts:"
                f" {unchecked}; --model checks it",
            )
        )
    table = placement.physical_to_logical[order].astype(np.int64)
    notes += _twins(table, layer_ids, placement.num_ranks, holds_twins)
    return Chosen(
        table=table,
        layer_ids=layer_ids,
        num_experts=placement.num_logical_experts,
        num_ranks=placement.num_ranks,
        num_layers=num_layers,
        notes=notes,
    )


def _twins(table: Ints, layer_ids: Ints, num_ranks: int, holds_twins: bool) -> list[str]:
    """A note on same-GPU copies, where there are any and the engine holds them."""
    found = twins(table, layer_ids, num_ranks)
    if found is None:
        return []
    if not holds_twins:
        raise refused(
            "EP201",
            f"{found}, which this engine cannot hold; plan with --strategy auto, or with"
            " --strategy deepseek --repair",
        )
    return [note("EP201", f"{found}, a slot wasted")]


def _check_experts(plan: Plan, model: Model | None) -> None:
    num_experts, shared = plan.placement.num_logical_experts, plan.options.get("shared_experts")
    if shared:
        raise refused(
            "EP204",
            f"the plan has {shared} shared experts as routed ones, of {num_experts} in all;"
            " engines' maps have routed experts only: plan without --shared-experts",
        )
    if model is not None and num_experts != model.num_experts:
        raise refused(
            "EP204",
            f"the plan has {num_experts} experts a layer and the model ({model.name})"
            f" {model.num_experts}; it is of another model",
        )


def _check_layers(plan: Plan, model: Model | None) -> None:
    low, high = int(plan.layer_ids.min()), int(plan.layer_ids.max())
    if low < 0 or high >= MOST_LAYERS:
        wrong = low if low < 0 else high
        raise refused("EP203", f"the plan has layer {wrong}, as no model does")
    if model is None:
        return
    strange = np.setdiff1d(plan.layer_ids, model.all_layer_ids)
    if len(strange):
        raise refused(
            "EP203",
            f"the plan has layer {listed(strange)}, which has no experts in the model"
            f" ({model.name}: {_layers(np.array(model.all_layer_ids))})",
        )
    missing = np.setdiff1d(model.moe_layer_ids, plan.layer_ids)
    if len(missing):
        raise refused(
            "EP203",
            f"the plan lacks layer {listed(missing)} of the {len(model.moe_layer_ids)} with experts"
            f" in the model ({model.name}); plan from a trace that has them",
        )


def stated_layers(plan: Plan) -> int | None:
    """How many decoder layers the model of a plan has; None where the plan does not say it."""
    stated = plan.provenance.get("decoder_layers")
    return stated if type(stated) is int and 0 < stated <= MOST_LAYERS else None


def _layers(layer_ids: Ints) -> str:
    return f"layer{'' if len(layer_ids) == 1 else 's'} {listed(layer_ids)}"


def check_ending(name: str, endings: Sequence[str], why: str) -> None:
    """Raise `InputError` unless the name says one of the engine's forms."""
    if not name.endswith(tuple(endings)):
        raise InputError(f"{name}: a name ending in {' or '.join(endings)} is expected; {why}")


def torch_bytes(arrays: Mapping[str, Ints]) -> bytes:
    """What `torch.save` makes of a dict of tensors, the same bytes every time.

    Raises
    ------
    InputError
        When torch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise InputError(
            "a .pt file is written by torch, which is not installed: pip install 'eplb[runtime]'"
        ) from None
    out = io.BytesIO()
    torch.save({key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}, out)
    return out.getvalue()
