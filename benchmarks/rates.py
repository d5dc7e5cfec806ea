"""Trainings of one decoder at many learning rates: one program for all, and a file of what is done.

train = make_training(config, corpus)
runs = Runs(Path("runs.jsonl"), {"steps": config.steps})
runs.fill(config.model, train, [(0.5, 0), (1.0, 0)])
"""

import functools
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import optax

from aludel.data import TrainBatches, eval_batches
from aludel.model import DecoderConfig, init_params, make_apply, param_groups, param_growths
from aludel.train import (
    add,
    init_state,
    lm_loss,
    make_advance,
    make_eval_step,
    make_loss_and_grads,
    make_optimizer,
    mean,
)
from aludel.train.config import PretrainConfig
from aludel.train.corpus import Corpus

HELD_OUT = 16  # batches, spread evenly over the validation text
Train = Callable[[float, int], float]


def make_training(config: PretrainConfig, corpus: Corpus) -> Train:
    """`train(factor, seed) -> held-out loss`, `inf` where it diverged: one program for all."""
    model, rows = config.model, config.batch
    groups, growths = param_groups(model), param_growths(model)
    inner = make_optimizer(config.optimizer, config.steps, groups, growths)
    apply = make_apply(model)
    loss_and_grads = make_loss_and_grads(lm_loss(), apply)
    evaluate = make_eval_step(lm_loss(), apply)
    held_out = eval_batches(corpus.validation[0], rows, model.context)
    chosen = np.linspace(0, len(held_out) - 2, HELD_OUT).astype(int)  # the last one is not full

    def scaled(factor):
        # Rates are the last thing that updates are multiplied by.
        return optax.chain(inner, optax.scale(factor))

    @jax.jit
    def begin(key):
        return init_state(scaled(1.0), init_params(model, key=key))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch, factor):
        value, grads, _ = loss_and_grads(state.params, batch, None)
        return make_advance(scaled(factor), guard=None)(state, value, grads)[0]

    def train(factor: float, seed: int) -> float:
        state = begin(jax.random.key(seed))
        batches = TrainBatches(corpus.train, corpus.weights, rows, model.context, seed)
        for number in range(config.steps):
            state = step(state, batches.batch(number), np.float32(factor))
        terms = [evaluate(state.params, held_out.batch(i)) for i in chosen]
        loss = float(mean(functools.reduce(add, terms)["lm"]))
        return loss if math.isfinite(loss) else math.inf

    return train


class Runs:
    """The finished trainings in a file, a line for each."""

    def __init__(self, path: Path, shared: dict):
        """shared: settings of all that are to be found and made."""
        self._path, self._shared = path, shared
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # a killed one left a part
        if whole != lines:
            path.write_text("".join(whole))
        self._lines = [json.loads(line) for line in whole]

    def losses(self, model: DecoderConfig) -> dict[float, dict[int, float]]:
        """Of a decoder: by factor and seed."""
        wanted = self._about(model)
        found: dict[float, dict[int, float]] = {}
        for line in self._lines:
            if wanted.items() <= line.items():
                found.setdefault(line["factor"], {})[line["seed"]] = line["loss"]
        return found

    def fill(self, model: DecoderConfig, train: Train, pairs: Sequence[tuple[float, int]]) -> None:
        """Train with each factor and seed that is not there."""
        there = self.losses(model)
        for factor, seed in pairs:
            if seed in there.get(factor, {}):
                continue
            begun = time.perf_counter()
            loss, seconds = train(factor, seed), time.perf_counter() - begun
            line = {"factor": factor, "seed": seed, "loss": loss, "seconds": seconds}
            self._lines.append({**self._about(model), **line})
            with self._path.open("a") as file:
                file.write(json.dumps(self._lines[-1]) + "\n")
            name = f"width {model.width}, tuned at {model.tuned_width or model.width}"
            print(f"{name}: {factor:g}, seed {seed}: {loss:.4f} ({seconds:.1f} s)", flush=True)

    def _about(self, model: DecoderConfig) -> dict:
        return {**self._shared, "width": model.width, "tuned_width": model.tuned_width}
