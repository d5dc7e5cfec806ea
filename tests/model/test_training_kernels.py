"""The kernels of a training step in C++: who chooses them, and a decoder's gradients by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import needs_compiler

from aludel.errors import UserError
from aludel.model import DecoderConfig, Execution, init_params, make_apply
from aludel.model.kernels import choosing, norms, products, training
from aludel.model.layers import normalise

compiled = needs_compiler(training.obstacle)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@compiled
@pytest.mark.parametrize(
    "changes",
    [
        dict(bias=True, tied=True, norm="layernorm"),
        dict(activation="swiglu", kv_heads=1, token_shift=1, norm_affine=False),
    ],
)
def test_gradients_of_a_decoder_agree(changes):
    config = DecoderConfig(vocab_size=50, layers=2, width=32, heads=2, context=96, **changes)
    params = init_params(config, Execution(), jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, 50, (4, 97)).astype(np.int32)
    batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:]}

    def gradients(name):
        apply = make_apply(config, Execution(training=name))
        return jax.jit(jax.grad(lambda p: apply(p, batch)["logp"].mean()))(params)

    for a, b in zip(*map(jax.tree.leaves, map(gradients, ("native", "xla"))), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-4)


def test_the_choice_says_why(monkeypatch):
    monkeypatch.setattr(training, "obstacle", lambda: None)
    choose = training.choose_training
    assert choose("auto", "cpu", "float32", 1)[0] == "native"
    assert choose("xla", "cpu", "float32", 1) == ("xla", "asked for")
    for backend, dtype, devices, why in (
        ("gpu", "float32", 1, "the backend is gpu"),
        ("cpu", "bfloat16", 1, "not bfloat16"),
        ("cpu", "float32", 8, "a mesh of 8"),
    ):
        name, reason = choose("auto", backend, dtype, devices)
        assert name == "xla" and why in reason
        with pytest.raises(UserError, match="training = native cannot be used"):
            choose("native", backend, dtype, devices)


def test_without_a_compiler_xla_does_it(monkeypatch, capfd):
    monkeypatch.setattr(training, "obstacle", lambda: "there is no C++ compiler")
    monkeypatch.setattr(products, "transposed_product", None)  # a call would fail
    monkeypatch.setattr(norms, "native_normalise", None)
    choosing.say.cache_clear()
    x, y = normal(0, 300, 5), normal(1, 300, 7)
    execution = training.for_training(Execution(), "float32", None)
    found = training.gradient_by(execution.training)(x, y)
    np.testing.assert_allclose(found, np.asarray(x).T @ np.asarray(y), atol=1e-4)
    about = (None, None, True, 1e-5)
    kernels = training.training_kernels(execution.training, "cpu", None)
    np.testing.assert_allclose(kernels.normalise(x, *about), normalise(x, *about), atol=1e-6)
    assert "training: xla (native ones are faster, but there is no C++" in capfd.readouterr().err
    with pytest.raises(UserError, match="no C\\+\\+ compiler"):
        training.for_training(Execution(training="native"), "float32", None)
