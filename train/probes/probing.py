"""`aludel probe`: what a run can do, by kinds of exercises or a file of the user's own."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ...data.exercises import KINDS
from ...data.files import nearest
from ...errors import UserError
from ...model import Execution, MeshConfig, make_mesh
from ..intervals import interval, share
from ..records import write_json
from ..restore import load_params
from ..run import find_run
from .asking import Asked, Question, make_asker, questions_of
from .recall import RECALL, signature_questions
from .sandbox import obstacle

RESULTS = "probes.json"
PROBES = (*KINDS, RECALL)


def probe(
    folder: str,
    *,
    kinds: Sequence[str] = (),
    shots: Sequence[int] = (0, 3),
    count: int = 200,
    file: str | None = None,
    checkpoint: str = "newest",
    run_code: bool = False,
    out: str | None = None,
) -> list[dict]:
    """A record for each probe, also written as JSON: how often the right answer was given, and its
    log-prob, with 95% intervals over questions. Raises UserError for what the user can mend."""
    check_kinds(kinds)
    if count < 1 or min(shots, default=0) < 0:
        raise UserError("--questions must be at least 1 and --shots must not be negative")
    if run_code and obstacle():
        raise UserError(obstacle())
    run = find_run(folder)
    config = run.config()
    execution = Execution()
    params, meta = load_params(run, make_mesh(MeshConfig(data=1)), execution, checkpoint)
    ask = make_asker(config.model, run.tokenizer(), execution, run_code)
    found = []
    for kind, number, questions in _probes(kinds, shots, count, file):
        answers = ask(params, questions)
        found.append({"probe": kind, "shots": number, **figures(answers)})
    write_json(
        Path(out).expanduser() if out else run.path / RESULTS,
        {"run": str(run.path.absolute()), "step": meta["step"], "probes": found},
    )
    return found


def _probes(kinds: Sequence[str], shots: Sequence[int], count: int, file: str | None):
    if file:
        yield Path(file).stem, 0, read_questions(file)
        return
    for kind in kinds or PROBES:
        for number in shots:
            yield kind, number, questions_about(kind, number, count)


def check_kinds(kinds: Sequence[str]) -> None:
    """`UserError` for a kind that there is not."""
    for kind in kinds:
        if kind not in PROBES:
            raise UserError(f"no probe of kind {kind!r}{nearest(kind, PROBES)}")


def questions_about(kind: str, shots: int, count: int) -> list[Question]:
    """Of one of PROBES: exercises, or what is remembered of Python's library."""
    ask = signature_questions if kind == RECALL else partial(questions_of, kind)
    return ask(shots, count)


def figures(answers: Sequence[Asked]) -> dict:
    """Of the answers to one probe: shares, nats, each with its interval."""
    right = share(sum(one.right for one in answers), len(answers))
    logp = interval([[one.logp for one in answers]])
    by_token = interval([[one.logp / one.tokens for one in answers]])
    return {
        "questions": len(answers),
        "right": list(right),
        "logp_nats": list(logp),
        "logp_nats_per_token": list(by_token),
    }


def read_questions(path: str) -> list[Question]:
    """A user's own probe: a JSON object with `prompt` and `answer` on each line."""
    where = Path(path).expanduser()
    out = []
    try:
        lines = where.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            prompt, answer = record["prompt"], record["answer"]
        except (ValueError, KeyError, TypeError):
            prompt = answer = None
        texts = isinstance(prompt, str) and isinstance(answer, str) and prompt and answer
        if not texts or "\n" in answer:
            raise UserError(
                f"{where}:{number}: is no object with texts `prompt` and `answer`, of one line"
            )
        out.append(Question(prompt, answer))
    if not out:
        raise UserError(f"{where}: holds no question")
    return out


def table_of(found: Sequence[dict]) -> list[tuple[str, ...]]:
    """Rows for a person."""
    rows = [("probe", "examples", "questions", "right", "nats of the right answer", "a token")]
    for one in found:
        mean, low, high = one["right"]
        rows.append(
            (
                *(one["probe"], str(one["shots"]), str(one["questions"])),
                f"{mean:.1%} ({low:.1%} to {high:.1%})",
                "{:.2f} ({:.2f} to {:.2f})".format(*one["logp_nats"]),
                "{:.2f} ({:.2f} to {:.2f})".format(*one["logp_nats_per_token"]),
            )
        )
    return rows
