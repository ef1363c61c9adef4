"""TensorRT-LLM's `moe_load_balancer` YAML: a list of experts for each layer, by the layer's number.

Current versions refuse unknown keys, `ep_size` among them although their own example scripts write
it, and stop with a KeyError at a layer with experts that has no key.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from ..._arrays import Ints
from ...errors import InputError
from ...findings import listed
from ...model import Model
from ...plan import Plan
from ..source import Source
from .constraints import family, note
from .exports import Export, check_ending, choose
from .rows import MOST_LAYERS, Rows, expect, shown, table_of

NAME = "trtllm"
DESCRIPTION = "TensorRT-LLM load balancer: .yaml, layers by number"
ENDINGS = (".yaml", ".yml")

_KEY = "initial_global_assignments"
_KNOWN = (_KEY, "num_slots", "layer_updates_per_iter", "ep_size")

# The model types of the architectures that its wide expert parallelism listed when it was read.
_LISTED = (
    "deepseek_v3", "kimi_k2", "llama4", "llama4_text", "mixtral", "qwen2_moe", "qwen3_moe",
)  # fmt: skip


def write(plan: Plan, name: str, model: Model | None = None) -> Export:
    """The file of this name, and the settings that go with it.

    Raises
    ------
    InputError
        When the name has another ending.
    RefusedError
        When TensorRT-LLM would not serve what was planned.
    """
    check_ending(name, ENDINGS, "TensorRT-LLM reads YAML")
    chosen = choose(
        plan, model, takes_mtp=True, holds_twins=True,
        unchecked="TensorRT-LLM stops at a layer with experts that has no key, an MTP layer"
        " included",
    )  # fmt: skip
    layers = dict(zip(chosen.layer_ids.tolist(), chosen.table, strict=True))
    notes = list(chosen.notes)
    drafts = [] if model is None else sorted(set(model.mtp_layer_ids) - set(layers))
    if drafts:
        row = default_row(chosen.table.shape[1], chosen.num_experts, chosen.num_ranks)
        layers |= dict.fromkeys(drafts, row)
        notes.append(
            note(
                "EP207",
                f"the plan lacks layer {listed(np.array(drafts))}, which gets the default row: slot"
                " i of GPU g holds expert (g × E // R + i) mod E",
            )
        )
    name_of_model = family(plan, model)
    if model is not None and name_of_model not in _LISTED:
        notes.append(
            note("EP210", f"{name_of_model}: its architecture was not on the list of those served")
        )
    flags = yaml.safe_dump({
        "enable_attention_dp": True,
        "moe_config": {"backend": "WIDEEP", "load_balancer": name},
        "moe_expert_parallel_size": chosen.num_ranks,
    }).splitlines()  # fmt: skip
    return Export(_yaml(layers, chosen.table.shape[1]), tuple(flags), tuple(notes))


def read(source: Source) -> Rows:
    """The rows of the layers that have a key, in their order.

    Raises
    ------
    InputError
        When the file is none that TensorRT-LLM would start with.
    """
    expect(source, ("text", "json"), f"YAML with {_KEY!r}")
    content, notes = _parsed(source.data()), []
    if not isinstance(content, Mapping) or not isinstance(content.get(_KEY), Mapping):
        raise InputError(f"it has no {_KEY!r} that is a mapping of layers to lists of experts")
    if unknown := [key for key in content if key not in _KNOWN]:
        raise InputError(
            f"unknown key {shown(unknown[0])}; TensorRT-LLM takes {', '.join(_KNOWN[:3])}"
        )
    num_slots, num_ranks = content.get("num_slots"), content.get("ep_size")
    for key, value in (("num_slots", num_slots), ("ep_size", content.get("ep_size", 1))):
        if type(value) is not int or value < 1:
            raise InputError(f"{key!r} is {shown(value)}; a whole number of 1 or more is expected")
    if num_ranks is not None:
        notes.append("the key 'ep_size' was read; current TensorRT-LLM versions refuse it")
    layers = content[_KEY]
    for layer in layers:
        if type(layer) is not int or not 0 <= layer < MOST_LAYERS:
            raise InputError(
                f"{_KEY} has the key {shown(layer)}; a layer's whole number is expected"
            )
    layer_ids = sorted(layers)
    table = table_of([layers[i] for i in layer_ids], lambda row: f"layer {layer_ids[row]}")
    if table.shape[1] != num_slots:
        raise InputError(
            f"'num_slots' is {shown(num_slots)} and layers have {table.shape[1]} slots"
        )
    return Rows(table, np.array(layer_ids), num_ranks=num_ranks, notes=tuple(notes))


def default_row(num_slots: int, num_experts: int, num_ranks: int) -> Ints:
    """What TensorRT-LLM gives a layer without a map of its own."""
    rank, slot = np.divmod(np.arange(num_slots), num_slots // num_ranks)
    row: Ints = (rank * num_experts // num_ranks + slot) % num_experts
    return row


def _yaml(layers: Mapping[int, Ints], num_slots: int) -> bytes:
    """What PyYAML writes with lists inside lines of any length and keys sorted."""
    lines = [f"{_KEY}:"]
    lines += [f"  {layer}: {layers[layer].tolist()}" for layer in sorted(layers)]
    lines += ["layer_updates_per_iter: 0", f"num_slots: {num_slots}", ""]
    return "\n".join(lines).encode()


# The parser in C where it is there; both read the same.
_Base: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[valid-type, misc]
    """Refuses a key that stands twice, of which parsers silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [self.construct_object(key) for key, _ in node.value]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.YAMLError(f"the key {shown(twice)} stands twice")
        return mapping


def _parsed(data: bytes) -> Any:
    try:
        return yaml.load(data, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"it is no YAML: {' '.join(str(error).split())[:160]}") from None
