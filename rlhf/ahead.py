"""Reward training and an iteration of PPO, compiled for devices that need not be here.

The programs are those that the stages run, lowered from shapes: see `train/ahead.py`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ..model import (
    DecoderConfig,
    batch_sharding,
    make_apply,
    param_shapes,
    param_shardings,
    replicated,
    sampling_program,
)
from ..model.kernels import for_decoding
from ..model.weights import laid_out
from ..train import ahead
from ..train.config import PpoConfig, RewardConfig
from ..train.layout import layout_of
from .align import applies_of, loss_of, sampling_of
from .iteration import columns_asked, make_programs, parts_of, undivided
from .packing import Packed, Rows, dealt, inputs_of, laid
from .ranking import ranking_loss
from .reading import score_by
from .rollouts import rollout_batch

END = 0  # the token that ends an answer: which one it is changes nothing here


def lower_reward(config: RewardConfig, mesh: Mesh, comparisons: int = 1) -> jax.stages.Lowered:
    """The step of reward training, for the mesh's devices. comparisons: the most in a row. Raises
    `UserError` where config and mesh do not fit."""
    last = (config.batch, comparisons, config.completions)
    batch = {
        **_text(config.batch, config.tokens_per_step // config.batch),
        "last": _shape(last, jnp.int32),
        "ranks": _shape(last, jnp.int32),
        "margins": _shape((*last, last[-1]), jnp.float32),
    }
    loss = ranking_loss(config.logp_weight)
    return ahead.lower_step(config, mesh, loss, _over_rows(batch, mesh))


class Phase(NamedTuple):
    """A program of an iteration, and what lies beside it."""

    lowered: jax.stages.Lowered
    beside: int
    """Bytes on each device of the networks that are not its arguments."""


def lower_ppo(
    config: PpoConfig, mesh: Mesh, judge: DecoderConfig | None = None, logp_weight: float = 0.0
) -> dict[str, Phase]:
    """The programs of an iteration of PPO that work with a network, for the mesh's devices, in
    their order:

    `sample` draws the answers, `score` is the reward model's, `refer` gives the reference's
    log-probs, `judge` reads answers that will be divided, `first` is the update of answers that are
    not, `update` any other. What the settings do not run is left out. Prompts, answers and rows are
    as many and as long as there can be.

    config: with the decoders of policy (`model`) and critic. judge, logp_weight: the reward model's
    decoder and its setting; None: a function scores. Raises `UserError` where config and mesh do
    not fit.
    """
    config = ahead.settled_for(config, mesh)
    layout = layout_of(config, mesh)
    state, key = ahead.state_shapes(layout), ahead.key_shape(mesh)
    apply, loss = applies_of(config, mesh), loss_of(config)
    programs = make_programs(config, apply, loss, layout.optimizer, config.guard, layout.shardings)
    prepared = _prepared(config, mesh, state.params["policy"])
    reference = _frozen(config, config.model, mesh)
    judging = {} if judge is None else _frozen(config, judge, mesh)
    copy = prepared if config.model.dtype != "float32" else {}  # else it is the policy itself
    together = sum(map(ahead.bytes_on_device, (state, copy, reference, judging)))
    phases = {}

    def lower(name: str, program: Any, own: Any, *arguments: Any) -> Any:
        """Adds a phase, of which `own` are the networks that it takes; what it gives."""
        lowered = program.lower(*arguments)
        phases[name] = Phase(lowered, together - ahead.bytes_on_device(own))
        return lowered.out_info

    prompts = _prompts(config, mesh)
    draw = sampling_program(config.model, sampling_of(config, END), config.execution, mesh)
    limits, temperature = _shape((config.batch,), jnp.int32), _shape((), jnp.float32)
    samples = lower("sample", draw, prepared, prepared, *prompts, key, limits, temperature)
    answers = _answers(config, mesh, prompts, samples)
    if judge is not None:
        score = score_by(make_apply(judge, config.execution, mesh), logp_weight)
        lower("score", score, judging, judging, answers)
    ref_logp = lower("refer", programs.referred, reference, reference, answers)
    ref_logp, scores = (
        ahead.placed(ref_logp, replicated(mesh)),
        _shape((config.batch,), jnp.float32),
    )
    about = (answers, ref_logp, scores, config.kl)
    if undivided(config, bool(config.ptx)):
        found = lower("first", programs.first, state, state, *about)[2]
    else:
        found = lower("judge", programs.judged, state.params, state.params, *about)
    if "judge" in phases or config.passes > 1:
        batch = _part(config, mesh, found.batch)
        lower("update", programs.update, state, state, batch, key)
    return phases


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Of an array that lies anywhere."""
    return jax.ShapeDtypeStruct(shape, dtype)


def _over_rows(tree: Any, mesh: Mesh) -> Any:
    """The same arrays, their rows over the mesh."""
    return jax.tree.map(lambda x: ahead.placed(x, batch_sharding(mesh)), tree)


def _text(*shape: int) -> dict[str, Any]:
    """Rows of text, of conversations or of answers."""
    names = ("tokens", "targets", "positions", "segment_ids")
    batch = {name: _shape(shape, jnp.int32) for name in names}
    return {**batch, "loss_mask": _shape(shape, jnp.float32)}


def _prepared(config: PpoConfig, mesh: Mesh, policy: Any) -> Any:
    """The policy as decoding keeps it."""
    dtype = config.model.dtype
    decoding = for_decoding(config.execution, dtype, mesh).decoding
    laid = jax.eval_shape(partial(laid_out, decoding=decoding, dtype=dtype), policy)
    return jax.tree.map(lambda x, old: ahead.placed(x, old.sharding), laid, policy)


def _frozen(config: PpoConfig, model: DecoderConfig, mesh: Mesh) -> Any:
    """The parameters of a network that is not trained."""
    shapes = param_shapes(model, config.execution)
    places = param_shardings(model, config.execution, mesh)
    kept = jax.tree.map(lambda x: _shape(x.shape, config.frozen_dtype), shapes)
    return jax.tree.map(ahead.placed, kept, places)


def _prompts(config: PpoConfig, mesh: Mesh) -> tuple[Any, Any]:
    """(tokens, mask) of the prompts of an iteration."""
    shape = (config.batch, config.batch_length)
    return _over_rows((_shape(shape, jnp.int32), _shape(shape, bool)), mesh)


def _answers(config: PpoConfig, mesh: Mesh, prompts: tuple[Any, Any], samples: Any) -> Packed:
    """The answers of an iteration, each as long as a row."""
    drawn = partial(rollout_batch, temperature=config.temperature)
    rollout = _over_rows(jax.eval_shape(drawn, *prompts, samples), mesh)
    rollout["temperature"] = _shape((config.batch,), jnp.float32)
    parts = parts_of(config)
    count = laid(dealt(config.batch, config.batch, parts), parts, mesh.size)
    by_token = _shape((count, config.row_length), jnp.int32)
    rows = Rows(by_token, by_token, by_token, by_token, _shape((config.batch,), jnp.int32))
    columns = columns_asked(config, undivided(config, bool(config.ptx)), mesh.size)
    inputs = jax.eval_shape(partial(inputs_of, answers=columns), rollout, rows)
    return Packed(rollout, rows, _over_rows(inputs, mesh))


def _part(config: PpoConfig, mesh: Mesh, batch: dict[str, Any]) -> dict[str, Any]:
    """What an update takes of a batch."""
    share = batch["tokens"].shape[0] // config.minibatches
    part = jax.tree.map(lambda x: _shape((share, *x.shape[1:]), x.dtype), batch)
    if config.ptx:
        text = config.batch * config.ptx_rows // config.minibatches
        part["ptx"] = _text(share, -(-text // share), config.row_length)
    return _over_rows(part, mesh)
