"""What `aludel plan` lowers of each stage."""

from dataclasses import replace

from ..errors import UserError
from .settings import find_config


def phases_of(config, mesh, judge):
    """The programs of a step of a stage with these settings, lowered for the mesh's devices.

    judge: of PPO the reward model's decoder; None: a function scores.
    """
    from ..train.config import PpoConfig, RewardConfig
    from ..train.planning import Phase, the_step

    if isinstance(config, PpoConfig):
        from ..rlhf.ahead import lower_ppo

        found = lower_ppo(config, mesh, judge)
        return [
            Phase(name, one.lowered, times_of(name, config, found), one.beside)
            for name, one in found.items()
        ]
    if isinstance(config, RewardConfig):
        from ..rlhf.ahead import lower_reward

        return [Phase("step", lower_reward(config, mesh))]
    return the_step(config, mesh)


def times_of(name: str, config, phases) -> float:
    """How often a program of an iteration of PPO runs in it."""
    updates = config.passes * config.minibatches
    if name == "update":
        return updates - 1 if "first" in phases else updates
    return 1


def with_decoders(config, stage: str, model: str | None, judge: str | None):
    """(the settings with their decoders filled in, the reward model's decoder or None).

    model: a config of pretraining whose decoder it is, where the stage begins with a run; judge:
    another for PPO's reward model and critic.
    """
    if stage == "pretrain":
        if model or judge:
            raise UserError("--model and --judge belong to the stages after pretraining")
        return config, None
    if judge and stage != "ppo":
        raise UserError("--judge belongs to --stage ppo")
    if model is None:
        raise UserError(f"--stage {stage} needs --model, a config whose decoder it goes on with")
    decoder = find_config(model, "pretrain").model
    decoder = replace(decoder, dropout=config.dropout)
    if not decoder.vocab_size:
        raise UserError(f"{model}: the vocabulary is not known; set it in the file")
    if stage != "ppo":
        return replace(config, model=replace(decoder, scalar_head=config.scores)), None
    scorer = decoder if judge is None else find_config(judge, "pretrain").model
    scorer = replace(scorer, vocab_size=decoder.vocab_size, scalar_head=True, dropout=0.0)
    return replace(config, model=decoder, critic=scorer), scorer
