"""The gradient noise scale: found again where it is known, and the command."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import runs

from aludel.cli import run
from aludel.errors import UserError
from aludel.train.scaling.noise import NoiseScale, _split, inner_products, noise_scale

TOKENS, SIZE = 64, 500  # of a batch; of a gradient


def gradients(count: int, scale: float, seed: int) -> np.ndarray:
    """f64[count, SIZE] of batches of TOKENS tokens, their noise scale known: |G|^2 = 1, and noise
    that differs by direction."""
    random = np.random.default_rng(seed)
    true = random.standard_normal(SIZE)
    variance = np.geomspace(1, 1e-2, SIZE)
    variance *= scale / TOKENS / variance.sum()
    noise = random.standard_normal((count, SIZE)) * np.sqrt(variance)
    return true / np.linalg.norm(true) + noise


def estimate(found: np.ndarray) -> NoiseScale:
    return noise_scale((found**2).sum(axis=1), found @ found.sum(axis=0), TOKENS)


@pytest.mark.parametrize("scale", [20.0, 300.0])
@pytest.mark.parametrize("count", [8, 32])
def test_intervals_hold_the_noise_scale_as_often_as_they_say(scale, count):
    found = [estimate(gradients(count, scale, seed)).scale for seed in range(300)]
    held = np.mean([one.low <= scale <= one.high for one in found])
    assert 0.91 <= held <= 0.995
    assert np.median([one.value for one in found]) == pytest.approx(scale, rel=0.05)


def test_estimates_are_unbiased_with_few_batches():
    """Of three: |mean g|^2 in place of |G|^2 would be too large by a third of the noise, and the
    trace too small by a third."""
    found = [estimate(gradients(3, 100.0, seed)) for seed in range(1000)]
    assert np.mean([one.gradient for one in found]) == pytest.approx(1.0, rel=0.02)
    assert np.mean([one.trace for one in found]) == pytest.approx(100.0, rel=0.02)


def test_too_few_batches_say_so_and_give_no_number():
    noise = gradients(16, 1e6, 0)
    noise -= (1 - 1e-3) * noise.mean(axis=0)  # next to nothing in common
    with pytest.raises(UserError, match="more batches are needed"):
        estimate(noise)
    with pytest.raises(UserError, match="not finite"):
        noise_scale(np.array([1.0, np.nan]), np.ones(2), TOKENS)


def test_where_the_upper_end_is_not_known_it_is_infinite():
    found = [estimate(gradients(8, 1000.0, seed)).scale for seed in range(20)]
    assert all(one.low < one.value < one.high for one in found)
    assert any(np.isinf(one.high) for one in found)


def test_inner_products_of_gradients_that_are_not_kept():
    flat = gradients(5, 100.0, 0)
    squares, dots = inner_products(
        lambda number, batch: {"a": batch[:7] + number, "b": batch[7:]},
        lambda number: jnp.asarray(flat[number - 3]),
        range(3, 8),
    )
    flat[:, :7] += np.arange(3, 8)[:, None]
    np.testing.assert_allclose(squares, (flat**2).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(dots, flat @ flat.sum(axis=0), rtol=1e-5)


def test_no_more_rows_at_once_than_in_training():
    assert [_split(rows, 4, 1) for rows in (3, 4, 8, 10, 7)] == [(1, n) for n in (1, 1, 2, 5, 7)]
    assert [_split(rows, 4, 8) for rows in (4, 8, 12, 16)] == [(4, 1), (8, 1), (4, 3), (8, 2)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noisy")
    flags = ("--steps", "4", "--eval-every", "0", "--accumulation", "2")
    done = runs.run(runs.command(runs.write_text(folder), folder / "run", *flags))
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_command_prints_a_table_and_writes_json(trained, capfd):
    scales = []
    for rows in (4, 8):
        assert run(["scale", "noise", str(trained), "--batches", "16", "--rows", str(rows)]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert lines[0].split()[:2] == ["step", "4"] and f"16 batches of {rows} rows" in lines[0]
        assert lines[1].split() == "batch of this run 64 tokens 4 rows of 16".split()
        found = json.loads((trained / "noise.json").read_text())
        value, low, high = found["noise_scale_tokens"]
        assert 0 < low < value and (high is None or value < high)
        assert found["noise_scale_rows"][0] == pytest.approx(value / 16)
        assert found["trace_of_token"] == pytest.approx(value * found["gradient_norm"] ** 2)
        scales.append(value)
    # Of one loss at one point, whatever the batches that it is measured with.
    assert scales[1] == pytest.approx(scales[0], rel=0.5)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--batches", "7"], "--batches must be at least 8"),
        (["--rows", "0"], "--rows must be at least 1"),
        (["--batches", "1000"], "epochs of the text"),
        (["--rows", "100000"], "make the batch or the context smaller"),
        (["--checkpoint", "3"], "no checkpoint '3'"),
        (["--batch", "8"], "unknown flag --batch"),
    ],
)
def test_mistakes_are_one_line(trained, capfd, flags, said):
    assert run(["scale", "noise", str(trained), *flags]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert said in lines[-1] and sum(line.startswith("aludel:") for line in lines) == 1


def test_another_stage_is_refused(tmp_path, capfd):
    (tmp_path / "config.json").write_text('{"stage": "sft"}')
    assert run(["scale", "noise", str(tmp_path)]) == 2
    assert "name one of aludel pretrain" in capfd.readouterr().err
