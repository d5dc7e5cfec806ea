"""`aludel scale probe`: what a ladder of sizes can do, along its training and its sizes."""

from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError
from ..loop import Signals
from ..records import write_text, writing
from ..run import TOKENIZER
from .ladder import Probe, probe_ladder, rungs
from .page import Asked, page, readings_of, sizes_of, words_of
from .pictures import PAPER, picture, png
from .probing import PROBES, check_kinds, questions_about
from .reading import Reading
from .sandbox import obstacle

PAGE, PICTURE = "emergence.html", "emergence.png"


def emerge(
    folder: str | Path,
    *,
    control: str | Path | None = None,
    kinds: Sequence[str] = (),
    shots: Sequence[int] = (0, 3),
    count: int = 200,
    run_code: bool = False,
    out: str | Path | None = None,
) -> tuple[dict[Asked, Reading], Path]:
    """(the reading of each probe, the page) of a sweep's folder: every kept checkpoint of every
    size is asked, as probes.csv in the folder does not know it yet; page and picture are written
    to `out`, or the folder. `control`: the folder of a like sweep on other text.

    Raises UserError for what the user can mend, StoppedError where a signal came.
    """
    check_kinds(kinds)
    if count < 1 or min(shots) < 0:
        raise UserError("--questions must be at least 1 and --shots must not be negative")
    if run_code and obstacle():
        raise UserError(obstacle())
    ladders = [Path(one).expanduser() for one in (folder, control) if one]
    runs = [rungs(ladder) for ladder in ladders]  # a mistake in either ends it before the work
    place = Path(out).expanduser() if out else ladders[0]
    probes = [
        probe_of(kind, number, count, run_code)
        for kind in dict.fromkeys(kinds or PROBES)
        for number in dict.fromkeys(shots)
    ]
    with Signals() as signals:
        found, *others = (probe_ladder(one, probes, signals, run_code) for one in ladders)
    beside = others[0] if others else []
    if not found:
        raise UserError(f"{folder}: holds no checkpoint beyond step 0")
    readings = readings_of(found)
    notes = [f"The control, dashed and grey: {ladders[1]}, {sizes_of(beside)}."] if beside else []
    if len({(one[0].path / TOKENIZER).read_text() for one in runs}) > 1:
        notes.append("Its tokenizer is another: its nats per token do not compare with these.")
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
    first = next(iter(readings))[1]
    with writing(place / PICTURE):
        png(
            picture(found, beside, first, words_of(readings, first), PAPER),
            place / PICTURE,
        )
    write_text(place / PAGE, page(str(ladders[0]), found, beside, readings, notes))
    return readings, place / PAGE


def probe_of(kind: str, shots: int, count: int, run_code: bool) -> Probe:
    """The questions of a kind; what is judged by running it is another probe in the table."""
    questions = questions_about(kind, shots, count)
    runs = run_code and any(one.calls for one in questions)
    return Probe(f"{kind}-run" if runs else kind, shots, questions)
