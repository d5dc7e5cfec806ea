"""Text to token batches, as a function of (seed, step).

sources (files, TFDS data sets, embedded corpora) -> documents -> token store on disk -> rows
-> batches. Nothing here keeps state: a batch is found by arithmetic, so a run resumes exactly.
"""

from .batches import EvalBatches, TrainBatches, eval_batches
from .chat_store import ChatStore, build_chats
from .comparison_store import ComparisonEvalBatches, ComparisonStore, build_comparisons
from .files import Document, ReadOptions
from .prefetch import prefetch
from .prompts import PromptStore, build_prompts, eval_prompts
from .reader import RowReader
from .sources import Source, parse_source, read_documents, read_sample, source_bytes, source_digest
from .store import TokenStore, build_store, check_store, open_store, read_meta
from .template import JINJA, Template, with_template
from .tokenizer import SEPARATOR, Tokenizer, UnknownCharacterError
from .vocabulary import make_tokenizer

__all__ = [
    "SEPARATOR",
    "Document",
    "EvalBatches",
    "PromptStore",
    "ReadOptions",
    "RowReader",
    "Source",
    "ChatStore",
    "ComparisonEvalBatches",
    "ComparisonStore",
    "JINJA",
    "Template",
    "TokenStore",
    "Tokenizer",
    "TrainBatches",
    "UnknownCharacterError",
    "build_chats",
    "build_comparisons",
    "build_prompts",
    "build_store",
    "eval_batches",
    "eval_prompts",
    "check_store",
    "make_tokenizer",
    "open_store",
    "parse_source",
    "prefetch",
    "read_documents",
    "read_meta",
    "read_sample",
    "source_bytes",
    "source_digest",
    "with_template",
]
