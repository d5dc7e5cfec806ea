"""What losses see of a decoder: `apply(params, batch, want, key)` and no logits."""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from ..errors import UserError
from .config import DecoderConfig
from .decoder import Decoder
from .execution import DEFAULT, Execution
from .kernels import for_training, gradient_by
from .logprobs import BLOCK_ELEMENTS, KEPT_ELEMENTS, token_scores
from .pieces import by_piece, cut, join, pieces_of
from .sharding import RULES

Batch = Mapping[str, Array]
Apply = Callable[..., dict[str, Array]]

SCORES = ("logp", "entropy", "logsumexp")
OUTPUTS = (*SCORES, "hidden", "value")


def head_of(params: Mapping, config: DecoderConfig) -> Array:
    """The output matrix [V, width]: the embedding where they are tied."""
    return params["embed"]["table"] if config.tied else params["head"]["kernel"]


def value_of(params: Mapping, hidden: Array) -> Array:
    """The scalar head's number, float32 [...], of hidden states [..., width]."""
    head = params["scalar_head"]
    return hidden.astype(jnp.float32) @ head["kernel"] + head["bias"]


def make_apply(
    config: DecoderConfig, execution: Execution = DEFAULT, mesh: Mesh | None = None
) -> Apply:
    """The function through which losses use the decoder.

    `apply(params, batch, want=("logp",), key=None)` returns what is wanted and no more:
    `logp` of `targets` (already shifted), `entropy`, `logsumexp`, float32 [rows, ..., time], all
    from one vocabulary product, `value`, the scalar head's number at each token, float32 of that
    shape, and `hidden` [rows, ..., time, width]. `batch` holds `tokens` and,
    for scores, `targets`, i32[rows, ..., time]; optional `positions`, `segment_ids`,
    `temperature` [rows] and `row` [rows], a row's number in the global batch. With a key and
    `config.dropout`, noise is drawn for each row by `fold_in(key, row)`. With `asked` i32[b, t],
    places in the tokens flattened, only what is said of these tokens is computed behind the last
    attention (where blocks are scanned, behind the last block) and returned, [b, t]; `targets`
    [b, t] and `temperature` [b] are theirs. There is no dropout then.
    """
    execution = for_training(execution, config.dtype, mesh)
    decoder, pieces = Decoder(config, execution, mesh), pieces_of(mesh)
    if pieces > 1:
        _check_pieces(config)
    gradient = gradient_by(execution.training)
    split = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in RULES["batch"])

    def apply(
        params: Mapping,
        batch: Batch,
        want: tuple[str, ...] = ("logp",),
        key: Array | None = None,
    ) -> dict[str, Array]:
        unknown = set(want) - set(OUTPUTS)
        if unknown:
            raise ValueError(f"unknown output {sorted(unknown)}; there are {', '.join(OUTPUTS)}")
        shape = batch["tokens"].shape
        length, rows = shape[-1], batch["tokens"].size // shape[-1]

        def flat(name: str) -> Array | None:
            if batch.get(name) is None:
                return None
            return cut(batch[name].reshape(rows, length), mesh)

        positions = flat("positions")
        if positions is None and pieces > 1:
            positions = cut(jnp.broadcast_to(jnp.arange(length), (rows, length)), mesh)
        if pieces > 1 and batch.get("asked") is not None:
            raise ValueError("where rows are cut into pieces, all tokens of them are asked for")
        row_keys = None
        if key is not None and config.dropout > 0:
            if batch.get("asked") is not None:
                raise ValueError("dropout draws its noise by row: ask for all tokens of the rows")
            row_keys = _row_keys(key, batch.get("row", jnp.arange(shape[0])), rows)
        hidden = decoder.apply(
            {"params": params},
            flat("tokens"),
            positions=positions,
            segment_ids=flat("segment_ids"),
            row_keys=row_keys,
            asked=batch.get("asked"),
            pieces=pieces,
        )
        if batch.get("asked") is not None:
            shape = batch["asked"].shape

        def whole(x: Array) -> Array:
            """A number for each token [N] in the batch's shape."""
            return join(x.reshape(hidden.shape[:2]), mesh).reshape(shape)

        out = {}
        if "hidden" in want:
            out["hidden"] = join(hidden, mesh).reshape(*shape, -1)
        if "value" in want:
            out["value"] = whole(value_of(params, hidden))
        asked = [name for name in want if name in SCORES]
        if asked:
            targets = batch["targets"].reshape(-1, shape[-1])
            temperature = batch.get("temperature")
            if temperature is not None:
                temperature = jnp.repeat(temperature, len(targets) // len(temperature))
                temperature = jnp.repeat(by_piece(temperature, mesh), shape[-1] // pieces)
            scores = token_scores(
                hidden.reshape(-1, config.width),
                head_of(params, config),
                cut(targets, mesh).reshape(-1),
                temperature,
                config.logit_cap,
                "entropy" in want,
                # The budgets are a device's, the tokens are everybody's.
                BLOCK_ELEMENTS * split,
                KEPT_ELEMENTS * split,
                gradient,
            )
            out |= {name: whole(getattr(scores, name)) for name in asked}
        return out

    return apply


def _row_keys(key: Array, row: Array, rows: int) -> Array:
    """One key for each flattened row: by its number in the global batch, then its place in it."""
    inner = rows // row.shape[0]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, row)
    if inner == 1:
        return keys
    place = jnp.tile(jnp.arange(inner), row.shape[0])
    return jax.vmap(jax.random.fold_in)(jnp.repeat(keys, inner), place)


def _check_pieces(config: DecoderConfig) -> None:
    for name, reason in (
        ("dropout", "draws its noise for whole rows"),
        ("token_shift", "looks at the token before"),
    ):
        if getattr(config, name):
            raise UserError(f"model.{name} {reason}: it does not go with mesh.context above 1")
