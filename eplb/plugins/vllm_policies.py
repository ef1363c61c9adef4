"""What the vLLM plug-in answers when vLLM asks where the experts are to live.

Every rank asks by itself and vLLM compares nothing, so an answer depends on the arguments, which
are the same on all ranks, and on the plan files alone. vLLM asks first while it profiles memory at
start-up, with no load and from the main thread: what cannot be served is refused there.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._arrays import Floats, Ints
from ..errors import InputError, RefusedError
from ..formats.engines.exports import stated_layers
from ..formats.plans import read_plan
from ..placement import Placement
from ..plan import Plan, placement_digest

if TYPE_CHECKING:
    from torch import Tensor

# Under vLLM's own name, so that vLLM's handlers show it.
logger = logging.getLogger("vllm.plugins.eplb")


class Asked(NamedTuple):
    """What vLLM asks for: load (M, E) of its M MoE layers, sizes, and the live map (M, S)."""

    load: Floats
    num_slots: int
    num_groups: int
    num_nodes: int
    num_ranks: int
    old: Ints | None


Place = Callable[[Asked], Placement]


def policy_class(base: type, place: Place) -> type:
    """A policy class as vLLM calls it, which answers with what `place` places."""

    def rebalance_experts(
        cls: type,
        weight: "Tensor",
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: "Tensor | None" = None,
    ) -> "Tensor":
        """The logical expert of every slot: int64 of shape (M, S), on the CPU."""
        import torch

        old = old_global_expert_indices
        asked = Asked(
            load=weight.cpu().numpy().astype(np.float64),
            num_slots=num_replicas,
            num_groups=num_groups,
            num_nodes=num_nodes,
            num_ranks=num_ranks,
            old=None if old is None else old.cpu().numpy(),
        )
        return torch.from_numpy(keep_slots(place(asked), asked.old))

    members: dict[str, Any] = {
        "__doc__": "The placement of eplb, in place of vLLM's own.",
        "__module__": __name__,
        "made_by_eplb": True,
        "rebalance_experts": classmethod(rebalance_experts),
    }
    return type("EplbPolicy", (base,), members)


def keep_slots(placement: Placement, old: Ints | None) -> Ints:
    """The experts of every rank, int64 of shape (M, S), those that stay in the slot they are in.

    vLLM copies an expert whose slot changes, even inside a rank.
    """
    slots = placement.physical_to_logical.astype(np.int64, order="C")
    if old is None or old.shape != slots.shape:
        return slots
    by_rank = (-1, placement.slots_per_rank)
    for new_row, old_row in zip(slots.reshape(by_rank), old.reshape(by_rank), strict=True):
        coming, kept = new_row.tolist(), [-1] * len(new_row)
        for slot, expert in enumerate(old_row.tolist()):
            if expert in coming:
                coming.remove(expert)
                kept[slot] = expert
        rest = iter(coming)
        new_row[:] = [next(rest) if expert < 0 else expert for expert in kept]
    return slots


class Saved(NamedTuple):
    """What a plan says of one of vLLM's models: its file, placement and digest."""

    file: str
    placement: Placement
    digest: str

    @property
    def size(self) -> tuple[int, int]:
        """Layers and experts: what tells the plan of a target from that of its drafter."""
        return self.placement.num_layers, self.placement.num_logical_experts


class SavedPlans:
    """Answers with the saved plan of as many layers and experts as vLLM asks for."""

    def __init__(self, plans: Sequence[Saved]) -> None:
        self._plans = {saved.size: saved for saved in plans}
        self._said: list[tuple[int, int]] = []

    @classmethod
    def read(cls, files: Sequence[str], digests: Sequence[str] | None) -> "SavedPlans":
        """The plans of these files, checked as far as can be without knowing the model.

        Raises
        ------
        InputError
            When a file cannot be read, or there are not as many digests as files.
        RefusedError
            When a plan has another digest or leaves a GPU empty, or two have the same size.
        """
        if digests is not None and len(digests) != len(files):
            raise InputError(
                f"EPLB_VLLM_PLAN_DIGEST has {len(digests)} digests and EPLB_VLLM_PLAN"
                f" {len(files)} plans; one digest a plan is expected, in the same order"
            )
        plans: list[Saved] = []
        for i, file in enumerate(files):
            plan = read_plan(file)
            digest = placement_digest(plan.placement, plan.layer_ids)
            for placement in _by_model(plan):
                saved = Saved(file, placement, digest)
                _check_saved(saved, plans, None if digests is None else digests[i])
                plans.append(saved)
                logger.info("eplb: read %s, placement digest %s", _described(saved), digest)
        return cls(plans)

    def __call__(self, asked: Asked) -> Placement:
        num_layers, num_experts = asked.load.shape
        saved = self._plans.get((num_layers, num_experts))
        if saved is None:
            raise RefusedError(
                f"vLLM asks for the placement of {num_layers} layers × {num_experts} experts and"
                f" EPLB_VLLM_PLAN has {', '.join(map(_described, self._plans.values()))}; vLLM"
                " counts the MoE layers of the model without its MTP layers, and those of an MTP"
                " drafter apart: plan both with --model, which says which layers are MTP, or give a"
                " plan for each, as EPLB_VLLM_PLAN=model.json:drafter.json"
            )
        _check_sizes(saved, asked)
        self._say(saved, asked)
        return saved.placement

    def _say(self, saved: Saved, asked: Asked) -> None:
        """Once for every model: what it is served with."""
        if saved.size in self._said:
            return
        self._said.append(saved.size)
        logger.info(
            "eplb: vLLM is given %s, placement digest %s, at every rearrangement",
            _described(saved),
            saved.digest,
        )
        if saved.placement.num_nodes != asked.num_nodes:
            logger.warning(
                "eplb: %s is planned for %d nodes and vLLM counts %d; the balance is as planned,"
                " the traffic between nodes may not be",
                saved.file,
                saved.placement.num_nodes,
                asked.num_nodes,
            )


def _by_model(plan: Plan) -> list[Placement]:
    """The layers of the target in their order, and those of its MTP drafter, where a plan has them
    and says how many the target has."""
    order, num_layers = np.argsort(plan.layer_ids), stated_layers(plan)
    is_draft = plan.layer_ids[order] >= (np.inf if num_layers is None else num_layers)
    whole = plan.placement
    return [
        Placement(
            whole.physical_to_logical[rows], whole.num_logical_experts, whole.num_ranks,
            whole.num_nodes, excluded_ranks=whole.excluded_ranks,
        )
        for rows in (order[~is_draft], order[is_draft])
        if len(rows)
    ]  # fmt: skip


def _described(saved: Saved) -> str:
    placement = saved.placement
    return (
        f"{saved.file} ({saved.size[0]} layers × {saved.size[1]} experts,"
        f" {placement.num_slots} slots on {placement.num_ranks} GPUs)"
    )


def _check_saved(saved: Saved, others: Sequence[Saved], digest: str | None) -> None:
    if digest is not None and saved.digest != digest:
        raise RefusedError(
            f"{saved.file}: its placement has the digest {saved.digest} and EPLB_VLLM_PLAN_DIGEST"
            f" pins {digest}; this host has another plan than the one that was pinned"
        )
    if saved.placement.excluded_ranks:
        gone = ", ".join(map(str, saved.placement.excluded_ranks))
        raise RefusedError(
            f"{saved.file}: it leaves GPU {gone} empty and vLLM fills the slots of every GPU;"
            f" plan for the GPUs that are left (--gpus) instead of --exclude-gpu"
        )
    for other in others:
        if other.size == saved.size:
            raise RefusedError(
                f"{other.file} and {saved.file} are both of {saved.size[0]} layers ×"
                f" {saved.size[1]} experts, so that vLLM's models cannot be told apart by them;"
                " name only one of the two"
            )


def _check_sizes(saved: Saved, asked: Asked) -> None:
    placement = saved.placement
    if placement.num_ranks != asked.num_ranks:
        raise RefusedError(
            f"{_described(saved)} does not fit: vLLM has {asked.num_ranks} expert-parallel ranks;"
            f" plan with --gpus {asked.num_ranks}, or start vLLM with {placement.num_ranks} ranks"
            " (data-parallel × tensor-parallel size)"
        )
    if placement.num_slots != asked.num_slots:
        redundant = placement.num_slots - placement.num_logical_experts
        raise RefusedError(
            f"{_described(saved)} does not fit: vLLM has {asked.num_slots} slots a layer;"
            f" --eplb-config.num_redundant_experts {redundant} would"
        )
