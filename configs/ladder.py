"""What `aludel scale run` makes: iso-FLOP ladders of small decoders on Python's own library."""

import dataclasses

from ..train.scaling import Sweep
from .demo import CONFIGS as DEMO

demo = DEMO["demo"]

CONFIGS = {
    "ladder": Sweep(
        base=dataclasses.replace(
            demo,
            # Heads of 16: a decoder of 2 blocks is 32 wide. Rates were tuned at the demo's size.
            model=dataclasses.replace(
                demo.model,
                head_dim=16,
                tuned_width=demo.model.width,
                tuned_layers=demo.model.layers,
            ),
            data=("python", "python-packages"),
            eval_every=0,
            checkpoint_every=200,
            sample_every=0,
            tensorboard=False,
        ),
        layers=(1, 2, 3, 4, 5, 6, 7),
        width_of_layer=16,
        flops=(2e12, 7e12, 2e13),
        between=(1.0, 400.0),
        held_out_layers=6,
        held_out_flops=1.65e14,
        smallest=2,
        seeds_of_smallest=3,
    ),
}
