"""Tiny configurations of families of language models and vision encoders; random weights, no files.

Windows are shorter than a row, logits are scaled and capped, and heads have a bias where a family
can have any of it, so that whoever forgets one of them is found out.
"""

from __future__ import annotations

from typing import Any

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
_GROUPED = {**_LLAMA, "num_key_value_heads": 1}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512, "rotary_dim": 8}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
_EXPERTS = {
    "num_experts": 2,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
}
_STATES = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}

TEXT_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 6},
    "mixtral": {**_GROUPED, **_EXPERTS},
    "ministral": {**_GROUPED, **_MIXED, "head_dim": 16},
    "qwen2": {**_GROUPED, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen2_moe": {**_GROUPED, **_EXPERTS},
    "qwen3": _GROUPED,
    "qwen3_moe": {**_GROUPED, **_EXPERTS},
    "phi": _LLAMA,
    "phi3": {**_GROUPED, "sliding_window": 6},
    "gemma": {**_GROUPED, "head_dim": 16},
    "gemma2": {**_GROUPED, **_MIXED, "head_dim": 16, "final_logit_softcapping": 2.0},
    "gemma3_text": {**_GROUPED, **_MIXED, "head_dim": 16},
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "olmo3": {**_LLAMA, **_MIXED},
    "granite": {
        **_GROUPED,
        "logits_scaling": 8.0,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.2,
        "attention_multiplier": 0.1,
    },
    "granitemoe": {**_GROUPED, **_EXPERTS, "logits_scaling": 8.0},
    "cohere": {**_GROUPED, "logit_scale": 16.0},
    "cohere2": {**_GROUPED, **_MIXED, "logit_scale": 0.25},
    "stablelm": {**_LLAMA, "num_key_value_heads": 2},
    "starcoder2": {**_GROUPED, "sliding_window": 6},
    "smollm3": _GROUPED,
    "nemotron": {**_LLAMA, "num_key_value_heads": 2, "head_dim": 16},
    "glm4": {**_GROUPED, "head_dim": 16},
    "gpt_oss": {**_GROUPED, **_MIXED, **_EXPERTS, "head_dim": 16},
    "deepseek_v3": {
        **_LLAMA,
        **_EXPERTS,
        "num_key_value_heads": 2,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "n_routed_experts": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "gpt2": _GPT,
    "gptj": _GPT,
    "gpt_neox": _LLAMA,
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 6,
        "num_heads": 2,
        "max_position_embeddings": 512,
    },
    "opt": {**_LLAMA, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "alibi": True},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 512},
    "xglm": {
        "d_model": 32,
        "num_layers": 2,
        "attention_heads": 2,
        "ffn_dim": 48,
        "max_position_embeddings": 512,
    },
    "mamba": _STATES,
    "falcon_mamba": _STATES,
    "mamba2": {**_STATES, "num_heads": 4, "head_dim": 16, "n_groups": 1},
    "jamba": {
        **_GROUPED,
        **_EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "recurrent_gemma": {**_LLAMA, "num_hidden_layers": 3, "lru_width": 32},
    "modernbert-decoder": _LLAMA,
    "bert": {**_LLAMA, "is_decoder": True},
}
"""Values of a configuration by model type; sizes of the vocabulary are the tokenizer's."""

_VIT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 32,
}
_FOUR_STAGES = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
_SWIN = {
    "embed_dim": 8,
    "depths": [1, 1, 1],
    "num_heads": [1, 2, 2],
    "window_size": 2,
    "image_size": 32,
    "patch_size": 4,
}

VISION_FAMILIES: dict[str, dict[str, Any]] = {
    "clip_vision_model": _VIT,
    "siglip_vision_model": _VIT,
    "siglip2_vision_model": {**_VIT, "num_patches": 16},
    "vit": _VIT,
    "deit": _VIT,
    "vit_msn": _VIT,
    "ijepa": _VIT,
    "dinov2": {**_VIT, "mlp_ratio": 2},
    "dinov2_with_registers": {**_VIT, "mlp_ratio": 2, "num_register_tokens": 3},
    "dinov3_vit": {**_VIT, "num_register_tokens": 3},
    "dinov3_convnext": _FOUR_STAGES,
    "convnext": _FOUR_STAGES,
    "convnextv2": _FOUR_STAGES,
    "swin": _SWIN,
    "swinv2": _SWIN,
    "focalnet": {"embed_dim": 8, "depths": [1, 1, 1], "image_size": 32, "patch_size": 4},
    "resnet": {**_FOUR_STAGES, "embedding_size": 8, "layer_type": "basic"},
    "regnet": {**_FOUR_STAGES, "embedding_size": 8, "groups_width": 4},
    "mobilenet_v2": {"depth_multiplier": 0.25, "tf_padding": False},
    "segformer": {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
    },
    "pvt_v2": {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
    },
    "vit_mae": _VIT,
    "beit": _VIT,
    "levit": {"image_size": 32, "hidden_sizes": [16, 16, 16], "num_attention_heads": [1, 1, 1]},
}
"""Values of a configuration by model type."""
