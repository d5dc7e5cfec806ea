"""Emergence over a ladder: the reading of a curve, the table that goes on, and the command."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import runs

from aludel.cli import run
from aludel.errors import UserError
from aludel.train.intervals import Interval, share
from aludel.train.probes import ladder as asked_of
from aludel.train.probes.ladder import rungs
from aludel.train.probes.measured import Measured, add_measured, climb, last_of_each, read_measured
from aludel.train.probes.reading import (
    ABSENT,
    GRADUAL,
    IS,
    LOOKS,
    UNCHANGED,
    UNRESOLVED,
    reading,
    shares,
)

FLOPS = np.geomspace(1e12, 1e16, 9)  # four decades, half of one from rung to rung
SMOOTH = np.linspace(-2.0, -0.02, 9)  # nats per token


def asked(right) -> list[Interval]:
    """Shares of 200 questions, with their intervals."""
    return [share(round(200 * one), 200) for one in right]


def test_a_smooth_rise_per_token_looks_sudden_in_long_answers():
    """Schaeffer et al.'s case: each token of 20 grows evenly likelier, the whole is right at once;
    of an answer of one token neither jumps."""
    found = reading(FLOPS, asked(np.exp(20 * SMOOTH)), SMOOTH)
    assert found.word == LOOKS and found.of_right > 0.9
    assert found.of_token == pytest.approx(math.log(3, 1e4))  # of four decades
    assert reading(FLOPS, asked(np.linspace(0.1, 0.9, 9)), SMOOTH).word == GRADUAL


def test_a_step_is_sudden_in_whatever_order_the_runs_come():
    step = np.arange(9) >= 5
    right, token = asked(0.02 + 0.9 * step), -2.0 + 1.9 * step
    found = reading(FLOPS, right, token)
    assert found.word == IS and found.of_right == pytest.approx(math.log(3, 10**0.5))
    assert found.of_token == pytest.approx(found.of_right)
    order = np.random.default_rng(0).permutation(9)
    assert reading(FLOPS[order], [right[one] for one in order], token[order]) == found
    before = -2.0 + 1.9 * (np.arange(9) >= 2)  # tokens jumped as well, but elsewhere
    assert reading(FLOPS, right, before) == (LOOKS, found.of_right, 0.0)


def test_what_did_not_rise_or_cannot_be_told():
    step = np.arange(9) >= 8
    assert reading(FLOPS, asked(0.04 * step), SMOOTH).word == ABSENT
    assert reading(FLOPS, asked(0.5 + 0.02 * step), SMOOTH).word == UNCHANGED
    fallen = reading(FLOPS, asked(0.9 - 0.5 * step), -SMOOTH)
    assert fallen.word == UNCHANGED and math.isnan(fallen.of_right) and math.isnan(fallen.of_token)
    two = [0, 8]  # what lies between them was not seen
    assert reading(FLOPS[two], asked([0.0, 0.9]), SMOOTH[two]).word == UNRESOLVED
    assert reading(FLOPS[:2], asked([0.0, 0.9]), SMOOTH[:2]).word == UNRESOLVED


def test_the_steepest_part_of_the_best_so_far():
    noisy = np.array([0, 0.9, 0, 0.9, 0, 0.9, 0, 0.9, 1.0])
    assert max(shares(FLOPS, noisy, noisy)) == pytest.approx(0.9 * math.log(3, 10**0.5))
    # It begins between checkpoints, or ends there: 2 of 6 within a factor 2, then 3 over 50.
    uneven = np.array([1e10, 1e12, 2e12, 1e14])
    found = shares(uneven, np.array([0.0, 1, 3, 6]), np.zeros(4))
    assert found[0] == pytest.approx((2 + 3 * math.log(1.5, 50)) / 6) and math.isnan(found[1])
    tied = np.array([1e12, 1e13, 1e13, 1e14])  # several sizes of one compute
    assert shares(tied, np.array([0.0, 0, 1, 1]), np.array([0.0, 0, 1, 1])) == (1, 1)


def line(**values) -> Measured:
    """A line of the table."""
    plain = {name: kind(1) for name, kind in Measured.__annotations__.items()}
    return Measured(**{**plain, "run": "a", "probe": "copying", **values})


def test_a_table_goes_on_after_a_half_line(tmp_path):
    path = tmp_path / "probes.csv"
    assert read_measured(path) == []
    lines = [line(step=step, logp=-1 / 3) for step in (1, 2, 3)]
    for one in lines:
        add_measured(path, one)
    assert read_measured(path) == lines
    whole = path.read_text()
    for cut in (1, 2, 25):  # the end of the last line, and amid its numbers
        path.write_text(whole[:-cut])
        assert read_measured(path) == lines[:2]
        add_measured(path, lines[2])
        assert path.read_text() == whole
    path.write_text(whole[:10])  # amid the head
    assert read_measured(path) == []
    add_measured(path, lines[0])
    assert read_measured(path) == lines[:1]


def test_a_table_holds_each_line_once_and_no_other_table(tmp_path):
    path = tmp_path / "probes.csv"
    for one in (line(right=0.5), line(right=0.75), line(shots=3)):
        add_measured(path, one)
    assert [(one.shots, one.right) for one in read_measured(path)] == [(1, 0.5), (3, 1.0)]
    assert len(path.read_text().splitlines()) == 3
    path.write_text("x,y\n1,2\n")
    with pytest.raises(UserError, match="no table of a ladder's probes"):
        read_measured(path)
    assert path.read_text() == "x,y\n1,2\n"


def test_the_last_checkpoint_of_each_run_by_compute():
    found = [line(run="b", step=9, C=90), line(step=10, C=5), line(step=9, C=4), line(shots=3)]
    assert last_of_each(found, "copying", 1) == [found[1], found[0]]
    assert climb(found, "copying", 1) == [found[1], found[0]]
    early, late = line(run="b", step=1, C=4), line(run="b", step=2, C=6)
    assert climb([late, early, *found], "copying", 1) == [found[1], late, found[0]]


LADDER = ("layers-1-width-8-steps-4-seed-0", "layers-2-width-16-steps-4-seed-0")
FLAGS = ("--kind", "copying", "--kind", "addition-1", "--shots", "0", "1", "--questions", "40")


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("emergence")
    path = runs.write_sweep(
        folder,
        "model=DecoderConfig(head_dim=8, context=64), batch=2, checkpoint_every=2",
        "tokens=(512,)",
    )
    words = runs.command(path, folder)[:3]
    done = runs.run([*words, "scale", "run", str(path), "--out", str(folder / "ladder")])
    assert done.returncode == 0, done.stderr
    return folder / "ladder"


@pytest.fixture
def ladder(swept, tmp_path) -> Path:
    return shutil.copytree(swept, tmp_path / "ladder")


def table(folder: Path) -> list[dict]:
    with open(folder / "probes.csv", newline="") as file:
        return list(csv.DictReader(file))


def amend(path: Path, **values) -> None:
    """Change values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.slow
def test_a_ladder_is_the_longest_finished_run_of_each_size(ladder):
    assert tuple(one.path.name for one in rungs(ladder)) == LADDER
    first = ladder / LADDER[0]
    for name, seed, tokens in (("a", 1, 512), ("b", 0, 511), ("c", 2, 513)):
        other = shutil.copytree(first, ladder / name)
        amend(other / "config.json", seed=seed)
        amend(other / "summary.json", tokens=tokens)
    assert [one.path.name for one in rungs(ladder)] == ["c", LADDER[1]]
    amend(ladder / "c" / "summary.json", steps=3)  # unfinished
    assert rungs(ladder)[0].path == first  # of as many tokens, the lower seed
    shutil.rmtree(first / "checkpoints")
    assert rungs(ladder)[0].path.name == "a"


@pytest.mark.slow
def test_a_ladder_is_asked_once_and_drawn_beside_another(ladder, tmp_path, capfd, monkeypatch):
    other, out = tmp_path / "control", tmp_path / "drawn"
    shutil.copytree(ladder / LADDER[0], other / LADDER[0])
    words = ["scale", "probe", str(ladder), *FLAGS]
    assert run(words) == 0
    said = capfd.readouterr().out.splitlines()
    assert said[0].split()[:2] == ["probe", "examples"] and len(said) == 1 + 4 + 1
    assert said[-1] == str(ladder / "emergence.html") and (ladder / "emergence.png").exists()
    first = table(ladder)
    steps = (2, 4)
    assert [(row["run"], int(row["step"])) for row in first[::4]] == [
        (name, step) for name in LADDER for step in steps
    ]
    for row in first:
        assert int(row["C"]) == 6 * int(row["N"]) * int(row["D"])
        assert int(row["D"]) == int(row["step"]) * 2 * 64
        for name in ("right", "logp", "logp_token"):
            low, middle, high = (float(row[name + end]) for end in ("_low", "", "_high"))
            assert low <= middle <= high
    assert {row["questions"] for row in first if row["probe"] == "copying"} == {"40"}

    text = (ladder / "probes.csv").read_text()
    lines = text.splitlines(keepends=True)
    lost = [*lines[:-4], *lines[-3:-1], lines[-1][:-9]]  # without one, and half of the last
    (ladder / "probes.csv").write_text("".join(lost))
    answered = []
    measured = asked_of.measured
    monkeypatch.setattr(
        asked_of, "measured", lambda *args: answered.append(args) or measured(*args)
    )
    assert run([*words, "--control", str(other), "--out", str(out)]) == 0
    asked_again = [args for args in answered if args[0].path.parent == ladder]
    assert len(asked_again) == 2 and len(answered) == 2 + len(first) // 2
    assert sorted((ladder / "probes.csv").read_text().splitlines()) == sorted(text.splitlines())
    assert table(other) == first[: len(first) // 2]  # the same run
    page = (out / "emergence.html").read_text()
    assert page.count("<svg") == 2 and page.count("<td>control</td>") == 4
    assert not {"<img", "<script", "<link"} & set(page.split()) and "1 example:" in page
    assert (out / "emergence.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--kind", "copyin"], "did you mean"),
        (["--questions", "0"], "must be at least 1"),
        (["--shots", "-1"], "must not be negative"),
        (["--shots", "9", "--kind", "copying"], "ask with fewer examples"),
        (["--control", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(swept, capfd, flags, said):
    assert run(["scale", "probe", str(swept), *flags]) == 2
    err = capfd.readouterr().err.strip().splitlines()
    assert said in err[-1] and sum(text.startswith("aludel:") for text in err) == 1
    assert not (swept / "probes.csv").exists()


def test_a_folder_without_runs(tmp_path, capfd):
    assert run(["scale", "probe", str(tmp_path)]) == 2
    assert "holds no finished pretraining run" in capfd.readouterr().err
