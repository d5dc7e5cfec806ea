"""Probes: what is asked, how it is judged, and the command."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from aludel.cli import run
from aludel.data import make_tokenizer
from aludel.data.exercises import KINDS, Exercise, held_out
from aludel.errors import UserError
from aludel.model import Decoder, DecoderConfig, Execution, head_of, init_params
from aludel.train.probes.asking import Asked, Question, _is_right, make_asker, questions_of
from aludel.train.probes.probing import figures, read_questions
from aludel.train.probes.recall import ask_signatures

from .jails import jailed

TOKENIZER = make_tokenizer("byte", lambda: iter(()))
CONFIG = DecoderConfig(
    vocab_size=TOKENIZER.vocab_size,
    layers=2,
    width=16,
    heads=2,
    context=128,
    embedding_init_std=1.0,
)
PLAIN = Execution(attention="plain", training="xla", decoding="xla")


@pytest.mark.parametrize("kind", KINDS)
def test_questions_are_held_out_and_their_examples_are_not(kind):
    found = questions_of(kind, 2, 10)
    assert len({one.prompt.split("\n")[-1] for one in found}) == len(found) > 0
    for one in found:
        *examples, asked = one.prompt.split("\n")
        assert held_out(Exercise(kind, asked, one.answer)) and len(examples) == 2
        for line in examples:
            prompt = (
                line[: line.rindex(" return") + 7] if kind == "code" else line.split("=")[0] + "="
            )
            assert not held_out(Exercise(kind, prompt, ""))


def test_recall_asks_for_signatures_that_are_the_only_ones():
    texts = [
        "def one(a, b=2):\n    pass\n\n\ndef twice(a):\n    pass\n",
        "def twice(b):\n    pass\n\n\ndef none():\n    pass\n",
        "def one(a, b=2):\n    pass\n\n\ndef other(*args):\n    pass\n",
        f"def long({'x' * 41}):\n    pass\n",
        "def method(a):\n    pass\n\n\nclass A:\n    def method(self, b):\n        pass\n",
    ]
    found = ask_signatures(texts, 0, 9)
    assert {(one.prompt, one.answer) for one in found} == {
        ("def one(", "a, b=2):"),
        ("def other(", "*args):"),
    }
    (asked,) = ask_signatures(texts, 1, 1)  # the other is the example
    example, prompt = asked.prompt.split("\n")
    assert example in ("def one(a, b=2):", "def other(*args):")
    assert example.split("(")[0] != prompt.split("(")[0]
    assert ask_signatures(texts, 0, 9) == found != ask_signatures(texts, 0, 9, seed=2)


def test_a_small_kind_has_fewer_questions():
    assert 5 < len(questions_of("addition-1", 0, 200)) < 30


def test_answers_and_their_log_probs():
    """Of a random decoder: each answer's log-prob by the definition."""
    params = init_params(CONFIG, PLAIN, jax.random.key(3))
    ask = make_asker(CONFIG, TOKENIZER, PLAIN)
    questions = [*questions_of("copying", 1, 5), *questions_of("addition-2", 0, 36)]
    with jax.default_matmul_precision("highest"):
        found = ask(params, questions)
        for one, asked in list(zip(questions, found, strict=True))[::7]:
            prompt = [TOKENIZER.separator, *TOKENIZER.encode(one.prompt)]
            answer = TOKENIZER.encode(one.answer)
            whole = jnp.asarray([*prompt, *answer])[None]
            hidden = Decoder(CONFIG, PLAIN).apply({"params": params}, whole[:, :-1])
            logp = jax.nn.log_softmax(hidden @ head_of(params, CONFIG).T)[0]
            of_answer = logp[len(prompt) - 1 :][np.arange(len(answer)), np.asarray(answer)]
            assert asked.tokens == len(answer)
            np.testing.assert_allclose(asked.logp, of_answer.sum(), rtol=1e-4)
    for asked in found:
        assert "\n" not in asked.given and asked.given == asked.given.strip()
    assert not any(asked.right for asked in found)  # of a decoder that knows nothing


def test_an_answer_is_right_as_it_is_written():
    question = Question("add: 2 + 5 =", " 7")
    assert _is_right("7", question, False) and not _is_right("17", question, False)
    found = figures([Asked("7", True, -1.0, 2), Asked("8", False, -3.0, 1)])
    assert found["right"][0] == 0.5 and found["questions"] == 2
    assert found["logp_nats"][0] == -2.0 and found["logp_nats_per_token"][0] == -1.75


def test_a_question_that_does_not_fit_is_an_error():
    params = init_params(CONFIG, PLAIN, jax.random.key(0))
    with pytest.raises(UserError, match="ask with fewer examples"):
        make_asker(CONFIG, TOKENIZER, PLAIN)(params, [Question("x" * 200, " y")])


@jailed
def test_code_is_judged_by_what_it_gives():
    question = Question(
        'def f(x): """Return x plus 3."""; return', " x + 3", ("[f(x) for x in range(9)]",)
    )
    assert _is_right("x + 3", question, False) and not _is_right("3 + x", question, False)
    assert _is_right("3 + x", question, True) and _is_right("x + 4 - 1", question, True)
    assert not _is_right("x + 4", question, True) and not _is_right("x +", question, True)
    assert not _is_right("1 / 0", question, True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probed")
    done = runs.run(
        runs.command(
            runs.write_text(folder),
            folder / "run",
            *("--steps", "2", "--eval-every", "0", "--model.context", "64"),
        )
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_command_prints_a_table_and_writes_json(trained, tmp_path, capfd):
    mine = tmp_path / "mine.jsonl"
    mine.write_text(
        '{"prompt": "the quick brown", "answer": " fox"}\n\n{"prompt": "a", "answer": "b"}\n'
    )
    assert run(["probe", str(trained), "--file", str(mine)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("probe") and lines[1].split()[:3] == ["mine", "0", "2"]
    (found,) = json.loads((trained / "probes.json").read_text())["probes"]
    mean, low, high = found["logp_nats"]
    assert found["questions"] == 2 and low <= mean <= high < 0


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--kind", "adition-1"], "did you mean"),
        (["--questions", "0"], "must be at least 1"),
        (["--file", "nowhere.jsonl"], "cannot be read"),
        (["--shots", "30", "--kind", "copying"], "ask with fewer examples"),
    ],
)
def test_mistakes_are_one_line(trained, capfd, flags, said):
    assert run(["probe", str(trained), *flags]) == 2
    assert said in capfd.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("line", ["{}", "[1]", '{"prompt": "a", "answer": 1}', "x"])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"mine.jsonl:2: is no object"):
        read_questions(str(path))
