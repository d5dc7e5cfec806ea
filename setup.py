"""Packaging: the folders of the checkout become the import package `aludel`.

The rooms stay at the top of the repository and nothing generic such as `model` lands in anybody's
site-packages. What goes into a wheel is listed here by name.
"""

from setuptools import setup
from setuptools.command.build_py import build_py

PACKAGES = [
    "aludel",
    "aludel.model",
    "aludel.model.kernels",
    "aludel.data",
    "aludel.train",
    "aludel.train.planning",
    "aludel.train.probes",
    "aludel.train.scaling",
    "aludel.rlhf",
    "aludel.serve",
    "aludel.configs",
    "aludel.cli",
]
ROOT_MODULES = {"__init__", "errors", "memory", "paths"}


class BuildListed(build_py):
    """Of the modules at the root, only those listed: `setup.py` and strays stay out."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """(package, module, file) of each module of `package` that belongs in the wheel."""
        found = super().find_package_modules(package, package_dir)
        return [entry for entry in found if package != "aludel" or entry[1] in ROOT_MODULES]


setup(
    name="aludel",
    version="0.1.0",
    description="Pretraining, instruction tuning, reward modelling and PPO of one decoder, in JAX",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"aludel": "."},
    packages=PACKAGES,
    package_data={"aludel.model.kernels": ["*.cc", "*.h"]},
    cmdclass={"build_py": BuildListed},
    entry_points={"console_scripts": ["aludel = aludel.cli:main"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources",  # tensorflow-datasets imports it and does not ask for it
        "array_record>=0.8.2",
        "tokenizers>=0.22",
        "numpy>=2.0",
        "tyro>=1.0",
        "rich>=13",
        "matplotlib>=3.9",
        "tensorboardX>=2.6",
        "filelock>=3.10",  # for the limit on the programs that JAX keeps
    ],
    extras_require={
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            "ruff>=0.14",
            "setuptools>=77",
            "psutil>=6",  # benchmarks/store.py: memory of all processes
        ],
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        "compare": [
            "torch>=2.4",
            "transformers>=5.0",
            # The TPU's compiler, which needs no TPU.
            "jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'",
        ],
    },
)
