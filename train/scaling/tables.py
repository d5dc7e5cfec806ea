"""What was found, in rows of text: for the terminal and for the page."""

from ..intervals import Interval
from .fit import Fitted, interval_of
from .predict import FIELDS, Prediction, between
from .recipe import RATES, Recipe, nearest_size

SHOWN = {"alpha": "α", "beta": "β"}


def parameter_rows(fitted: Fitted) -> list[tuple[str, str, str]]:
    """(name, value, interval) of the parametric law, and how well it was found."""
    law, draws = fitted.parametric.law, fitted.parametric.draws
    rows = []
    for name in FIELDS:
        found = interval_of(law, draws, name)
        rows.append((SHOWN.get(name, name), number(found.value), span(found)))
    fit = fitted.parametric
    says = f"{fit.arrived:,} of {fit.starts:,} starts converged"
    rows.append(("objective", f"{fit.objective:.8f}", says))
    outliers = [fitted.points.where[i] for i in fitted.outliers()]
    if outliers:
        rows.append(("outliers", str(len(outliers)), f"kept: {', '.join(outliers)}"))
    return rows


def approaches(fitted: Fitted) -> list[tuple[str, str, str]]:
    """(law, what it says, its interval or how it was had) of the others."""
    rows = []
    total = fitted.parametric.law.alpha + fitted.parametric.law.beta
    draws = fitted.parametric.draws
    exponent = between(
        float(fitted.parametric.law.beta / total), draws.beta / (draws.alpha + draws.beta)
    )
    rows.append(("parametric", f"best N ~ C^{exponent.value:.3f}", span(exponent)))
    if isinstance(fitted.isoflop, str):
        rows.append(("iso-FLOP valleys", "left out", fitted.isoflop))
    else:
        fit = fitted.isoflop
        exponent = between(-float(fit.size.exponent), -fit.size_draws.exponent)
        rows.append(
            (
                f"iso-FLOP valleys ({len(fit.valleys)})",
                f"best N ~ C^{exponent.value:.3f}",
                span(exponent),
            )
        )
        if fit.law is not None:
            for name in ("E", "alpha", "beta"):
                found = interval_of(fit.law, fit.law_draws, name)
                rows.append(("", f"{SHOWN.get(name, name)} {number(found.value)}", span(found)))
    if isinstance(fitted.envelope, str):
        rows.append(("envelope", "left out", fitted.envelope))
    else:
        fit = fitted.envelope
        rows.append(
            ("envelope", f"best N ~ C^{-fit.size.exponent:.3f}", f"{len(fit.flops)} sizes win")
        )
    if isinstance(fitted.kaplan, str):
        rows.append(("Kaplan's laws", "left out", fitted.kaplan))
    else:
        for name, law in zip(("N", "D", "C"), fitted.kaplan[:3], strict=True):
            if law is None:
                continue
            rows.append(
                (
                    f"Kaplan, {name} alone",
                    f"L ~ ({number(float(law.constant))} / {name})^{law.exponent:.4f}",
                    f"irreducible {law.irreducible:g}",
                )
            )
    if isinstance(fitted.repeated, str):
        rows.append(("repeated tokens", "left out", fitted.repeated))
    else:
        fit = fitted.repeated
        rows.append(
            (
                "repeated tokens",
                f"R*_D {fit.tokens_constant:.3g}",
                "R*_N is not told"
                if fit.params_constant is None
                else f"R*_N {fit.params_constant:.3g}",
            )
        )
    return rows


def held_out_rows(fitted: Fitted) -> list[tuple[str, ...]]:
    """(run, N, D, loss, predicted, interval, error) of the runs that were held out."""
    held = fitted.held_out
    return [
        (
            held.where[i],
            number(held.params[i]),
            number(held.tokens[i]),
            f"{held.loss[i]:.4f}",
            f"{guess.value:.4f}",
            f"{guess.low:.4f} to {guess.high:.4f}",
            f"{100 * (guess.value / held.loss[i] - 1):+.2f}%",
        )
        for i, guess in enumerate(fitted.predictions())
    ]


def prediction_rows(made: Prediction) -> list[tuple[str, str, str]]:
    """(name, value, interval) of what a fit predicts."""
    return [
        ("parameters", number(made.params), ""),
        ("tokens", number(made.tokens), f"{made.tokens / made.params:.3g} a parameter"),
        ("FLOPs", number(made.flops), "6 N D"),
        ("loss", f"{made.loss.value:.4f}", f"{made.loss.low:.4f} to {made.loss.high:.4f}"),
        (
            "best at this compute: parameters",
            number(made.best_params.value),
            span(made.best_params),
        ),
        (
            "tokens",
            number(float(made.best.tokens)),
            f"{float(made.best.tokens_per_param):.3g} a parameter",
        ),
        ("loss", f"{made.best_loss.value:.4f}", span(made.best_loss)),
    ]


def recipe_rows(recipe: Recipe | None, params: float) -> list[tuple[str, str, str]]:
    """(name, value, what it holds for) of how to train a run of N = `params` as the fit's were."""
    if recipe is None:
        says = "the fit comes of a table, or was made before fits kept rates and batch"
        return [("recipe", "unknown", says)]
    found = nearest_size(recipe, params)
    if found is None:
        size = ("nearest size", "unknown", "the runs have no one rule of width and depth")
    else:
        model, count = found
        shape = f"{model.layers:,} blocks, {model.width:,} wide"
        size = ("nearest size of the runs' rule", shape, f"{number(count)} parameters")
    if recipe.tokens_per_step is None:
        batch = ("batch", "unknown", "the runs differ in it")
    else:
        says = "as the runs had it; aludel scale noise RUN says up to what batch more rows help"
        batch = ("batch", f"{recipe.tokens_per_step:,} tokens", says)
    return [size, *_rate_rows(recipe), batch]


def _rate_rows(recipe: Recipe) -> list[tuple[str, str, str]]:
    """The rate of matrices, and those of the groups that have another."""
    carried = (
        _carried("width", recipe.tuned_width, recipe.widths, recipe.optimizer),
        _carried("layers", recipe.tuned_layers, recipe.layers, recipe.optimizer),
    )
    optimizer = recipe.optimizer or "the runs differ in the optimiser"
    rows = [(f"learning rate ({optimizer})", _rate(recipe.learning_rate), "; ".join(carried))]
    for field, group in RATES.items():
        rate = getattr(recipe, field)
        if group != "matrix" and (rate is None or rate != recipe.learning_rate):
            rows.append((f"  {group}", _rate(rate), ""))
    return rows


def _rate(rate: float | None) -> str:
    return "unknown: the runs differ" if rate is None else f"{rate:g}"


def _carried(what: str, tuned: int | None, had: tuple[int, ...], optimizer: str | None) -> str:
    """Of which widths, or depths, a rate holds."""
    if tuned is None:
        return f"the runs differ in model.tuned_{what}"
    if tuned:  # an update of Muon's has the same norm at any width
        scaled = "the head's" if (optimizer, what) == ("muon", "width") else "it"
        return f"model.tuned_{what} = {tuned} scales {scaled}"
    name = {"width": "widths", "layers": "depths"}[what]
    return f"tuned for the runs' {name} only ({', '.join(map(str, had))})"


def number(value: float) -> str:
    """Four digits, large ones with an exponent."""
    return f"{value:,.4g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def span(interval: Interval) -> str:
    """From low to high."""
    return f"{number(interval.low)} to {number(interval.high)}"
