"""Named settings: model sizes and recipes. Values only; the rooms define what they mean.

Each module holds `CONFIGS`, names to values; it is imported when one of its names is asked for.
"""

MODULES: dict[str, dict[str, tuple[str, ...]]] = {
    "pretrain": {
        "demo": ("demo",),
        "mixtures": ("demo-experts", "mixtral-8x7b"),
        "shakespeare": ("shakespeare-char", "shakespeare-char-modern"),
        "gpt2": ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"),
        "gpt3": (
            "gpt3-125m",
            "gpt3-350m",
            "gpt3-760m",
            "gpt3-1.3b",
            "gpt3-2.7b",
            "gpt3-6.7b",
            "gpt3-13b",
            "gpt3-175b",
        ),
        "llama": (
            "llama-160m",
            "llama-400m",
            "llama-1b",
            "llama2-7b",
            "llama2-34b",
            "llama2-70b",
            "llama3-8b",
            "llama3-70b",
            "llama3-405b",
        ),
    },
    "sft": {"instruct": ("instruct-small", "instruct")},
    "ppo": {"alignment": ("ppo-small",)},
    "reward": {"preferences": ("reward-small", "reward")},
    "demo": {"recipe": ("recipe", "recipe-gpu")},
    "scale run": {"ladder": ("ladder", "ladder-control")},
}
"""By stage, then by module, the names that it holds."""


def names_of(stage: str | None = None) -> tuple[str, ...]:
    """The names of one stage's settings, or of all."""
    stages = MODULES.values() if stage is None else [MODULES[stage]]
    return tuple(name for modules in stages for names in modules.values() for name in names)


NAMES = names_of()


def topologies_of(name: str) -> tuple[str, ...]:
    """The TPU topologies that a config has a preset for (`pods.py`)."""
    from .pods import PODS

    return tuple(PODS.get(name, ()))


def presets_of(stage: str | None = None) -> tuple[str, ...]:
    """Every NAME@TOPOLOGY of one stage's settings, or of all."""
    return tuple(f"{name}@{pod}" for name in names_of(stage) for pod in topologies_of(name))


def named(name: str):
    """The settings of this name, or of NAME@TOPOLOGY: laid out for that pod. KeyError where there
    are none."""
    from dataclasses import replace
    from importlib import import_module

    from .pods import PODS

    base, at, topology = name.partition("@")
    for modules in MODULES.values():
        for module, names in modules.items():
            if base in names:
                config = import_module(f".{module}", __name__).CONFIGS[base]
                if not at:
                    return config
                pod = PODS[base][topology]
                execution = replace(config.execution, remat=pod.remat)
                return replace(
                    config, mesh=pod.mesh, accumulation=pod.accumulation, execution=execution
                )
    raise KeyError(name)
