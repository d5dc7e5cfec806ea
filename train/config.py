"""The settings of each stage, and how settings become JSON and come back."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..data.files import nearest
from ..errors import UserError
from ..model import DecoderConfig, Execution, MeshConfig
from .guard import GuardConfig
from .optimizer import OptimizerConfig


@dataclass(frozen=True)
class RouterConfig:
    """What the routers of a mixture of experts are held to by the language-model loss; of a decoder
    without experts nothing. Impossible values raise `UserError`."""

    balance: float = 0.01
    """Factor of the load-balance loss of each layer (Fedus et al. 2021, Switch: 0.01); 0: none."""
    z: float = 0.001
    """Factor of the router z-loss of each layer (Zoph et al. 2022, ST-MoE: 0.001); 0: none."""

    def __post_init__(self) -> None:
        for name in ("balance", "z"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UserError(f"router.{name} must be a number from 0, not {value}")


@dataclass(frozen=True)
class StageConfig:
    """What the settings of every stage have in common. Impossible values raise `UserError`."""

    data: tuple[str, ...] = ()
    """Sources, each with =WEIGHT if it is to weigh other than 1; several are a mixture. Of text:
    text:PATH, jsonl:PATH, tfds:NAME[:SPLIT] or an embedded corpus (python, python-packages); of
    conversations: chat:PATH; of comparisons: pairs:PATH."""
    steps: int = 1000
    """Optimiser steps in the whole run; the schedule ends with them."""
    seed: int = 0
    """Of the initial parameters, the order of the data, dropout and samples."""
    batch: int = 16
    """Rows in one step, over all devices."""
    accumulation: int = 1
    """Microbatches that a step is computed in; changes memory, not results."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How parameters are moved."""
    guard: GuardConfig = GuardConfig()
    """When a step is skipped."""
    loss: str = ""
    """A loss of your own, FILE.py:NAME; empty: the stage's. Of PPO, the policy's by token."""
    z_loss: float = 0.0
    """Factor of the squared log-normaliser in the language-model loss (PaLM: 1e-4); 0: none."""
    mesh: MeshConfig = MeshConfig()
    """How the devices are laid out."""
    execution: Execution = Execution()
    """How the decoder is compiled; changes speed and memory, not results."""
    log_every: int = 1
    """Steps between lines in metrics.jsonl."""
    eval_every: int = 250
    """Steps between evaluations on the validation part; 0: only before and after."""
    eval_tokens: int = 131072
    """Tokens scored by an evaluation before and between the steps, spread over the validation part;
    0: all."""
    final_eval_tokens: int = 0
    """Tokens scored by the last evaluation; 0: all."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: whenever there is an evaluation."""
    keep: int = 2
    """Checkpoints that are kept: so many of the newest, and the best by its validation loss; 0:
    all."""
    sample_every: int = 0
    """Steps between samples; 0: only at the end."""
    sample_tokens: int = 128
    """New tokens in a sample."""
    prompts: tuple[str, ...] = ("",)
    """Beginnings that samples go on from, or questions to answer; an empty one begins a document,
    and of questions asks none."""
    tensorboard: bool = True
    """Write TensorBoard events into RUN/tensorboard."""
    profile: int = 0
    """Steps to trace with jax.profiler, into RUN/profile, after ten for warming up; 0: none."""
    out: str = ""
    """The run folder; one that exists is resumed. Empty: runs/CONFIG."""

    def __post_init__(self) -> None:
        for name in ("batch", "accumulation", "log_every", "sample_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in (
            "eval_every",
            "eval_tokens",
            "final_eval_tokens",
            "checkpoint_every",
            "keep",
            "sample_every",
            "profile",
            "z_loss",
            "seed",
        ):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.batch % self.accumulation:
            raise UserError(
                f"accumulation = {self.accumulation} does not divide batch = {self.batch}"
            )
        if self.loss and self.z_loss:
            raise UserError("z_loss belongs to the built-in loss: put the term into your own")

    @property
    def row_length(self) -> int:
        """Tokens in a row."""
        raise NotImplementedError

    @property
    def tokens_per_step(self) -> int:
        """Targets in one step, padding among them."""
        return self.batch * self.row_length

    @property
    def batch_length(self) -> int:
        """Tokens in a row of the data's batches."""
        return self.row_length

    @property
    def flops_per_token(self) -> float:
        """To train on one token, attention included."""
        return self.model.flops_per_token(self.row_length, "attention")

    @property
    def networks(self) -> DecoderConfig | Mapping[str, DecoderConfig]:
        """The decoder that is trained, or several by name."""
        return self.model

    @property
    def averages(self) -> dict[str, tuple[str, float]]:
        """Of several networks those that are moving averages: of which, with what decay."""
        return {}

    @property
    def extra(self) -> dict[str, float]:
        """Numbers that the stage steers by, as they are at the start."""
        return {}

    @property
    def user_code(self) -> dict[str, str]:
        """Functions of the user's own by their use, FILE.py:NAME."""
        return {"loss": self.loss} if self.loss else {}

    def tokens_to_score(self, last: bool) -> int:
        """Of an evaluation, the last one or another; 0: all."""
        return self.final_eval_tokens if last else self.eval_tokens

    def optimizer_of(self, network: str) -> tuple[OptimizerConfig, int]:
        """(how a network is moved, how often in the whole run)."""
        return self.optimizer, self.steps

    def resolved(self):
        """The same settings with absolute paths, so that they mean the same from any folder."""
        loss = absolute_code(self.loss)
        data = tuple(map(_absolute_source, self.data))
        return dataclasses.replace(self, data=data, loss=loss)


@dataclass(frozen=True)
class PretrainConfig(StageConfig):
    """Everything that a pretraining run depends on. Impossible values raise `UserError`."""

    model: DecoderConfig = DecoderConfig()
    """The decoder; rows hold `model.context` tokens."""
    tokenizer: str = "bpe:4096"
    """char, byte, bpe:SIZE (trained on the training part), or a path to a tokenizer.json or a
    GPT-2 vocab.bpe."""
    text_field: str = "text"
    """The field of a record (jsonl, tfds) that holds its text."""
    decode_errors: Literal["strict", "replace"] = "strict"
    """Bytes that are not UTF-8: refuse them, or replace and count them."""
    router: RouterConfig = RouterConfig()
    """What routers of experts are held to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, not {self.steps}")

    @property
    def row_length(self) -> int:
        """Tokens in a row."""
        return self.model.context

    def resolved(self) -> "PretrainConfig":
        """The same settings with absolute paths."""
        tokenizer = self.tokenizer
        if tokenizer not in ("char", "byte") and not tokenizer.startswith("bpe:"):
            tokenizer = absolute(tokenizer)
        return dataclasses.replace(super().resolved(), tokenizer=tokenizer)


@dataclass(frozen=True)
class FineTuneConfig(StageConfig):
    """What the stages after pretraining have in common: they go on from a run."""

    init: str = ""
    """The run to go on from; its decoder, tokenizer and chat template are taken over."""
    init_checkpoint: str = "best"
    """Which of its checkpoints: newest, best (by its validation loss), or a step."""
    epochs: float = 3.0
    """How often the data is seen, where `steps` is 0."""
    steps: int = 0
    """Optimiser steps in the whole run; 0: as `epochs` says."""
    context: int = 0
    """Tokens in a row, 0: as many as the decoder was trained with. What is longer is cut."""
    dropout: float = 0.0
    """Probability of dropping an element of the embedding and of each half's output."""
    model: Annotated[DecoderConfig, tyro.conf.Fixed] = DecoderConfig()
    """The decoder: that of `init`, filled in when the run begins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 0:
            raise UserError(f"steps must not be negative, not {self.steps}")
        if not self.steps and not self.epochs > 0:
            raise UserError(f"epochs must be positive, not {self.epochs}")
        if self.context < 0 or self.context == 1:
            raise UserError(f"context must be 0 or at least 2, not {self.context}")

    @property
    def row_length(self) -> int:
        """Tokens in a row."""
        return self.context or self.model.context

    @property
    def scores(self) -> bool:
        """Whether the decoder has a scalar head."""
        return False

    def resolved(self):
        """The same settings with absolute paths."""
        init = self.init and absolute(self.init)
        return dataclasses.replace(super().resolved(), init=init)


@dataclass(frozen=True)
class SftConfig(FineTuneConfig):
    """Everything that instruction tuning depends on. Impossible values raise `UserError`."""

    router: RouterConfig = RouterConfig()
    """What routers of experts are held to."""


@dataclass(frozen=True)
class RewardConfig(FineTuneConfig):
    """Everything that a reward model depends on. Impossible values raise `UserError`.

    A row has room for the longest comparison there is, and holds as many whole ones as fit.
    """

    epochs: float = 1.0
    """How often the comparisons are seen, where `steps` is 0; more than once overfits (Ouyang et
    al. 2022)."""
    logp_weight: float = 0.0
    """What a nat of an answer's log-prob, summed over its tokens, as this network itself gives it,
    adds to its score before that is normalised: what is unlikely, or long, loses. A small decoder
    knows what is unlikely, but has no layer left to tell its scalar head."""
    completions: Annotated[int, tyro.conf.Fixed] = 2
    """The most that one comparison holds: filled in when the run begins."""
    compared_tokens: Annotated[int, tyro.conf.Fixed] = 0
    """Tokens of a row: filled in when the run begins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.logp_weight):
            raise UserError(f"logp_weight must be a number, not {self.logp_weight}")

    @property
    def scores(self) -> bool:
        """It has."""
        return True

    @property
    def tokens_per_step(self) -> int:
        """Tokens read in one step, padding among them."""
        return self.batch * (self.compared_tokens or self.completions * self.row_length)

    @property
    def flops_per_token(self) -> float:
        """To train on one token; compared with the vocabulary only for `logp_weight`."""
        vocabulary = 0.0 if self.logp_weight else 6.0 * self.model.vocab_size * self.model.width
        return super().flops_per_token - vocabulary


@dataclass(frozen=True)
class PpoConfig(FineTuneConfig):
    """Everything that a PPO run depends on. Impossible values raise `UserError`.

    A step is an iteration: answers to `batch` prompts are drawn, scored, and learnt from.
    """

    reward: tuple[str, ...] = ()
    """Runs of aludel reward that score; =WEIGHT may follow: scores are added up. The first one
    is where the critic begins, its scalar head times its weight."""
    reward_fn: tuple[str, ...] = ()
    """Functions of your own that score, FILE.py:NAME: (prompts, completions) -> floats; =WEIGHT
    may follow."""
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    """What the reference and reward models are kept in; bfloat16 halves their memory."""
    new_tokens: int = 64
    """Tokens of an answer, at most."""
    temperature: float = 1.0
    """Of the answers, and of every log-prob of policy and reference."""
    passes: int = 1
    """How often an iteration's answers are learnt from."""
    minibatches: int = 1
    """Updates in a pass, each on its share of the answers."""
    kl: float = 0.02
    """What a nat between the policy and the one that it began as costs (InstructGPT's beta)."""
    kl_target: float | None = None
    """Nats of an answer that `kl` is steered to: more makes it dearer (Ziegler et al. 2019: 6).
    None: it stays."""
    kl_horizon: int = 10_000
    """Answers over which it is steered."""
    kl_budget: float | None = None
    """Nats of an answer between the policy and the one that it began as, after which the run ends.
    None: there is no end."""
    clip: float = 0.2
    """Bound of the policy's ratio in an update."""
    value_clip: float = 0.2
    """Bound of the value's change in an update."""
    gamma: float = 1.0
    """Discount of later rewards, by token."""
    lam: float = 0.95
    """Lambda of generalised advantage estimation."""
    without_stop: float | None = -1.0
    """The score of an answer that does not end by itself; None: its own."""
    ptx: float = 0.0
    """Factor of the language-model loss on pretraining text in the same step (InstructGPT: 27.8);
    0: none."""
    ptx_data: tuple[str, ...] = ()
    """Sources of that text, as `data` of pretraining."""
    ptx_rows: int = 1
    """Rows of text to an answer (InstructGPT: 8)."""
    ema: float = 0.0
    """Decay of a moving average of the policy, which then is what the run gives (InstructGPT:
    0.992); 0: none."""
    critic_learning_rate: float | None = None
    """Peak learning rate of the critic. None: the policy's."""
    critic: Annotated[DecoderConfig, tyro.conf.Fixed] = DecoderConfig()
    """The critic: filled in when the run begins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("reward", "reward_fn", "ptx_data"):
            if isinstance(getattr(self, name), str):
                raise UserError(f"{name} must be a tuple of names, not {getattr(self, name)!r}")
        for name in ("new_tokens", "passes", "minibatches", "ptx_rows", "kl_horizon"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("temperature", "clip", "value_clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("kl_budget", "kl_target"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} must be positive, not {value}")
        if self.dropout:
            raise UserError(
                "dropout must be 0 in PPO: log-probs would not be those that were sampled by"
            )
        if not 0 <= self.ema < 1:
            raise UserError(f"ema must lie in [0, 1), not {self.ema}")
        if self.ptx < 0:
            raise UserError(f"ptx must not be negative, not {self.ptx}")
        if bool(self.ptx) != bool(self.ptx_data):
            raise UserError("ptx and ptx_data belong together: name both, or neither")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        if self.batch % self.minibatches or self.batch // self.minibatches % self.accumulation:
            raise UserError(
                f"batch = {self.batch} does not divide into {self.minibatches} minibatches of "
                f"{self.accumulation} microbatches"
            )

    @property
    def batch_length(self) -> int:
        """Room for a prompt."""
        return self.row_length - self.new_tokens

    @property
    def networks(self) -> dict[str, DecoderConfig]:
        """Policy and critic, and the policy's average where there is one."""
        average = {"average": self.model} if self.ema else {}
        return {"policy": self.model, "critic": self.critic, **average}

    @property
    def averages(self) -> dict[str, tuple[str, float]]:
        """The policy's."""
        return {"average": ("policy", self.ema)} if self.ema else {}

    @property
    def extra(self) -> dict[str, float]:
        """What a nat costs, where that is steered."""
        return {} if self.kl_target is None else {"kl": self.kl}

    @property
    def user_code(self) -> dict[str, str]:
        """Functions of the user's own by their use, FILE.py:NAME."""
        specs = [weighted(spec)[0] for spec in self.reward_fn]
        names = ["reward_fn", *(f"reward_fn-{number}" for number in range(2, len(specs) + 1))]
        return super().user_code | dict(zip(names, specs, strict=False))

    def optimizer_of(self, network: str) -> tuple[OptimizerConfig, int]:
        """(how a network is moved, how often in the whole run)."""
        rate = self.critic_learning_rate
        if network == "critic" and rate is not None:
            return dataclasses.replace(self.optimizer, learning_rate=rate), self.updates
        return self.optimizer, self.updates

    @property
    def tokens_per_step(self) -> int:
        """Tokens of answers in one iteration, at most."""
        return self.batch * self.new_tokens

    @property
    def flops_per_token(self) -> float:
        """0: an iteration is timed by its phases, and its prompts are of any length."""
        return 0.0

    @property
    def updates(self) -> int:
        """Updates in the whole run."""
        return self.steps * self.passes * self.minibatches

    def resolved(self) -> "PpoConfig":
        """The same settings with absolute paths."""
        return dataclasses.replace(
            super().resolved(),
            reward=tuple(map(absolute, self.reward)),
            reward_fn=tuple(map(absolute_code, self.reward_fn)),
            ptx_data=tuple(map(_absolute_source, self.ptx_data)),
        )


FILE_KINDS = ("text", "jsonl", "chat", "pairs")  # of sources that name a path
FREE_TO_CHANGE = (
    "steps",
    "epochs",
    "completions",
    "compared_tokens",
    "accumulation",
    "mesh",
    "execution",
    "log_every",
    "eval_every",
    "eval_tokens",
    "final_eval_tokens",
    "checkpoint_every",
    "keep",
    "sample_every",
    "sample_tokens",
    "prompts",
    "tensorboard",
    "profile",
    "out",
)
"""Fields that may differ when a run is resumed: none changes what is computed at a step."""


def with_steps(config: Any, rows_per_epoch: int) -> Any:
    """The settings with the steps that their epochs come to, where they name none."""
    if config.steps:
        return config
    steps = max(1, math.ceil(config.epochs * rows_per_epoch / config.batch))
    return dataclasses.replace(config, steps=steps)


def with_out(config: Any, out: Path) -> Any:
    """The settings with a run folder, where they name none."""
    return config if config.out else dataclasses.replace(config, out=str(out))


def absolute(path: str) -> str:
    """An absolute path; `~` is the home folder."""
    return str(Path(path).expanduser().absolute())


def absolute_code(spec: str) -> str:
    """FILE.py:NAME with an absolute path."""
    file, colon, name = spec.rpartition(":")
    return f"{absolute(file)}:{name}" if colon else spec


def weighted(spec: str) -> tuple[str, float]:
    """(name, weight) of NAME or NAME=WEIGHT. Raises UserError for a weight of 0, or none at all."""
    name, equals, tail = spec.rpartition("=")
    try:
        weight = float(tail) if equals else 1.0
    except ValueError:
        return spec, 1.0  # a name with = in it
    if not math.isfinite(weight) or not weight:
        raise UserError(f"{spec}: the weight must be a number other than 0, not {tail}")
    return (name if equals else spec), weight


def _absolute_source(source: str) -> str:
    kind, colon, path = source.partition(":")
    return f"{kind}:{absolute(path)}" if colon and kind in FILE_KINDS else source


def to_json(config: Any) -> dict:
    """A config as JSON values."""
    return dataclasses.asdict(config)


RENAMED = {(Execution, "gradients"): "training"}
"""What runs of before call by another name."""


def from_json(kind: type, values: Any, where: str) -> Any:
    """A config of dataclass `kind` from JSON values; `where` names the file in an error."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: must be an object, not {type(values).__name__}")
    hints = typing.get_type_hints(kind)
    values = {RENAMED.get((kind, name), name): value for name, value in values.items()}
    for name in values:
        if name not in hints:
            raise UserError(f"{where}: unknown key {name!r}{nearest(name, hints)}")
    return kind(**{name: _value(hints[name], v, f"{where}: {name}") for name, v in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)
    origin = typing.get_origin(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(value)
    if origin is tuple and isinstance(value, str):  # a single one, as it was once written
        return (value,) if value else ()
    if origin is tuple:
        raise UserError(f"{where} must be a list, not {value!r}")
    if origin is Literal:
        allowed: tuple = typing.get_args(hint)
    elif origin in (types.UnionType, typing.Union):
        allowed = typing.get_args(hint)
    else:
        allowed = (hint,)
    if origin is Literal and value in allowed:
        return value
    if origin is not Literal and any(_fits(value, kind) for kind in allowed):
        return value
    raise UserError(f"{where} cannot be {value!r}")


def _fits(value: Any, kind: Any) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def flatten(values: dict, prefix: str = "") -> dict[str, Any]:
    """Nested settings under their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def difference(old: dict, new: dict, free: tuple[str, ...]) -> str | None:
    """The first field that differs and may not, as "name = old there, new here"; None: none."""
    a, b = flatten(_plain(old)), flatten(_plain(new))
    for name in [*a, *(name for name in b if name not in a)]:
        if name.split(".")[0] not in free and a.get(name) != b.get(name):
            return f"{name} is {a.get(name)!r} there and {b.get(name)!r} here"
    return None


def _plain(values: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    return [_plain(value) for value in values] if isinstance(values, (list, tuple)) else values
