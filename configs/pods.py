"""Presets for pods: by config and TPU topology how its devices are laid out and what is computed
again. `NAME@TOPOLOGY` names one.

Each was compiled for its topology; what it takes of a chip's memory stands in docs/pods.md.
"""

from typing import NamedTuple

from ..model import MeshConfig


class Pod(NamedTuple):
    """What a config needs on a topology."""

    mesh: MeshConfig
    accumulation: int = 1
    remat: str = "full"


PODS: dict[str, dict[str, Pod]] = {
    "gpt3-175b": {"v5p:8x8x16": Pod(MeshConfig(data=1, fsdp=128, tensor=8))},
    "llama2-34b": {"v6e:16x16": Pod(MeshConfig(data=1, fsdp=256), accumulation=2)},
    "llama2-70b": {"v6e:16x16": Pod(MeshConfig(data=1, fsdp=256), accumulation=2)},
    "llama3-8b": {"v5e:16x16": Pod(MeshConfig(data=1, fsdp=256), accumulation=2)},
    "llama3-70b": {"v6e:16x16": Pod(MeshConfig(data=1, fsdp=256), accumulation=2)},
    "llama3-405b": {"v5p:8x16x16": Pod(MeshConfig(data=1, fsdp=256, tensor=8))},
    "mixtral-8x7b": {"v6e:16x16": Pod(MeshConfig(data=1, fsdp=32, expert=8), accumulation=4)},
}
"""By config, then by topology (as `jax.experimental.topologies` calls it)."""
