"""Named settings: model sizes and recipes. Values only; the rooms define what they mean.

Each module holds `CONFIGS`, names to values; it is imported when one of its names is asked for.
"""

MODULES: dict[str, tuple[str, ...]] = {
    "demo": ("demo",),
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
        "llama3-8b",
        "llama3-70b",
        "llama3-405b",
    ),
}
NAMES = tuple(name for names in MODULES.values() for name in names)


def named(name: str):
    """The settings of this name; KeyError where there are none."""
    from importlib import import_module

    for module, names in MODULES.items():
        if name in names:
            return import_module(f".{module}", __name__).CONFIGS[name]
    raise KeyError(name)
