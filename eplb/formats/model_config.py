"""A model's structure, from its Hugging Face `config.json`."""

import json
import os
from typing import Any

from ..errors import InputError
from ..model import Model
from ..trace import check_groups, check_top_k
from . import files
from .expert_bytes import expert_bytes
from .model_families import (
    FAMILIES,
    Config,
    Family,
    LayerRule,
    after_dense,
    block_types,
    number,
    sparse_ones,
)

# Names of one thing in different families and versions (transformers 5 saves `num_local_experts`
# where the hub has `num_experts`). Where a file has several of them, they must agree. `top_k` is
# not among them: in configurations it is a setting of sampling.
_EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "moe_top_k")
_GROUPS = ("n_group", "num_expert_group")
_SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
_SHARED_WIDTH = ("shared_expert_intermediate_size", "shared_intermediate_size")
_LAYERS = ("num_hidden_layers", "n_layers", "num_layers")
_MTP = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
_MOST_LAYERS = 10_000
# Where models of text and images keep what is said of the text, and dbrx some of it.
_WRAPPED = ("text_config", "llm_config")
_OF_FFN = ("moe_num_experts", "moe_top_k", "ffn_hidden_size")
# Left by tools that quantise and do not write it into config.json.
_MODELOPT_FILE = "hf_quant_config.json"
_OTHER_FILES = ("quantize_config.json", "quant_config.json")


def read_model(path: str) -> Model:
    """The structure of a model, from its folder or the `config.json` in it.

    Raises
    ------
    InputError
        When the file cannot be read, the model has no experts or not the same everywhere, or
        nothing is known of its type and the file does not say which layers have experts.
    """
    name = os.path.join(path, "config.json") if os.path.isdir(path) else path
    config = _read_object(name)
    try:
        return _model(config, _quantization(config, os.path.dirname(name)))
    except InputError as error:
        raise InputError(f"{files.name_of(name)}: {error}") from None


def _read_object(name: str) -> dict[str, Any]:
    data, name = files.read_bytes(name), files.name_of(name)
    try:
        # Configurations may hold the literal Infinity (time_step_limit), which orjson refuses.
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not valid JSON: {str(error)[:80]}") from None
    if not isinstance(content, dict):
        raise InputError(f"{name} holds no JSON object; the config.json of a model is expected")
    return content


def _model(outer: Config, quantization: Config | None) -> Model:
    config = _inner(outer)
    kind = str(outer.get("model_type") or config.get("model_type") or "unknown")
    num_experts = number(config, *_EXPERTS) or 0
    if num_experts < 2:  # dense members of some families say 1
        said = ", ".join(map(repr, _EXPERTS))
        raise InputError(
            f"the model (model_type {kind}) has no experts, or tells of them in a way unknown:"
            f" none of {said} is 2 or more"
        )
    family = _family(config, outer, kind)
    blocks = block_types(config)
    num_layers = number(config, *_LAYERS, most=_MOST_LAYERS) or len(blocks)
    if not num_layers:
        raise InputError("it does not say how many layers there are ('num_hidden_layers')")
    moe_layer_ids = tuple(_layer_rule(config, family)(config, num_layers))
    if not moe_layer_ids:
        raise InputError(f"none of the {num_layers} layers of the model ({kind}) has experts")
    num_groups, top_k = number(config, *_GROUPS) or 1, number(config, *_TOP_K)
    check_groups(num_groups, num_experts)
    check_top_k(top_k, num_experts)
    num_mtp = number(config, *_MTP, most=_MOST_LAYERS) or 0
    matrices = _matrices(config, family)
    return Model(
        name=kind,
        num_layers=num_layers,
        moe_layer_ids=moe_layer_ids,
        num_experts=num_experts,
        top_k=top_k,
        # A type that nothing is known of may have another name for its groups.
        num_groups=num_groups if family or any(key in config for key in _GROUPS) else None,
        mtp_layer_ids=tuple(range(num_layers, num_layers + num_mtp * bool(family and family.mtp))),
        num_shared_experts=_num_shared(config, family),
        expert_matrices=matrices,
        expert_bytes=_expert_bytes(config, outer, family, matrices, moe_layer_ids, quantization),
    )


def _inner(outer: Config) -> Config:
    """What a configuration says of the language model, on one level."""
    config: Config = next(
        (outer[key] for key in _WRAPPED if isinstance(outer.get(key), dict)), outer
    )
    ffn = config.get("ffn_config")
    if isinstance(ffn, dict):
        return {**config, **{key: ffn[key] for key in _OF_FFN if key in ffn}}
    return config


def _family(config: Config, outer: Config, kind: str) -> Family | None:
    """The family of a model; None for another whose file tells the layers with experts."""
    for part in (config, outer):
        family = FAMILIES.get(str(part.get("model_type")).removesuffix("_text"))
        if family is not None:
            return family
    if any(config.get(key) is not None for key in ("mlp_layer_types", "first_k_dense_replace")):
        return None
    if isinstance(config.get("moe_layer_freq"), list):
        return None
    raise InputError(
        f"nothing is known of models of type {kind!r}, and neither 'mlp_layer_types' nor"
        " 'first_k_dense_replace' says which of its layers have experts; known types are"
        f" {', '.join(sorted(FAMILIES))}. Without a model, --groups and --top-k say what a trace"
        " does not, and layers keep the numbers of the trace"
    )


def _layer_rule(config: Config, family: Family | None) -> LayerRule:
    """How to find the layers with experts: a list in the file stands above the family's rule."""
    types, marks = config.get("mlp_layer_types"), config.get("moe_layer_freq")
    if types is None and isinstance(marks, list):
        types = ["sparse" if mark else "dense" for mark in marks]
    if types is not None:
        return lambda _, num_layers: sparse_ones(types, num_layers)
    return family.layers if family else after_dense


def _num_shared(config: Config, family: Family | None) -> int:
    said = number(config, *_SHARED)
    if said:
        return said
    if any(number(config, key) for key in _SHARED_WIDTH):
        return 1
    return family.num_shared if family else 0


def _matrices(config: Config, family: Family | None) -> tuple[tuple[int, int], ...]:
    """Outputs and inputs of each matrix of an expert; empty when they cannot be told."""
    keys = family.width if family else ("moe_intermediate_size",)
    width = next((size for key in keys if (size := number(config, key))), None)
    hidden = number(config, "moe_latent_size") or number(config, "hidden_size", "d_model")
    if family is None or not hidden or not width:
        return ()
    return (*[(width, hidden)] * (2 if family.gated else 1), (hidden, width))


def _expert_bytes(
    config: Config,
    outer: Config,
    family: Family | None,
    matrices: tuple[tuple[int, int], ...],
    moe_layer_ids: tuple[int, ...],
    quantization: Config | None,
) -> int | None:
    if family is None or not matrices or config.get("use_bias") or config.get("mlp_bias"):
        return None  # a bias may be the experts' or not
    dtypes = (part.get(key) for part in (config, outer) for key in ("dtype", "torch_dtype"))
    dtype = next((dtype for dtype in dtypes if dtype), None)
    return expert_bytes(
        matrices, dtype, quantization, moe_layer_ids, family.own_layout, family.biases
    )


def _quantization(outer: Config, folder: str) -> Config | None:
    """How the weights are quantised: None for not at all, empty for in a way unknown."""
    for part in (_inner(outer), outer):
        for key in ("quantization_config", "compression_config"):
            if part.get(key):
                return part[key] if isinstance(part[key], dict) else {}
    beside = os.path.join(folder, _MODELOPT_FILE)
    if os.path.isfile(beside):
        found = _read_object(beside).get("quantization")
        return {**found, "quant_method": "modelopt"} if isinstance(found, dict) else {}
    unread = any(os.path.isfile(os.path.join(folder, name)) for name in _OTHER_FILES)
    return {} if unread else None
