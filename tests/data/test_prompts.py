"""Prompts: what is read of each form of record, cut at a turn, padded on the left."""

import json

import numpy as np
import pytest

from aludel.data import (
    Template,
    TrainBatches,
    build_prompts,
    make_tokenizer,
    parse_source,
    with_template,
)
from aludel.data.prompts import read_prompts
from aludel.errors import UserError


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def write(path, records):
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


@pytest.fixture(scope="module")
def tokenizer():
    return with_template(make_tokenizer("byte", lambda: iter(())))


def test_every_form_of_record(tmp_path):
    turns = [user("q"), assistant("a"), user("r")]
    records = [
        {"prompt": "q"},
        {"prompt": turns},
        {"messages": turns},
        {"messages": [*turns, assistant("b")]},
        {"instruction": "q", "input": "i", "output": "a"},
    ]
    found = [messages for _, messages in read_prompts(write(tmp_path / "a.jsonl", records))]
    assert found == [[user("q")], turns, turns, turns, [user("q\n\ni")]]


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ({"prompt": 3}, "must be text or a list of messages, not int"),
        ({"prompt": "\ud800"}, "lone surrogate"),
        ({"prompt": [assistant("a")]}, "where the user should"),
        ({"prompt": [user("q"), assistant("a")]}, "must end with the user's"),
        ({"messages": [assistant("a"), user("q")]}, "where the user should"),
        ({"text": "q"}, "neither"),
        ({"prompt": "q" * 40}, "last turn does not fit 24 tokens"),
    ],
)
def test_a_mistake_names_file_and_line(tmp_path, tokenizer, record, part):
    path = write(tmp_path / "a.jsonl", [{"prompt": "q"}, record])
    with pytest.raises(UserError) as caught:
        build_prompts(parse_source(f"chat:{path}"), "all", tokenizer, 24)
    assert f"{path}:2" in str(caught.value) and part in str(caught.value)


def test_rows_are_prompts_cut_and_padded_on_the_left(tmp_path, tokenizer):
    template = Template(tokenizer)
    long = [user("q" * 20), assistant("a"), user("r")]
    records = [{"prompt": "s" * (1 + n % 5)} for n in range(7)] + [{"prompt": long}]
    source = parse_source("chat:" + write(tmp_path / "a.jsonl", records))
    store = build_prompts(source, "all", tokenizer, 16)
    assert store.documents == 8 and store.cut == 1
    batches = TrainBatches([store], [1], 4, 16, seed=0)
    seen = []
    for number in range(2):
        batch = batches.batch(number)
        for tokens, mask in zip(batch["tokens"], batch["mask"], strict=True):
            assert (np.diff(mask.astype(int)) >= 0).all() and not tokens[~mask].any()
            seen.append(tuple(tokens[mask].tolist()))
    prompts = [[user("s" * (1 + n % 5))] for n in range(7)] + [[user("r")]]
    assert sorted(seen) == sorted(tuple(template.prompt(one).tolist()) for one in prompts)
    assert template.question_in(np.array(seen[0])) in {"s" * n for n in range(1, 6)} | {"r"}
