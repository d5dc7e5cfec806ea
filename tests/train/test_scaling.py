"""Scaling laws: what synthetic runs hold is found again, with intervals that mean what they say;
published figures follow from published laws; a mistake is one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aludel import cli
from aludel.errors import UserError
from aludel.model import DecoderConfig
from aludel.train.config import PretrainConfig, to_json
from aludel.train.records import write_json
from aludel.train.scaling import (
    Points,
    compute_optimal,
    fit_scaling,
    parametric,
    predict,
    read_csv,
)
from aludel.train.scaling.envelope import fit_envelope
from aludel.train.scaling.isoflop import fit_isoflop
from aludel.train.scaling.kaplan import fit_kaplan
from aludel.train.scaling.minimise import by_autodiff, minimise
from aludel.train.scaling.optimum import law_of_optima
from aludel.train.scaling.parametric import Law, fit_parametric
from aludel.train.scaling.power import fit_power
from aludel.train.scaling.repeated import fit_repeated, repeated_loss
from aludel.train.scaling.runs import read_runs

TRUE = Law(400.0, 1500.0, 1.7, 0.34, 0.37)
# Besiroglu et al. 2024, and the unrounded estimate of Hoffmann et al. 2022 that they recovered.
PUBLISHED = Law(482.01, 2085.43, 1.81686, 0.34781, 0.36585)
HOFFMANN = Law(406.40, 410.72, 1.69337, 0.33917, 0.28491)
NEAR = {"alpha": (0.3, 0.5), "beta": (0.3, 0.5), "e": (0.5,), "a": (5.0, 8.0), "b": (5.0, 8.0)}
BUDGETS = np.geomspace(1e18, 3e20, 6)


def isoflop_runs(noise: float, seed: int, law: Law = TRUE, sizes: int = 9) -> Points:
    """Sizes around the optimum of each of six budgets, with noise on log L."""
    random = np.random.default_rng(seed)
    best = compute_optimal(law, BUDGETS[:, None]).params
    params = (best * np.geomspace(0.3, 3.3, sizes)).ravel()
    flops = np.repeat(BUDGETS, sizes)
    tokens = flops / (6 * params)
    loss = law.loss(params, tokens) * np.exp(noise * random.standard_normal(len(params)))
    return Points(params, tokens, loss, tuple(f"run {i}" for i in range(len(params))))


def write(path, points: Points, header: str = "N,D,loss"):
    rows = zip(points.params, points.tokens, points.loss, strict=True)
    lines = [",".join(f"{float(one)!r}" for one in row) for row in rows]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def relative(found: float, true: float) -> float:
    return abs(found / true - 1)


def test_the_parametric_law_is_found_exactly_without_noise():
    fit = fit_parametric(isoflop_runs(0.0, 0), grid=NEAR, resamples=0)
    for name in Law._fields:
        assert relative(getattr(fit.law, name), getattr(TRUE, name)) < 1e-4, name
    assert fit.objective < 1e-12


def test_a_fixed_irreducible_loss_is_kept_and_the_rest_found():
    fit = fit_parametric(isoflop_runs(0.0, 0), irreducible=1.7, grid=NEAR, resamples=0)
    assert fit.law.E == 1.7
    assert relative(fit.law.alpha, TRUE.alpha) < 1e-5
    no_floor = Law(400.0, 1500.0, 0.0, 0.34, 0.37)
    fit = fit_parametric(isoflop_runs(0.0, 0, no_floor), irreducible=0.0, grid=NEAR, resamples=0)
    assert relative(fit.law.beta, no_floor.beta) < 1e-5


def test_the_objective_is_a_sum_of_huber_losses():
    points = isoflop_runs(0.01, 1)
    fit = fit_parametric(points, grid=NEAR, resamples=0)
    error = np.abs(np.log(points.loss) - np.log(fit.law.loss(points.params, points.tokens)))
    huber = np.where(error < 1e-3, error**2 / 2, 1e-3 * (error - 5e-4))
    assert relative(fit.objective, huber.sum()) < 1e-9
    for name in Law._fields:  # and no law beside it has a lower one
        for factor in (0.999, 1.001):
            other = fit.law._replace(**{name: getattr(fit.law, name) * factor})
            error = np.abs(np.log(points.loss) - np.log(other.loss(points.params, points.tokens)))
            assert np.where(error < 1e-3, error**2 / 2, 1e-3 * (error - 5e-4)).sum() > huber.sum()


def test_tokens_per_parameter_of_published_laws():
    """Besiroglu et al. 2024: 18.3 and 58.9 at Chinchilla's compute."""
    assert abs(compute_optimal(PUBLISHED, 5.76e23).tokens_per_param - 18.3) < 0.1
    assert abs(compute_optimal(HOFFMANN, 5.76e23).tokens_per_param - 58.9) < 0.1


def test_the_optimum_is_the_lowest_loss_of_its_compute():
    best = compute_optimal(TRUE, 1e20)
    assert relative(6 * best.params * best.tokens, 1e20) < 1e-12
    params = best.params * np.geomspace(0.1, 10, 999)
    assert TRUE.loss(params, 1e20 / (6 * params)).min() >= best.loss


def test_optima_give_the_law_back():
    compute = np.array([1e18, 1e21])
    best = compute_optimal(TRUE, compute)
    size = np.log(best.params[1] / best.params[0]) / np.log(1e3)
    fall = -np.log((best.loss[1] - TRUE.E) / (best.loss[0] - TRUE.E)) / np.log(1e3)
    law = law_of_optima(
        best.params[0] / 1e18**size, size, (best.loss[0] - TRUE.E) * 1e18**fall, fall, TRUE.E
    )
    for found, true in zip(law, TRUE, strict=True):
        assert relative(found, true) < 1e-9


def test_valleys_are_found_and_give_the_law():
    fit = fit_isoflop(isoflop_runs(0.0, 0), resamples=10)
    best = compute_optimal(TRUE, BUDGETS)
    assert len(fit.valleys) == len(BUDGETS) and not fit.left_out
    assert np.abs([v.params for v in fit.valleys] / best.params - 1).max() < 0.05
    assert relative(-fit.size.exponent, TRUE.beta / (TRUE.alpha + TRUE.beta)) < 1e-3
    assert relative(fit.law.alpha, TRUE.alpha) < 0.01 and relative(fit.law.E, TRUE.E) < 0.01


def test_a_valley_without_a_floor_is_left_out_with_its_reason():
    points = isoflop_runs(0.0, 0)
    small = (points.flops > 2e20) & (points.params > compute_optimal(TRUE, BUDGETS[-1]).params)
    fit = fit_isoflop(points.keep(~small), resamples=0)
    assert len(fit.valleys) == 5 and "outside" in fit.left_out[0]


def test_the_envelope_finds_the_best_sizes():
    sizes, tokens = np.geomspace(1e7, 3e9, 40), np.geomspace(1e9, 1e12, 40)
    n, d = (one.ravel() for one in np.meshgrid(sizes, tokens))
    fit = fit_envelope(Points(n, d, TRUE.loss(n, d), ("",) * len(n)))
    best = compute_optimal(TRUE, fit.flops)
    assert np.abs(np.log(fit.params / best.params)).max() < np.log(sizes[1] / sizes[0])
    assert relative(-fit.size.exponent, TRUE.beta / (TRUE.alpha + TRUE.beta)) < 0.03
    assert abs(-fit.size.exponent - fit.tokens.exponent - 1) < 1e-9


def test_kaplans_law_of_size():
    """L(N) = (8.8e13 / N)^0.076 with endless data (Kaplan et al. 2020, equation 1.1)."""
    params = np.geomspace(1e6, 1e9, 8)
    best = (8.8e13 / params) ** 0.076
    twice = Points(
        np.tile(params, 2),
        np.repeat([1e10, 1e30], 8),
        np.concatenate([best * 1.1, best]),
        ("",) * 16,
    )
    fit = fit_kaplan(twice)
    assert relative(fit.size.exponent, 0.076) < 1e-9
    assert relative(fit.size.constant, 8.8e13) < 1e-6
    assert fit.tokens is None and fit.counts[1] == 2


def test_of_each_budget_one_run_counts_for_the_law_of_compute():
    points = isoflop_runs(0.0, 0)
    fit = fit_kaplan(points)
    assert fit.counts[1:] == (0, len(BUDGETS)) and fit.tokens is None


@pytest.mark.parametrize("rows", [(), (3,)])
def test_a_power_law_with_what_stays(rows):
    x = np.geomspace(10, 1e6, 9)
    y = np.broadcast_to(1.5 + 20 * x**-0.31, (*rows, 9))
    fit = fit_power(x, y, irreducible=None)
    assert fit.exponent.shape == rows
    for found, true in zip(fit, (1.5, 20, 0.31), strict=True):
        assert np.abs(found / true - 1).max() < 1e-5


@pytest.mark.slow
def test_repeated_tokens_are_worth_what_they_were():
    """The constants of Muennighoff et al. 2023 are found again in runs made by them."""
    random = np.random.default_rng(0)
    n, unique = 10 ** random.uniform(7, 9.5, 60), 10 ** random.uniform(8, 10, 60)
    d = unique * 10 ** random.uniform(0, 2, 60)
    loss = np.asarray(repeated_loss(TRUE, n, d, unique, 15.39, 5.31))
    fit = fit_repeated(Points(n, d, loss, ("",) * 60, unique), TRUE)
    assert relative(fit.tokens_constant, 15.39) < 0.02
    assert relative(fit.params_constant, 5.31) < 0.02
    once = np.asarray(repeated_loss(TRUE, 1e7, 1e9, 1e9, 15.39, 5.31))
    assert relative(once, TRUE.loss(1e7, 1e9)) < 1e-6  # nothing repeated, nothing in excess


def test_starts_that_cannot_arrive_say_so():
    endless = by_autodiff(lambda x: jnp.exp(-x[0]) + x[1] ** 2)
    found = minimise(endless, np.array([[0.0, 1.0]]), scale=1e-300)
    assert 0 < found.slope[0] < 1e-6


def test_derivatives_by_hand_are_those_by_autodiff():
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        data = [jnp.asarray(random.standard_normal(30)) for _ in range(3)]
        weights, x = jnp.asarray(random.random(30)), jnp.asarray([0.3, -0.2, 0.4, 0.6, 0.1])
        for delta in (0.1, 3.0):
            by_hand = parametric._free(x, *data, delta, weights)

            def objective(x, delta=delta):
                return parametric.huber_sum(x, x[4], *data, delta, weights)

            for ours, theirs in zip(by_hand, by_autodiff(objective)(x), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def coverage(trials: int, noise: float = 0.005, resamples: int = 200) -> dict[str, list[float]]:
    """By approach, the share of trials whose 95% intervals hold alpha, beta, E and the optimal
    loss at ten times the largest compute."""
    far = 10 * BUDGETS[-1]
    true = [TRUE.alpha, TRUE.beta, TRUE.E, float(compute_optimal(TRUE, far).loss)]
    held = {"isoflop": [], "parametric": []}
    for seed in range(trials):
        points = isoflop_runs(noise, seed)
        for name, draws in (
            ("isoflop", fit_isoflop(points, resamples=resamples, seed=seed).law_draws),
            ("parametric", fit_parametric(points, grid=NEAR, resamples=resamples, seed=seed).draws),
        ):
            found = [draws.alpha, draws.beta, draws.E, compute_optimal(draws, far).loss]
            low, high = np.nanquantile(np.array(found), (0.025, 0.975), axis=1)
            held[name].append((low <= true) & (true <= high))
    return {name: np.mean(one, axis=0).tolist() for name, one in held.items()}


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    for name, shares in coverage(200).items():
        assert all(0.90 <= share <= 0.99 for share in shares), (name, shares)


@pytest.mark.slow
def test_a_fit_is_a_folder_that_predicts(tmp_path, capsys):
    points = isoflop_runs(0.003, 3)
    path = write(tmp_path / "runs.csv", points)
    out = tmp_path / "fit"
    assert (
        cli.run(
            ["scale", "fit", str(path), "--hold-out", "3", "--resamples", "20", "--out", str(out)]
        )
        == 0
    )
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "fit.html")
    values = json.loads((out / "fit.json").read_text())
    assert values["runs"] == len(points) - 3 and len(values["held_out"]) == 3
    for name in Law._fields:
        low, high = values["intervals"][name]
        assert low <= values[name] <= high
    for one in values["held_out"]:
        assert abs(one["relative_error"]) < 0.015
    assert (out / "fit.html").read_text().count("<svg") == 5
    assert cli.run(["scale", "predict", str(out), "--flops", "1e21"]) == 0
    assert "a parameter" in capsys.readouterr().out
    made = predict(out, flops=1e21)
    assert relative(made.flops, 1e21) < 1e-9
    assert made.loss.low < made.loss.value < made.loss.high
    assert made.best_loss.high - made.best_loss.low < made.loss.high - made.loss.low


def test_columns_are_mapped_and_tokens_follow_from_compute(tmp_path):
    points = isoflop_runs(0.0, 0)
    path = tmp_path / "runs.csv"
    rows = zip(points.params, points.flops, points.loss, strict=True)
    path.write_text(
        "Model Size,Training FLOP,loss\n" + "".join(f"{n},{c},{y}\n" for n, c, y in rows)
    )
    read = read_csv(path, {"N": "Model Size", "C": "Training FLOP"})
    assert np.abs(read.tokens / points.tokens - 1).max() < 1e-9


@pytest.mark.parametrize(
    ("text", "flags", "says"),
    [
        ("N,D\n1,2\n", [], "no column for loss"),
        ("N,loss\n1,2\n", [], "no column for two of N, D and C"),
        ("N,D,loss\n1e6,1e9,3\n2e6,-5,3\n", [], "runs.csv:3: D is -5"),
        ("N,D,loss\n1e6,1e9,3\n2e6,much,3\n", [], "runs.csv:3: D is 'much'"),
        ("N,D,loss\n1e6,1e9,3\n", ["--column", "N=Size"], "no column 'Size' for N"),
        ("N,D,loss\n1e6,1e9,3\n", ["--column", "M=Size"], "no column 'M' to map"),
        ("N,D,loss\n1e6,1e9,3\n2e6,1e9,2.9\n", [], "the parametric law needs at least 6 runs"),
        (
            "N,D,loss\n" + "".join(f"1e6,{d}e9,{3 - d / 10}\n" for d in range(1, 9)),
            [],
            "every run has the same N",
        ),
        (
            "N,D,loss\n" + "".join(f"{n}e6,1e10,{3 - n / 10}\n" for n in range(1, 9)),
            [],
            "every run has the same D",
        ),
        ("N,D,loss\n1e6,1e9,3,7\n", [], "runs.csv:2: more cells than the header has"),
        ("N,D,loss\n\n\n1e6,1e9,x\n", [], "runs.csv:4: loss is 'x'"),
        ("N,D,loss\n", [], "holds no runs"),
        ("N,D,loss\n1e6,1e9,3\n", ["--hold-out", "1"], "cannot hold out 1 of 1"),
        ("N,D,loss\n1e6,1e9,3\n", ["--irreducible", "much"], "--irreducible must be"),
        ("", [], "no column for loss"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, text, flags, says):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    out = tmp_path / "fit"
    assert cli.run(["scale", "fit", str(path), "--out", str(out), *flags]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not out.exists()


@pytest.mark.slow
def test_a_law_that_was_asked_for_and_is_not_determined_is_an_error(tmp_path):
    random = np.random.default_rng(0)
    n, d = 10 ** random.uniform(6, 9, 20), 10 ** random.uniform(8, 11, 20)
    path = write(tmp_path / "runs.csv", Points(n, d, TRUE.loss(n, d), ("",) * 20))
    with pytest.raises(UserError, match="approach 2 needs at least 3 budgets"):
        fit_scaling(path, tmp_path / "fit", resamples=10, laws=("isoflop",))


@pytest.mark.parametrize("sizes", [np.geomspace(1e6, 1e9, 8), np.geomspace(1e6, 1e9, 24)])
def test_runs_that_do_not_determine_the_law_are_no_fit(sizes):
    """D = 20 N throughout: what N does, D does as well."""
    points = Points(sizes, 20 * sizes, TRUE.loss(sizes, 20 * sizes), ("",) * len(sizes))
    with pytest.raises(UserError, match="do not determine"):
        fit_parametric(points, grid=NEAR, resamples=0)


def test_an_irreducible_loss_above_the_losses_is_refused():
    with pytest.raises(UserError, match="is not below the lowest loss"):
        fit_parametric(isoflop_runs(0.0, 0), irreducible=5.0, resamples=0)


@pytest.mark.slow
def test_runs_that_repeat_are_fitted_apart(tmp_path):
    """The law comes from the others, and what repetition costs from these."""
    random = np.random.default_rng(0)
    once = isoflop_runs(0.0, 0)
    n, unique = 10 ** random.uniform(7.5, 9.5, 40), 10 ** random.uniform(8, 10, 40)
    d = unique * 10 ** random.uniform(0.1, 2, 40)
    loss = np.asarray(repeated_loss(TRUE, n, d, unique, 15.39, 5.31))
    rows = [*zip(once.params, once.tokens, once.loss, once.tokens, strict=True)]
    rows += zip(n, d, loss, unique, strict=True)
    path = tmp_path / "runs.csv"
    lines = [",".join(f"{float(one)!r}" for one in row) for row in rows]
    path.write_text("\n".join(["N,D,loss,U", *lines]) + "\n")
    fitted = fit_scaling(path, tmp_path / "fit", resamples=20, laws=("repeated",))
    assert relative(fitted.parametric.law.beta, TRUE.beta) < 0.01
    assert relative(fitted.repeated.tokens_constant, 15.39) < 0.1
    assert fitted.repeating == 40 and len(fitted.points) == len(once)


def test_what_repetition_costs_must_be_told_by_the_runs():
    n, unique = np.geomspace(1e7, 1e8, 12), np.full(12, 1e10)
    d = np.geomspace(1.5, 4, 12) * unique
    free = Points(n, d, TRUE.loss(n, d), ("",) * 12, unique)  # as if all tokens were new
    with pytest.raises(UserError, match="do not tell"):
        fit_repeated(free, TRUE)
    worn = np.asarray(repeated_loss(TRUE, n, d, unique, 3.0, 5.0))
    fit = fit_repeated(Points(n, d, worn, ("",) * 12, unique), TRUE)
    assert relative(fit.tokens_constant, 3.0) < 0.01
    assert fit.params_constant is None  # none of them is larger than its tokens ask for


def test_predictions_need_to_know_of_what(tmp_path, capsys):
    assert cli.run(["scale", "predict", str(tmp_path / "none.json"), "--flops", "1"]) == 2
    (tmp_path / "fit.json").write_text("{}")
    assert cli.run(["scale", "predict", str(tmp_path), "--flops", "1"]) == 2
    assert "not a fit" in capsys.readouterr().err
    draws = dict.fromkeys(Law._fields, [1.0, 2.0])
    damaged = dict.fromkeys(Law._fields, 1.0) | {"draws": draws, "noise": []}
    (tmp_path / "fit.json").write_text(json.dumps(damaged))
    assert cli.run(["scale", "predict", str(tmp_path), "--flops", "1"]) == 2
    assert "not a fit" in capsys.readouterr().err


def made_run(folder, name: str, layers: int, steps: int, loss: float | None, tokenizer="t"):
    """A run folder as training leaves it, with this loss; None: unfinished."""
    config = PretrainConfig(model=DecoderConfig(vocab_size=50, layers=layers), steps=steps)
    path = folder / name
    path.mkdir(parents=True)
    write_json(path / "config.json", {"stage": "pretrain"} | to_json(config))
    digests = {"tokenizer": tokenizer, "validation": ["v"]}
    write_json(path / "provenance.json", {"digests": digests})
    done = steps if loss is not None else steps // 2
    tokens = done * config.tokens_per_step
    write_json(path / "summary.json", {"steps": done, "tokens": tokens, "val_nats_per_token": loss})
    return config.model


def test_finished_runs_of_a_folder_are_points(tmp_path):
    shape = made_run(tmp_path, "a", 2, 10, 3.0)
    made_run(tmp_path, "b", 3, 20, 2.5)
    made_run(tmp_path, "c", 4, 20, None)
    points, left_out = read_runs(tmp_path)
    assert points.where == ("a", "b") and left_out == ["c"]
    assert points.params[0] == shape.parameters() and points.loss.tolist() == [3.0, 2.5]
    assert points.tokens.tolist() == [10 * 16 * 256, 20 * 16 * 256]
    blocks, _ = read_runs(tmp_path, embeddings=False)
    assert blocks.params[0] == shape.parameters(embeddings=False)
    made_run(tmp_path, "d", 2, 10, 3.0, tokenizer="other")
    with pytest.raises(UserError, match="its tokenizer is another than that of a"):
        read_runs(tmp_path)


def test_a_folder_without_a_finished_run_is_named(tmp_path, capsys):
    made_run(tmp_path / "runs", "c", 4, 20, None)
    out = str(tmp_path / "fit")
    assert cli.run(["scale", "fit", str(tmp_path / "runs"), "--out", out]) == 2
    assert "holds no finished pretraining run; unfinished: c" in capsys.readouterr().err
