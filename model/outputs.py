"""What losses see of a decoder: `apply(params, batch, want, key)` and no logits."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from ..errors import UserError
from .config import DecoderConfig
from .decoder import Decoder, tokens_at
from .execution import DEFAULT, Execution
from .kernels import for_training, gradient_by
from .logprobs import BLOCK_ELEMENTS, BLOCK_ELEMENTS_OF, scores_on_mesh
from .pieces import by_piece, cut, join, pieces_of
from .router import OUTPUTS as OF_ROUTERS
from .router import ROUTER, kept_logits, router_outputs
from .sharding import platform_of

Batch = Mapping[str, Array]
Apply = Callable[..., dict[str, Array]]

SCORES = ("logp", "entropy", "logsumexp")
OUTPUTS = (*SCORES, "hidden", "value", *OF_ROUTERS)


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
    shape, and `hidden` [rows, ..., time, width]. `batch` holds `tokens` and, for scores,
    `targets`, i32[rows, ..., time]; optional `positions`, `segment_ids`, `temperature` [rows] and
    `row` [rows], a row's number in the global batch. With a key and `config.dropout`, noise is
    drawn for each row by `fold_in(key, row)`.

    Of a mixture of experts there are also `balance` and `router_z` of that shape and `load` [rows,
    ..., time, layers, experts], see `router_outputs`; what they are means over are the tokens that
    `loss_mask` [rows, ..., time] counts or, where the batch has none, those that are no padding.

    With `asked` i32[b, t], places in the tokens flattened, only what is said of these tokens is
    computed behind the last attention (where blocks are scanned, behind the last block) and
    returned, [b, t]; `targets`, `loss_mask` [b, t] and `temperature` [b] are theirs. There is no
    dropout then. Where something of the routers is wanted with it, or the mesh cuts rows into
    pieces, all tokens pass all blocks; routers' means are over all that are no padding.
    """
    execution = for_training(execution, config.dtype, mesh)
    decoder, pieces = Decoder(config, execution, mesh), pieces_of(mesh)
    if pieces > 1:
        _check_pieces(config)
    gradient = gradient_by(execution.training)
    held = BLOCK_ELEMENTS_OF.get(platform_of(mesh), BLOCK_ELEMENTS)

    def apply(
        params: Mapping,
        batch: Batch,
        want: tuple[str, ...] = ("logp",),
        key: Array | None = None,
    ) -> dict[str, Array]:
        unknown = set(want) - set(OUTPUTS)
        if unknown:
            raise ValueError(f"unknown output {sorted(unknown)}; there are {', '.join(OUTPUTS)}")
        of_routers = [name for name in want if name in OF_ROUTERS]
        if of_routers and not config.experts:
            raise ValueError(f"{of_routers[0]!r} is a mixture's: this decoder has no experts")
        shape = batch["tokens"].shape
        length, rows = shape[-1], batch["tokens"].size // shape[-1]

        def flat(name: str) -> Array | None:
            return batch[name].reshape(rows, length) if batch.get(name) is not None else None

        def sent(x: Array | None) -> Array | None:
            return None if x is None else cut(x, mesh)

        asked, positions, row_keys = batch.get("asked"), flat("positions"), None
        if pieces > 1:
            if positions is None:
                positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
        if key is not None and config.dropout > 0:
            if asked is not None:
                raise ValueError("dropout draws its noise by row: ask for all tokens of the rows")
            row_keys = _row_keys(key, batch.get("row", jnp.arange(shape[0])), rows)
        after = asked is not None and bool(of_routers or pieces > 1)  # all tokens pass all blocks
        hidden, kept = decoder.apply(
            {"params": params},
            sent(flat("tokens")),
            positions=sent(positions),
            segment_ids=sent(flat("segment_ids")),
            row_keys=row_keys,
            asked=None if after else asked,
            pieces=pieces,
            mutable=[ROUTER] if of_routers else [],
        )
        out = {}
        if of_routers:
            counts = flat("loss_mask") if asked is None else None
            logits = jnp.moveaxis(kept_logits(kept[ROUTER], config.layers), 0, 2)
            logits = jnp.moveaxis(join(logits, mesh), 2, 0)
            about = _routers(logits, config, flat("segment_ids"), counts)
            out = {name: about[name] for name in of_routers}
            if asked is not None:
                out = {name: tokens_at(x, asked) for name, x in out.items()}
        if after:
            hidden = tokens_at(join(hidden, mesh), asked)
        lying = mesh  # as rows that may be cut
        if asked is not None:
            shape, lying = asked.shape, None
        out = {name: x.reshape(*shape, *x.shape[2:]) for name, x in out.items()}

        def whole(x: Array) -> Array:
            """A number for each token [N] in the batch's shape."""
            return join(x.reshape(hidden.shape[:2]), lying).reshape(shape)

        if "hidden" in want:
            out["hidden"] = join(hidden, lying).reshape(*shape, -1)
        if "value" in want:
            out["value"] = whole(value_of(params, hidden))
        of_head = [name for name in want if name in SCORES]
        if of_head:
            targets = batch["targets"].reshape(-1, shape[-1])
            temperature = batch.get("temperature")
            if temperature is not None:
                temperature = jnp.repeat(temperature, len(targets) // len(temperature))
                temperature = by_piece(temperature, lying)
            scores = scores_on_mesh(
                hidden,
                head_of(params, config),
                cut(targets, lying),
                temperature,
                mesh,
                cap=config.logit_cap,
                entropy="entropy" in want,
                block_elements=held,
                gradient=gradient,
            )
            out |= {name: whole(getattr(scores, name)) for name in of_head}
        return out

    return apply


def _routers(
    logits: Array, config: DecoderConfig, segment_ids: Array | None, counts: Array | None
) -> dict[str, Array]:
    """`router_outputs` of logits f32[layers, rows, T, experts], all tokens counting that are no
    padding where it is not said how much each does."""
    if counts is None:
        real = jnp.ones(logits.shape[1:3]) if segment_ids is None else segment_ids != 0
        counts = real.astype(jnp.float32)
    return router_outputs(logits, config.experts_per_token, counts, segment_ids)


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
