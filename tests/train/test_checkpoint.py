"""Checkpoints: what is read is what was saved, or an error; damage costs one checkpoint."""

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import runs
from jax.sharding import NamedSharding, PartitionSpec

from aludel.errors import UserError
from aludel.model import MeshConfig, make_mesh
from aludel.train.checkpoint import Checkpoints, DamagedError, checksum, quiet
from aludel.train.loop import StoppedError

# No file may grow past a limit: imitates a disk that fills up, and needs no privileges.
LIMITED = """import os, resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
os.execv(sys.argv[2], sys.argv[2:])"""


def trees(seed: int) -> dict:
    key = jax.random.key(seed)
    return {
        "params": {"embed": {"table": jax.random.normal(key, (64, 32))}, "blocks": {"nothing": {}}},
        "rest": {"step": jnp.int32(seed), "opt_state": {"0": {"mu": jnp.full((5,), seed + 0.5)}}},
    }


def shapes(tree: dict) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


TARGET = shapes(trees(0))


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of steps 10, 20, 30, and what was said."""
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path / "checkpoints", say=said.append)
    for step, loss in ((10, 2.0), (20, 3.0), (30, 4.0)):
        checkpoints.save(step, trees(step), {"tokenizer": "t"}, loss)
    checkpoints.finish()
    checkpoints.close()
    return Checkpoints(tmp_path / "checkpoints", say=said.append), said


def same(a: dict, b: dict) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def test_newest_comes_back(saved):
    checkpoints, said = saved
    stored, meta = checkpoints.newest_usable(TARGET)
    assert same(stored, trees(30)) and not said
    assert meta["step"] == 30 and meta["tokenizer"] == "t"


def test_newest_two_and_the_best_are_kept(saved):
    checkpoints, _ = saved
    assert checkpoints.steps() == [10, 20, 30] and checkpoints.best() == 10
    for step, loss in ((40, 5.0), (50, 1.0), (60, None), (70, 2.5)):
        checkpoints.save(step, trees(step), {}, loss)
    checkpoints.finish()
    assert checkpoints.steps() == [50, 60, 70] and checkpoints.best() == 50
    checkpoints.close()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(bytes(data))


def largest(folder: Path) -> Path:
    files = [f for f in folder.rglob("*") if f.is_file() and f.name != "commit_success.txt"]
    return max(files, key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink], ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("part", ["params", "meta"])
def test_damaged_newest_is_named_and_the_one_before_used(saved, harm, part):
    checkpoints, said = saved
    harm(largest(checkpoints.folder / "30" / part))
    if part == "meta" and harm is flip:  # still JSON, but for another array's sum
        meta = largest(checkpoints.folder / "30" / part)
        meta.write_text(re.sub(r"(embed/table\D+)\d+", r"\g<1>1", meta.read_text()))
    stored, meta = checkpoints.newest_usable(TARGET, move=True)
    assert same(stored, trees(20)) and meta["step"] == 20
    assert len(said) == 1 and "\n" not in said[0]
    assert str(checkpoints.folder / "30") in said[0] and "damaged" in said[0]
    assert checkpoints.steps() == [10, 20]  # out of the way of the next one at step 30
    assert (checkpoints.folder.parent / "damaged" / "30-0").is_dir()


def test_wrong_bits_are_seen_by_the_checksum(saved, monkeypatch):
    checkpoints, _ = saved
    stored, _ = checkpoints.restore(30, TARGET)
    assert same(stored, trees(30))
    monkeypatch.setattr(
        "aludel.train.checkpoint._checksums",
        lambda tree: {"params/embed/table": checksum(-tree["params"]["embed"]["table"])},
    )
    with pytest.raises(DamagedError, match="checksum of params/embed/table"):
        checkpoints.restore(30, TARGET)


def test_none_usable_is_an_error(saved):
    checkpoints, said = saved
    for step in (10, 20, 30):
        truncate(largest(checkpoints.folder / str(step) / "rest"))
    with pytest.raises(UserError, match="none of its 3 checkpoints can be used"):
        checkpoints.newest_usable(TARGET, move=True)
    assert len(said) == 3
    assert checkpoints.steps() == [10, 20, 30]  # nothing is set aside where nothing can be used


def test_a_signal_while_reading_is_no_damage(saved, monkeypatch):
    checkpoints, said = saved

    def stopped(*_, **__):
        raise StoppedError(None)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", stopped)
    with pytest.raises(StoppedError):
        checkpoints.newest_usable(TARGET, move=True)
    assert checkpoints.steps() == [10, 20, 30] and not said


def test_half_written_is_named_and_removed(saved):
    checkpoints, said = saved
    shutil.copytree(checkpoints.folder / "30", checkpoints.folder / "40.orbax-checkpoint-tmp")
    checkpoints.tidy()
    assert len(said) == 1 and "half-written" in said[0]
    assert checkpoints.newest_usable(TARGET)[1]["step"] == 30


def test_no_checkpoint_is_none(tmp_path):
    assert Checkpoints(tmp_path / "none").newest_usable(TARGET) is None


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint32])
def test_checksum_sees_every_change_and_no_sharding(dtype):
    x = jnp.arange(1, 65).reshape(8, 8).astype(dtype)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "tensor")))
    assert int(jax.jit(checksum)(split)) == int(checksum(x))
    swapped = x.at[0, 0].set(x[3, 5]).at[3, 5].set(x[0, 0])
    changed = [x.at[i, j].set(100) for i in range(8) for j in range(8)]
    sums = {int(checksum(one)) for one in [x, swapped, x.T, *changed]}
    assert len(sums) == 3 + len(changed)


@pytest.mark.slow
def test_full_disk_is_an_error_and_harms_nothing(tmp_path):
    text, out = runs.write_text(tmp_path), tmp_path / "run"
    words = runs.command(text, out, "--eval-every", "0")
    assert runs.run([*words, "--steps", "4"]).returncode == 0
    before = {p: p.read_bytes() for p in (out / "checkpoints").rglob("*") if p.is_file()}
    limit = max(len(data) for data in before.values()) // 2
    full = runs.run([sys.executable, "-c", LIMITED, str(limit), *words, "--steps", "8"])
    assert full.returncode == 2, full.stderr
    kernels = ("attention: ", "training: ", "decoding: ")  # which were picked
    told = [line for line in full.stderr.splitlines() if not line.startswith(kernels)]
    assert len(told) == 1, full.stderr
    (last,) = told
    assert "could not be written" in last and "step 4 is intact" in last and "Traceback" not in last
    assert all(path.read_bytes() == data for path, data in before.items())
    done = runs.run([*words, "--steps", "8"])
    assert done.returncode == 0 and "resuming at step 4" in done.stdout
    assert [line["step"] for line in runs.metrics(out)] == list(range(9))


@pytest.mark.slow
def test_another_mesh_and_scanned_layers_go_on_with_the_same_losses(tmp_path):
    text = runs.write_text(tmp_path)
    plain, moved = tmp_path / "plain", tmp_path / "moved"
    every = ["--eval-every", "0", "--checkpoint-every", "6", "--batch", "8"]
    done = runs.run(runs.command(text, plain, *every, "--steps", "12"))
    assert done.returncode == 0, done.stderr
    shutil.copytree(plain, moved)
    shutil.rmtree(moved / "checkpoints" / "12")
    mesh = ["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"]
    other = [*mesh, "--execution.scan", "True", "--accumulation", "2"]
    gone_on = runs.run(runs.command(text, moved, *every, "--steps", "12", *other), devices=8)
    assert gone_on.returncode == 0, gone_on.stderr
    assert "resuming at step 6" in gone_on.stdout
    a, b = runs.metrics(plain), runs.metrics(moved)
    assert [line["step"] for line in b] == list(range(13))
    for there, here in zip(a[1:], b[1:], strict=True):
        np.testing.assert_allclose(here["loss_nats"], there["loss_nats"], rtol=2e-5)
    np.testing.assert_allclose(b[-1]["val_nats_per_token"], a[-1]["val_nats_per_token"], rtol=2e-5)


def test_late_callbacks_of_a_failed_save_are_not_told_and_other_errors_are(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: told.append(args[1]))
    monkeypatch.setattr(sys, "unraisablehook", lambda args: told.append(args.exc_value))
    quiet()
    quiet()  # a second call changes nothing
    late, other = RuntimeError("Event loop is closed"), RuntimeError("something else")
    for error in (late, other):
        sys.excepthook(RuntimeError, error, None)
        sys.unraisablehook(SimpleNamespace(exc_type=RuntimeError, exc_value=error))
    assert told == [other, other]
