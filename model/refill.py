"""Many prompts, some rows: a row whose text has ended takes the next prompt that waits.

So a long text does not hold the finished ones beside it. Prompts are read ahead, many together,
and a row that is free gets the next one by a copy. Noise belongs to the prompt's number and the
token's, so that every text is the one that `make_sampler` gives in one batch.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from .choice import SamplingConfig, temperature_of
from .config import DecoderConfig
from .decoder import Cache, Decoder, LayerCache, make_cache
from .decoding import Rows, noise_of, prefill, step
from .execution import DEFAULT, Execution
from .fetching import fetched
from .kernels import for_decoding
from .sampling import Samples, check_prompts, check_room
from .weights import weights_for

BUCKET = 16  # prompts of a group are padded to a multiple of it, and to no other's length
WIDTH = 64  # rows have room for prompts of a multiple of it: few lengths are compiled
READ = 1024  # tokens of prompts that are read together: with fewer, weights are read too often
# Of the rows one in so many: as many that have ended are refilled together. Fewer together would
# wait less for each other, and ask the host what to do next more often.
SHARE = 16
FEWEST = 4  # rows that are worth a program of their own when the last texts are being written


def make_generator(
    config: DecoderConfig,
    sampling: SamplingConfig,
    execution: Execution = DEFAULT,
    mesh: Mesh | None = None,
    rows: int = 32,
    bucket: int = BUCKET,
) -> Callable[..., Samples]:
    """`generate(params, prompts, key, limits=None, temperature=None) -> Samples` for any number of
    prompts, in their order, of which up to `rows` are written at a time.

    prompts: token ids of each, of any length. limits: the most new tokens of each prompt (at
    most, and where not given, sampling.max_tokens). temperature: a number in place of sampling's,
    both above 0. Token t of prompt b is drawn with `fold_in(fold_in(key, b), t)`, as
    `make_sampler` does. bucket: each multiple of it that a prompt's length falls to is compiled.
    """
    execution = for_decoding(execution, config.dtype, mesh)
    decoder = Decoder(config, execution, mesh)
    prepare, ready = weights_for(execution.decoding, config.dtype)

    @jax.jit
    def read(
        params: dict,
        prompts: Array,
        mask: Array,
        numbers: Array,
        limits: Array,
        key: Array,
        temperature: Array,
    ) -> tuple[Rows, Cache]:
        """Rows of the prompts [G, W], of these numbers i32[G], with the first token of each."""
        noise = noise_of(key, numbers, sampling)
        about = (noise, limits, jnp.full(len(prompts), temperature))
        slots = prompts.shape[1] + sampling.lookup
        return prefill(decoder, sampling, ready(params), prompts, mask, *about, slots)

    @partial(jax.jit, donate_argnums=(1, 2))
    def run(params: dict, all_rows: Rows, cache: Cache, enough: Array) -> tuple[Rows, Cache]:
        """Steps until `enough` rows have ended."""
        return jax.lax.while_loop(
            lambda state: state[0].done.sum() < enough,
            lambda state: step(decoder, sampling, ready(params), *state),
            (all_rows, cache),
        )

    def generate(
        params: dict,
        prompts: Sequence[Sequence[int]],
        key: Array,
        limits: Sequence[int] | None = None,
        temperature: float | None = None,
    ) -> Samples:
        check_prompts(prompts)
        longest = max(map(len, prompts))
        # Learned positions are too few to pad with.
        width = longest if config.position == "learned" else -(-longest // WIDTH) * WIDTH
        check_room(config, sampling, width)
        limits = np.full(len(prompts), sampling.max_tokens) if limits is None else limits
        limits = np.clip(np.asarray(limits, np.int32), 0, sampling.max_tokens)
        given = jnp.float32(temperature_of(sampling, temperature))
        params = prepare(params)
        count = min(rows, len(prompts))
        together = max(1, count // SHARE)
        slots = width + sampling.max_tokens - 1 + sampling.lookup
        state = (
            _idle(count, width, sampling.max_tokens),
            make_cache(config, execution, count, slots, sampling.lookup),
        )

        def read_group(size: int, taken: list[int], length: int) -> tuple[Rows, Cache]:
            group = _group(size, taken, prompts, min(length, width), limits)
            return read(params, *group, key, given)

        ahead = Ahead(Waiting(prompts, bucket), count, read_group)
        writes, out = np.full(count, -1), _Collected(len(prompts), sampling.max_tokens)
        while ahead or (writes >= 0).any():
            free = np.flatnonzero(writes < 0)
            while ahead and len(free):
                numbers, group, places = ahead.take(min(together, len(free)))
                at, free = free[: len(numbers)], free[len(numbers) :]
                writes[at] = numbers
                missing = (0, together - len(numbers))  # the last comes again, into the same row
                at, places = (np.pad(one, missing, "edge") for one in (at, places))
                state = _place(*state, *group, at, places)
                del group
            idle = int((writes < 0).sum())
            if not ahead and count >= 2 * FEWEST and 2 * idle >= count:
                count //= 2
                kept = np.concatenate([np.flatnonzero(writes >= 0), np.flatnonzero(writes < 0)])
                writes, state = writes[kept[:count]], _keep(*state, kept[:count])
                idle = int((writes < 0).sum())
            if ahead:
                enough = min(idle + together, count)
            else:
                enough = max(count // 2, idle + 1) if count >= 2 * FEWEST else count
            state = run(params, *state, enough)
            out.collect(state[0], writes)
        return out.samples()

    return generate


class _Collected:
    """Samples of Q prompts, filled in as they end."""

    def __init__(self, count: int, new: int) -> None:
        self.tokens = np.zeros((count, new), np.int32)
        self.logp = np.zeros((count, new), np.float32)
        self.length = np.zeros(count, np.int32)
        self.stopped = np.zeros(count, bool)

    def collect(self, rows: Rows, writes: np.ndarray) -> None:
        """Take what has ended; `writes` [B], the prompt of each row, becomes -1 there."""
        done, text, logp, length, stopped = fetched(
            (rows.done, rows.text, rows.logp, rows.length, rows.stopped)
        )
        ended = np.flatnonzero(done & (writes >= 0))
        numbers, new = writes[ended], self.tokens.shape[1]
        self.tokens[numbers] = text[ended, -new:]
        self.logp[numbers] = logp[ended]
        self.length[numbers] = length[ended]
        self.stopped[numbers] = stopped[ended]
        writes[ended] = -1

    def samples(self) -> Samples:
        return Samples(*map(jnp.asarray, (self.tokens, self.logp, self.length, self.stopped)))


class Waiting:
    """The numbers of prompts that wait, in queues of one length to a multiple of `bucket`."""

    def __init__(self, prompts: Sequence[Sequence[int]], bucket: int) -> None:
        self._queues: dict[int, deque[int]] = {}
        for number, prompt in enumerate(prompts):
            length = -(-len(prompt) // bucket) * bucket
            self._queues.setdefault(length, deque()).append(number)

    def __bool__(self) -> bool:
        return bool(self._queues)

    @property
    def next_length(self) -> int:
        """The multiple that the first waiting prompt's length falls to."""
        return min(self._queues, key=lambda length: self._queues[length][0])

    def take(self, count: int) -> list[int]:
        """The first prompt that waits and the next ones of its length, up to `count` together."""
        length = self.next_length
        queue = self._queues[length]
        taken = [queue.popleft() for _ in range(min(count, len(queue)))]
        if not queue:
            del self._queues[length]
        return taken


class Ahead:
    """Prompts that are read, a group of at most `most` at a time, before there are rows for them.

    read: `(size, numbers of prompts, their length) -> (rows, cache)` of `size` rows, of which the
    first are these prompts'.
    """

    def __init__(
        self,
        waiting: Waiting,
        most: int,
        read: Callable[[int, list[int], int], tuple[Rows, Cache]],
    ) -> None:
        self._waiting, self._most, self._read = waiting, most, read
        self._numbers: list[int] = []  # of the group's prompts
        self._next = 0  # place in the group
        self._group: tuple[Rows, Cache] | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting) or self._next < len(self._numbers)

    def take(self, count: int) -> tuple[list[int], tuple[Rows, Cache], np.ndarray]:
        """(numbers, group, their places in it) of the next prompts, `count` or fewer."""
        if self._next == len(self._numbers):
            length = self._waiting.next_length
            size = max(1, min(self._most, READ // length))
            self._numbers, self._next = self._waiting.take(size), 0
            self._group = self._read(size, self._numbers, length)
        places = np.arange(self._next, min(self._next + count, len(self._numbers)))
        self._next += len(places)
        group = self._group
        if self._next == len(self._numbers):
            self._group = None  # nothing holds it while the next is read
        return [self._numbers[place] for place in places], group, places


def _group(
    size: int, taken: list[int], prompts: Sequence, width: int, limits: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Arguments of `read` between the parameters and the key; a group that is not full repeats its
    first prompt."""
    filled = taken + taken[:1] * (size - len(taken))
    tokens, mask = np.zeros((size, width), np.int32), np.zeros((size, width), bool)
    for row, number in enumerate(filled):
        tokens[row, width - len(prompts[number]) :] = prompts[number]
        mask[row, width - len(prompts[number]) :] = True
    return tokens, mask, np.asarray(filled, np.int32), limits[filled]


def _idle(count: int, width: int, new: int) -> Rows:
    """Rows that write nothing."""
    zeros, yes = jnp.zeros(count, jnp.int32), jnp.ones(count, bool)
    return Rows(
        text=jnp.full((count, width + new), -1, jnp.int32),
        logp=jnp.zeros((count, new)),
        prompt=zeros + 1,
        length=zeros,
        limit=zeros + 0,
        noise=jnp.zeros((count, new, 2)),
        temperature=jnp.ones(count),
        done=yes,
        stopped=~yes,
    )


def _batch_axis(cache: Cache) -> int:
    """Where the rows of a layer's arrays lie: behind the layers where these are scanned."""
    return 1 if isinstance(cache.layers, LayerCache) else 0


@partial(jax.jit, donate_argnums=(0, 1))
def _place(
    rows: Rows, cache: Cache, new: Rows, new_cache: Cache, at: Array, places: Array
) -> tuple[Rows, Cache]:
    """The rows `places` i32[S] of `new` in the rows `at` i32[S]. `new` has a text no wider and
    slots no more; what lies behind these is not seen."""
    wider, axis = rows.text.shape[1] - new.text.shape[1], _batch_axis(cache)
    new = new._replace(text=jnp.pad(new.text, ((0, 0), (wider, 0)), constant_values=-1))

    def layer(x: Array, y: Array) -> Array:
        for row in range(len(at)):  # one slice after another is written in place, a scatter not
            one = jax.lax.dynamic_slice_in_dim(y, places[row], 1, axis)
            start = [0] * x.ndim
            start[axis] = at[row]
            x = jax.lax.dynamic_update_slice(x, one, start)
        return x

    slots = new_cache.segment_ids.shape[1]
    placed = Cache(
        jax.tree.map(layer, cache.layers, new_cache.layers),
        cache.segment_ids.at[at, :slots].set(new_cache.segment_ids[places]),
        cache.filled.at[at].set(new_cache.filled[places]),
    )
    return jax.tree.map(lambda x, y: x.at[at].set(y[places]), rows, new), placed


@jax.jit
def _keep(rows: Rows, cache: Cache, at: Array) -> tuple[Rows, Cache]:
    """Only the rows `at`."""
    axis = _batch_axis(cache)
    layers = jax.tree.map(lambda x: jnp.take(x, at, axis=axis), cache.layers)
    kept = Cache(layers, cache.segment_ids[at], cache.filled[at])
    return jax.tree.map(lambda x: x[at], rows), kept
