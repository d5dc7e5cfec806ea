"""The command line: what works prints its path last; a mistake is one line and status 2."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from aludel import cli
from aludel.cli.commands import run_name
from aludel.data import make_tokenizer

SMALL = [
    *("--model.layers", "1", "--model.width", "16", "--model.heads", "2"),
    *("--model.context", "16", "--batch", "8", "--steps", "4", "--eval-every", "2"),
    *("--sample-tokens", "8", "--tensorboard", "False"),
]
KERNELS = ("attention: ", "training: ", "decoding: ")  # told once in a process
LOSS = """
import jax.numpy as jnp
from aludel.train import Term, sum_rows

def focal(apply, params, batch, key):
    logp = apply(params, batch, want=("logp",), key=key)["logp"]
    mask = batch["loss_mask"]
    return {"focal": Term(sum_rows(-((1 - jnp.exp(logp)) ** 2) * logp * mask), sum_rows(mask))}

def mean(apply, params, batch, key):
    logp = apply(params, batch, want=("logp",), key=key)["logp"]
    return {"mean": Term(-logp.mean(), jnp.float32(1.0))}
"""


def command(out: Path, data: str, *flags: str, tokenizer: str = "byte") -> list[str]:
    return [
        *("pretrain", "demo", "--data", data, "--tokenizer", tokenizer),
        *SMALL,
        *("--out", str(out), *flags),
    ]


@pytest.fixture(scope="module", autouse=True)
def programs_are_compiled_once(tmp_path_factory):
    """The tests train the same tiny decoder again and again."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0.0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("To be, or not to be, that is the question. " * 40)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run, which no test changes."""
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "text.txt"
    path.write_text("To be, or not to be, that is the question. " * 40)
    out = folder / "run"
    assert cli.run(command(out, f"text:{path}")) == 0
    return out


@pytest.fixture
def mistake(capsys):
    """`mistake(argv)`: the one line that a mistake gives, status 2 and nothing more."""

    def check(argv: list[str], *parts: str) -> str:
        assert cli.run(argv) == 2
        said = capsys.readouterr()
        lines = [line for line in said.err.splitlines() if not line.startswith(KERNELS)]
        assert len(lines) == 1 and lines[0].startswith("aludel: "), said.err
        assert "Traceback" not in said.err and "│" not in said.err
        for part in parts:
            assert part in lines[0], lines[0]
        return lines[0]

    return check


# ---- what works


def test_pretrain_leaves_a_folder_that_explains_itself(run):
    names = {path.name for path in run.iterdir()}
    files = {"config.json", "tokenizer.json", "metrics.jsonl", "summary.json", "samples.jsonl"}
    assert names >= files | {"report.html", "provenance.json", "checkpoints"}
    summary = json.loads((run / "summary.json").read_text())
    for name in ("parameters", "tokens", "steps", "seconds", "loss_nats", "tokens_per_second"):
        assert summary[name] is not None
    assert summary["val_bits_per_byte"] < summary["val_bits_per_byte_before"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["step"] for line in lines if "val_nats_per_token" in line] == [0, 2, 4]
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["parent"] is None and provenance["sessions"][0]["versions"]["jax"]
    assert len(provenance["digests"]["data"]) == 1
    page = (run / "report.html").read_text()
    assert page.count("<svg") == 4 and "http://" not in page.replace("http://www.w3.org", "")
    assert not list(run.glob(".*.new"))


def test_last_line_is_the_path(tmp_path, text, capsys):
    out = tmp_path / "run"
    assert cli.run(command(out, f"text:{text}")) == 0
    said = capsys.readouterr()
    assert said.out.rstrip().splitlines()[-1] == str(out)
    assert "bits per byte before" in said.out and "expected time" in said.out


def test_sample_continues_the_prompt(run, capsys):
    argv = ["sample", str(run), "--prompt", "To be", "--tokens", "5", "--seed", "1"]
    assert cli.run(argv) == 0
    first = capsys.readouterr().out
    assert first.startswith("To be") and len(first) > len("To be\n")
    assert cli.run(argv) == 0
    assert capsys.readouterr().out == first
    assert cli.run([*argv[:-1], "2"]) == 0
    assert capsys.readouterr().out != first
    assert cli.run([*argv, "--count", "3"]) == 0
    assert capsys.readouterr().out.count("To be") == 3


def test_eval_scores_each_token_once_and_says_how(run, tmp_path, capsys):
    text = tmp_path / "other.txt"
    text.write_text("to be or not " * 9)
    argv = ["eval", str(run), "--data", f"text:{text}", "--out", str(tmp_path / "e.json")]
    assert cli.run(argv) == 0
    said = capsys.readouterr().out
    plain = json.loads((tmp_path / "e.json").read_text())
    assert plain["windows"] == "not overlapping" in said
    assert plain["tokens"] == plain["bytes"] == len(text.read_text())
    assert said.rstrip().splitlines()[-1] == str(tmp_path / "e.json")
    assert cli.run([*argv, "--stride", "4"]) == 0
    sliding = json.loads((tmp_path / "e.json").read_text())
    assert sliding["windows"] == "sliding by 4" and sliding["tokens"] == plain["tokens"]
    assert sliding["nats_per_token"] != plain["nats_per_token"]


def test_eval_agrees_with_the_run(run, capsys, tmp_path):
    text = run.parent / "text.txt"
    out = tmp_path / "e.json"
    argv = ["eval", str(run), "--data", f"text:{text}", "--split", "validation", "--out", str(out)]
    assert cli.run(argv) == 0
    found = json.loads(out.read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert found["nats_per_token"] == pytest.approx(summary["val_nats_per_token"], rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(summary["val_bits_per_byte"], rel=1e-5)


def test_dry_run_trains_nothing(tmp_path, text, capsys):
    out = tmp_path / "run"
    assert cli.run([*command(out, f"text:{text}"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    for part in ("parameters", "FLOPs", "memory", "expected time", "model.layers", "nothing was"):
        assert part in said
    assert not out.exists()


def test_info_of_config_and_run(run, capsys):
    assert cli.run(["info", "gpt3-175b"]) == 0
    said = capsys.readouterr().out
    assert "174,604,259,328" in said and "(6N)" in said and "embed/table" in said
    assert cli.run(["info", str(run)]) == 0
    said = capsys.readouterr().out
    assert "val_nats_per_token" in said and "checkpoints  " in said


def test_a_preset_is_shown_with_its_mesh(capsys, mistake):
    assert cli.run(["info", "gpt3-175b@v5p:8x8x16"]) == 0
    assert "fsdp 128 x tensor 8, microbatches 1, remat full" in capsys.readouterr().out
    assert cli.run(["pretrain", "--help"]) == 0
    assert "gpt3-175b@v5p:8x8x16" in capsys.readouterr().out
    mistake(["info", "gpt3-175b@v5p:2x2x2"], "'v5p:2x2x2'", "v5p:8x8x16")
    mistake(["info", "demo@v5p:8x8x16"], "demo has no preset", "gpt3-175b@v5p:8x8x16")


def test_a_run_without_a_name_is_called_as_its_config():
    names = {"gpt3-1.3b": "gpt3-1.3b", "llama3-8b@v5e:16x16": "llama3-8b", "my/own.py": "own"}
    assert {name: run_name(name) for name in names} == names


def test_help_lists_every_field_with_its_meaning(capsys):
    from aludel.train.config import PretrainConfig, flatten, to_json

    with pytest.raises(SystemExit) as leaving:
        cli.run(["pretrain", "gpt2", "--help"])
    assert leaving.value.code == 0
    said = capsys.readouterr().out
    for name in flatten(to_json(PretrainConfig())):
        assert f"--{name.replace('_', '-')} " in said
    assert "600000" in said and "Transformer blocks." in said


def test_fields_flags_and_mixtures(tmp_path, text, capsys):
    other = tmp_path / "other.txt"
    other.write_text("Fair is foul, and foul is fair. " * 60)
    out = tmp_path / "run"
    argv = command(out, f"text:{text}=3", "--data", f"text:{other}", "--model.kv_heads", "1")
    assert cli.run(argv) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["data"] == [f"text:{text}=3", f"text:{other}"]
    assert config["model"]["kv_heads"] == 1
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"lm/text", "lm/other", "val_nats_per_token/text"} <= set(last)
    # 4 steps of 8 rows, 3 of 4 of them of the first text, which has 96 rows of 16 bytes
    rows = int(0.9 * 43 * 40) // 16
    assert last["epochs/text"] == pytest.approx(24 / rows, abs=1e-6)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["epochs"] == summary["epochs/text"] == last["epochs/text"]
    assert 0 < summary["epochs/other"] < summary["epochs"]
    said = capsys.readouterr().out
    assert "epochs: " in said and " of text, " in said


def test_data_build_info_and_check(tmp_path, text, mistake, capsys, monkeypatch):
    monkeypatch.setenv("ALUDEL_CACHE", str(tmp_path / "cache"))
    argv = ["data", "build", f"text:{text}", "--tokenizer", "bpe:300"]
    assert cli.run(argv) == 0
    said = capsys.readouterr().out.splitlines()
    store = Path(said[-1])
    assert (store / "meta.json").is_file() and len(list(store.parent.iterdir())) == 2
    assert cli.run(argv) == 0  # found again
    assert capsys.readouterr().out.splitlines()[-1] == str(store)
    assert cli.run(["data", "info", str(store)]) == 0
    said = capsys.readouterr().out
    assert "(train)" in said and "1,548 bytes" in said and said.rstrip().endswith(str(store))
    assert cli.run(["data", "check", str(store)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"whole: 1 shards, {json.loads((store / 'meta.json').read_text())['tokens']} tokens",
        str(store),
    ]
    (shard,) = store.glob("[0-9a-f]*.bin")
    raw = bytearray(shard.read_bytes())
    raw[7] ^= 8
    shard.write_bytes(raw)
    mistake(["data", "check", str(store)], shard.name, "(shard 1 of 1)", "damaged")
    mistake(["data", "info", str(tmp_path)], "not a token store")
    mistake(["data", "chek"], "'check'")
    mistake([*argv, "--workers", "0"], "--workers")
    mistake(["data", "build", "text:nowhere.txt"], "nowhere.txt", "no such file")


def test_stores_are_built_with_the_tokenizer_of_a_run(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ALUDEL_CACHE", str(tmp_path / "cache"))
    text = run.parent / "text.txt"
    assert cli.run(["data", "build", f"text:{text}", "--tokenizer", str(run)]) == 0
    store = json.loads((Path(capsys.readouterr().out.splitlines()[-1]) / "meta.json").read_text())
    digests = json.loads((run / "provenance.json").read_text())["digests"]
    assert [store["digest"]] == digests["data"] and store["tokenizer"] == digests["tokenizer"]


def test_config_from_a_file(tmp_path, text, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import replace\nfrom aludel.configs import named\n"
        "config = replace(named('demo'), steps=3)\n"
    )
    argv = command(tmp_path / "run", f"text:{text}", "--steps", "2")
    assert cli.run(["pretrain", str(file), *argv[2:]]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 2


def test_loss_from_a_file(tmp_path, text, mistake):
    file = tmp_path / "losses.py"
    file.write_text(LOSS)
    out = tmp_path / "run"
    assert cli.run(command(out, f"text:{text}", "--loss", f"{file}:focal")) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[1]["loss_nats"] < lines[0]["val_nats_per_token"]
    mistake(command(tmp_path / "b", f"text:{text}", "--loss", f"{file}:mean"), "mean")
    mistake(command(tmp_path / "b", f"text:{text}", "--loss", f"{file}:fokal"), "focal?")
    assert not (tmp_path / "b" / "config.json").exists()


def test_help_is_fast_and_imports_no_jax():
    code = "import sys; from aludel import cli; cli.run(['--help']); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.rstrip().endswith("False") and "pretrain" in done.stdout


# ---- mistakes: each one line, status 2


def test_unknown_names(mistake, run):
    mistake(["pretrian"], "'pretrian'", "'pretrain'")
    mistake(["pretrain", "gtp2"], "'gtp2'", "'gpt2'")
    mistake(["pretrain", "demo", "--model.layrs", "3"], "--model.layrs", "--model.layers")
    mistake(["pretrain", "demo", "--optimizer.schedule", "cosin"], "schedule", "cosine")
    mistake(["pretrain", "demo", "--steps", "many"], "--steps", "many")
    mistake(["pretrain", "demo", "--steps"], "--steps")
    mistake(["pretrain", "demo", "stray"], "stray")
    mistake(["sample", str(run), "--promt", "x"], "--promt", "--prompt")
    mistake(["sample", str(run), "--tokens", "x"], "--tokens")
    mistake(["eval", str(run)], "--data")
    mistake(["info", "nothing-like-it"], "nothing-like-it")


def test_mistakes_of_the_demo(mistake, tmp_path):
    mistake(["demo", "recip"], "'recip'", "'recipe'")
    mistake(["demo", "gpt2"], "gpt2 is a config of aludel pretrain, not of aludel demo")
    mistake(["demo", "--seeds", "0"], "--seeds")
    mistake(["demo", "--seeds"], "--seeds needs a value")
    mistake(["demo", "--chat", "maybe"], "--chat")
    mistake(["demo", "--ppo.step", "3"], "--ppo.step", "--ppo.steps")
    mistake(["demo", "--material.flipped", "0.7"], "material.flipped")
    mistake(["demo", "--lists", "0"], "lists must be positive")
    (tmp_path / "my.py").write_text("config = 3")
    mistake(["demo", str(tmp_path / "my.py")], "Recipe")


def test_info_of_a_recipe_is_of_all_its_stages(capsys):
    assert cli.run(["info", "recipe"]) == 0
    said = capsys.readouterr().out
    assert all(f"aludel {stage}" in said for stage in ("pretrain", "sft", "reward", "ppo"))


def test_missing_and_empty_files(mistake, tmp_path):
    mistake(command(tmp_path / "r", f"text:{tmp_path}/none.txt"), "none.txt", "no such file")
    (tmp_path / "empty.txt").write_text("")
    mistake(command(tmp_path / "r", f"text:{tmp_path}/empty.txt"), "empty.txt", "empty")
    mistake(["pretrain", "gpt2", "--out", str(tmp_path / "r")], "--data")
    mistake(command(tmp_path / "r", "txt:x"), "'txt'", "'text'")


def test_undecodable_bytes(mistake, tmp_path, text, capsys):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(text.read_bytes()[:100] + b"\xff" + text.read_bytes())
    argv = command(tmp_path / "r", f"text:{bad}")
    mistake(argv, "bad.txt", "byte 100", "--decode-errors")
    assert cli.run([*argv, "--decode-errors", "replace"]) == 0
    assert "1 undecodable" in capsys.readouterr().out


def test_broken_records(mistake, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n{"text": \n')
    mistake(command(tmp_path / "r", f"jsonl:{file}"), "a.jsonl:2", "JSON")
    file.write_text('{"text": "one"}\n{"txt": "two"}\n')
    mistake(command(tmp_path / "r", f"jsonl:{file}"), "a.jsonl:2", "'text'", "'txt'")


def test_impossible_shapes(mistake, tmp_path, text):
    argv = command(tmp_path / "r", f"text:{text}")
    mistake([*argv, "--model.heads", "3"], "model.heads = 3", "model.width = 16")
    mistake([*argv, "--model.vocab-size", "10"], "model.vocab_size = 10", "257")
    mistake([*argv, "--accumulation", "3"], "accumulation = 3", "batch = 8")
    mistake([*argv, "--mesh.data", "9"], "mesh", "8 devices")


def test_batch_larger_than_an_epoch(mistake, tmp_path, text):
    argv = command(tmp_path / "r", f"text:{text}", "--batch", "800")
    mistake(argv, "a batch takes 800 rows", "epoch")


def test_folder_of_another_run(mistake, run, tmp_path):
    argv = command(run, f"text:{run.parent / 'text.txt'}")
    before = (run / "config.json").read_text()
    mistake([*argv, "--model.width", "32"], "model.width is 16 there and 32 here")
    mistake([*argv, "--optimizer.learning-rate", "5"], "optimizer.learning_rate")
    mistake([*argv, "--steps", "2"], "step 4", "steps = 2")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    mistake(command(tmp_path / "mine", argv[3]), "thesis.tex", "--out")
    mistake(command(tmp_path / "mine" / "thesis.tex", argv[3]), "is a file", "--out")
    assert (run / "config.json").read_text() == before
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_text_that_has_changed(mistake, tmp_path, text):
    argv = command(tmp_path / "r", f"text:{text}")
    assert cli.run(argv) == 0
    text.write_text(text.read_text() + "And more. " * 20)
    mistake(argv, "text has changed", "digest")


def test_tokenizer_that_does_not_fit(mistake, tmp_path, text, capsys):
    out = tmp_path / "r"
    argv = command(out, f"text:{text}")
    assert cli.run(argv) == 0
    capsys.readouterr()
    other = make_tokenizer("char", lambda: iter([text.read_text()]))
    other.save(out / "tokenizer.json")
    mistake(argv, "tokenizer.json", "does not fit")
    mistake(["eval", str(out), "--data", f"text:{text}"], "tokenizer.json", "does not fit")
    mistake(["sample", str(out)], "tokenizer.json", "does not fit")


def test_character_that_char_does_not_know(mistake, tmp_path, text):
    text.write_text(text.read_text() + "ζ")  # in the last tenth: validation
    argv = command(tmp_path / "r", f"text:{text}", tokenizer="char")
    mistake(argv, "text.txt", "'ζ'", "char")


def test_not_a_run(mistake, tmp_path):
    mistake(["sample", str(tmp_path / "none")], "no such run folder")
    mistake(["eval", str(tmp_path), "--data", "python"], "not a run folder")


def test_bad_config_file(mistake, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("config = 3\n")
    mistake(["pretrain", str(file)], "mine.py", "PretrainConfig")
    file.write_text("config = (\n")
    mistake(["pretrain", str(file)], "mine.py:1")
    mistake(["pretrain", str(tmp_path / "none.py")], "no such Python file")


def test_checkpoint_that_is_not_there(mistake, run):
    mistake(["sample", str(run), "--checkpoint", "3"], "'3'", "newest, best, 2, 4")
