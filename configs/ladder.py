"""What `aludel scale run` makes: iso-FLOP ladders of small decoders on Python's own library."""

import dataclasses

from ..train.scaling import Sweep
from .demo import CONFIGS as DEMO

demo = DEMO["demo"]

CONFIGS = {
    "ladder": Sweep(
        base=dataclasses.replace(
            demo,
            # Heads of 16: a decoder of 2 blocks is 32 wide.
            model=dataclasses.replace(demo.model, head_dim=16),
            data=("python", "python-packages"),
            eval_every=0,
            checkpoint_every=200,
            sample_every=0,
            tensorboard=False,
        ),
        layers=(2, 3, 4, 5, 6, 7, 8),
        width_of_layer=16,
        flops=(3e12, 1e13, 3e13),
        between=(2.0, 200.0),
        smallest=2,
        seeds_of_smallest=3,
    ),
}
