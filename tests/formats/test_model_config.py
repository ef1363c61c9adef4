"""Models' structures read from their configurations."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from eplb.errors import InputError
from eplb.formats.expert_bytes import expert_bytes
from eplb.formats.model_config import read_model
from eplb.formats.model_families import FAMILIES
from eplb.model import Model

# A hub configuration of DeepSeek-V3, as far as it tells of experts.
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "num_hidden_layers": 61, "first_k_dense_replace": 3,
    "moe_layer_freq": 1, "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8,
    "topk_group": 4, "n_shared_experts": 1, "num_nextn_predict_layers": 1, "hidden_size": 7168,
    "moe_intermediate_size": 2048, "intermediate_size": 18432, "torch_dtype": "bfloat16",
    "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
}  # fmt: skip


def _read(folder: Path, config: object) -> Model:
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    return read_model(str(folder))


def test_deepseek_v3_is_read_from_its_hub_file(tmp_path: Path) -> None:
    """3 × 7168 × 2048 bytes, and four for every block of 128 × 128."""
    model = _read(tmp_path, DEEPSEEK_V3)
    assert model == Model(
        name="deepseek_v3", num_layers=61, moe_layer_ids=tuple(range(3, 61)), num_experts=256,
        top_k=8, num_groups=8, mtp_layer_ids=(61,), num_shared_experts=1,
        expert_matrices=((2048, 7168), (2048, 7168), (7168, 2048)), expert_bytes=44_050_944,
    )  # fmt: skip
    assert 3 * 7168 * 2048 + 4 * 3 * 16 * 56 == 44_050_944
    assert read_model(str(tmp_path / "config.json")) == model


# As transformers saves them: type, arguments, layers with experts, and experts, top-k, groups,
# MTP layers, shared experts.
HALF = {"num_hidden_layers": 4}
SAVED: list[tuple[str, dict[str, Any], list[int], tuple[int, ...]]] = [
    ("mixtral", HALF, [0, 1, 2, 3], (8, 2, 1, 0, 0)),
    ("phimoe", HALF, [0, 1, 2, 3], (16, 2, 1, 0, 0)),
    ("granitemoe", HALF, [0, 1, 2, 3], (8, 2, 1, 0, 0)),
    ("granitemoeshared", {**HALF, "shared_intermediate_size": 8}, [0, 1, 2, 3], (8, 2, 1, 0, 1)),
    ("minimax", HALF, [0, 1, 2, 3], (8, 2, 1, 0, 0)),
    ("minimax_m2", HALF, [0, 1, 2, 3], (256, 8, 1, 0, 0)),
    ("qwen2_moe", {**HALF, "decoder_sparse_step": 2}, [1, 3], (60, 4, 1, 0, 1)),
    ("qwen3_moe", {**HALF, "mlp_only_layers": [0, 2]}, [1, 3], (128, 8, 1, 0, 0)),
    ("qwen3_next", {**HALF, "num_experts": 32}, [0, 1, 2, 3], (32, 10, 1, 0, 1)),
    ("qwen3_5_moe", {"text_config": HALF}, [0, 1, 2, 3], (256, 8, 1, 0, 1)),
    ("qwen3_5_moe_text", HALF, [0, 1, 2, 3], (256, 8, 1, 0, 1)),
    ("qwen3_vl_moe", {"text_config": {**HALF, "decoder_sparse_step": 4}}, [3], (60, 4, 1, 0, 0)),
    ("deepseek_v2", {**HALF, "num_experts_per_tok": 6}, [0, 1, 2, 3], (64, 6, 1, 0, 2)),
    ("deepseek_v3", HALF, [3], (256, 8, 8, 1, 1)),
    ("deepseek_v32", HALF, [3], (256, 8, 8, 0, 1)),
    ("deepseek_v4", HALF, [0, 1, 2, 3], (256, 6, 1, 1, 1)),
    ("kimi_k25", {}, list(range(3, 61)), (256, 8, 8, 1, 1)),
    ("glm4_moe", HALF, [1, 2, 3], (128, 8, 1, 1, 1)),
    ("glm4v_moe", {"text_config": HALF}, [1, 2, 3], (128, 8, 1, 0, 1)),
    ("glm4_moe_lite", HALF, [1, 2, 3], (64, 4, 1, 0, 1)),
    ("glm_moe_dsa", HALF, [3], (256, 8, 1, 0, 1)),
    (
        "dots1",
        {**HALF, "n_routed_experts": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 2},
        [2, 3],
        (8, 2, 1, 0, 0),
    ),
    ("mimo_v2_flash", HALF, [1, 2, 3], (256, 8, 1, 0, 0)),
    ("kimi_linear", HALF, [1, 2, 3], (256, 8, 1, 0, 1)),
    ("hy_v3", HALF, [1, 2, 3], (192, 8, 1, 0, 1)),
    ("ernie4_5_moe", {**HALF, "moe_layer_interval": 2}, [1, 3], (64, 6, 1, 0, 2)),
    ("gpt_oss", HALF, [0, 1, 2, 3], (128, 4, 1, 0, 0)),
    ("llama4", {"text_config": {**HALF, "interleave_moe_layer_step": 2}}, [1, 3], (16, 1, 1, 0, 1)),
    ("llama4_text", {**HALF, "moe_layers": [0, 3]}, [0, 3], (16, 1, 1, 0, 1)),
    ("dbrx", {"n_layers": 4}, [0, 1, 2, 3], (4, 1, 1, 0, 0)),
    ("olmoe", HALF, [0, 1, 2, 3], (64, 8, 1, 0, 0)),
    ("flex_olmo", HALF, [0, 1, 2, 3], (7, 5, 1, 0, 0)),
    ("jamba", HALF, [1, 3], (16, 2, 1, 0, 0)),
    ("hunyuan_v1_moe", {**HALF, "num_experts": 8}, [0, 1, 2, 3], (8, 1, 1, 0, 0)),
    ("lfm2_moe", HALF, [2, 3], (32, 4, 1, 0, 0)),
    ("afmoe", HALF, [1, 2, 3], (64, 6, 1, 0, 2)),
    ("longcat_flash", {"num_layers": 4}, [0, 1, 2, 3], (512, 12, 1, 0, 0)),
    ("nemotron_h", {"layers_block_type": ["mlp", "moe", "mlp", "moe"]}, [1, 3], (8, 2, 1, 0, 1)),
    # Nothing is known of this type but what its file says.
    ("exaone_moe", HALF, [1, 2, 3], (64, 8, 1, 0, 1)),
]


@pytest.mark.parametrize(("kind", "arguments", "layers", "rest"), SAVED)
def test_what_transformers_saves_is_read(
    tmp_path: Path, kind: str, arguments: dict[str, Any], layers: list[int], rest: tuple[int, ...]
) -> None:
    """Of every family: the layers with experts, experts, top-k, groups, MTP, shared experts."""
    CONFIG_MAPPING[kind](**arguments).save_pretrained(tmp_path)
    model = read_model(str(tmp_path))
    assert model.name == kind
    assert list(model.moe_layer_ids) == layers
    assert model.num_layers == (61 if kind == "kimi_k25" else 4)
    assert rest == (
        model.num_experts, model.top_k, model.num_groups, len(model.mtp_layer_ids),
        model.num_shared_experts,
    )  # fmt: skip
    assert model.expert_bytes is None  # a configuration without weights has no dtype


def test_every_family_is_tested() -> None:
    """Those that the installed transformers does not have are read from hub files below."""
    saved = {kind.removesuffix("_text") for kind, *_ in SAVED}
    assert set(FAMILIES) - saved == {"kimi_k2", "granitemoehybrid"}


# The same in files of the hub, where names or forms differ.
HUB: dict[str, tuple[dict[str, Any], list[int], int | None]] = {
    "kimi_k2": ({**DEEPSEEK_V3, "num_hidden_layers": 3, "first_k_dense_replace": 1}, [1, 2], 8),
    "qwen3_moe": ({"num_hidden_layers": 2, "num_experts": 8, "num_experts_per_tok": 4}, [0, 1], 4),
    "glm4_moe_lite": (
        {"num_hidden_layers": 3, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1,
         "first_k_dense_replace": 1},
        [1, 2], 2,
    ),
    "kimi_linear": (
        {"num_hidden_layers": 3, "num_experts": 8, "num_experts_per_token": 2,
         "num_expert_group": 1, "first_k_dense_replace": 1, "moe_layer_freq": 1},
        [1, 2], 2,
    ),
    "mimo_v2_flash": (
        {"num_hidden_layers": 4, "n_routed_experts": 8, "num_experts_per_tok": 2,
         "moe_layer_freq": [0, 1, 1, 0], "n_shared_experts": None},
        [1, 2], 2,
    ),
    "hunyuan_v1_moe": (
        {"num_hidden_layers": 3, "num_experts": [8, 8, 8], "moe_topk": [2, 2, 2],
         "num_shared_expert": [1, 1, 1], "moe_intermediate_size": [16, 16, 16]},
        [0, 1, 2], 2,
    ),
    "nemotron_h": (
        {"hybrid_override_pattern": "MEM*E-", "num_hidden_layers": 6, "n_routed_experts": 8,
         "time_step_limit": [0.0, float("inf")]},
        [1, 4], None,
    ),
    "ernie4_5_moe": (
        {"num_hidden_layers": 4, "moe_num_experts": 8, "moe_k": 2, "moe_layer_start_index": 1,
         "moe_layer_end_index": 2, "moe_layer_interval": 1},
        [1, 2], 2,
    ),
    "llama4": (
        {"text_config": {"num_hidden_layers": 4, "num_local_experts": 8, "num_experts_per_tok": 1,
                         "interleave_moe_layer_step": 2}},
        [1, 3], 1,
    ),
    "dbrx": ({"n_layers": 2, "ffn_config": {"moe_num_experts": 8, "moe_top_k": 4}}, [0, 1], 4),
    "deepseek_v2": (
        {"num_hidden_layers": 5, "n_routed_experts": 8, "first_k_dense_replace": 1,
         "moe_layer_freq": 2, "n_group": 0},
        [2, 4], None,
    ),
    "granitemoehybrid": ({"num_hidden_layers": 2, "num_local_experts": 8}, [0, 1], None),
    "never_heard_of": (
        {"num_hidden_layers": 3, "num_experts": 8, "top_k": 50,
         "mlp_layer_types": ["dense", "sparse", "dense"]},
        [1], None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HUB)
def test_hub_files_are_read(tmp_path: Path, kind: str) -> None:
    """Older names, lists by layer, patterns and levels."""
    config, layers, top_k = HUB[kind]
    model = _read(tmp_path, {**config, "model_type": kind})
    assert (list(model.moe_layer_ids), model.top_k) == (layers, top_k)
    assert model.num_experts == config.get("n_routed_experts", 8)


def test_what_an_unknown_type_does_not_say_stays_unsaid(tmp_path: Path) -> None:
    """Neither groups nor sizes nor MTP layers are guessed."""
    config = {**DEEPSEEK_V3, "model_type": "never_heard_of"}
    del config["n_group"]
    model = _read(tmp_path, config)
    assert model.num_groups is model.expert_bytes is None
    assert model.mtp_layer_ids == ()


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("mixtral", {"intermediate_size": 24, "num_local_experts": 4}),
        ("deepseek_v3", {"moe_intermediate_size": 24, "n_routed_experts": 4, "n_group": 1,
                         "topk_group": 1, "num_experts_per_tok": 2, "q_lora_rank": 8,
                         "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
                         "v_head_dim": 8, "first_k_dense_replace": 1}),
        ("gpt_oss", {"intermediate_size": 24, "num_local_experts": 4, "head_dim": 8}),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_bytes_are_those_of_a_saved_checkpoint(
    tmp_path: Path, kind: str, arguments: dict[str, Any]
) -> None:
    """A small model is saved as the hub has it, and the tensors of its experts are added up."""
    config = CONFIG_MAPPING[kind](
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, dtype="float32", **arguments,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    total = sum(array.nbytes for name, array in tensors.items() if "layers.1." in name and
                ".experts." in name)  # fmt: skip
    assert read_model(str(tmp_path)).expert_bytes == total // 4 > 0


# One expert of hidden size 256 and inner size 128: gate and up (128, 256), down (256, 128).
SHAPES = [(128, 256), (128, 256), (256, 128)]
VALUES = 3 * 128 * 256
NVFP4 = VALUES // 2 + VALUES // 16
QUANTISED: dict[str, tuple[dict[str, Any], int | None]] = {
    "fp8 blocks": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, VALUES + 4 * 6),
    "fp8 odd blocks": ({"quant_method": "fp8", "weight_block_size": [100, 100]}, VALUES + 4 * 18),
    "fp8": ({"quant_method": "fp8", "activation_scheme": "dynamic"}, VALUES + 4 * 3),
    "fp8 static": ({"quant_method": "fp8", "activation_scheme": "static"}, VALUES + 8 * 3),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"},
        VALUES // 2 + (4 * 128 * 2 + 2 * 256) // 2 + (4 * 128 * 2 + 2 * 256) * 2,
    ),
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 64},
        VALUES // 2 + (4 * 128 * 2 + 2 * 256) // 2 + (4 * 128 * 2 + 2 * 256) * 2
        + 4 * (256 + 256 + 128),
    ),
    "gptq of one group": (
        {"quant_method": "gptq", "bits": 8, "group_size": -1},
        VALUES + (128 * 2 + 256) + (128 * 2 + 256) * 2 + 4 * (256 + 256 + 128),
    ),
    "wna16": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": {
                "num_bits": 4, "group_size": 32, "strategy": "group", "symmetric": True}}},
         "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*",
                    "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"]},
        VALUES // 2 + VALUES // 32 * 2 + 3 * 16,
    ),
    "nvfp4 of modelopt": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4",
         "ignore": ["lm_head", "model.layers.0*", "*mlp.gate.*"]},
        NVFP4 + 3 * 8,
    ),
    "nvfp4 of compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4},
                        "input_activations": {"num_bits": 4}}}},
        NVFP4 + 3 * 8,
    ),
    "gates spared": (
        {"quant_method": "fp8", "weight_block_size": [128, 128],
         "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head",
                                    "model.layers.2.mlp.gate"]},
        VALUES + 4 * 6,
    ),
    "some experts spared": ({"quant_method": "fp8", "ignore": ["layers.2.mlp.experts.3"]}, None),
    "a layer spared": ({"quant_method": "fp8", "modules_to_not_convert": ["model.layers.2"]}, None),
    "an expression": ({"quant_method": "fp8", "ignore": ["re:.*layers.2.*"]}, None),
    "a broken expression": ({"quant_method": "fp8", "ignore": ["re:("]}, None),
    "rules by module": ({"quant_method": "gptq", "bits": 4, "group_size": 64,
                         "dynamic": {"+:.*down_proj.*": {"bits": 8}}}, None),
    "experts in another type": ({"quant_method": "fp8", "expert_dtype": "fp4"}, None),
    "a method unknown": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, None),
    "no method": ({}, None),
    "blocks of nothing": ({"quant_method": "fp8", "weight_block_size": [0, "a"]}, None),
    "bits of text": ({"quant_method": "awq", "bits": "4", "group_size": 64}, None),
}  # fmt: skip


@pytest.mark.parametrize("what", QUANTISED)
def test_bytes_of_quantised_experts(what: str) -> None:
    """Packed values, scales, zeros and indices; None where they cannot be told for sure."""
    quantization, expected = QUANTISED[what]
    assert expert_bytes(SHAPES, "bfloat16", quantization, [1, 2]) == expected


def test_bytes_of_experts_with_biases_in_mxfp4(tmp_path: Path) -> None:
    """17 bytes for 32 values, and biases of 2 bytes: gpt-oss-120b."""
    config = {
        "model_type": "gpt_oss", "num_hidden_layers": 36, "num_local_experts": 128,
        "num_experts_per_tok": 4, "hidden_size": 2880, "intermediate_size": 2880,
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": [
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens"]},
    }  # fmt: skip
    expected = 3 * 2880 * 2880 // 32 * 17 + 2 * 3 * 2880
    assert _read(tmp_path, config).expert_bytes == expected == 13_236_480


def test_experts_of_two_matrices_and_of_a_latent_size(tmp_path: Path) -> None:
    """Nemotron-H has no gate, and its experts may see a smaller size than the model's own."""
    config = {
        "model_type": "nemotron_h", "hybrid_override_pattern": "ME", "n_routed_experts": 4,
        "hidden_size": 64, "moe_latent_size": 16, "moe_intermediate_size": 8, "dtype": "bfloat16",
    }  # fmt: skip
    assert _read(tmp_path, config).expert_bytes == 2 * 16 * 8 * 2


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}}, NVFP4 + 24),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "W4A8"}}, None),
        ("quantize_config.json", {"bits": 4}, None),
        ("other.json", {}, 2 * VALUES),
    ],
)
def test_quantisation_may_be_told_beside_the_configuration(
    tmp_path: Path, name: str, content: object, expected: int | None
) -> None:
    """Weights are not taken for what config.json says of others when such a file is there."""
    config = {
        "model_type": "mixtral", "num_hidden_layers": 1, "num_local_experts": 4,
        "hidden_size": 256, "intermediate_size": 128, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / name).write_text(json.dumps(content))
    assert _read(tmp_path, config).expert_bytes == expected


def test_layouts_of_a_familys_own_are_not_guessed(tmp_path: Path) -> None:
    """DeepSeek-V4 has other scales than V3."""
    config = {**DEEPSEEK_V3, "model_type": "deepseek_v4"}
    assert _read(tmp_path, config).expert_bytes is None


def _but(**changes: object) -> dict[str, Any]:
    config = {**DEEPSEEK_V3, **changes}
    return {key: value for key, value in config.items() if value is not None}


HOSTILE: dict[str, tuple[object, str]] = {
    "no json": ("{oops", "config.json is not valid JSON"),
    "empty": ("", "config.json is not valid JSON"),
    "a deep nest": ("[" * 100_000, "config.json is not valid JSON"),
    "a list": ("[]", "holds no JSON object"),
    "a dense model": (
        {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096},
        r"the model \(model_type llama\) has no experts",
    ),
    "a dense model of a family": (_but(n_routed_experts=None), "has no experts"),
    "no type": (
        {"num_hidden_layers": 2, "num_experts": 8},
        "models of type 'unknown'.*known types are afmoe",
    ),
    "an unknown type": (
        {"model_type": "new", "num_hidden_layers": 2, "num_experts": 8},
        "models of type 'new', and neither 'mlp_layer_types' .*--groups and --top-k",
    ),
    "no dense layers said": (_but(first_k_dense_replace=None), "'first_k_dense_.*' is missing"),
    "no layers said": (_but(num_hidden_layers=None), "how many layers"),
    "only dense layers": (_but(first_k_dense_replace=61), "none of the 61 layers"),
    "experts of text": (_but(n_routed_experts="256"), "'n_routed_experts' is '256'"),
    "experts of true": (_but(n_routed_experts=True), "'n_routed_experts' is True"),
    "negative layers": (_but(num_hidden_layers=-1), "'num_hidden_layers' is -1"),
    "a billion layers": (_but(num_hidden_layers=10**9), "from 0 to 10000 is expected"),
    "a billion MTP layers": (_but(num_nextn_predict_layers=10**9), "from 0 to 10000"),
    "experts that differ": (
        _but(n_routed_experts=[64, 128]), r"a list \(64, 128\); experts that differ",
    ),
    "two numbers of experts": (
        _but(num_local_experts=128),
        "'n_routed_experts' is 256 and 'num_local_experts' is 128; .* must agree",
    ),
    "groups that do not divide": (_but(n_group=7), "256 experts do not divide into 7 groups"),
    "more experts a token than there are": (_but(num_experts_per_tok=300), "top_k is 300"),
    "types of other layers": (_but(mlp_layer_types=["dense"]), "61 layers, and types of 1"),
    "a type unknown": (_but(mlp_layer_types=["odd"] * 61), "layer 0 is of type 'odd'"),
    "types of no list": (_but(mlp_layer_types=7), "types of the layers are 7"),
    "dense layers of no list": (
        _but(model_type="qwen3_moe", mlp_only_layers=3), "'mlp_only_layers' is 3",
    ),
    "experts of two sizes": (
        {"model_type": "ernie4_5_vl_moe", "num_hidden_layers": 2, "moe_num_experts": [64, 64],
         "moe_intermediate_size": [1536, 512], "mlp_layer_types": ["dense", "sparse"]},
        r"'moe_intermediate_size' is a list \(1536, 512\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_configurations_that_say_nothing_get_a_clear_message(tmp_path: Path, what: str) -> None:
    """Nothing is guessed; the file is named."""
    config, message = HOSTILE[what]
    with pytest.raises(InputError, match=message) as caught:
        _read(tmp_path, config)
    assert str(tmp_path) in str(caught.value)


def test_folders_without_a_configuration_are_told(tmp_path: Path) -> None:
    """The file that is missing is named."""
    with pytest.raises(InputError, match=r"config.json cannot be read: No such file"):
        read_model(str(tmp_path))


def test_any_change_of_a_value_is_told_or_harmless(tmp_path: Path) -> None:
    """Whatever stands in a key, nothing but `InputError` comes out."""
    odd: list[object] = [None, True, -1, 0, 3, 1.5, 10**30, "", "a", [], [1], [None], {}, {"a": 1}]
    keys = [*DEEPSEEK_V3, "mlp_layer_types", "moe_layers", "text_config", "ffn_config", "dtype"]
    keys += ["layers_block_type", "mlp_only_layers", "decoder_sparse_step", "compression_config"]
    for kind in ("deepseek_v3", "qwen3_moe", "llama4", "nemotron_h", "dbrx", "new"):
        for key, value in itertools.product(keys, odd):
            try:
                _read(tmp_path, {**DEEPSEEK_V3, "model_type": kind, key: value})
            except InputError as error:
                assert str(error)
