"""A decoder's shape, and what follows from it by arithmetic: parameters, FLOPs, cache bytes."""

from dataclasses import dataclass, replace
from typing import Literal

from ..errors import UserError

FlopConvention = Literal["6N", "attention", "causal"]
GATED = ("swiglu", "geglu")


@dataclass(frozen=True)
class DecoderConfig:
    """One decoder of the GPT-2/3 or Llama family. Impossible shapes raise `UserError`."""

    vocab_size: int = 0
    """Tokens in the vocabulary; 0 takes the tokenizer's."""
    layers: int = 4
    """Transformer blocks."""
    width: int = 128
    """Width of the residual stream."""
    heads: int = 4
    """Query heads."""
    kv_heads: int | None = None
    """Key and value heads; fewer than `heads`: grouped-query attention. None: `heads`."""
    head_dim: int | None = None
    """Width of a head. None: width / heads."""
    mlp_width: int | None = None
    """Hidden width of the MLP, or of each expert. None: 4 x width (gated: 8/3 x width, rounded up
    to 64)."""
    experts: int = 0
    """Experts: so many MLPs in each block, of which a router picks a few for each token (Jiang et
    al. 2024, Mixtral). 0: one MLP for all tokens."""
    experts_per_token: int = 2
    """Experts that a token passes, none ever turned away for want of room; counts where there are
    experts."""
    context: int = 256
    """Tokens in a training row, and the longest sequence of learned positions."""
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    """Normalisation before each half of a block and at the end."""
    norm_affine: bool = True
    """Norms carry a learned scale (and a bias, where `bias` is set and the norm is LayerNorm)."""
    norm_eps: float = 1e-5
    """Added to the variance in every norm."""
    embedding_norm: bool = False
    """Normalise the embedding before the first block."""
    position: Literal["learned", "rotary", "none"] = "rotary"
    """How positions enter."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_layout: Literal["half", "interleaved"] = "half"
    """Which two elements of a head rotate together: i and i + head_dim/2, or 2i and 2i + 1."""
    activation: Literal["gelu", "gelu_tanh", "relu2", "swiglu", "geglu"] = "swiglu"
    """Nonlinearity of the MLP: exact or tanh GELU, squared ReLU, or a gated product."""
    bias: bool = False
    """Biases in the projections, and in LayerNorms."""
    qk_norm: bool = False
    """RMS-normalise each head's queries and keys before the rotation."""
    window: int | None = None
    """Sliding window: a token sees itself and window - 1 tokens before. None: all of them."""
    token_shift: int = 0
    """Each half of a block also reads, by a learned weight for each channel (0 at the start), its
    normalised input this many tokens back, within the segment. 0: off."""
    tied: bool = False
    """The output head is the embedding table."""
    logit_cap: float | None = None
    """Soft cap: logits become cap * tanh(logits / cap)."""
    scalar_head: bool = False
    """A number for each token beside the log-probs: a reward model's score, a critic's value."""
    init_std: float | None = None
    """Deviation of initial weights, outputs of a block's halves divided by sqrt(2 layers)
    (GPT-2). None: 1 / sqrt(fan in)."""
    embedding_init_std: float = 0.02
    """Deviation of the initial embedding and learned positions."""
    zero_init: bool = False
    """Start the output matrices of a block's halves, and an untied head, at zero."""
    tuned_width: int | None = None
    """Width at which learning rates and deviations were tuned: with it they carry over to this
    width, by smaller rates and first weights where more inputs are added up (muP, Yang et al.
    2022). Heads must stay as wide, and the head untied. None: rates and deviations as they are."""
    tuned_layers: int | None = None
    """Blocks at which they were tuned: the outputs of a block's halves count the less, and their
    rates are the smaller, the more of them are added up (CompleteP: Dey et al. 2025)."""
    matching_init: bool = False
    """Start attention as what finds the tokens that followed the present one before (an induction
    head): copying is learnt early. Needs a token_shift."""
    dropout: float = 0.0
    """Probability of dropping an element of the embedding and of each half's output."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What activations are computed in; parameters stay float32."""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "context"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} must be at least 1, not {getattr(self, name)}")
        if self.vocab_size < 0:
            raise UserError(f"model.vocab_size must not be negative, not {self.vocab_size}")
        if self.head_dim is None and self.width % self.heads:
            raise UserError(
                f"model.heads = {self.heads} does not divide model.width = {self.width}; "
                "choose a divisor or set model.head_dim"
            )
        if self.head_dim is not None and self.head_dim < 1:
            raise UserError(f"model.head_dim must be at least 1, not {self.head_dim}")
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise UserError(
                f"model.kv_heads = {self.kv_heads} does not divide model.heads = {self.heads}"
            )
        if self.position == "rotary" and self.size_of_head % 2:
            raise UserError(
                f"rotary positions rotate pairs: a head of {self.size_of_head} elements is odd"
            )
        if self.mlp_width is not None and self.mlp_width < 1:
            raise UserError(f"model.mlp_width must be at least 1, not {self.mlp_width}")
        if self.experts < 0:
            raise UserError(f"model.experts must not be negative, not {self.experts}")
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            raise UserError(
                f"model.experts_per_token must lie in 1 ... {self.experts}, the number of "
                f"model.experts, not {self.experts_per_token}"
            )
        if self.window is not None and self.window < 1:
            raise UserError(f"model.window must be at least 1, not {self.window}")
        for name in ("tuned_width", "tuned_layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"model.{name} must be at least 1, not {value}")
        if self.tuned_width is not None and self.tied:
            raise UserError(
                "model.tuned_width needs a head of its own: a tied one cannot have another rate "
                "than the embedding; set model.tied to False"
            )
        if not 0 <= self.token_shift < 16:
            raise UserError(f"model.token_shift must lie in 0 ... 15, not {self.token_shift}")
        if self.matching_init and not self.token_shift:
            raise UserError("model.matching_init needs model.token_shift of 1 or more")
        if not self.rope_theta > 0:
            raise UserError(f"model.rope_theta must be positive, not {self.rope_theta}")
        if self.logit_cap is not None and self.logit_cap <= 0:
            raise UserError(f"model.logit_cap must be positive, not {self.logit_cap}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout must lie in [0, 1), not {self.dropout}")

    @property
    def size_of_head(self) -> int:
        """Elements of one head."""
        return self.head_dim or self.width // self.heads

    @property
    def number_of_kv_heads(self) -> int:
        """Key and value heads."""
        return self.kv_heads or self.heads

    @property
    def size_of_mlp(self) -> int:
        """Hidden width of the MLP, or of each expert."""
        if self.mlp_width is not None:
            return self.mlp_width
        if self.activation in GATED:
            return -(-8 * self.width // (3 * 64)) * 64
        return 4 * self.width

    @property
    def growth(self) -> float:
        """Width, as a multiple of that at which rates were tuned."""
        return self.width / (self.tuned_width or self.width)

    @property
    def depth_growth(self) -> float:
        """Blocks, as a multiple of those at which rates were tuned."""
        return self.layers / (self.tuned_layers or self.layers)

    def deviation(self, fan_in: int) -> float:
        """Of the initial weights of a block that read the residual stream."""
        if self.init_std is None:
            return fan_in**-0.5
        return self.init_std * self.growth**-0.5

    def output_deviation(self, fan_in: int) -> float:
        """Of those that write to it: what they write adds up over depth (GPT-2)."""
        tuned_layers = self.tuned_layers or self.layers
        return self.deviation(fan_in) / (2 * tuned_layers) ** 0.5 / self.depth_growth

    def head_deviation(self) -> float:
        """Of the initial weights of an untied head."""
        tuned_width = self.tuned_width or self.width
        return (self.init_std or tuned_width**-0.5) / self.growth

    def with_vocab(self, vocab_size: int) -> "DecoderConfig":
        """The same decoder with this vocabulary."""
        return replace(self, vocab_size=vocab_size)

    def mlps(self, active: bool = False) -> int:
        """MLPs in a block: its experts, or where `active` those of one token."""
        if not self.experts:
            return 1
        return self.experts_per_token if active else self.experts

    @property
    def router_weights(self) -> int:
        """Weights of one block's router."""
        return self.width * self.experts

    def block_matrices(self, active: bool = False) -> int:
        """Weights in the matrix products of one block, its router among them; `active`: of its
        experts only those that a token passes."""
        attention = self.width * self.size_of_head * 2 * (self.heads + self.number_of_kv_heads)
        mlp = self.width * self.size_of_mlp * (3 if self.activation in GATED else 2)
        return attention + self.mlps(active) * mlp + self.router_weights

    def _norm(self, size: int, bias: bool) -> int:
        return size * (1 + bias) if self.norm_affine else 0

    def parameters(self, embeddings: bool = True, active: bool = False) -> int:
        """How many parameters; without `embeddings`, those of tables and head are left out;
        `active`: of a mixture's experts only those that a token passes are counted."""
        norm_bias = self.bias and self.norm == "layernorm"
        block = self.block_matrices(active) + 2 * self._norm(self.width, norm_bias)
        if self.bias:
            heads = self.heads + 2 * self.number_of_kv_heads
            block += heads * self.size_of_head + self.width  # queries, keys, values; output
            mlp = self.size_of_mlp * (2 if self.activation in GATED else 1) + self.width
            block += self.mlps(active) * mlp
        if self.qk_norm:
            block += 2 * self._norm(self.size_of_head, False)
        block += 2 * self.token_shift * self.width
        total = self.layers * block + self._norm(self.width, norm_bias) * (1 + self.embedding_norm)
        if embeddings:
            total += self.vocab_size * self.width * (1 if self.tied else 2)
            total += self.context * self.width if self.position == "learned" else 0
            total += self.width + 1 if self.scalar_head else 0
        return total

    def flops_per_token(
        self, context: int | None = None, convention: FlopConvention = "6N"
    ) -> float:
        """Floating-point operations to train on one token, forward and backward.

        `6N`: 6 for each weight in a matrix product, the head among them (tied or not) and
        lookups not (Kaplan et al. 2020); of a mixture's experts those that a token passes, and its
        router. `attention` adds the scores and the weighted sum over
        the whole square of `context`, 12 x layers x heads x head_dim x context (PaLM, appendix
        B); `causal` counts the half that a causal mask leaves. A window bounds the context.
        """
        weights = self.layers * self.block_matrices(active=True) + self.vocab_size * self.width
        flops = 6.0 * weights
        if convention == "6N":
            return flops
        length = context or self.context
        seen = min(length, self.window or length)
        square = 12.0 * self.layers * self.heads * self.size_of_head * seen
        return flops + (square if convention == "attention" else square / 2)

    def cache_bytes(self, rows: int, length: int) -> int:
        """Bytes of the keys and values that sampling keeps for `rows` of `length` tokens."""
        element = 2 if self.dtype == "bfloat16" else 4
        head = self.number_of_kv_heads * self.size_of_head
        shifted = 2 * self.token_shift * self.width
        return self.layers * rows * (2 * length * head + shifted) * element
