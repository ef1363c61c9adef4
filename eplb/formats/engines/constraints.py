"""What keeps a plan from an engine, or is to be known before an engine starts with it.

Each has a stable id, as the findings about traces have. What an engine would get wrong without a
word is refused; what only the operator can judge is a note.
"""

from collections.abc import Collection

import numpy as np

from ..._arrays import Ints
from ...errors import RefusedError
from ...findings import Rule
from ...model import Model
from ...plan import Plan

RULES = {
    "EP201": Rule(
        "same-GPU copies",
        "A GPU holds an expert twice: one slot is wasted. SGLang loads only the first of the two"
        " when it dispatches all-to-all, so that tokens sent to the second meet weights that were"
        " never loaded; vllm-ascend keeps one entry for each expert and GPU and miscounts slots.",
        "Plan with --strategy auto, which makes no such copies, or with --strategy deepseek"
        " --repair.",
    ),
    "EP202": Rule(
        "GPUs out of service",
        "The slots of an excluded GPU are empty, and no engine's map can hold an empty slot.",
        "Plan for the GPUs that are left (--gpus with their number, no --exclude-gpu) and start"
        " the engine on those.",
    ),
    "EP203": Rule(
        "layers that are not those of the model",
        "Maps are taken by layer number or by position. With a layer too few or too many every"
        " later one is served with another layer's placement, or the engine stops while loading.",
        "Plan from a trace of this model, with --model, so that every layer with experts is"
        " recorded and numbered as the model numbers it.",
    ),
    "EP204": Rule(
        "experts that are not those of the model",
        "Maps name routed experts by the router's numbers. A plan of another number of experts is"
        " of another model, and shared experts planned as routed ones have numbers that no router"
        " gives.",
        "Plan for this model, without --shared-experts.",
    ),
    "EP205": Rule(
        "more redundant experts than the engine's tables hold",
        "vLLM keeps 1,024 places for the copies of an expert and takes at most 1,023 redundant"
        " experts a layer.",
        "Plan with a smaller --redundant.",
    ),
    "EP206": Rule(
        "layers known from the plan alone",
        "Without the model's configuration nobody knows how many layers it has, which of them are"
        " dense, or whether the plan covers all that have experts.",
        "Give --model, the folder or config.json of the model.",
        informs=True,
    ),
    "EP207": Rule(
        "multi-token-prediction layers",
        "Engines treat the layer that drafts tokens apart: SGLang and vllm-ascend place it by"
        " themselves, vLLM balances it as a model of its own, TensorRT-LLM wants a key for it.",
        "Nothing to do where it is left to the engine. In SGLang the draft layer may have no"
        " redundant experts; its experts must then divide over the GPUs by themselves.",
        informs=True,
    ),
    "EP208": Rule(
        "a file whose meaning depends on the version",
        "vllm-ascend up to 0.23 loads weights by the file. From 0.24 on weights are loaded in the"
        " default order while tokens go by the file, so that slots appear to hold other experts'"
        " weights than the table says.",
        "Use the file with vllm-ascend up to 0.23. Newer versions run vLLM's own balancer: use"
        " --to vllm and its plug-in.",
    ),
    "EP209": Rule(
        "a proposed format",
        "vLLM up to 0.33 reads no placement file. The files written here are those of two proposed"
        " changes that were not merged by then.",
        "With vLLM 0.33 let this package's plug-in place experts: set EPLB_VLLM_PLAN to the plan"
        " file itself. Use the exported file only with a vLLM that has the proposed change.",
        informs=True,
    ),
    "EP210": Rule(
        "a model family that the engine may not balance",
        "Engines take a placement only for model classes that were written for it. For others the"
        " map is left aside or the engine refuses to start.",
        "See in the engine's start-up log whether the map was taken, or ask the engine's"
        " documentation for the model.",
    ),
}


def refused(rule: str, found: str) -> RefusedError:
    """The error of a plan that must not reach the engine."""
    return RefusedError(f"{rule} {RULES[rule].title}: {found}")


def note(rule: str, found: str) -> str:
    """A remark that carries its rule's id."""
    return f"{rule} {RULES[rule].title}: {found}"


def twins(table: Ints, layer_ids: Ints, num_ranks: int) -> str | None:
    """The experts that a GPU holds more than once, in a few words, or None."""
    by_rank = np.sort(table.reshape(len(table), num_ranks, -1), axis=2)
    twice = np.argwhere(by_rank[:, :, 1:] == by_rank[:, :, :-1])
    if not len(twice):
        return None
    row, rank, slot = twice[0]
    more = f" (and {len(twice) - 1} more such copies)" if len(twice) > 1 else ""
    return (
        f"in layer {layer_ids[row]} GPU {rank} holds expert {by_rank[row, rank, slot]} more than"
        f" once{more}"
    )


def family_note(plan: Plan, model: Model | None, lacking: Collection[str], why: str) -> list[str]:
    """A note when the model's type, where it is known, is one of `lacking`."""
    name = family(plan, model)
    return [note("EP210", f"{name}: {why}")] if name in lacking else []


def family(plan: Plan, model: Model | None) -> str | None:
    """The model's type as configurations write it; None where nobody said it."""
    name = model.name if model is not None else plan.provenance.get("model")
    return name.lower().replace("-", "_") if isinstance(name, str) else None
