"""Conversations: every mistake in a record is one line that names it; the store; its rows."""

import gzip
import json

import numpy as np
import pytest

from aludel.data import (
    Template,
    TrainBatches,
    build_chats,
    eval_batches,
    make_tokenizer,
    parse_source,
    with_template,
)
from aludel.data.chats import read_chats
from aludel.data.packing import best_fit
from aludel.errors import UserError

USER, ASSISTANT = "user", "assistant"


def says(role, content):
    return {"role": role, "content": content}


def chat(question="Q?", answer="A."):
    return {"messages": [says(USER, question), says(ASSISTANT, answer)]}


def write(path, records):
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


@pytest.fixture(scope="module")
def tokenizer():
    return with_template(make_tokenizer("byte", lambda: iter(())))


def many(count, seed=0):
    """Conversations of random lengths."""
    sizes = np.random.default_rng(seed).integers(1, 24, (count, 2))
    return [chat("q" * int(a) + f"{n}", "a" * int(b)) for n, (a, b) in enumerate(sizes)]


def test_both_forms_of_records(tmp_path):
    records = [
        chat(),
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Hi.", "input": "", "output": "Hello."},
    ]
    found = [messages for _, messages in read_chats(write(tmp_path / "a.jsonl", records))]
    assert found[0] == records[0]["messages"]
    assert found[1] == [says(USER, "Add.\n\n1 2"), says(ASSISTANT, "3")]
    assert found[2] == [says(USER, "Hi."), says(ASSISTANT, "Hello.")]


def test_lines_arrays_gz_and_folders(tmp_path):
    records = [chat(str(n)) for n in range(3)]
    write(tmp_path / "a.jsonl", records)
    (tmp_path / "b.json").write_text(json.dumps(records, indent=1))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "LICENSE.txt").write_text("not a record")
    found = list(read_chats(str(tmp_path)))
    assert len(found) == 9
    (tmp_path / "bom.json").write_text(json.dumps(records, indent=1), encoding="utf-8-sig")
    assert len(list(read_chats(str(tmp_path / "bom.json")))) == 3
    assert [place for place, _ in found[2:5]] == [
        f"{tmp_path}/a.jsonl:3",
        f"{tmp_path}/b.json, record 1",
        f"{tmp_path}/b.json, record 2",
    ]


@pytest.mark.parametrize(
    ("record", "parts"),
    [
        ({"messages": [says(USER, "Q?")]}, ["says nothing"]),
        ({"messages": [says(ASSISTANT, "A.")]}, ["message 1", "assistant speaks where the user"]),
        (
            {"messages": [says("system", "S"), says(USER, "Q"), says(USER, "Q")]},
            ["message 3", "user speaks where the assistant"],
        ),
        (
            {"messages": [says(USER, "Q"), says(ASSISTANT, "A"), says("system", "S")]},
            ["message 3", "system speaks where the user"],
        ),
        ({"messages": [*chat()["messages"], says(USER, "Q")]}, ["ends with the user"]),
        ({"messages": [says("asistant", "A")]}, ["'asistant'", "did you mean 'assistant'?"]),
        ({"messages": []}, ["not empty"]),
        ({"messages": "Q"}, ["must be a list"]),
        ({"messages": [{"role": USER}]}, ["message 1", "`content`"]),
        ({"messages": [says(USER, 3)]}, ["'content' must be a string, not int"]),
        ({"messages": [says(USER, "\ud800")]}, ["lone surrogate"]),
        ({"instruction": "Q"}, ["no field 'output'"]),
        ({"instruction": "Q", "input": 3, "output": "A"}, ["'input' must be a string"]),
        ({"message": []}, ["did you mean 'message'?", "neither"]),
        ([1], ["must be a JSON object, not list"]),
    ],
)
def test_a_mistake_names_file_and_line(tmp_path, record, parts):
    path = write(tmp_path / "a.jsonl", [chat(), record])
    with pytest.raises(UserError) as caught:
        list(read_chats(path))
    for part in (f"{path}:2", *parts):
        assert part in str(caught.value)


def test_broken_json_and_empty_folders(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": []')
    with pytest.raises(UserError, match=r"a\.jsonl:1: broken JSON at column"):
        list(read_chats(str(path)))
    path.write_text('[{},\n {"a" 1}]')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: broken JSON at column"):
        list(read_chats(str(path)))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"no \.json or \.jsonl file"):
        list(read_chats(str(tmp_path / "b")))


def test_the_split_is_by_record(tmp_path, tokenizer):
    source = parse_source("chat:" + write(tmp_path / "a.jsonl", many(1000)))
    train, held, whole = (
        build_chats(source, split, tokenizer, tmp_path) for split in ("train", "validation", "all")
    )
    assert train.documents + held.documents == whole.documents == 1000
    assert 60 < held.documents < 140
    assert set(train.where) | set(held.where) == set(whole.where)
    few = parse_source("chat:" + write(tmp_path / "b.jsonl", many(7)))
    assert build_chats(few, "validation", tokenizer, tmp_path).where == (f"{tmp_path}/b.jsonl:7",)
    one = parse_source("chat:" + write(tmp_path / "c.jsonl", many(1)))
    with pytest.raises(UserError, match=r"c\.jsonl: the train part is empty"):
        build_chats(one, "train", tokenizer, tmp_path)


def test_a_store_is_made_once(tmp_path, tokenizer, monkeypatch):
    source = parse_source("chat:" + write(tmp_path / "a.jsonl", many(20)))
    first = build_chats(source, "train", tokenizer, tmp_path)
    monkeypatch.setattr(Template, "ids", None)
    again = build_chats(source, "train", tokenizer, tmp_path)
    assert again.digest == first.digest and again.tokens.tolist() == first.tokens.tolist()
    monkeypatch.undo()
    other = parse_source("chat:" + write(tmp_path / "a.jsonl", many(20, seed=1)))
    assert build_chats(other, "train", tokenizer, tmp_path).digest != first.digest
    assert not [path for path in (tmp_path / "chats").iterdir() if path.name.startswith(".")]


def test_a_copy_is_known_by_its_own_name(tmp_path, tokenizer):
    for name in ("a.jsonl", "b.jsonl"):
        source = parse_source("chat:" + write(tmp_path / name, many(20)))
        assert build_chats(source, "train", tokenizer, tmp_path).where[0] == f"{tmp_path}/{name}:1"


def test_a_build_that_fails_leaves_nothing_and_the_next_succeeds(tmp_path, tokenizer, monkeypatch):
    source = parse_source("chat:" + write(tmp_path / "a.jsonl", many(20)))

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", full)
        with pytest.raises(OSError):
            build_chats(source, "train", tokenizer, tmp_path)
    assert not list((tmp_path / "chats").iterdir())
    assert build_chats(source, "train", tokenizer, tmp_path).documents == 18


@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy", "meta.json"])
@pytest.mark.parametrize("left", [0, 2])
def test_a_damaged_store_is_named(tmp_path, tokenizer, name, left):
    source = parse_source("chat:" + write(tmp_path / "a.jsonl", many(20)))
    build_chats(source, "train", tokenizer, tmp_path)
    (folder,) = (tmp_path / "chats").iterdir()
    (folder / name).write_bytes((folder / name).read_bytes()[:left])
    with pytest.raises(UserError, match=f"{folder.name}: damaged: remove it"):
        build_chats(source, "train", tokenizer, tmp_path)


def test_an_unknown_character_names_file_line_and_message(tmp_path):
    char = with_template(make_tokenizer("char", lambda: iter(["QA?. "])))
    source = parse_source("chat:" + write(tmp_path / "a.jsonl", [chat(), chat("Q?", "AA\u00e9")]))
    with pytest.raises(UserError, match=r"a\.jsonl:2, message 2: character 2 is '\u00e9'"):
        build_chats(source, "all", char, tmp_path)


@pytest.mark.parametrize("capacity", [30, 64])
def test_a_plan_holds_every_piece_once_and_fills_its_rows(capacity):
    lengths = np.random.default_rng(0).integers(1, 31, 3000)
    pieces, starts = best_fit(lengths, capacity, key=5)
    assert sorted(pieces.tolist()) == list(range(3000))
    rows = [lengths[pieces[a:b]].sum() for a, b in zip(starts, starts[1:], strict=False)]
    assert max(rows) <= capacity and min(rows) > 0
    assert lengths.sum() / (len(rows) * capacity) > 0.97
    again, _ = best_fit(lengths, capacity, key=5)
    other, _ = best_fit(lengths, capacity, key=6)
    assert again.tolist() == pieces.tolist() != other.tolist()


def conversations_of(batch):
    """Token ids of each conversation in a batch, and its loss mask, by walking over segments."""
    found = []
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            here = batch["segment_ids"][row] == segment
            assert batch["positions"][row, here].tolist() == list(range(here.sum()))
            ids = [*batch["tokens"][row, here], batch["targets"][row, here][-1]]
            assert batch["targets"][row, here].tolist() == ids[1:]
            found.append((tuple(map(int, ids)), batch["loss_mask"][row, here].tolist()))
        assert not batch["loss_mask"][row, batch["segment_ids"][row] == 0].any()
    return found


def test_rows_hold_whole_conversations_each_once_an_epoch(tmp_path, tokenizer):
    source = parse_source("chat:" + write(tmp_path / "a.jsonl", many(200)))
    store = build_chats(source, "train", tokenizer, tmp_path)
    batches = TrainBatches([store], [1], 1, 64, seed=3)
    found = []
    for number in range(batches.rows_per_epoch):
        found += conversations_of(batches.batch(number))
    expected = []
    for number in range(store.documents):
        ids = np.asarray(store.tokens[store.offsets[number] : store.offsets[number + 1]])
        expected.append((tuple(ids.tolist()), store.template.trained(ids)[1:].tolist()))
    assert sorted(found) == sorted(expected)


def test_any_host_reads_its_share_of_a_mixture(tmp_path, tokenizer):
    stores = [
        build_chats(parse_source("chat:" + write(path, many(150, n))), "train", tokenizer, tmp_path)
        for n, path in enumerate((tmp_path / "a.jsonl", tmp_path / "b.jsonl"))
    ]
    batches = TrainBatches(stores, [3, 1], 8, 64, seed=0)
    for number in (0, 7):
        whole = batches.batch(number)
        parts = [batches.batch(number, slice(n, None, 4)) for n in range(4)]
        for name, array in whole.items():
            for n, part in enumerate(parts):
                np.testing.assert_array_equal(part[name], array[n::4])
    sources = np.concatenate([batches.batch(n)["source"] for n in range(125)])
    assert np.bincount(sources).tolist() == [750, 250]


def test_evaluation_scores_each_conversation_once(tmp_path, tokenizer):
    source = parse_source("chat:" + write(tmp_path / "a.jsonl", many(30)))
    store = build_chats(source, "all", tokenizer, tmp_path)
    batches = eval_batches(store, 4, 64)
    found = [one for batch in batches for one in conversations_of(batch)]
    assert len(found) == 30
    assert sum(sum(mask) for _, mask in found) == batches.scored_tokens
    # Bytes are tokens here; every answer's end is scored beside them.
    assert batches.bytes == batches.scored_tokens - 30
    with pytest.raises(UserError, match="--stride"):
        eval_batches(store, 4, 64, stride=8)


def test_what_is_too_long_is_cut_and_counted(tmp_path, tokenizer):
    long = {"messages": [*chat("q" * 50)["messages"], *chat("r", "b" * 8)["messages"]]}
    records = [chat(), long, chat("q", "c" * 50)]
    source = parse_source("chat:" + write(tmp_path / "a.jsonl", records))
    store = build_chats(source, "all", tokenizer, tmp_path)
    assert store.cut(64) == (1, 0) and store.cut(24) == (1, 1) and store.cut(500) == (0, 0)
    batches = TrainBatches([store], [1], 1, 24, seed=0)
    found = []
    for number in range(batches.rows_per_epoch):
        found += conversations_of(batches.batch(number))
    assert sorted(len(ids) for ids, _ in found) == [9, 14, 25]
    (cut,) = [mask for ids, mask in found if len(ids) == 25]
    assert sum(cut) == 25 - 5  # separator, user, q, end, assistant; no end of the answer
    with pytest.raises(UserError, match=r"a\.jsonl:2: the user's last turn leaves no room"):
        write(tmp_path / "a.jsonl", [chat(), chat("q" * 40)])
        TrainBatches([build_chats(source, "all", tokenizer, tmp_path)], [1], 1, 24, seed=0)
