"""Text that is not English trains like any other."""

import json

import numpy as np
import pytest

from aludel.model import DecoderConfig
from aludel.train import OptimizerConfig
from aludel.train.config import PretrainConfig
from aludel.train.pretrain import pretrain

POEM = "床前明月光，疑是地上霜。举头望明月，低头思故乡。\n"
HEADS = dict(layers=1, width=32, heads=2, context=32, embedding_init_std=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["char", "bpe:300"])
def test_chinese_trains_and_is_written(tmp_path, tokenizer):
    rng = np.random.default_rng(0)
    words = ["天地玄黄", "宇宙洪荒", "日月盈昃", "辰宿列张", "寒来暑往", "秋收冬藏"]
    text = "".join(POEM + "，".join(rng.choice(words, 6)) + "。\n" for _ in range(120))
    (tmp_path / "zh.txt").write_text(text, encoding="utf-8")
    config = PretrainConfig(
        model=DecoderConfig(**HEADS),
        data=(f"text:{tmp_path / 'zh.txt'}",),
        tokenizer=tokenizer,
        steps=60,
        batch=8,
        optimizer=OptimizerConfig(learning_rate=0.01, warmup=5),
        eval_every=0,
        prompts=("床前明",),
        sample_tokens=24,
        tensorboard=False,
        out=str(tmp_path / "run"),
    )
    run = pretrain(config)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["val_bits_per_byte"] < summary["val_bits_per_byte_before"] / 2
    sample = json.loads((run / "samples.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert sum("\u4e00" <= character <= "\u9fff" for character in sample["text"]) > 5
