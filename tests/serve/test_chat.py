"""A conversation: the stream is the sampler's, turns are kept, the terminal does what it says."""

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from aludel.data import Template, make_tokenizer, with_template
from aludel.errors import UserError
from aludel.model import (
    DecoderConfig,
    Execution,
    MeshConfig,
    SamplingConfig,
    init_params,
    make_sampler,
    pad_prompts,
)
from aludel.serve import Conversation, make_stream
from aludel.serve.terminal import chat, read
from aludel.train import OptimizerConfig
from aludel.train.config import PretrainConfig, SftConfig
from aludel.train.pretrain import pretrain
from aludel.train.sft import sft

QUIET = dict(
    tensorboard=False, sample_tokens=8, mesh=MeshConfig(data=1, fsdp=1, tensor=1), prompts=()
)
GREEDY = SamplingConfig(max_tokens=12, temperature=0.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    (folder / "text.txt").write_text("red green blue äöü " * 120)
    config = PretrainConfig(
        model=DecoderConfig(layers=2, width=32, heads=2, context=64),
        data=(f"text:{folder / 'text.txt'}",),
        tokenizer="byte",
        steps=2,
        batch=4,
        eval_every=0,
        out=str(folder / "run"),
        **QUIET,
    )
    return pretrain(config)


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """A run that has learnt two answers."""
    folder = tmp_path_factory.mktemp("tuned")
    records = [{"instruction": q, "output": a} for q, a in (("red", "stop"), ("hue", "grün")) * 12]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, records)))
    config = SftConfig(
        init=str(base),
        data=(f"chat:{folder / 'chats.jsonl'}",),
        steps=60,
        batch=4,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        eval_every=0,
        out=str(folder / "run"),
        **QUIET,
    )
    return str(sft(config))


def conversation(run, **changes):
    return Conversation(run, changes.pop("sampling", GREEDY), seed=0, **changes)


@pytest.mark.parametrize("lookup", [0, 3])
def test_the_stream_is_what_the_sampler_draws(lookup):
    config = DecoderConfig(vocab_size=21, layers=2, width=32, heads=2, context=64)
    params = init_params(config, Execution(), jax.random.key(0))
    sampling = SamplingConfig(max_tokens=17, temperature=0.8, stop=(3,), lookup=lookup)
    stream = make_stream(config, sampling, Execution())
    sample = make_sampler(config, sampling, Execution())
    lengths = set()
    for seed in range(6):
        prompt, key = [1, 2, 5 + seed], jax.random.key(seed)
        drawn = jax.device_get(sample(params, *pad_prompts([prompt]), key))
        expected = drawn.tokens[0][: drawn.length[0]].tolist()
        assert list(stream(params, prompt, key)) == expected
        lengths.add(len(expected))
    assert len(lengths) > 1


def test_answers_come_in_pieces_of_whole_characters(run):
    talk = conversation(run)
    pieces = list(talk.say("hue"))
    assert "".join(pieces) == "grün" and "\ufffd" not in "".join(pieces)
    assert len([piece for piece in pieces if piece]) == 4  # ü is two tokens and one piece
    assert talk.tokens == 6 and talk.rate > 0
    list(talk.say("and?"))
    roles = [message["role"] for message in talk.messages]
    assert roles == ["user", "assistant"] * 2
    talk.reset()
    assert talk.messages == []
    assert "".join(talk.say("red")) == "stop"


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_went(run):
    talk = conversation(run)
    pieces = talk.say("red")
    assert next(pieces) == "s"
    pieces.close()
    assert talk.messages[-1] == {"role": "assistant", "content": "s"}


def test_first_turns_make_room_and_what_cannot_fit_is_told(run):
    talk = conversation(run, system="be brief")
    for _ in range(6):
        list(talk.say("red"))
    prompt = talk.prompt()
    template = Template(with_template(make_tokenizer("byte", lambda: iter(()))))
    assert len(prompt) <= 64 - 12
    assert len(template.prompt(talk.messages)) > 64
    head = template.ids([{"role": "system", "content": "be brief"}])
    assert prompt[: len(head)].tolist() == head.tolist()
    before = list(talk.messages)
    with pytest.raises(UserError, match="does not fit the 52 tokens"):
        list(talk.say("x" * 100))
    assert talk.messages == before


def test_mistakes(run, base):
    with pytest.raises(UserError, match="was not trained on conversations"):
        conversation(str(base))
    with pytest.raises(UserError, match="leave no room in the 64"):
        conversation(run, sampling=SamplingConfig(max_tokens=64))


def typed(run, lines, monkeypatch, capsys):
    """What a conversation prints (out, err) for these lines."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    chat(conversation(run))
    return capsys.readouterr()


def test_commands(run, tmp_path, monkeypatch, capsys):
    file = tmp_path / "said.jsonl"
    lines = [
        "/save x",
        "red",
        "/params",
        "/params temperature 0.5",
        "/params top_q 1",
        "/params top_k many",
        f"/save {file}",
        "/reset",
        f"/save {tmp_path / 'other'}",
        "/nope",
        "/help",
        "/quit",
        "red",
    ]
    said = typed(run, lines, monkeypatch, capsys)
    assert said.out.count("stop\n") == 1  # nothing after /quit
    assert "temperature 0.0, top_p 1.0, top_k 0, max_tokens 12" in said.out
    assert "temperature 0.5" in said.out and "forgotten" in said.out and "/save FILE" in said.out
    errors = [line for line in said.err.splitlines() if line.startswith("aludel:")]
    for error, part in zip(
        errors,
        (
            "nothing was said",
            "NAME one of temperature",
            "must be a number",
            "nothing",
            "no command",
        ),
        strict=True,
    ):
        assert part in error
    saved = json.loads(file.read_text())
    assert saved == {
        "messages": [{"role": "user", "content": "red"}, {"role": "assistant", "content": "stop"}]
    }


def test_a_line_that_ends_with_a_backslash_goes_on(monkeypatch):
    typed = ["an entry\\", "\\", "a question", "alone", "never ended\\"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed)))
    assert read(False) == "an entry\n\na question"
    assert read(False) == "alone" and read(False) is None


def test_in_a_terminal_it_shows_speed_and_leaves_with_ctrl_d(run):
    """The command itself, in a pseudo-terminal."""
    ours, theirs = pty.openpty()
    words = [
        sys.executable,
        "-m",
        "aludel.cli",
        "chat",
        run,
        "--tokens",
        "12",
        "--temperature",
        "0",
    ]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "TERM": "dumb"}
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    # Only at a prompt: what is typed before readline has the terminal is lost to it.
    seen, sent = b"", 0
    steps = [(rb"you: ", b"hue\n"), (rb"tokens/s.*you: ", b"\x04")]
    end = time.monotonic() + 180
    while time.monotonic() < end and process.poll() is None:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                seen += os.read(ours, 4096)
            except OSError:
                break
        if sent < len(steps) and re.search(steps[sent][0], seen, re.DOTALL):
            os.write(ours, steps[sent][1])
            sent += 1
    assert process.wait(timeout=30) == 0, seen.decode()
    text = seen.decode()
    assert "run: grün" in text.replace("\r", "") and "6 tokens, " in text
    assert np.char.count(text, "you: ") >= 2
    os.close(ours)
