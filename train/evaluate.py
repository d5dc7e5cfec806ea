"""`aludel eval`: nats per token, perplexity and bits per byte of a run on any text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax

from ..data import (
    ChatStore,
    ReadOptions,
    Source,
    Template,
    Tokenizer,
    TokenStore,
    build_chats,
    build_store,
    eval_batches,
    parse_source,
)
from ..data.sources import Split
from ..model import Execution, MeshConfig, make_apply, make_mesh
from .corpus import options_of
from .losses import lm_loss
from .placing import placer
from .records import write_json
from .restore import load_params
from .run import find_run
from .scoring import rows_at_once, score
from .step import make_eval_step


def evaluate(
    folder: str,
    data: Sequence[str],
    *,
    split: Split = "all",
    stride: int | None = None,
    checkpoint: str = "newest",
    text_field: str | None = None,
    decode_errors: str | None = None,
    out: str | None = None,
) -> dict:
    """Figures of a run on all of the data, each token scored once; written to `out` as JSON.

    text_field, decode_errors: None takes the run's own settings.
    """
    run = find_run(folder)
    config = run.config()
    model, length = config.model, config.row_length
    sources = [parse_source(source) for source in data]
    options = options_of(config)
    if text_field is not None:
        options = replace(options, text_field=text_field)
    if decode_errors is not None:
        options = replace(options, decode_errors=decode_errors)
    # Parameters over all devices: what needed that to be trained needs it to be read.
    mesh, execution = make_mesh(MeshConfig(data=1, fsdp=-1)), Execution()
    tokenizer = run.tokenizer()
    stores = [open_store(source, split, tokenizer, options) for source in sources]
    params, meta = load_params(run, mesh, execution, checkpoint)
    places = jax.tree.map(lambda x: x.sharding, params)
    eval_step = make_eval_step(lm_loss(), make_apply(model, execution, mesh), places)
    rows = rows_at_once(mesh.size, length)
    place = placer(mesh)
    scores = [
        score(eval_step, params, eval_batches(store, rows, length, stride), place)
        for store in stores
    ]
    whole = sum(scores[1:], scores[0])
    sliding = stride is not None and stride < length
    figures = {
        "run": str(run.path.absolute()),
        "step": meta["step"],
        "data": list(data),
        "split": split,
        "windows": f"sliding by {stride}" if sliding else "not overlapping",
        "window_tokens": length,
        "stride": stride or length,
        "tokens": whole.tokens,
        "bytes": round(whole.bytes),
        "nats_per_token": whole.nats_per_token,
        "perplexity": whole.perplexity,
        "bits_per_byte": whole.bits_per_byte,
    }
    replaced = sum(store.replaced for store in stores)
    if replaced:
        figures["replaced"] = replaced
    if len(scores) > 1:
        figures["sources"] = {
            source: {"nats_per_token": one.nats_per_token, "bits_per_byte": one.bits_per_byte}
            for source, one in zip(data, scores, strict=True)
        }
    if out:
        path = Path(out).expanduser()
        write_json(path, figures)
    return figures


def open_store(
    source: Source, split: Split, tokenizer: Tokenizer, options: ReadOptions
) -> TokenStore | ChatStore:
    """A source of text or of conversations, tokenised; of these, what the assistant says counts."""
    if source.kind == "chat":
        Template(tokenizer)  # says so, where the run knows no conversations
        return build_chats(source, split, tokenizer)
    return build_store(source, split, tokenizer, options)
