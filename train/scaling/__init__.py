"""Scaling curves: finished runs -> laws with intervals -> what a larger run will reach.

`sweep` says which runs, `sweep_runs` makes them, `points` reads them, `parametric`, `isoflop`,
`envelope`, `power` and `repeated` fit one law each, `fit` makes of them a folder's `fit.json` and
`fit.html`, `predict` reads it.
"""

from .fit import fit_scaling
from .optimum import compute_optimal
from .points import Points, read_csv
from .predict import predict
from .sweep import Sweep
from .sweep_runs import run_sweep

__all__ = [
    "Points",
    "Sweep",
    "compute_optimal",
    "fit_scaling",
    "predict",
    "read_csv",
    "run_sweep",
]
