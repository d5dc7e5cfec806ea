"""Comparisons: every form of record, every mistake in one line, cutting alike, and rows."""

import json

import numpy as np
import pytest

from aludel.data import (
    ComparisonEvalBatches,
    Template,
    TrainBatches,
    build_comparisons,
    make_tokenizer,
    parse_source,
    with_template,
)
from aludel.data.comparison_store import fit_alike
from aludel.data.comparisons import comparison_of, read_comparisons, transcript
from aludel.errors import UserError


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


@pytest.fixture(scope="module")
def tokenizer():
    return with_template(make_tokenizer("byte", lambda: iter(())))


def write(path, records):
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


TURNS = [user("Q"), assistant("A"), user("R")]
HUMAN = "\n\nHuman: Q\n\nAssistant: A\n\nHuman: R\n\nAssistant: "


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": TURNS, "chosen": "good", "rejected": "bad"},
        {"prompt": TURNS, "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"chosen": [*TURNS, assistant("good")], "rejected": [*TURNS, assistant("bad")]},
        {"chosen": f"{HUMAN}good", "rejected": f"{HUMAN}bad"},
    ],
)
def test_every_form_of_a_pair(record):
    found = comparison_of(record, "here")
    assert found.chats == [[*TURNS, assistant("good")], [*TURNS, assistant("bad")]]
    assert found.ranks == [0, 1] and found.margins is None


def test_rankings():
    margins = [[0, 1, 2], [0, 0, 1.5], [0, 0, 0]]
    record = {"prompt": "Q", "completions": ["a", "b", "c"], "ranks": [0, 1, 1], "margins": margins}
    found = comparison_of(record, "here")
    assert found.chats == [[user("Q"), assistant(text)] for text in "abc"]
    assert found.ranks == [0, 1, 1] and found.margins == margins


def test_a_transcript_joins_what_one_speaker_says_twice():
    text = "\n\nHuman: a \n\nHuman: b\n\nAssistant: c: Human: d\n\nAssistant:"
    assert transcript(text, "here") == [user("a\n\nb"), assistant("c: Human: d\n\n")]
    assert transcript("\n\nAssistant: hi", "here") == [user(""), assistant("hi")]


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ({"prompt": "Q", "chosen": "a"}, "no field 'rejected'"),
        ({"prompt": "Q", "choosen": "a"}, "did you mean 'choosen'?"),
        ({"prompt": "Q", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": "Q", "chosen": "a", "rejected": 3}, "must be a string, not int"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "not empty"),
        ({"prompt": [assistant("x")], "chosen": "a", "rejected": "b"}, "where the user"),
        ({"prompt": TURNS[:2], "chosen": "a", "rejected": "b"}, "must end with the user's"),
        ({"chosen": "a", "rejected": "b"}, "neither a prompt nor a transcript"),
        ({"chosen": "\n\nHuman: q", "rejected": "b"}, "says nothing"),
        ({"prompt": "Q", "completions": ["a"], "ranks": [0]}, "two or more"),
        ({"prompt": "Q", "completions": ["a", "b"], "ranks": [1, 1]}, "all ranks are 1"),
        ({"prompt": "Q", "completions": ["a", "b"], "ranks": [0]}, "must be 2 whole numbers"),
        ({"prompt": "Q", "completions": ["a", "b"], "ranks": [0, -1]}, "must be 2 whole numbers"),
        ({"prompt": "Q", "completions": ["a", "b"]}, "must be 2 whole numbers"),
        (
            {"prompt": "Q", "completions": ["a", "b"], "ranks": [0, 2**31]},
            "must be 2 whole numbers",
        ),
        ({"completions": ["a", "b"], "ranks": [0, 1]}, "no field 'prompt'"),
        (
            {"prompt": "Q", "completions": ["a", "b"], "ranks": [0, 1], "margins": [[1, 2]]},
            "must be 2 lists of 2 numbers",
        ),
        (
            {
                "prompt": "Q",
                "completions": ["a", "b"],
                "ranks": [0, 1],
                "margins": [[0, float("nan")], [0, 0]],
            },
            "must be 2 lists of 2 numbers",
        ),
    ],
)
def test_a_mistake_names_file_and_line(tmp_path, record, part):
    good = {"prompt": "Q", "chosen": "a", "rejected": "b"}
    path = write(tmp_path / "a.jsonl", [good, record])
    with pytest.raises(UserError) as caught:
        list(read_comparisons(path))
    assert f"{path}:2" in str(caught.value) and part in str(caught.value)


def test_both_sides_are_cut_alike(tokenizer):
    template = Template(tokenizer)
    turns = [user("q" * 9), assistant("a" * 5), user("r" * 4)]
    long, short = (template.ids([*turns, assistant(text)]) for text in ("c" * 12, "d"))
    assert fit_alike(template, (long, short), len(long), "here") == (long, short)
    # The longer one has to lose the first turn, so the shorter one does.
    kept = fit_alike(template, (short, long), len(long) - 1, "here")
    for ids, text in zip(kept, ("d", "c" * 12), strict=True):
        assert ids.tolist() == template.ids([turns[2], assistant(text)]).tolist()
    # What is still too long is cut at its end; the other is not.
    kept = fit_alike(template, (long, short), 14, "here")
    assert kept[0].tolist() == template.ids([turns[2], assistant("c" * 12)])[:14].tolist()
    assert kept[1].tolist() == template.ids([turns[2], assistant("d")]).tolist()
    # A completion with a prompt of its own is cut by itself.
    own = template.ids([user("z" * 3), assistant("e")])
    kept = fit_alike(template, (long, own), 14, "here")
    assert kept[1].tolist() == own.tolist()
    with pytest.raises(UserError, match="here: the user's last turn leaves no room"):
        fit_alike(template, (long, short), 8, "here")


def test_no_answer_is_lost_with_another_ones_prompt(tokenizer):
    """Prompts that begin alike: the cut of one would leave nothing, or no answer, of the other."""
    template = Template(tokenizer)
    turns = [user("a" * 5), assistant("b" * 5)]
    long = template.ids([*turns, user("c"), assistant("d" * 20)])
    for other in (turns, [*turns, user("e" * 14), assistant("f")]):
        ids = template.ids(other)
        kept = fit_alike(template, (long, ids), 22, "here")
        assert kept[0].tolist() == template.ids([user("c"), assistant("d" * 20)])[:22].tolist()
        expected = template.ids(other[-2:])
        assert kept[1].tolist() == expected.tolist()
        assert len(expected) <= 22


def test_an_unknown_character_names_file_and_line(tmp_path):
    char = with_template(make_tokenizer("char", lambda: iter(["ab"])))
    record = {"prompt": "a", "chosen": "b", "rejected": "aaa!"}
    source = parse_source("pairs:" + write(tmp_path / "a.jsonl", [record]))
    with pytest.raises(UserError, match=r"a\.jsonl:1, message 2: character 3 is '!'"):
        build_comparisons(source, "all", char)


def records(count):
    rng = np.random.default_rng(0)
    out = []
    for n in range(count):
        texts = ["x" * int(size) for size in rng.integers(1, 9, rng.integers(2, 5))]
        ranks = [0, *map(int, rng.integers(1, 4, len(texts) - 1))]
        out.append({"prompt": f"{n}", "completions": texts, "ranks": ranks})
    return out


def test_rows_hold_each_comparison_once_an_epoch(tmp_path, tokenizer):
    made = records(60)
    source = parse_source("pairs:" + write(tmp_path / "a.jsonl", made))
    store = build_comparisons(source, "all", tokenizer)
    template = store.template
    batches = TrainBatches([store], [1], 1, 24, seed=0)
    assert 10 < batches.rows_per_epoch < 60
    seen, tokens, room = [], 0, store.room(24)
    for number in range(batches.rows_per_epoch):
        row = {name: array[0] for name, array in batches.batch(number).items()}
        assert row["tokens"].shape == (room,)
        segments = row["segment_ids"]
        for last, ranks in zip(row["last"], row["ranks"], strict=True):
            several = []
            for k in np.flatnonzero(ranks >= 0):
                here = segments == segments[last[k]]
                assert np.flatnonzero(here)[-1] == last[k]
                np.testing.assert_array_equal(row["positions"][here], np.arange(here.sum()))
                ids = row["tokens"][here]
                several.append(tuple(ids.tolist()))
                np.testing.assert_array_equal(row["targets"][here][:-1], ids[1:])
                answer = row["targets"][here][row["loss_mask"][here] > 0]
                np.testing.assert_array_equal(answer, ids[len(template.prompt_in(ids)) :])
            if several:
                seen.append((several, [int(rank) for rank in ranks if rank >= 0]))
        assert not row["tokens"][segments == 0].any()
        tokens += (segments > 0).sum()
    assert tokens > 0.8 * room * batches.rows_per_epoch  # little is padding
    expected = [
        (
            [
                tuple(template.ids([user(one["prompt"]), assistant(text)]).tolist())
                for text in one["completions"]
            ],
            one["ranks"],
        )
        for one in made
    ]
    assert sorted(seen) == sorted(expected)


def test_stores_of_unlike_comparisons_share_a_batch(tmp_path, tokenizer):
    """Short ones, many to a row, beside long ones with margins; the last batch of a validation is
    padded with rows that hold nothing."""
    short = [{"prompt": "q", "chosen": "a", "rejected": "b" * n} for n in (1, 2, 3) * 20]
    margins = [[0.0, 0.5, 2.0], [0.0, 0.0, 1.5], [0.0, 0.0, 0.0]]
    long = [
        {"prompt": "q" * 9, "completions": ["x" * 9, "y" * 8, f"{n:05}"], "ranks": [0, 1, 2]}
        | {"margins": margins}
        for n in range(30)
    ]
    stores = [
        build_comparisons(
            parse_source("pairs:" + write(tmp_path / f"{name}.jsonl", records)), "all", tokenizer
        )
        for name, records in (("short", short), ("long", long))
    ]
    room = max(store.room(24) for store in stores)
    assert room % 32 == 0 and room >= 3 * 20
    batch = TrainBatches(stores, [1, 1], 8, 24, seed=0).batch(0)
    assert batch["tokens"].shape == (8, room) and batch["ranks"].shape[2] == 3
    assert batch["margins"].shape == (*batch["ranks"].shape, 3)
    seen = [0, 0]
    for row, place in zip(*np.nonzero(batch["ranks"][..., 0] >= 0), strict=True):
        three = bool(batch["ranks"][row, place, 2] >= 0)
        assert three == bool(batch["source"][row])
        seen[three] += 1
        expected = np.float32(margins) if three else np.zeros((3, 3))
        np.testing.assert_array_equal(batch["margins"][row, place], expected)
    assert seen[0] > 2 * seen[1] > 0
    held = ComparisonEvalBatches(stores[0], 4, 24, 3, room)
    found = [held.batch(number) for number in range(len(held))]
    assert sum((one["ranks"][..., 0] >= 0).sum() for one in found) == 60
    assert {one["tokens"].shape for one in found} == {(4, room)}
    assert not found[-1]["segment_ids"][-1].any() and (found[-1]["ranks"][-1] == -1).all()


def test_the_split_and_the_digest(tmp_path, tokenizer):
    source = parse_source("pairs:" + write(tmp_path / "a.jsonl", records(300)))
    train, held = (build_comparisons(source, split, tokenizer) for split in ("train", "validation"))
    assert train.documents + held.documents == 300 and 10 < held.documents < 60
    assert train.digest == build_comparisons(source, "train", tokenizer).digest != held.digest
    changed = records(300)
    changed[5]["ranks"] = [9, *changed[5]["ranks"][1:]]
    other = parse_source("pairs:" + write(tmp_path / "b.jsonl", changed))
    assert build_comparisons(other, "all", tokenizer).digest != (
        build_comparisons(source, "all", tokenizer).digest
    )
