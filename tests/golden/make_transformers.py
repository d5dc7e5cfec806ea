"""Makes the golden arrays of `tests/model/test_transformers.py` with torch and transformers.

    python tests/golden/make_transformers.py

Each `transformers_CASE.npz` holds a tiny random model: its configuration, weights, input tokens,
targets, logits, and the gradient of the mean cross-entropy for every parameter.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

VOCAB, ROWS, LENGTH = 61, 2, 20
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 24}
LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 24,
    "rms_norm_eps": 1e-4,
    "rope_theta": 500.0,
}
CASES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", **GPT2},
    "gpt2_untied": {"model_type": "gpt2", **GPT2, "activation_function": "gelu", "untied": True},
    "llama": {"model_type": "llama", **LLAMA, "untied": True},
    "llama_tied": {"model_type": "llama", **LLAMA, "head_dim": 8},
    "llama_biased": {
        "model_type": "llama",
        **LLAMA,
        "num_key_value_heads": 4,
        "attention_bias": True,
        "mlp_bias": True,
        "untied": True,
    },
}


def model_of(case: dict[str, Any]):
    """The transformers model of a case, in float32, without dropout, not initialised with care."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    options = {key: value for key, value in case.items() if key not in ("model_type", "untied")}
    common = {
        "vocab_size": VOCAB,
        "tie_word_embeddings": not case.get("untied", False),
        "attn_implementation": "eager",
    }
    if case["model_type"] == "gpt2":
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(**options, **common, **still))
    theta = options.pop("rope_theta")
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    return LlamaForCausalLM(LlamaConfig(**options, **common, **rope))


def run_case(case: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """A model with random weights (deviation .2, scales of norms around 1), run both ways."""
    import torch

    torch.manual_seed(seed)
    model = model_of(case).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(1.0 if scale else 0.0, 0.2)
    text = torch.randint(0, VOCAB, (ROWS, LENGTH + 1))
    tokens, targets = text[:, :-1], text[:, 1:]
    logits = model(tokens).logits
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), targets.reshape(-1))
    loss.backward()
    out = {
        "config": np.array(json.dumps(case)),
        "tokens": tokens.numpy().astype(np.int32),
        "targets": targets.numpy().astype(np.int32),
        "logits": logits.detach().numpy(),
    }
    for name, parameter in model.named_parameters():
        out[f"weight/{name}"] = parameter.detach().numpy()
        out[f"gradient/{name}"] = parameter.grad.numpy()
    return out


def main() -> None:
    """Write one file for each case, beside this script."""
    for seed, (name, case) in enumerate(CASES.items()):
        path = Path(__file__).parent / f"transformers_{name}.npz"
        np.savez_compressed(path, **run_case(case, seed))
        print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
