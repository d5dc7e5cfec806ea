"""Token ids to hidden states to log-probs; the cache, sampling, and the sharding of parameters."""

from .attention import attention, choose_kernel
from .choice import SamplingConfig, truncate
from .config import DecoderConfig
from .decoder import Cache, Decoder, make_cache
from .execution import Execution
from .fetching import fetched
from .growing import grow_vocab
from .layout import from_stored, to_stored
from .logprobs import TokenScores, token_scores
from .outputs import Apply, head_of, make_apply, value_of
from .parameters import (
    Growth,
    init_params,
    param_groups,
    param_growths,
    param_shapes,
    param_shardings,
    stored_shardings,
)
from .pieces import check_length, pieces_of
from .refill import make_generator
from .sampling import Samples, make_sampler, pad_prompts, sampling_program
from .sharding import (
    MeshConfig,
    batch_sharding,
    check_mesh,
    check_rows,
    make_mesh,
    platform_of,
    replicated,
    seen,
    split_of_rows,
)

__all__ = [
    "Apply",
    "Cache",
    "Decoder",
    "DecoderConfig",
    "Execution",
    "Growth",
    "MeshConfig",
    "Samples",
    "SamplingConfig",
    "TokenScores",
    "attention",
    "batch_sharding",
    "check_length",
    "check_mesh",
    "check_rows",
    "choose_kernel",
    "fetched",
    "from_stored",
    "grow_vocab",
    "head_of",
    "init_params",
    "make_apply",
    "make_cache",
    "make_generator",
    "make_mesh",
    "make_sampler",
    "pad_prompts",
    "param_groups",
    "param_growths",
    "param_shapes",
    "param_shardings",
    "pieces_of",
    "platform_of",
    "replicated",
    "sampling_program",
    "seen",
    "split_of_rows",
    "stored_shardings",
    "to_stored",
    "token_scores",
    "truncate",
    "value_of",
]
