"""probes.csv: what a ladder's checkpoints answered, a line each, added as it comes."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import UserError
from ..intervals import Interval
from ..records import write_text, writing


class Measured(NamedTuple):
    """What one checkpoint answered to one probe. Shares lie between 0 and 1, log-probs of the
    right answer are nats, of all of it or of a token in it; low and high: 95% intervals."""

    run: str
    layers: int
    width: int
    N: int
    """Parameters, all."""
    N_blocks: int
    """Without embeddings and head."""
    step: int
    D: int
    """Tokens seen up to this step."""
    C: int
    """FLOPs: 6 N D."""
    probe: str
    shots: int
    questions: int
    right: float
    right_low: float
    right_high: float
    logp: float
    logp_low: float
    logp_high: float
    logp_token: float
    logp_token_low: float
    logp_token_high: float

    @property
    def key(self) -> tuple:
        """What is not asked twice."""
        return self.run, self.step, self.probe, self.shots, self.questions

    @property
    def of_right(self) -> Interval:
        """The share of right answers."""
        return Interval(self.right, self.right_low, self.right_high)

    @property
    def of_token(self) -> Interval:
        """Nats per token of the right answer."""
        return Interval(self.logp_token, self.logp_token_low, self.logp_token_high)


def read_measured(path: Path) -> list[Measured]:
    """The lines of a table, each key once; none where there is no table. A line that is not whole
    is left out, and taken out of the file, so that lines can be added. Raises UserError for a file
    that is another table."""
    if not path.exists():
        return []
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    head, *lines = text.splitlines(keepends=True) or [""]
    if not line_of(Measured._fields).startswith(head):  # a part of it may have been written
        raise UserError(f"{path}: is no table of a ladder's probes; move it away")
    found: dict[tuple, Measured] = {}
    for line in lines:
        one = _measured(line)
        if one:
            found.setdefault(one.key, one)
    whole = line_of(Measured._fields) + "".join(map(line_of, found.values()))
    if whole != text:
        write_text(path, whole)
    return list(found.values())


def add_measured(path: Path, one: Measured) -> None:
    """Add a line; it lies on disk when this returns."""
    with writing(path):
        new = not path.exists()
        with open(path, "a", encoding="utf-8", newline="") as file:
            file.write((line_of(Measured._fields) if new else "") + line_of(one))
            file.flush()
            os.fsync(file.fileno())


def last_of_each(found: Sequence[Measured], probe: str, shots: int) -> list[Measured]:
    """Of each run what its last checkpoint answered to a probe, those of least compute first."""
    last: dict[str, Measured] = {}
    for one in found:
        if (one.probe, one.shots) == (probe, shots):
            last[one.run] = max(last.get(one.run, one), one, key=lambda each: each.step)
    return sorted(last.values(), key=lambda one: (one.C, one.N))


def climb(found: Sequence[Measured], probe: str, shots: int) -> list[Measured]:
    """What all checkpoints answered to a probe, from the end of the least compute on, by compute:
    what lies before is a beginner's way to a language, not to an ability."""
    begin = last_of_each(found, probe, shots)[0].C
    asked = [one for one in found if (one.probe, one.shots) == (probe, shots) and one.C >= begin]
    return sorted(asked, key=lambda one: (one.C, one.N))


def line_of(values: Sequence) -> str:
    """Values as a line of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _measured(line: str) -> Measured | None:
    """A line's values; None where it is not whole."""
    (cells,) = csv.reader([line])
    if not line.endswith("\n") or len(cells) != len(Measured._fields):
        return None
    kinds = Measured.__annotations__.values()
    try:
        return Measured(*(kind(cell) for kind, cell in zip(kinds, cells, strict=True)))
    except ValueError:
        return None
