"""Runs as points: parameters N, tokens D, final loss; compute C is 6 N D."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...data.files import nearest
from ...errors import UserError

COLUMNS = ("N", "D", "C", "loss", "U")


class Points(NamedTuple):
    """One point a run. `where` says where each was read, for errors and tables."""

    params: np.ndarray  # f64[n], N
    tokens: np.ndarray  # f64[n], D
    loss: np.ndarray  # f64[n], nats per token or bits per byte: the fit's unit is the data's
    where: tuple[str, ...]
    unique: np.ndarray | None = None  # f64[n], tokens that differ; None: no token is seen twice

    @property
    def flops(self) -> np.ndarray:
        """C = 6 N D (Kaplan et al. 2020, section 2.1)."""
        return 6.0 * self.params * self.tokens

    def __len__(self) -> int:
        return len(self.params)

    def keep(self, chosen: np.ndarray) -> "Points":
        """The points that a mask or an index chooses."""
        index = np.arange(len(self))[chosen]
        unique = None if self.unique is None else self.unique[index]
        names = tuple(self.where[i] for i in index)
        return Points(self.params[index], self.tokens[index], self.loss[index], names, unique)


def read_csv(path: str | Path, columns: Mapping[str, str] | None = None) -> Points:
    """The points of a CSV file with a header.

    It needs loss and two of N, D, C, the third being 6 N D; of all three C is left aside, unless
    `columns` names it and not D. U, tokens that differ, may be there. `columns` maps these names to
    the file's own. Raises UserError for what is missing, not a number, or not positive, with its
    row.
    """
    path = Path(path).expanduser()
    columns = dict(columns or {})
    for name in columns:
        if name not in COLUMNS:
            raise UserError(
                f"no column {name!r} to map: N, D, C, loss or U{nearest(name, COLUMNS)}"
            )
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            header = [name.strip() for name in rows.fieldnames or ()]
            rows.fieldnames = header
            records = [(rows.reader.line_num, row) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file: {error}") from None
    for name, column in columns.items():
        if column not in header:
            raise UserError(f"{path}: no column {column!r} for {name}{nearest(column, header)}")
    found = {n: columns.get(n, n) for n in COLUMNS if columns.get(n, n) in header}
    if "loss" not in found or len(found.keys() & {"N", "D", "C"}) < 2:
        missing = "loss" if "loss" not in found else "two of N, D and C"
        raise UserError(
            f"{path}: no column for {missing} among {', '.join(header) or 'none'}; "
            "map one with --column NAME=COLUMN"
        )
    if {"N", "D", "C"} <= found.keys():
        found.pop("D" if "C" in columns and "D" not in columns else "C")
    for line, row in records:
        if None in row:
            raise UserError(f"{path}:{line}: more cells than the header has")
    if not records:
        raise UserError(f"{path}: holds no runs")
    values = {
        name: np.array([_positive(path, line, row, column) for line, row in records])
        for name, column in found.items()
    }
    if "N" not in values:
        values["N"] = values["C"] / (6.0 * values["D"])
    if "D" not in values:
        values["D"] = values["C"] / (6.0 * values["N"])
    where = tuple(f"{path.name}:{line}" for line, _ in records)
    return Points(values["N"], values["D"], values["loss"], where, values.get("U"))


def _positive(path: Path, line: int, row: Mapping[str, str], column: str) -> float:
    text = (row[column] or "").strip()
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{path}:{line}: {column} is {text!r}, not a number") from None
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{path}:{line}: {column} is {text}; it must be positive")
    return value


def without_highest(points: Points, count: int) -> Points:
    """All points whose loss lies below the `count`-th highest (Besiroglu et al. 2024 drop 5)."""
    if count == 0:
        return points
    if count >= len(points):
        raise UserError(f"cannot drop {count} of {len(points)} runs")
    return points.keep(points.loss < np.sort(points.loss)[-count])


def split_by_compute(points: Points, held_out: int) -> tuple[Points, Points]:
    """(the others, the `held_out` points of most compute)."""
    if held_out >= len(points):
        raise UserError(f"cannot hold out {held_out} of {len(points)} runs")
    order = np.argsort(points.flops, kind="stable")
    cut = len(points) - held_out
    return points.keep(np.sort(order[:cut])), points.keep(np.sort(order[cut:]))


def check_enough(points: Points, needed: int, law: str, sizes: int = 2) -> None:
    """Raise UserError where a law cannot be fitted to so few points, or to so few sizes."""
    if len(points) < needed:
        raise UserError(f"{law} needs at least {needed} runs, and there are {len(points)}")
    for what, name, values in (("sizes", "N", points.params), ("lengths", "D", points.tokens)):
        if len(distinct(values)) < sizes:
            raise UserError(
                f"{law} needs runs of at least {sizes} {what}, and every run has the same {name}"
            )


def distinct(values: Sequence[float], tolerance: float = 1e-3) -> np.ndarray:
    """The values that differ by more than a share of `tolerance`, in order."""
    ordered = np.sort(np.asarray(values, float))
    first = np.concatenate([[True], np.diff(np.log(ordered)) > tolerance])
    return ordered[first]
