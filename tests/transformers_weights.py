"""Weights of transformers' GPT-2 and Llama, by name, as aludel's parameters; gradients likewise."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from aludel.model import DecoderConfig

Arrays = Mapping[str, np.ndarray]


def config_of(case: Mapping[str, Any], vocab: int) -> DecoderConfig:
    """The decoder that a transformers configuration describes."""
    tied = not case.get("untied", False)
    if case["model_type"] == "gpt2":
        activations = {"gelu_new": "gelu_tanh", "gelu": "gelu"}
        return DecoderConfig(
            vocab_size=vocab,
            layers=case["n_layer"],
            width=case["n_embd"],
            heads=case["n_head"],
            context=case["n_positions"],
            norm="layernorm",
            position="learned",
            activation=activations[case.get("activation_function", "gelu_new")],
            bias=True,
            tied=tied,
        )
    return DecoderConfig(
        vocab_size=vocab,
        layers=case["num_hidden_layers"],
        width=case["hidden_size"],
        heads=case["num_attention_heads"],
        kv_heads=case["num_key_value_heads"],
        head_dim=case.get("head_dim"),
        mlp_width=case["intermediate_size"],
        context=case["max_position_embeddings"],
        norm="rmsnorm",
        norm_eps=case["rms_norm_eps"],
        position="rotary",
        rope_theta=case["rope_theta"],
        rope_layout="half",
        activation="swiglu",
        bias=case.get("attention_bias", False),
        tied=tied,
    )


def params_of(case: Mapping[str, Any], arrays: Arrays) -> dict:
    """Named arrays of a transformers model as unrolled parameters; every one must find a place."""
    left = dict(arrays)
    build = _gpt2 if case["model_type"] == "gpt2" else _llama
    params = build(left)
    assert not left, f"not mapped: {sorted(left)}"
    return params


def _gpt2(left: dict[str, np.ndarray]) -> dict:
    """GPT-2's Conv1D keeps weights as [in, out], queries, keys and values beside one another."""

    def affine(name: str) -> dict:
        return {"scale": left.pop(f"{name}.weight"), "bias": left.pop(f"{name}.bias")}

    def dense(name: str) -> dict:
        return {"kernel": left.pop(f"{name}.weight"), "bias": left.pop(f"{name}.bias")}

    params = {
        "embed": {"table": left.pop("transformer.wte.weight")},
        "position": {"table": left.pop("transformer.wpe.weight")},
        "final_norm": affine("transformer.ln_f"),
    }
    if "lm_head.weight" in left:
        params["head"] = {"kernel": left.pop("lm_head.weight")}
    layer = 0
    while f"transformer.h.{layer}.ln_1.weight" in left:
        at = f"transformer.h.{layer}"
        fused = dense(f"{at}.attn.c_attn")
        parts = {key: np.split(array, 3, axis=-1) for key, array in fused.items()}
        params[f"blocks_{layer}"] = {
            "attention_norm": affine(f"{at}.ln_1"),
            "attention": {
                name: {key: parts[key][i] for key in parts}
                for i, name in enumerate(("query", "key", "value"))
            }
            | {"output": dense(f"{at}.attn.c_proj")},
            "mlp_norm": affine(f"{at}.ln_2"),
            "mlp": {"up": dense(f"{at}.mlp.c_fc"), "down": dense(f"{at}.mlp.c_proj")},
        }
        layer += 1
    return params


def _llama(left: dict[str, np.ndarray]) -> dict:
    """Llama's Linear keeps weights as [out, in]."""

    def dense(name: str) -> dict:
        found = {"kernel": left.pop(f"{name}.weight").T}
        if f"{name}.bias" in left:
            found["bias"] = left.pop(f"{name}.bias")
        return found

    def norm(name: str) -> dict:
        return {"scale": left.pop(f"{name}.weight")}

    params = {
        "embed": {"table": left.pop("model.embed_tokens.weight")},
        "final_norm": norm("model.norm"),
    }
    if "lm_head.weight" in left:
        params["head"] = {"kernel": left.pop("lm_head.weight")}
    attention = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    mlp = {"up": "up_proj", "gate": "gate_proj", "down": "down_proj"}
    layer = 0
    while f"model.layers.{layer}.input_layernorm.weight" in left:
        at = f"model.layers.{layer}"
        params[f"blocks_{layer}"] = {
            "attention_norm": norm(f"{at}.input_layernorm"),
            "attention": {own: dense(f"{at}.self_attn.{name}") for own, name in attention.items()},
            "mlp_norm": norm(f"{at}.post_attention_layernorm"),
            "mlp": {own: dense(f"{at}.mlp.{name}") for own, name in mlp.items()},
        }
        layer += 1
    return params
