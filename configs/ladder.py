"""What `aludel scale run` makes: iso-FLOP ladders of small decoders on Python's own library, and on
exercises, whose abilities `aludel scale probe` measures."""

import dataclasses

from ..train.scaling import Sweep
from .demo import CONFIGS as DEMO

demo = DEMO["demo"]

ladder = Sweep(
    base=dataclasses.replace(
        demo,
        # Heads of 16: a decoder of 2 blocks is 32 wide. Rates are tuned there, and carry over.
        model=dataclasses.replace(demo.model, head_dim=16, tuned_width=32, tuned_layers=2),
        data=("python-packages=0.75", "exercises=0.25"),
        tokenizer="bpe:1024",
        batch=8,
        optimizer=dataclasses.replace(
            demo.optimizer,
            learning_rate=0.04,
            embedding_learning_rate=0.04,
            head_learning_rate=0.04,
        ),
        eval_every=0,
        eval_tokens=32768,
        final_eval_tokens=1 << 18,
        sample_every=0,
        tensorboard=False,
    ),
    layers=(2, 3, 4, 5, 6, 7),
    width_of_layer=16,
    flops=(1.2e12, 3e12, 7e12),
    between=(0.4, 110.0),
    held_out_layers=6,
    held_out_flops=5.7e13,
    smallest=2,
    seeds_of_smallest=3,
    tune=(0.25, 0.5, 1.0, 2.0, 4.0),
    points=5,
)

CONFIGS = {
    "ladder": ladder,
    # The same without exercises, the longest run of each size: what text alone teaches of them.
    "ladder-control": dataclasses.replace(
        ladder,
        base=dataclasses.replace(ladder.base, data=("python-packages",)),
        flops=ladder.flops[1:],
        smallest=0,
        tune=(),  # its rates are the ladder's
    ),
}
