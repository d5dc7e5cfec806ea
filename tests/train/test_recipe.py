"""What the runs of a fit shared, and what `scale predict` makes of it."""

import dataclasses

import numpy as np
import pytest

from aludel import cli
from aludel.errors import UserError
from aludel.model import DecoderConfig
from aludel.train import OptimizerConfig
from aludel.train.config import PretrainConfig, to_json
from aludel.train.records import read_json, write_json
from aludel.train.scaling.parametric import Law
from aludel.train.scaling.recipe import Recipe, nearest_size, read_recipe, recipe_of
from aludel.train.scaling.sweep import Sweep, planned, sized
from aludel.train.scaling.tables import recipe_rows

TRUE = Law(400.0, 1500.0, 1.7, 0.34, 0.37)
BASE = PretrainConfig(
    model=DecoderConfig(
        vocab_size=50, head_dim=8, context=16, tuned_width=24, tuned_layers=3, init_std=0.02
    ),
    batch=4,
    optimizer=OptimizerConfig(name="muon", learning_rate=0.01, head_learning_rate=0.004),
)
SWEEP = Sweep(BASE, layers=(1, 2, 4), width_of_layer=16, tokens=(640, 6400, 64000))
CONFIGS = [run.config for run in planned(SWEEP)]
STANDARD = dataclasses.replace(BASE.model, tuned_width=None, tuned_layers=None)


def changed(index: int, **fields) -> list[PretrainConfig]:
    """The runs, one of them with other settings."""
    return [
        dataclasses.replace(config, **fields) if number == index else config
        for number, config in enumerate(CONFIGS)
    ]


def cells(recipe: Recipe | None, params: float = 1e5) -> dict[str, tuple[str, str]]:
    return {name.strip(): (value, note) for name, value, note in recipe_rows(recipe, params)}


def test_the_recipe_is_what_the_runs_had():
    found = recipe_of(CONFIGS, embeddings=True)
    assert (found.optimizer, found.tokens_per_step, found.width_of_layer) == ("muon", 64, 16)
    assert (found.learning_rate, found.embedding_learning_rate) == (0.01, 0.01)
    assert (found.head_learning_rate, found.vector_learning_rate) == (0.004, 0.01)
    assert (found.tuned_width, found.tuned_layers) == (24, 3)
    assert found.layers == (1, 2, 4) and found.widths == (16, 32, 64)
    assert cells(found)["batch"][0] == "64 tokens"
    assert cells(found)["learning rate (muon)"] == (
        "0.01",
        "model.tuned_width = 24 scales the head's; model.tuned_layers = 3 scales it",
    )
    assert cells(found)["head"][0] == "0.004" and "embedding" not in cells(found)


def test_standard_rates_were_tuned_for_the_widths_of_the_runs():
    sweep = dataclasses.replace(SWEEP, base=dataclasses.replace(BASE, model=STANDARD))
    found = recipe_of([run.config for run in planned(sweep)], embeddings=True)
    assert (found.tuned_width, found.tuned_layers) == (0, 0)
    assert cells(found)["learning rate (muon)"][1] == (
        "tuned for the runs' widths only (16, 32, 64); tuned for the runs' depths only (1, 2, 4)"
    )


@pytest.mark.parametrize(
    "fields, missing, row, said",
    [
        ({"batch": 8}, "tokens_per_step", "batch", ("unknown", "the runs differ in it")),
        (
            {"optimizer": dataclasses.replace(BASE.optimizer, head_learning_rate=0.1)},
            "head_learning_rate",
            "head",
            ("unknown: the runs differ", ""),
        ),
        (
            {"model": dataclasses.replace(CONFIGS[1].model, tuned_width=16)},
            "tuned_width",
            "learning rate (muon)",
            ("0.01", "the runs differ in model.tuned_width; model.tuned_layers = 3 scales it"),
        ),
        (
            {"model": sized(CONFIGS[1].model, 2, 40)},
            "width_of_layer",
            "nearest size",
            ("unknown", "the runs have no one rule of width and depth"),
        ),
        (
            {"model": dataclasses.replace(CONFIGS[1].model, mlp_width=8)},
            "model",
            "nearest size",
            ("unknown", "the runs have no one rule of width and depth"),
        ),
    ],
)
def test_what_the_runs_differ_in_is_left_out_and_said(fields, missing, row, said):
    found, whole = recipe_of(changed(1, **fields), True), recipe_of(CONFIGS, True)
    same = {"layers": whole.layers, "widths": whole.widths}
    assert dataclasses.replace(found, **same) == dataclasses.replace(whole, **{missing: None})
    assert cells(found)[row] == said


def test_a_rate_that_differs_is_said_once():
    rates = dataclasses.replace(BASE.optimizer, learning_rate=0.02)
    found = recipe_rows(recipe_of(changed(0, optimizer=rates), True), 1e5)
    assert [row[:2] for row in found if "unknown" in row[1]] == [
        ("learning rate (muon)", "unknown: the runs differ"),
        ("  embedding", "unknown: the runs differ"),
        ("  vector", "unknown: the runs differ"),
    ]


@pytest.mark.parametrize("embeddings", [True, False])
def test_the_nearest_size_is_the_rules(embeddings):
    recipe = recipe_of(CONFIGS, embeddings)
    for layers in (1, 2, 3, 7, 40):
        right = sized(BASE.model, layers, 16 * layers)
        count = right.parameters(embeddings)
        for asked in (0.97 * count, count, 1.03 * count):
            assert nearest_size(recipe, asked) == (right, count)
    assert nearest_size(recipe, 1.0)[0].layers == 1


def test_only_sizes_whose_heads_come_out_are_named():
    """Keys shared by 4 heads of 8: every other depth of 16 for each block."""
    model = dataclasses.replace(BASE.model, width=32, heads=4, kv_heads=1)
    sweep = dataclasses.replace(SWEEP, base=dataclasses.replace(BASE, model=model), layers=(2, 4))
    recipe = recipe_of([run.config for run in planned(sweep)], True)
    found = {nearest_size(recipe, params)[0].layers for params in np.geomspace(1, 1e7, 99)}
    assert found == set(range(2, max(found) + 1, 2)) and len(found) > 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The runs of SWEEP as training leaves them, their losses those of TRUE."""
    folder = tmp_path_factory.mktemp("sweep") / "runs"
    for run in planned(SWEEP):
        path = folder / run.name
        path.mkdir(parents=True)
        write_json(path / "config.json", {"stage": "pretrain"} | to_json(run.config))
        loss = float(TRUE.loss(run.params, run.tokens))
        done = {"steps": run.config.steps, "tokens": run.tokens, "val_nats_per_token": loss}
        write_json(path / "summary.json", done)
    return folder


@pytest.mark.slow
def test_predict_prints_the_recipe_of_a_folder(folder, tmp_path, capsys):
    out = tmp_path / "fit"
    flags = ["--resamples", "10", "--out", str(out)]
    assert cli.run(["scale", "fit", str(folder), *flags]) == 0
    assert read_recipe(out) == recipe_of(CONFIGS, True)
    capsys.readouterr()
    size = sized(BASE.model, 9, 144)
    params = str(size.parameters())
    assert cli.run(["scale", "predict", str(out), "--params", params, "--tokens", "1e8"]) == 0
    said = capsys.readouterr().out
    for words in ("9 blocks, 144 wide", "learning rate (muon)", "64 tokens"):
        assert words in said

    values = read_json(out / "fit.json")
    write_json(out / "fit.json", values | {"recipe": values["recipe"] | {"batch": 3}})
    assert cli.run(["scale", "predict", str(out), "--flops", "1e15"]) == 2
    assert "recipe: unknown key 'batch'" in capsys.readouterr().err
    with pytest.raises(UserError, match="recipe: tuned_width cannot be 'x'"):
        write_json(out / "fit.json", values | {"recipe": values["recipe"] | {"tuned_width": "x"}})
        read_recipe(out)


@pytest.mark.slow
def test_a_table_has_no_recipe(tmp_path, capsys):
    path, out = tmp_path / "runs.csv", tmp_path / "fit"
    rows = [(run.params, run.tokens, TRUE.loss(run.params, run.tokens)) for run in planned(SWEEP)]
    path.write_text("N,D,loss\n" + "".join(f"{n},{d},{loss}\n" for n, d, loss in rows))
    assert cli.run(["scale", "fit", str(path), "--resamples", "10", "--out", str(out)]) == 0
    assert read_json(out / "fit.json")["recipe"] is None
    capsys.readouterr()
    assert cli.run(["scale", "predict", str(out), "--flops", "1e15"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split()[:2] == ["recipe", "unknown"]
    assert not any("learning rate" in line for line in lines)
    assert cli.run(["scale", "predict", str(out), "--flops", "1e308", "--tokens", "1e-9"]) == 2
    assert "is none" in capsys.readouterr().err
