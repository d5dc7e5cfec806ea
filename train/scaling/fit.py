"""`aludel scale fit`: runs -> every law that they determine -> fit.json and fit.html."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import UserError
from ..config import to_json
from ..intervals import Interval
from ..records import write_json, write_text, writing
from ..run import Run
from .envelope import EnvelopeFit, fit_envelope
from .isoflop import IsoflopFit, fit_isoflop
from .kaplan import KaplanFit, fit_kaplan
from .parametric import Law, ParametricFit, fit_parametric
from .points import Points, read_csv, split_by_compute, without_highest
from .predict import FIELDS, FIT, LEVEL, between, predicted_loss
from .recipe import recipe_of
from .repeated import RepeatedFit, fit_repeated
from .runs import read_runs

PAGE = "fit.html"
LAWS = ("parametric", "isoflop", "envelope", "kaplan", "repeated")
FAR = 5.0  # median absolute deviations: residuals beyond are named


class Fitted(NamedTuple):
    """All that was found; a law that the runs do not determine is a reason, as text."""

    points: Points  # that were fitted: of them none repeats tokens
    dropped: int
    repeating: int  # runs that do, of which `repeated` is
    held_out: Points
    parametric: ParametricFit
    isoflop: IsoflopFit | str
    envelope: EnvelopeFit | str
    kaplan: KaplanFit | str
    repeated: RepeatedFit | str

    @property
    def residuals(self) -> np.ndarray:
        """log L - log L(N, D) of each run."""
        law, points = self.parametric.law, self.points
        return np.log(points.loss) - np.log(law.loss(points.params, points.tokens))

    @property
    def noise(self) -> np.ndarray:
        """The residuals, as wide as what they are left of: the law's parameters took their part."""
        count, free = len(self.points), self.parametric.free
        return self.residuals * np.sqrt(count / (count - free))

    def predictions(self) -> list[Interval]:
        """Of the runs that were held out."""
        law, draws = self.parametric.law, self.parametric.draws
        return [
            predicted_loss(law, draws, self.noise, n, d)
            for n, d in zip(self.held_out.params, self.held_out.tokens, strict=True)
        ]

    def outliers(self) -> list[int]:
        """Runs whose residual lies beyond FAR median absolute deviations; they stay in the fit."""
        off = np.abs(self.residuals - np.median(self.residuals))
        return [int(i) for i in np.flatnonzero(off > FAR * max(np.median(off), 1e-12))]


def fit_scaling(
    source: str | Path,
    out: str | Path,
    columns: Mapping[str, str] | None = None,
    drop_highest: int = 0,
    hold_out: int = 0,
    irreducible: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
    laws: Sequence[str] = (),
    embeddings: bool = True,
    validation: str = "",
) -> Fitted:
    """Fit the runs of a CSV file, or those in a folder (`embeddings`: how their parameters are
    counted; `validation`: the source of a mixture that the loss is of), and write fit.json and
    fit.html into `out`.

    The parametric law must be determined; of the others those named in `laws`, while any other
    that is not is left out with its reason. Raises UserError, and then writes nothing.
    """
    from .page import page

    source, out = Path(source).expanduser(), Path(out).expanduser()
    everything, unfinished = _read(source, columns, embeddings, validation)
    points, held_out = split_by_compute(without_highest(everything, drop_highest), hold_out)
    # Of runs that repeat tokens, what the repetition costs is fitted afterwards.
    once = (
        points.keep(points.tokens <= 1.001 * points.unique) if points.unique is not None else points
    )
    parametric = fit_parametric(once, irreducible, resamples, seed)

    def attempt(name: str, fit) -> Any:
        try:
            return fit()
        except UserError as reason:
            if name in laws:
                raise
            return str(reason)

    fitted = Fitted(
        once,
        len(everything) - len(points) - len(held_out),
        len(points) - len(once),
        held_out,
        parametric,
        attempt("isoflop", lambda: fit_isoflop(once, irreducible, resamples, seed)),
        attempt("envelope", lambda: fit_envelope(once)),
        attempt("kaplan", lambda: fit_kaplan(once, irreducible or 0.0)),
        attempt("repeated", lambda: fit_repeated(points, parametric.law)),
    )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    recipe = None  # a table has none
    if source.is_dir():
        configs = [Run(source / name).config() for name in everything.where]
        recipe = to_json(recipe_of(configs, embeddings))
    about = {"source": source.name, "unfinished": unfinished, "recipe": recipe}
    write_json(out / FIT, as_json(fitted) | about)
    write_text(out / PAGE, page(fitted, source.name))
    return fitted


def _read(
    source: Path, columns: Mapping[str, str] | None, embeddings: bool, validation: str
) -> tuple[Points, list[str]]:
    if not source.is_dir():
        if validation:
            raise UserError(f"{source}: is no folder of runs: map its column, --column loss=NAME")
        return read_csv(source, columns), []
    if columns:
        raise UserError(f"{source}: is a folder of runs: it has no columns to map")
    return read_runs(source, embeddings, validation)


def as_json(fitted: Fitted) -> dict[str, Any]:
    """What fit.json holds."""
    law, draws = fitted.parametric.law, fitted.parametric.draws
    values: dict[str, Any] = {name: float(getattr(law, name)) for name in FIELDS}
    values |= {
        "objective": fitted.parametric.objective,
        "runs": len(fitted.points),
        "runs_dropped": fitted.dropped,
        "runs_repeating": fitted.repeating,
        "level": LEVEL,
        "intervals": {name: interval_of(law, draws, name)[1:] for name in FIELDS},
        "starts": fitted.parametric.starts,
        "starts_arrived": fitted.parametric.arrived,
        "outliers": [fitted.points.where[i] for i in fitted.outliers()],
        "held_out": [
            {
                "run": where,
                "params": n,
                "tokens": d,
                "loss": loss,
                "predicted": guess.value,
                "interval": [guess.low, guess.high],
                "relative_error": guess.value / loss - 1,
            }
            for where, n, d, loss, guess in zip(
                fitted.held_out.where,
                fitted.held_out.params.tolist(),
                fitted.held_out.tokens.tolist(),
                fitted.held_out.loss.tolist(),
                fitted.predictions(),
                strict=True,
            )
        ],
        "isoflop": _isoflop_json(fitted.isoflop),
        "envelope": _envelope_json(fitted.envelope),
        "kaplan": _kaplan_json(fitted.kaplan),
        "repeated": _or_reason(fitted.repeated, lambda fit: fit._asdict()),
        "noise": [float(f"{one:.6g}") for one in fitted.noise],
        "draws": {name: [float(f"{one:.8g}") for one in getattr(draws, name)] for name in FIELDS},
    }
    return values


def interval_of(law: Law, draws: Law, name: str) -> Interval:
    """Of one of the law's parameters."""
    return between(float(getattr(law, name)), getattr(draws, name))


def _or_reason(fit: Any, make) -> Any:
    return {"left_out": fit} if isinstance(fit, str) else make(fit)


def _isoflop_json(fit: IsoflopFit | str) -> dict:
    def make(fit: IsoflopFit) -> dict:
        exponent = between(-float(fit.size.exponent), -fit.size_draws.exponent)
        out = {
            "size_exponent": exponent.value,
            "size_exponent_interval": exponent[1:],
            "valleys": [
                {
                    "flops": one.flops,
                    "runs": len(one.members),
                    "best_params": one.params,
                    "best_loss": one.loss,
                }
                for one in fit.valleys
            ],
            "valleys_left_out": fit.left_out,
        }
        if fit.law is not None:
            out |= {name: float(getattr(fit.law, name)) for name in FIELDS}
            out["intervals"] = {n: interval_of(fit.law, fit.law_draws, n)[1:] for n in FIELDS}
        return out

    return _or_reason(fit, make)


def _envelope_json(fit: EnvelopeFit | str) -> dict:
    def make(fit: EnvelopeFit) -> dict:
        return {
            "size_exponent": -float(fit.size.exponent),
            "tokens_exponent": -float(fit.tokens.exponent),
            "points": [
                {"flops": c, "params": n, "loss": loss}
                for c, n, loss in zip(*(x.tolist() for x in fit[:3]), strict=True)
            ],
        }

    return _or_reason(fit, make)


def _kaplan_json(fit: KaplanFit | str) -> dict:
    def make(fit: KaplanFit) -> dict:
        return {
            name: {
                "exponent": float(law.exponent),
                "constant": float(law.constant),
                "irreducible": float(law.irreducible),
                "points": count,
            }
            for name, law, count in zip(("N", "D", "C"), fit[:3], fit.counts, strict=True)
            if law is not None
        }

    return _or_reason(fit, make)
