"""Tiny models of many families, what their own gates say, and stand-ins for models."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import nn

NUM_EXPERTS, TOP_K, VOCABULARY = 8, 2, 32

_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
           "v_head_dim": 8, "head_dim": 4}  # fmt: skip
_LOCAL = {"num_local_experts": NUM_EXPERTS, "num_experts_per_tok": TOP_K}
_PLAIN = {"num_experts": NUM_EXPERTS, "num_experts_per_tok": TOP_K, "moe_intermediate_size": 8}
_ROUTED = {"n_routed_experts": NUM_EXPERTS, "num_experts_per_tok": TOP_K,
           "moe_intermediate_size": 8, "n_shared_experts": 1}  # fmt: skip
_GROUPS = {"n_group": 4, "topk_group": 2}
_ONE_GROUP = {"n_group": 1, "topk_group": 1}

# Options of each family, and the layers that have experts with them.
FAMILIES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "Afmoe": ({**_PLAIN, "num_dense_layers": 1, "num_shared_experts": 1}, [1]),
    "Dbrx": (
        {
            "d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": NUM_EXPERTS,
                           "moe_top_k": TOP_K, "hidden_size": 16},
        },
        [0, 1],
    ),
    "DeepseekV2": (
        {**_LATENT, **_ROUTED, **_GROUPS, "topk_method": "group_limited_greedy",
         "first_k_dense_replace": 1},
        [1],
    ),
    "DeepseekV3": ({**_LATENT, **_ROUTED, **_GROUPS, "first_k_dense_replace": 1}, [1]),
    "DeepseekV4": (
        {**_ROUTED, "num_hash_layers": 1, "head_dim": 8, "num_key_value_heads": 1}, [0, 1]
    ),
    "Dots1": ({**_ROUTED, **_ONE_GROUP, "first_k_dense_replace": 1}, [1]),
    "Ernie4_5_Moe": (
        {"moe_num_experts": NUM_EXPERTS, "moe_k": TOP_K, "moe_intermediate_size": 8,
         "moe_layer_start_index": 1, "moe_num_shared_experts": 1},
        [1],
    ),
    "Glm4Moe": ({**_ROUTED, **_ONE_GROUP, "first_k_dense_replace": 1}, [1]),
    "GptOss": ({**_LOCAL, "head_dim": 8}, [0, 1]),
    "GraniteMoe": (_LOCAL, [0, 1]),
    "HunYuanMoEV1": ({"num_experts": NUM_EXPERTS, "moe_topk": TOP_K, "head_dim": 8}, [0, 1]),
    "Jamba": (
        {**_PLAIN, "attn_layer_period": 1, "attn_layer_offset": 0, "expert_layer_period": 2,
         "expert_layer_offset": 1, "num_hidden_layers": 4},
        [1, 3],
    ),
    "Llama4": (
        {**_LOCAL, "intermediate_size_mlp": 16, "interleave_moe_layer_step": 2, "head_dim": 8}, [1]
    ),
    "LongcatFlash": (
        {**_LATENT, "ffn_hidden_size": 16, "expert_ffn_hidden_size": 8,
         "num_hidden_layers": 4, "n_routed_experts": NUM_EXPERTS, "zero_expert_num": 4,
         "moe_topk": TOP_K},
        [0, 1],
    ),
    "MiniMaxM2": ({**_LOCAL, "head_dim": 8, "rotary_dim": 4}, [0, 1]),
    "Mixtral": (_LOCAL, [0, 1]),
    "NemotronH": (
        {**_ROUTED, **_ONE_GROUP, "moe_shared_expert_intermediate_size": 8,
         "layers_block_type": ["moe", "attention", "moe"], "num_hidden_layers": 3},
        [0, 2],
    ),
    "Olmoe": (_PLAIN, [0, 1]),
    "Phimoe": (_LOCAL, [0, 1]),
    "Qwen2Moe": (
        {**_PLAIN, "shared_expert_intermediate_size": 8, "decoder_sparse_step": 2}, [1]
    ),
    "Qwen3Moe": ({**_PLAIN, "mlp_only_layers": [1], "num_hidden_layers": 3}, [0, 2]),
}  # fmt: skip


def build(family: str, **changed: Any) -> nn.Module:
    """A tiny model of a family with random weights, and a random correction bias and hash table
    where it has them."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY} if family == "Dbrx" else _SIZES
    config_name = "Llama4Text" if family == "Llama4" else family
    config_class = getattr(transformers, f"{config_name}Config")
    config = config_class(**{**sizes, **FAMILIES[family][0], **changed})
    model: nn.Module = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, values in model.state_dict().items():
        if name.endswith(("e_score_correction_bias", "expert_bias")):
            values.copy_(torch.randn_like(values))
        elif name.endswith("tid2eid"):
            values.copy_(torch.rand(len(values), NUM_EXPERTS).argsort(dim=1)[:, :TOP_K])
    return model


@contextmanager
def watch_gates(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """The ids (T, top_k) that the gates of a model choose, one entry a layer and forward."""
    chosen: list[torch.Tensor] = []

    def of_gate(module: nn.Module, args: Any, output: tuple[torch.Tensor, ...]) -> None:
        if type(module).__name__ == "Llama4Router":  # scores, which are 0 where not chosen
            chosen.append(output[0].nonzero()[:, 1].view(-1, TOP_K))
        else:
            chosen.append(output[2])

    handles = []
    for module in model.modules():
        kind = type(module).__name__
        if kind == "DbrxFFN":  # its gate gives logits; the block chooses
            own = module.route_tokens_to_experts

            def listening(*args: Any, own: Any = own) -> Any:
                routed = own(*args)
                chosen.append(routed[1])
                return routed

            module.route_tokens_to_experts = listening
        elif ("Router" in kind and kind != "DbrxRouter") or kind.endswith("V1Gate"):
            handles.append(module.register_forward_hook(of_gate))
    yield chosen
    for handle in handles:
        handle.remove()


class FewExperts(nn.Module):
    """An experts module as transformers has them, but for one thing."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.num_experts: int | None = 4
        self.__dict__.update(attributes)

    def forward(self, hidden: torch.Tensor, top_k_index: torch.Tensor) -> torch.Tensor:
        return hidden


class ZayaExperts(FewExperts):
    """Named as the experts of a family that cannot be recorded."""


class SharedExperts(nn.Module):
    """Experts that every token visits, so that no ids are needed."""

    def forward(self, hidden: torch.Tensor, gammas: torch.Tensor) -> torch.Tensor:
        return hidden


class Decoder(nn.Module):
    """A model whose layers are experts modules, called with the ids it is given for each."""

    def __init__(self, *experts: nn.Module, twins: int = 1) -> None:
        super().__init__()
        for number in range(twins):
            self.add_module(
                f"part{number}",
                nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleList([e]) for e in experts)}),
            )
        self.config = SimpleNamespace(model_type="decoder")

    def forward(self, *ids: Any) -> None:
        for layer, given in zip(self.part0["layers"], ids, strict=False):  # type: ignore[index]
            if given is not None:
                layer[0](torch.zeros(len(given), 1), torch.tensor(given))
