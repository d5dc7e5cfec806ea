"""The decoder computes what transformers' GPT-2 and Llama compute: logits and every gradient."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from golden.make_transformers import CASES, run_case
from transformers_weights import config_of, params_of

from aludel.model import Decoder, Execution, from_stored, head_of, make_apply, to_stored

GOLDEN = Path(__file__).parent.parent / "golden"
EXECUTIONS = {
    "plain": Execution(scan=False, attention="plain"),
    "blocked, scanned, remat": Execution(scan=True, remat="full", attention="blocked"),
}
BOUND = 1e-4


def differences(arrays: dict[str, np.ndarray], execution: Execution) -> tuple[float, dict]:
    """Largest difference from the other library's logits, and from each of its gradients: these
    also in units of a thousandth of the gradient, so that a small one is not passed by."""
    case = json.loads(str(arrays["config"]))
    weights, gradients = (
        params_of(case, {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith(kind)})
        for kind in ("weight/", "gradient/")
    )
    config = config_of(case, arrays["logits"].shape[-1])
    params = from_stored(to_stored(weights, config), config, execution)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == config.parameters()
    batch = {"tokens": arrays["tokens"], "targets": arrays["targets"]}
    apply = make_apply(config, execution)

    def loss(params: dict) -> jax.Array:
        return -apply(params, batch)["logp"].mean()

    @jax.jit
    def both(params: dict) -> tuple[jax.Array, dict]:
        hidden = Decoder(config, execution).apply({"params": params}, batch["tokens"])
        return hidden @ head_of(params, config).T, jax.grad(loss)(params)

    with jax.default_matmul_precision("highest"):
        logits, ours = both(params)
    ours = to_stored(ours, config)
    theirs = to_stored(gradients, config)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)

    def excess(ours: np.ndarray, theirs: np.ndarray) -> float:
        """The largest difference; relative to the gradient's size where that says more. (A key's
        bias has a gradient of nothing but rounding, hence the floor.)"""
        gap, size = np.abs(ours - theirs).max(), np.abs(theirs).max()
        return float(max(gap, BOUND * gap / (1e-3 * size + 1e-6)))

    return float(np.abs(logits - arrays["logits"]).max()), jax.tree.map(excess, ours, theirs)


def check(arrays: dict[str, np.ndarray], execution: Execution) -> None:
    logits, gradients = differences(arrays, execution)
    assert np.abs(arrays["logits"]).max() > 1
    assert logits < BOUND
    far = {
        jax.tree_util.keystr(path): gap
        for path, gap in jax.tree_util.tree_leaves_with_path(gradients)
        if not gap < BOUND
    }
    assert not far


@pytest.mark.parametrize(
    "name, execution",
    [(name, "plain") for name in CASES]
    + [(name, "blocked, scanned, remat") for name in ("gpt2", "llama")],
)
def test_logits_and_gradients_are_those_of_transformers(name, execution):
    with np.load(GOLDEN / f"transformers_{name}.npz") as file:
        arrays = dict(file)
    assert json.loads(str(arrays["config"])) == CASES[name]
    check(arrays, EXECUTIONS[execution])


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed (`make test-all` installs them)",
)
@pytest.mark.parametrize("name", CASES)
def test_live_against_the_installed_transformers(name):
    for seed in (101, 102):
        check(run_case(CASES[name], seed), EXECUTIONS["plain"])
