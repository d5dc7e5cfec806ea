"""Sweeps: which runs there are, and that each is made once, however often it is stopped."""

import csv
import dataclasses
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import runs

from aludel.cli import run
from aludel.configs import named
from aludel.errors import UserError
from aludel.model import DecoderConfig
from aludel.train import OptimizerConfig
from aludel.train.config import PretrainConfig
from aludel.train.run import Run
from aludel.train.scaling import Sweep, run_sweep
from aludel.train.scaling.sweep import planned, share_of, sized, tuning_runs
from aludel.train.scaling.sweep_runs import tuning_of

BASE = PretrainConfig(model=DecoderConfig(vocab_size=50, head_dim=8, context=16), batch=4)


def test_a_size_keeps_its_shares():
    model = DecoderConfig(width=64, heads=8, kv_heads=2, mlp_width=96)
    found = sized(model, 6, 96)
    assert (found.layers, found.width, found.heads) == (6, 96, 12)
    assert (found.kv_heads, found.mlp_width, found.size_of_head) == (3, 144, 8)
    with pytest.raises(UserError, match="heads of 8 do not divide"):
        sized(model, 3, 60)
    with pytest.raises(UserError, match="4 do not share keys"):
        sized(model, 3, 80)
    with pytest.raises(UserError, match="no size meets a budget"):
        planned(Sweep(BASE, layers=(1, 2), width_of_layer=8, flops=(1e3,)))


def test_every_size_with_every_amount_the_cheapest_first():
    sweep = Sweep(BASE, layers=(4, 2), width_of_layer=8, per_parameter=(1, 5), tokens=(640,))
    found = planned(sweep)
    assert len(found) == 6
    assert [run.flops for run in found] == sorted(run.flops for run in found)
    for run_ in found:
        model = run_.config.model
        assert model.width == 8 * model.layers and run_.params == model.parameters()
        assert run_.tokens == run_.config.steps * 64 and run_.flops == 6 * run_.params * run_.tokens
    of_parameters = [run_ for run_ in found if run_.tokens != 640]
    for run_ in of_parameters:
        ratio = run_.tokens / run_.params
        assert min(abs(ratio - 1), abs(ratio - 5)) < 64 / run_.params


def test_budgets_of_flops_are_met_between_the_bounds():
    sweep = Sweep(
        BASE, layers=(1, 2, 3, 4), width_of_layer=8, count="blocks", flops=(2e9,), between=(5, 500)
    )
    found = planned(sweep)
    assert 0 < len(found) < 4
    for run_ in found:
        assert run_.params == run_.config.model.parameters(embeddings=False)
        assert abs(run_.flops / 2e9 - 1) < 64 / run_.tokens
        assert 4.9 < run_.tokens / run_.params < 501


def test_seeds_and_those_of_the_smallest():
    sweep = Sweep(
        BASE, layers=(1, 2, 3), width_of_layer=8, tokens=(640,), smallest=2, seeds_of_smallest=3
    )
    seeds = [(run_.config.model.layers, run_.config.seed) for run_ in planned(sweep)]
    assert sorted(seeds) == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0)]
    assert len({run_.name for run_ in planned(sweep)}) == 7
    twice = dataclasses.replace(sweep, tokens=(640, 641), smallest=0)  # as many steps
    assert len(planned(twice)) == 3


def test_one_run_more_to_be_predicted():
    sweep = Sweep(
        BASE, layers=(1, 2), width_of_layer=8, tokens=(640,), held_out_layers=3, held_out_flops=1e10
    )
    *_, last = planned(sweep)
    assert len(planned(sweep)) == 3 and last.config.model.layers == 3
    assert last.flops == pytest.approx(1e10, rel=0.02)


def test_the_ladder_determines_its_laws():
    """Four sizes or more at each of three budgets, and a run of 8 times the compute of any."""
    sweep = named("ladder")
    model = sweep.base.model.with_vocab(1024)
    sweep = dataclasses.replace(sweep, base=dataclasses.replace(sweep.base, model=model))
    *fitted, held_out = planned(sweep)
    assert len(fitted) >= 20 and held_out.flops >= 8 * fitted[-1].flops
    for flops in sweep.flops:
        near = [run_ for run_ in fitted if abs(run_.flops / flops - 1) < 0.01]
        assert len({run_.config.model.layers for run_ in near}) >= 4
    blocks = [run_.config.model.parameters(embeddings=False) for run_ in fitted]
    assert len(set(blocks)) >= 6 and max(blocks) >= 30 * min(blocks)
    assert sum(run_.flops for run_ in fitted) + held_out.flops < 5e14


def test_the_control_has_the_longest_run_of_each_size_of_the_ladder():
    longest = {}
    for name in ("ladder", "ladder-control"):
        sweep = named(name)
        model = sweep.base.model.with_vocab(1024)
        sweep = dataclasses.replace(sweep, base=dataclasses.replace(sweep.base, model=model))
        steps = longest[name] = {}
        for run_ in planned(sweep):
            layers = run_.config.model.layers
            steps[layers] = max(steps.get(layers, 0), run_.config.steps)
    assert longest["ladder"] == longest["ladder-control"]


def test_rates_are_tried_on_the_cheapest_run_of_the_smallest_size():
    base = dataclasses.replace(BASE, optimizer=OptimizerConfig(head_learning_rate=0.5))
    sweep = Sweep(base, layers=(2, 1), width_of_layer=8, tokens=(1280, 640), tune=(2, 0.5))
    assert tuning_runs(dataclasses.replace(sweep, tune=())) == []
    low, high = tuning_runs(sweep)
    for run_, factor in ((low, 0.5), (high, 2.0)):
        assert run_.config.model.layers == 1 and run_.tokens == 640
        rates = run_.config.optimizer
        assert rates.learning_rate == base.optimizer.learning_rate * factor
        assert rates.head_learning_rate == 0.5 * factor and rates.vector_learning_rate is None


def test_the_best_rate_is_taken_and_an_edge_is_said():
    found = tuning_of([0.5, 1.0, 2.0], [2.0, 1.5, 1.7])
    assert found["best"] == 1.0 and not found["edge"]
    assert tuning_of([0.5, 1.0, 2.0], [2.0, 1.8, 1.7])["edge"]
    assert not tuning_of([3.0], [2.0])["edge"]


def test_a_rate_that_diverged_is_never_the_best():
    assert tuning_of([0.5, 1.0, 2.0], [None, 1.5, float("nan")])["best"] == 1.0
    with pytest.raises(UserError, match="every learning rate that was tried"):
        tuning_of([0.5, 1.0], [None, float("nan")])


@pytest.mark.slow
def test_a_finished_run_of_other_settings_is_not_taken(sweep, undisturbed, tmp_path):
    """As one is that was made before the rates were tried, or with other ones."""
    out = tmp_path / "runs"
    shutil.copytree(undisturbed, out)
    assert run(["scale", "run", str(sweep), "--out", str(out), "--tune", "0.5", "4"]) == 2
    record = json.loads((out / "tuning.json").read_text())
    (out / "tuning.json").write_text(json.dumps({**record, "best": 1.5}))
    config = settings(sweep)
    with pytest.raises(UserError, match="optimizer.learning_rate is"):
        run_sweep(dataclasses.replace(config, out=str(out)))


def settings(path: Path) -> Sweep:
    """The sweep of a file."""
    return runpy.run_path(str(path))["config"]


def test_checkpoints_are_kept_over_the_whole_of_a_run(undisturbed):
    for path in undisturbed.glob("layers-*"):
        steps = Run(path).config().steps
        assert Run(path).checkpoints.steps() == [steps // 2, steps]


def test_the_rates_of_the_runs_are_those_found(undisturbed):
    found = json.loads((undisturbed / "tuning.json").read_text())
    assert [one["factor"] for one in found["tried"]] == [0.5, 2.0]
    losses = {one["loss"]: one["factor"] for one in found["tried"]}
    assert found["best"] == losses[min(losses)]
    for path in undisturbed.glob("layers-*"):
        wanted = PretrainConfig().optimizer.learning_rate * found["best"]
        assert Run(path).config().optimizer.learning_rate == pytest.approx(wanted)


def test_a_loss_may_be_that_of_one_source(undisturbed, tmp_path, capfd):
    assert run(["scale", "fit", str(undisturbed), "--validation", "exercises"]) == 2
    assert "its data is no mixture" in capfd.readouterr().err
    assert run(["scale", "fit", str(undisturbed / "runs.csv"), "--validation", "exercises"]) == 2
    assert "--column loss=NAME" in capfd.readouterr().err


@pytest.mark.parametrize("machines", [1, 2, 3, 20])
def test_shards_are_a_partition(machines):
    found = planned(Sweep(BASE, layers=(1, 2, 3), width_of_layer=8, per_parameter=(1, 2, 3)))
    parts = [share_of(found, (own + 1, machines)) for own in range(machines)]
    names = sorted(run_.name for part in parts for run_ in part)
    assert names == sorted(run_.name for run_ in found)
    loads = [sum(run_.flops for run_ in part) for part in parts]
    assert max(loads) - min(loads) <= max(run_.flops for run_ in found)
    for part in parts:
        assert [run_.flops for run_ in part] == sorted(run_.flops for run_ in part)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"layers": ()}, "layers names no size"),
        ({"layers": (0, 1)}, "layers must be positive"),
        ({"tokens": ()}, "no amount of text"),
        ({"tokens": (-5.0,)}, "tokens must be positive"),
        ({"flops": (float("inf"),)}, "flops must be positive"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"most_epochs": 0.0}, "most_epochs must be positive"),
        ({"between": (5.0, 1.0)}, "from less to more"),
        ({"held_out_layers": 3}, "belong together"),
    ],
)
def test_impossible_sweeps(fields, said):
    with pytest.raises(UserError, match=said):
        Sweep(**{"tokens": (640.0,), **fields})


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    path = runs.write_sweep(
        folder,
        "model=DecoderConfig(head_dim=8, context=16), batch=4, checkpoint_every=4",
        "tokens=(640, 1280), tune=(0.5, 2.0), points=2",
    )
    return path


def command(sweep: Path, out: Path, *flags: str) -> list[str]:
    words = [sys.executable, "-m", "aludel.cli", "scale", "run", str(sweep), "--out", str(out)]
    return [*words, *flags]


def saved(run: Path) -> bool:
    """Whether a run has a checkpoint of a step beyond the first."""
    return any(path.name.isdecimal() and path.name != "0" for path in run.glob("checkpoints/*"))


def figures(out: Path) -> list[dict]:
    """runs.csv but for what a clock says."""
    with open(out / "runs.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def undisturbed(sweep, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "runs"
    done = runs.run(command(sweep, out))
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-1] == str(out)
    assert len(figures(out)) == 4
    return out


@pytest.mark.slow
def test_killed_and_run_again_nothing_is_done_twice_and_nothing_is_missing(
    sweep, undisturbed, tmp_path
):
    out = tmp_path / "runs"
    for wanted in (1, 2):  # runs that have ended
        words = command(sweep, out)
        process = subprocess.Popen(
            words, env=runs.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

        def amid(wanted: int = wanted) -> bool:
            ended = {path.parent for path in out.glob("layers-*/summary.json")}
            begun = [one for one in out.glob("layers-*") if one not in ended and saved(one)]
            return len(ended) >= wanted and bool(begun)

        assert runs.wait_for(amid, process)
        process.kill()
        process.wait()
    before = {path: path.stat().st_mtime_ns for path in out.glob("layers-*/summary.json")}
    assert 0 < len(before) < 4
    done = runs.run(command(sweep, out))
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert figures(out) == figures(undisturbed)
    for path in undisturbed.glob("layers-*"):
        assert runs.exact(out / path.name) == runs.exact(path)


@pytest.mark.slow
def test_two_shards_give_what_one_machine_gives(sweep, undisturbed, tmp_path):
    out = tmp_path / "runs"
    processes = [
        subprocess.Popen(
            command(sweep, out, "--shard", shard),
            env=runs.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for shard in ("1/2", "2/2")
    ]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert figures(out) == figures(undisturbed)


def test_a_folder_belongs_to_one_sweep(sweep, undisturbed, capfd):
    assert run(["scale", "run", str(sweep), "--out", str(undisturbed), "--base.batch", "8"]) == 2
    assert (
        "holds the runs of another sweep: base.batch is 4 there and 8 here"
        in capfd.readouterr().err
    )


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--shard", "3/2"], "--shard must be I/N"),
        (["--most-epochs", "0.1"], "would see its text"),
        (["--tokens", "x"], "tokens"),
        (["--width-of-layer", "7"], "heads of 8 do not divide"),
        (["--flops", "1000", "--tokens"], "no size meets a budget"),
    ],
)
def test_mistakes_are_one_line(sweep, tmp_path, capfd, flags, said):
    assert run(["scale", "run", str(sweep), "--out", str(tmp_path / "runs"), *flags]) == 2
    err = capfd.readouterr().err.strip().splitlines()
    assert said in err[-1] and sum(line.startswith("aludel:") for line in err) == 1
    assert not (tmp_path / "runs").exists()


def test_another_width_is_another_run(sweep, undisturbed, capfd):
    flags = ["--out", str(undisturbed), "--width-of-layer", "16", "--dry-run"]
    assert run(["scale", "run", str(sweep), *flags]) == 0
    assert not set(capfd.readouterr().out.split()) & {path.name for path in undisturbed.iterdir()}


def test_a_folder_of_something_else_is_refused(sweep, undisturbed, capfd):
    assert run(["scale", "run", str(sweep), "--out", str(next(undisturbed.glob("layers-*")))]) == 2
    assert "and no sweep; name another" in capfd.readouterr().err


def test_info_lists_the_runs_of_a_sweep(sweep, capfd):
    assert run(["info", str(sweep)]) == 0
    assert capfd.readouterr().out.splitlines()[-1].startswith("6 runs")


def test_a_dry_run_lists_the_runs(sweep, tmp_path, capfd):
    assert run(["scale", "run", str(sweep), "--out", str(tmp_path / "runs"), "--dry-run"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "layers", "width", "N", "D", "D/N", "C"]
    assert len(lines) == 8 and lines[-1].startswith("6 runs")
    assert not (tmp_path / "runs").exists()
