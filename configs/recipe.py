"""What `aludel demo` does: the whole recipe, on a laptop, and larger on a GPU."""

import dataclasses

from ..rlhf.material import MaterialConfig
from ..rlhf.recipe import Recipe
from ..train import OptimizerConfig
from ..train.config import PpoConfig, RewardConfig, SftConfig
from .demo import CONFIGS as DEMO

LAPTOP = Recipe(
    pretrain=dataclasses.replace(
        DEMO["demo"],
        model=dataclasses.replace(DEMO["demo"].model, matching_init=True),
        steps=700,
        optimizer=dataclasses.replace(
            DEMO["demo"].optimizer,
            learning_rate=0.03,
            embedding_learning_rate=0.06,
            head_learning_rate=0.012,
        ),
        eval_every=250,
        eval_tokens=16384,
        sample_every=0,
        prompts=("def ",),
    ),
    sft=SftConfig(
        epochs=1.25,
        batch=16,
        init_checkpoint="newest",
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=0.015,
            embedding_learning_rate=0.03,
            head_learning_rate=0.006,
            beta1=0.8,
            clip=0.0,
            schedule="wsd",
            cooldown=0.7,
            final=0.0,
        ),
        eval_every=100,
        eval_tokens=32768,
        prompts=(),
    ),
    reward=RewardConfig(
        batch=8,
        context=160,
        logp_weight=0.04,
        optimizer=OptimizerConfig(
            learning_rate=1e-3, beta2=0.99, schedule="linear", warmup=10, final=0.0
        ),
        eval_every=50,
        prompts=(),
    ),
    ppo=PpoConfig(
        steps=80,
        batch=64,
        context=192,
        new_tokens=64,
        kl=0.25,
        kl_budget=4.5,
        optimizer=OptimizerConfig(
            learning_rate=3e-4, eps=1e-5, beta2=0.99, schedule="linear", final=0.0
        ),
        critic_learning_rate=8e-4,
        eval_every=20,
        eval_tokens=8192,
        checkpoint_every=20,
        prompts=(),
    ),
)
# Fourteen times the parameters; in bfloat16. Rates of Muon carry over from width to width, those
# of AdamW fall as one over the width.
GPU = dataclasses.replace(
    LAPTOP,
    pretrain=dataclasses.replace(
        LAPTOP.pretrain,
        model=dataclasses.replace(
            LAPTOP.pretrain.model, layers=8, width=512, heads=8, context=512, dtype="bfloat16"
        ),
        tokenizer="bpe:4096",
        steps=800,
        batch=64,
        eval_every=200,
        eval_tokens=65536,
    ),
    sft=dataclasses.replace(LAPTOP.sft, batch=32),
    reward=dataclasses.replace(
        LAPTOP.reward,
        batch=16,
        optimizer=dataclasses.replace(LAPTOP.reward.optimizer, learning_rate=4e-4),
    ),
    ppo=dataclasses.replace(
        LAPTOP.ppo,
        steps=120,
        batch=256,
        optimizer=dataclasses.replace(LAPTOP.ppo.optimizer, learning_rate=1.2e-4),
        critic_learning_rate=3e-4,
        eval_tokens=16384,
    ),
    material=MaterialConfig(
        lists=20000, restatements=6, demonstrations=40000, compared=12000, prompts=20000
    ),
)
CONFIGS = {"recipe": LAPTOP, "recipe-gpu": GPU}
