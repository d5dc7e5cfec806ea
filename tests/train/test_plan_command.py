"""The command `aludel plan`."""

import importlib.util
import json

import pytest
from marks import needs_libtpu

from aludel.cli import run
from aludel.train.chips import CHIPS

V5P = CHIPS["v5p"]


def _plan(*args: str) -> int:
    return run(["plan", *args])


def test_the_command_writes_a_plan_and_a_page(tmp_path, capsys):
    flags = ["--topology", "h100:64", "--price", "2", "--out", str(tmp_path)]
    assert _plan("llama2-7b", *flags) == 0
    said = capsys.readouterr().out
    assert "by arithmetic alone" in said and said.splitlines()[-1].endswith("plan.html")
    written = json.loads((tmp_path / "plan.json").read_text())
    names = "parameters chips peak_bytes_per_chip fits predicted_step_seconds predicted_mfu"
    assert {*names.split(), "tokens_per_second"} <= set(written)
    assert written["parameters"] == 6_738_415_616 and written["fits"]
    page = (tmp_path / "plan.html").read_text()
    assert 'class="bar"' in page and "http" not in page


@pytest.mark.parametrize(
    "flags, said",
    [
        ("", "needs --topology"),
        ("--topology v5p:8x8x15", "nearest: v5p:8x8x16"),
        ("--topology v5p:8x8x16 --arithmetic --mesh.data 1 --mesh.fsdp 7", "does not fit 1024"),
        ("--topology v5p:8x8x16 --arithmetic --mesh.tensor 3", "does not fit 1024 devices"),
        ("--topology v5p:8x8x16 --arithmetic --search --mesh.data 1 --mesh.fsdp 8", "not fit 1024"),
        ("--topology v6e:8x8 --arithmetic --mesh.tensor 64", "does not divide model.heads"),
        (
            "--topology v6e:16x16 --arithmetic --mesh.data 256 --batch 1000",
            "1000 rows does not div",
        ),
        ("--topology 2xv6e:16x16 --arithmetic --mesh.fsdp 512", "over 2 slices"),
        ("--topology v6e:16x16 --stage pfo", "--stage must be one of"),
        ("--topology v6e:16x16 --model llama2-7b", "--model and --judge belong to the stages"),
        ("--topology v6e:16x16 --price nothing", "--price must be a positive number"),
        ("--topology v6e:16x16 --mesh.fsdq 2", "unknown setting --mesh.fsdq"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(flags, said, capsys):
    assert _plan("llama2-7b", *flags.split()) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "args, said",
    [
        ("instruct --topology v6e:8x8", "instruct is a config of aludel sft"),
        ("instruct --stage sft --topology v6e:8x8", "needs --model"),
        ("instruct --stage sft --model llama2-7b --judge llama2-7b --topology v6e:8x8", "--judge"),
        ("ppo-small --stage ppo --model llama2-7b --topology h100:8", "by the compiler alone"),
        ("gpt3-175b@v5p:8x8x8", "has no preset for 'v5p:8x8x8'"),
    ],
)
def test_stages_that_cannot_be_planned_are_said(args, said, capsys):
    assert _plan(*args.split()) == 2
    assert said in capsys.readouterr().err


def test_a_preset_is_planned_as_it_is(tmp_path):
    assert _plan("gpt3-175b@v5p:8x8x16", "--arithmetic", "--out", str(tmp_path)) == 0
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["topology"] == "v5p:8x8x16" and written["remat"] == "full"
    assert written["mesh"]["fsdp"] == 128 and written["mesh"]["tensor"] == 8


def test_a_search_tries_other_settings_than_the_presets(tmp_path):
    words = ["gpt3-175b@v5p:8x8x16", "--arithmetic", "--out"]
    seconds = []
    for name, flags in (("preset", []), ("searched", ["--search"])):
        assert _plan(*words, str(tmp_path / name), *flags) == 0
        written = json.loads((tmp_path / name / "plan.json").read_text())
        seconds.append(written["predicted_step_seconds"])
    assert seconds[1] < seconds[0]


def test_tuning_is_planned_with_the_decoder_that_goes_on(tmp_path):
    flags = "--stage sft --model llama2-7b --topology h100:64 --out".split()
    assert _plan("instruct", *flags, str(tmp_path)) == 0
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["parameters"] == 6_738_415_616 and written["batch"] == 32
    assert written["days"] is None  # of an epoch of data that is not known


def test_without_the_compiler_the_arithmetic_is_printed_and_how_to_get_it(
    monkeypatch, tmp_path, capsys
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name)
    )
    assert _plan("gpt3-175b", "--topology", "v5p:8x8x16", "--out", str(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "the package libtpu" in said and "tokens/s" in said


@needs_libtpu
@pytest.mark.slow
def test_an_iteration_of_ppo_is_planned_by_phase(tmp_path):
    config = tmp_path / "small.py"
    config.write_text(
        "from aludel.model import DecoderConfig\n"
        "from aludel.train.config import PretrainConfig\n"
        "model = DecoderConfig(vocab_size=2048, layers=2, width=256, heads=2, context=256,\n"
        "    dtype='bfloat16')\n"
        "config = PretrainConfig(model=model, batch=64)\n"
    )
    flags = f"--stage ppo --model {config} --topology v5p:2x2x1 --mesh.data 1 --mesh.fsdp 4"
    assert _plan("ppo-small", *flags.split(), "--out", str(tmp_path / "plan")) == 0
    written = json.loads((tmp_path / "plan/plan.json").read_text())
    phases = {one["name"]: one for one in written["phases"]}
    assert {"sample", "score", "refer"} <= set(phases)
    assert all(one["seconds"] > 0 for one in phases.values())
    seconds = sum(one["times"] * one["seconds"] for one in phases.values())
    assert written["predicted_step_seconds"] == pytest.approx(seconds)
    assert written["predicted_mfu"] is None


@needs_libtpu
@pytest.mark.slow
def test_a_step_is_planned_by_the_compiler(tmp_path, capsys, monkeypatch):
    """A small decoder on 16 chips: the compiler's memory holds the state, the products' cycles are
    within a factor of the FLOPs that there are, fsdp's gathers are found."""
    config = tmp_path / "small.py"
    config.write_text(
        "from aludel.model import DecoderConfig\n"
        "from aludel.train.config import PretrainConfig\n"
        "model = DecoderConfig(vocab_size=32000, layers=4, width=1024, heads=8, context=1024,\n"
        "    dtype='bfloat16')\n"
        "config = PretrainConfig(model=model, batch=64)\n"
    )
    flags = "--mesh.data 1 --mesh.fsdp 16 --execution.remat full --topology v5p:2x2x4"
    assert _plan(str(config), *flags.split(), "--out", str(tmp_path / "plan")) == 0
    written = json.loads((tmp_path / "plan/plan.json").read_text())
    (step,) = written["phases"]
    state = 12 * written["parameters"] / 16
    held = step["memory_bytes"]["parameters"] + step["memory_bytes"]["optimiser"]
    assert held == pytest.approx(state, rel=0.05)
    assert written["by"] == "compiler" and written["fits"]
    ideal = 8 * 12 * 1024**2 * 4 * 64 * 1024 / 16 / V5P.peak
    assert ideal < step["computing_seconds"]["matrix products"] < 4 * ideal
    gathers = [one for one in step["collectives"] if one["axes"] == ["fsdp"]]
    assert {"all-gather"} <= {one["kind"] for one in gathers}
