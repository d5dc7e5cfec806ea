"""The compiled training step holds no [batch, time, vocabulary] array."""

import importlib.util
from pathlib import Path

import pytest

from aludel.model import DecoderConfig, Execution
from aludel.train import lm_loss

PATH = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.fixture(scope="module")
def memory():
    spec = importlib.util.spec_from_file_location("benchmark_memory", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_step_at_gpt2s_vocabulary_holds_no_logits(memory):
    config = DecoderConfig(
        vocab_size=memory.VOCAB, layers=1, width=32, heads=2, context=memory.LENGTH
    )
    execution = Execution(scan=True, remat="full")
    ours = memory.compiled_step(config, execution, lm_loss(z_loss=1e-4))
    naive = memory.compiled_step(config, execution, memory.naive_loss(config))
    assert memory.holds_logits(naive.as_text())  # the check sees them where they are
    assert not memory.holds_logits(ours.as_text())
    peak = [program.memory_analysis().temp_size_in_bytes for program in (ours, naive)]
    assert peak[0] < peak[1] / 5
