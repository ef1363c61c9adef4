"""Bytes of one expert in a checkpoint, from its shapes and how it is quantised."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import translate
from typing import Any, TypeGuard

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SCALE, _HALF, _INT32 = 4, 2, 4  # float32, float16 or bfloat16, int32
# An MXFP4 block: 32 values in 16 bytes, and a byte of scale.
_MX_VALUES, _MX_BYTES = 32, 17
# NVFP4: 16 values share a byte of scale.
_NV_VALUES = 16
_SPARED = ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules", "dynamic")


def expert_bytes(
    matrices: Sequence[tuple[int, int]],
    dtype: str | None,
    quantization: Mapping[str, Any] | None,
    layer_ids: Sequence[int],
    own_layout: bool = False,
    biases: bool = False,
) -> int | None:
    """Bytes of an expert with these matrices (outputs, inputs), scales included; None when they
    cannot be told.

    Parameters
    ----------
    dtype
        What unquantised weights are, as configurations name it.
    quantization
        The configuration's own description; None when nothing is quantised.
    layer_ids
        The layers with experts, to see whether one of them is spared.
    own_layout, biases
        As in `model_families.Family`.
    """
    plain = _DTYPE_BYTES.get(str(dtype).removeprefix("torch."))
    num_biases = sum(outputs for outputs, _ in matrices) if biases else 0
    if quantization is None:
        values = sum(outputs * inputs for outputs, inputs in matrices) + num_biases
        return values * plain if plain else None
    method = quantization.get("quant_method")
    if own_layout and not (method == "mxfp4" and biases):
        return None
    if "expert_dtype" in quantization or _spares_experts(quantization, layer_ids):
        return None
    total = num_biases * _HALF
    for outputs, inputs in matrices:
        size = _quantised(outputs, inputs, quantization, plain)
        if size is None:
            return None
        total += size
    return total


def _quantised(
    outputs: int, inputs: int, quantization: Mapping[str, Any], plain: int | None
) -> int | None:
    """Bytes of one quantised matrix and everything stored beside it."""
    match quantization.get("quant_method"):
        case "fp8":
            return _fp8(outputs, inputs, quantization)
        case "awq" | "gptq" as method:
            return _packed_integers(outputs, inputs, quantization, is_gptq=method == "gptq")
        case "compressed-tensors":
            return _compressed(outputs, inputs, quantization, plain)
        case "modelopt" | "modelopt_fp4" if quantization.get("quant_algo") == "NVFP4":
            if quantization.get("group_size", _NV_VALUES) == _NV_VALUES:
                return _nvfp4(outputs, inputs, num_scalars=2)
        case "mxfp4" if not inputs % _MX_VALUES:
            return outputs * inputs // _MX_VALUES * _MX_BYTES
    return None


def _fp8(outputs: int, inputs: int, quantization: Mapping[str, Any]) -> int | None:
    blocks = quantization.get("weight_block_size")
    if blocks is None:
        # A scale for the whole matrix, and one for what goes in unless it is found on the way.
        num_scalars = 2 if quantization.get("activation_scheme") == "static" else 1
        return outputs * inputs + num_scalars * _SCALE
    if not isinstance(blocks, list) or len(blocks) != 2:
        return None
    rows, columns = blocks
    if not _is_size(rows) or not _is_size(columns):
        return None
    return outputs * inputs + -(-outputs // rows) * -(-inputs // columns) * _SCALE


def _packed_integers(
    outputs: int, inputs: int, quantization: Mapping[str, Any], is_gptq: bool
) -> int | None:
    bits, group = quantization.get("bits"), quantization.get("group_size")
    group = inputs if group == -1 else group
    if not _is_size(bits) or bits not in (2, 4, 8) or not _is_size(group):
        return None
    layout = quantization.get("checkpoint_format" if is_gptq else "version")
    if layout not in (None, "gptq", "gptq_v2", "gemm", "GEMM"):
        return None
    if quantization.get("zero_point") is False or outputs * bits % 32 or inputs * bits % 32:
        return None
    num_groups = -(-inputs // group)
    size = inputs * outputs * bits // 8 + num_groups * (outputs * bits // 8 + outputs * _HALF)
    return size + (inputs * _INT32 if is_gptq else 0)


def _compressed(
    outputs: int, inputs: int, quantization: Mapping[str, Any], plain: int | None
) -> int | None:
    groups = quantization.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        return None
    (scheme,) = groups.values()
    weights = scheme.get("weights") if isinstance(scheme, Mapping) else None
    if not isinstance(weights, Mapping) or scheme.get("targets") != ["Linear"]:
        return None
    match quantization.get("format"):
        case "nvfp4-pack-quantized":
            return _nvfp4(outputs, inputs, num_scalars=2 if scheme.get("input_activations") else 1)
        case "pack-quantized" if weights.get("symmetric", True) and not weights.get("actorder"):
            bits, group = weights.get("num_bits"), weights.get("group_size")
            if weights.get("strategy") == "channel":
                group = inputs
            if not _is_size(bits) or bits not in (4, 8) or not _is_size(group) or not plain:
                return None
            if inputs % group:
                return None
            packed = outputs * -(-inputs * bits // 32) * _INT32
            return packed + outputs * (inputs // group) * plain + 2 * 8  # the shape, two int64
    return None


def _nvfp4(outputs: int, inputs: int, num_scalars: int) -> int | None:
    if inputs % _NV_VALUES:
        return None
    return outputs * inputs // 2 + outputs * inputs // _NV_VALUES + num_scalars * _SCALE


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _spares_experts(quantization: Mapping[str, Any], layer_ids: Sequence[int]) -> bool:
    """Whether some experts may be left unquantised, so that experts have different sizes."""
    names = [
        f"model.layers.{layer}.mlp.experts.0.{part}_proj"
        for layer in layer_ids
        for part in ("gate", "up", "down")
    ]
    for key in _SPARED:
        entries = quantization.get(key)
        for entry in entries if isinstance(entries, list | dict) else ():
            if "experts" in str(entry) and "shared" not in str(entry):
                return True
            found = _pattern(str(entry))
            if found is None or any(map(found.match, names)):
                return True
    return False


def _pattern(entry: str) -> "re.Pattern[str] | None":
    """The names that an entry stands for: part of a name, with wildcards, or an expression."""
    try:
        for mark in ("re:", "-:", "+:"):
            if entry.startswith(mark):
                return re.compile(entry.removeprefix(mark))
        if "*" in entry:
            return re.compile(translate(entry))
        return re.compile(rf"(.*\.)?{re.escape(entry)}(\.|$)")
    except re.error:
        return None
