"""A sweep: the runs that a scaling law is fitted to, from one recipe and a few lists."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ...errors import UserError
from ...model import DecoderConfig
from ..config import PretrainConfig, absolute

TUNING = "tuning"  # the folder of the runs that rates are chosen by


@dataclass(frozen=True)
class Sweep:
    """Sizes, each with several amounts of text and seeds. Impossible values raise `UserError`.

    A size is a number of blocks; the decoder's width grows with it, its heads stay as wide as
    those of `base`, and its MLP and grouped keys keep their share: so depth and width keep their
    ratio.
    """

    base: PretrainConfig = PretrainConfig()
    """What all runs share; blocks, width, heads, steps, seed and folder are the sweep's."""
    layers: tuple[int, ...] = (2, 3, 4, 6)
    """The sizes, by their blocks."""
    width_of_layer: int = 32
    """Width for each block: a decoder of 4 is 4 times as wide."""
    count: Literal["all", "blocks"] = "all"
    """A run's parameters N: all, or without embeddings and head; of a mixture's experts those that
    a token passes. Say the same to `scale fit`."""
    per_parameter: tuple[float, ...] = ()
    """Amounts of text in tokens for each parameter; every size with every one."""
    tokens: tuple[float, ...] = ()
    """Amounts of text in tokens; every size with every one."""
    flops: tuple[float, ...] = ()
    """Budgets of C = 6 N D, for iso-FLOP valleys: every size with every one."""
    between: tuple[float, float] = (1.0, 400.0)
    """Of `flops`, tokens for each parameter: what lies beyond is not run."""
    held_out_layers: int = 0
    """A size for one run more, to be predicted (`scale fit --hold-out`); 0: none."""
    held_out_flops: float = 0.0
    """Its compute."""
    seeds: int = 1
    """Of every run, from base.seed on."""
    smallest: int = 0
    """Of so many sizes, the smallest, more seeds are run: the noise of a run."""
    seeds_of_smallest: int = 3
    """How many."""
    tune: tuple[float, ...] = ()
    """Factors of all learning rates, tried on the smallest size with its least compute before
    anything else; the best one is taken for every run. Empty: the rates of `base`."""
    points: int = 0
    """At most so many checkpoints are kept of each run, evenly spread over its steps; 0: as `base`
    says."""
    most_epochs: float = 4.0
    """How often a run may see its text: beyond it, a law would measure repetition."""
    out: str = ""
    """The folder of the runs; one that exists is gone on with. Empty: runs/SWEEP."""

    def __post_init__(self) -> None:
        for name in ("layers", "per_parameter", "tokens", "flops", "between", "tune"):
            if any(not 0 < value < math.inf for value in getattr(self, name)):
                raise UserError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("width_of_layer", "seeds", "seeds_of_smallest"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("smallest", "points"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, not {getattr(self, name)}")
        if not self.layers:
            raise UserError("layers names no size: give some, for example 2 3 4 6")
        if not (self.per_parameter or self.tokens or self.flops):
            raise UserError("no amount of text: give per_parameter, tokens or flops")
        if self.held_out_layers < 0 or (self.held_out_layers > 0) != (self.held_out_flops > 0):
            raise UserError("held_out_layers and held_out_flops belong together: name both")
        if self.between[0] > self.between[1]:
            raise UserError(f"between must go from less to more, not {self.between}")
        if not self.most_epochs > 0:
            raise UserError(f"most_epochs must be positive, not {self.most_epochs}")

    def resolved(self) -> "Sweep":
        """The same sweep with absolute paths."""
        out = self.out and absolute(self.out)
        return dataclasses.replace(self, base=self.base.resolved(), out=out)


@dataclass(frozen=True)
class Planned:
    """A run of a sweep."""

    name: str
    """Of its folder."""
    config: PretrainConfig
    params: int
    """N, as the sweep counts."""

    @property
    def tokens(self) -> int:
        """D."""
        return self.config.steps * self.config.tokens_per_step

    @property
    def flops(self) -> float:
        """C = 6 N D."""
        return 6.0 * self.params * self.tokens


def sized(model: DecoderConfig, layers: int, width: int) -> DecoderConfig:
    """The decoder with this depth and width: heads as wide as before, so more or fewer of them,
    keys grouped and the MLP wider in the same share. `UserError` where that does not come out."""
    dim = model.size_of_head
    if width % dim:
        raise UserError(
            f"a decoder of {layers} blocks would be {width} wide, which heads of {dim} do not "
            "divide: choose another width_of_layer, or base.model.head_dim"
        )
    heads, kv_heads = width // dim, None
    if model.kv_heads is not None:
        kv_heads, rest = divmod(heads * model.kv_heads, model.heads)
        if rest:
            raise UserError(
                f"of the {heads} heads of a decoder {width} wide, {model.heads // model.kv_heads} "
                "do not share keys: choose another width_of_layer, or base.model.kv_heads"
            )
    mlp = None if model.mlp_width is None else round(model.mlp_width * width / model.width)
    return dataclasses.replace(
        model,
        layers=layers,
        width=width,
        heads=heads,
        head_dim=dim,
        kv_heads=kv_heads,
        mlp_width=mlp,
    )


def planned(sweep: Sweep) -> list[Planned]:
    """The runs, the cheapest first, each once. The vocabulary's size must be known where
    embeddings count. `UserError` where there is none."""
    runs = {run.name: run for run in _each(sweep)}
    if not runs:
        low, high = sweep.between
        raise UserError(
            f"no size meets a budget of flops with {low:g} to {high:g} tokens for each parameter "
            "(between): choose others"
        )
    return sorted(runs.values(), key=lambda run: (run.flops, run.name))


def _each(sweep: Sweep) -> Iterator[Planned]:
    low, high = sweep.between
    sizes = sorted(set(sweep.layers))
    for layers in sizes:
        seeds = sweep.seeds
        if layers in sizes[: sweep.smallest]:
            seeds = max(seeds, sweep.seeds_of_smallest)
        model, params = _size(sweep, layers)
        amounts = [*sweep.tokens, *(ratio * params for ratio in sweep.per_parameter)]
        of_flops = (flops / (6 * params) for flops in sweep.flops)
        amounts += [tokens for tokens in of_flops if low <= tokens / params <= high]
        for tokens in amounts:
            for seed in range(seeds):
                yield _run(sweep, model, params, tokens, seed)
    if sweep.held_out_layers:
        model, params = _size(sweep, sweep.held_out_layers)
        yield _run(sweep, model, params, sweep.held_out_flops / (6 * params), 0)


def _size(sweep: Sweep, layers: int) -> tuple[DecoderConfig, int]:
    """(the decoder with so many blocks, its N)."""
    model = sized(sweep.base.model, layers, layers * sweep.width_of_layer)
    return model, model.parameters(sweep.count == "all", active=True)


def _run(sweep: Sweep, model: DecoderConfig, params: int, tokens: float, seed: int) -> Planned:
    base = sweep.base
    steps, seed = max(1, round(tokens / base.tokens_per_step)), base.seed + seed
    name = f"layers-{model.layers}-width-{model.width}-steps-{steps}-seed-{seed}"
    config = dataclasses.replace(base, model=model, steps=steps, seed=seed)
    if sweep.points:
        every = max(1, -(-steps // sweep.points))
        config = dataclasses.replace(config, checkpoint_every=every, keep=0)
    return Planned(name, config, params)


def tuning_runs(sweep: Sweep) -> list[Planned]:
    """A run for each factor in `tune`: the cheapest of the smallest size."""
    if not sweep.tune:
        return []
    layers = min(run.config.model.layers for run in planned(sweep))
    first = next(run for run in planned(sweep) if run.config.model.layers == layers)
    return [
        dataclasses.replace(
            first,
            name=f"{TUNING}/{first.name}-rates-times-{factor:g}",
            config=with_rates(first.config, factor),
        )
        for factor in sorted(set(sweep.tune))
    ]


def with_rates(config: PretrainConfig, factor: float) -> PretrainConfig:
    """The settings with every learning rate times `factor`."""
    names = (f"{group}learning_rate" for group in ("", "embedding_", "head_", "vector_"))
    rates = {name: getattr(config.optimizer, name) for name in names}
    scaled = {name: rate * factor for name, rate in rates.items() if rate is not None}
    optimizer = dataclasses.replace(config.optimizer, **scaled)
    return dataclasses.replace(config, optimizer=optimizer)


def share_of(runs: list[Planned], shard: tuple[int, int]) -> list[Planned]:
    """Of `runs` those of machine i of n, counted from 1: of all machines the one with the least to
    compute takes the next largest."""
    own, machines = shard
    load, mine = [0.0] * machines, []
    for run in sorted(runs, key=lambda run: (-run.flops, run.name)):
        machine = load.index(min(load))
        load[machine] += run.flops
        if machine == own - 1:
            mine.append(run)
    return mine[::-1]
