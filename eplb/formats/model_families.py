"""How models of each type say in their configuration what their experts are."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ..errors import InputError

Config = Mapping[str, Any]
LayerRule = Callable[[Config, int], Iterable[int]]

# Numbers above are mistakes that would fill the memory.
_MOST = 1_000_000
# What layers are called that have no experts, and that have: by MLP, by block, by letter.
_DENSE = ("dense", "mamba", "linear_attention", "attention", "full_attention", "mlp", "M", "*", "-")
_SPARSE = ("sparse", "moe", "hash_moe", "E")


class Family(NamedTuple):
    """What the models of a type have in common.

    Parameters
    ----------
    layers
        Finds the layers with experts in a configuration and a number of layers.
    width
        The keys of the inner size of an expert.
    gated
        Whether an expert has three matrices, or two.
    mtp
        Whether multi-token-prediction layers have experts too. Engines number them behind the
        decoder layers, whatever their weights are called. Where they are dense or not known to
        have experts, they are left out, so that load in them is refused.
    own_layout
        Whether quantised files are laid out in a way of the family's own: many keep all experts
        of a layer in one tensor.
    biases
        Whether every matrix has a bias.
    num_shared
        Shared experts that no key tells of.
    """

    layers: LayerRule
    width: tuple[str, ...] = ("moe_intermediate_size",)
    gated: bool = True
    mtp: bool = False
    own_layout: bool = False
    biases: bool = False
    num_shared: int = 0


def number(config: Config, *keys: str, most: int = _MOST) -> int | None:
    """The whole number that the keys hold, names of one thing; None when none of them is there.

    Raises
    ------
    InputError
        When it is no number, or differs between the keys or between layers.
    """
    found: dict[str, int] = {}
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        # A list has a value for each layer, or for each kind of input.
        if isinstance(value, list) and value and all(one == value[0] for one in value):
            value = value[0]
        if isinstance(value, list):
            shown = ", ".join(map(str, value[:6]))[:60]
            raise InputError(f"{key!r} is a list ({shown}); experts that differ are not supported")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            shown = repr(value)[:40]
            raise InputError(f"{key!r} is {shown}; a whole number from 0 to {most} is expected")
        found[key] = value
    if len(set(found.values())) > 1:
        said = " and ".join(f"{key!r} is {value}" for key, value in found.items())
        raise InputError(f"{said}; they are names of the same thing and must agree")
    return next(iter(found.values()), None)


def sparse_ones(types: Any, num_layers: int) -> list[int]:
    """The layers with experts, from the types of all layers: names, or letters of a text.

    Raises
    ------
    InputError
        When there are more or fewer types than layers, or a type is unknown.
    """
    if not isinstance(types, list | str):
        raise InputError(f"the types of the layers are {types!r:.40}; a list is expected")
    if len(types) != num_layers:
        raise InputError(f"there are {num_layers} layers, and types of {len(types)}")
    for layer, kind in enumerate(types):
        if kind not in (*_DENSE, *_SPARSE):
            raise InputError(f"layer {layer} is of type {kind!r:.40}, of which nothing is known")
    return [layer for layer, kind in enumerate(types) if kind in _SPARSE]


def block_types(config: Config) -> Any:
    """What each layer is, in models whose attention, state-space and expert layers are apart."""
    return config.get("layers_block_type") or config.get("hybrid_override_pattern") or []


def after_dense(config: Config, num_layers: int) -> Iterable[int]:
    """The layers behind the first dense ones, every one of them or every so many."""
    step = number(config, "moe_layer_freq") or 1
    first = _needed(config, "first_k_dense_replace")
    return [layer for layer in range(first, num_layers) if layer % step == 0]


def _every(config: Config, num_layers: int) -> Iterable[int]:
    skipped = number(config, "moe_layer_num_skipped") or 0
    return range(skipped, num_layers)


def _by_sparse_step(config: Config, num_layers: int) -> Iterable[int]:
    dense = _layer_list(config.get("mlp_only_layers") or [], "mlp_only_layers")
    step = number(config, "decoder_sparse_step") or 1
    return [layer for layer in range(step - 1, num_layers, step) if layer not in dense]


def _by_interval(config: Config, num_layers: int) -> Iterable[int]:
    first, step = _needed(config, "moe_layer_start_index"), number(config, "moe_layer_interval")
    # The last layer with experts; −1 is the last of all.
    last = config.get("moe_layer_end_index", -1)
    end = num_layers if last == -1 else _needed(config, "moe_layer_end_index") + 1
    return [layer for layer in range(first, min(end, num_layers)) if not (layer + 1) % (step or 1)]


def _by_list_or_step(config: Config, num_layers: int) -> Iterable[int]:
    listed = config.get("moe_layers")
    if listed is not None:
        return [layer for layer in range(num_layers) if layer in _layer_list(listed, "moe_layers")]
    step = _needed(config, "interleave_moe_layer_step") or 1
    return range(step - 1, num_layers, step)


def _by_period(config: Config, num_layers: int) -> Iterable[int]:
    period, offset = (_needed(config, f"expert_layer_{key}") for key in ("period", "offset"))
    return [layer for layer in range(num_layers) if layer % (period or 1) == offset]


def _after_leading(config: Config, num_layers: int) -> Iterable[int]:
    return range(_needed(config, "num_dense_layers"), num_layers)


def _by_block(config: Config, num_layers: int) -> Iterable[int]:
    return sparse_ones(block_types(config), num_layers)


def _needed(config: Config, key: str) -> int:
    value = number(config, key)
    if value is None:
        raise InputError(f"{key!r} is missing, so it cannot be told which layers have experts")
    return value


def _layer_list(value: Any, key: str) -> list[int]:
    if not isinstance(value, list) or not all(type(layer) is int for layer in value):
        raise InputError(f"{key!r} is {value!r:.40}; a list of layers is expected")
    return value


_PLAIN = Family(_every, ("intermediate_size",))
_FUSED = _PLAIN._replace(own_layout=True)
_DEEPSEEK = Family(after_dense, mtp=True)
_QWEN = Family(_by_sparse_step)
FAMILIES = {
    **dict.fromkeys(("mixtral", "phimoe", "minimax", "minimax_m2", "olmoe", "flex_olmo"), _PLAIN),
    **dict.fromkeys(("granitemoe", "granitemoeshared", "granitemoehybrid"), _FUSED),
    "gpt_oss": _FUSED._replace(biases=True),
    "dbrx": Family(_every, ("ffn_hidden_size",), own_layout=True),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32"), _DEEPSEEK),
    **dict.fromkeys(("kimi_k2", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa"), _DEEPSEEK),
    "deepseek_v4": Family(_every, mtp=True, own_layout=True),
    **dict.fromkeys(("dots1", "glm4v_moe", "kimi_linear", "hy_v3"), Family(after_dense)),
    "mimo_v2_flash": Family(after_dense),
    "qwen2_moe": _QWEN,
    "qwen3_moe": _QWEN,
    "qwen3_next": _QWEN._replace(mtp=True),
    "qwen3_vl_moe": _QWEN._replace(own_layout=True),
    "qwen3_5_moe": Family(_every, mtp=True),
    "ernie4_5_moe": Family(_by_interval),
    "llama4": Family(_by_list_or_step, ("intermediate_size",), own_layout=True, num_shared=1),
    "jamba": Family(_by_period, ("intermediate_size",)),
    "hunyuan_v1_moe": Family(_every, ("moe_intermediate_size", "intermediate_size")),
    "lfm2_moe": Family(_after_leading),
    "afmoe": Family(_after_leading),
    "longcat_flash": Family(_every, ("expert_ffn_hidden_size",)),
    "nemotron_h": Family(_by_block, gated=False),
}
