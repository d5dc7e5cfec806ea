"""Answers read on a mesh: what a network says of them is what it says on one device."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from aludel.model import DecoderConfig, Execution, MeshConfig, init_params, make_apply, make_mesh
from aludel.rlhf.answers import Answers
from aludel.rlhf.reading import logp_by, read, score_by

CONFIG = DecoderConfig(vocab_size=31, layers=1, width=32, heads=4, context=320, scalar_head=True)
EXECUTION = Execution(scan=False, attention="plain")


def answers_of(count: int) -> Answers:
    """Prompts and answers of many lengths."""
    random = np.random.default_rng(0)

    def texts(least: int, most: int) -> list[np.ndarray]:
        return [random.integers(1, 31, n) for n in random.integers(least, most, count)]

    return Answers(texts(2, 30), texts(1, 40), np.zeros(count, np.float32), np.ones(count, bool))


READINGS = {
    "score": score_by,
    "score with log-probs": functools.partial(score_by, logp_weight=0.3),
    "log-prob": logp_by,
}
MESHES = (
    MeshConfig(data=1, fsdp=2, context=4),
    MeshConfig(data=3, context=2),
    MeshConfig(data=1, fsdp=2, tensor=4),
)


@pytest.mark.parametrize(
    "reading, mesh",
    [
        pytest.param(*one, marks=() if one == ("score", MESHES[0]) else pytest.mark.slow)
        for one in itertools.product(READINGS, MESHES)
    ],
    ids=str,
)
def test_answers_are_read_on_a_mesh_as_on_one_device(reading, mesh):
    """Rows in pieces too, and a number of them that is no multiple of 16."""
    answers, mesh, reader = answers_of(40), make_mesh(mesh), READINGS[reading]
    alone = read(
        reader(make_apply(CONFIG, EXECUTION)),
        init_params(CONFIG, EXECUTION, jax.random.key(0)),
        answers,
    )
    attention = "context" if mesh.shape["context"] > 1 else EXECUTION.attention
    apply = make_apply(CONFIG, dataclasses.replace(EXECUTION, attention=attention), mesh)
    params = init_params(CONFIG, EXECUTION, jax.random.key(0), mesh)
    together = read(reader(apply), params, answers, mesh)
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=5e-5)
