"""The command `aludel scale`: the runs of a sweep, laws fitted to runs, what they predict, and the
batch that a run has use for."""

from pathlib import Path

from ..errors import AGAIN, UserError
from ..memory import keep_memory
from .ending import stoppable
from .parsing import Parser, add_probes, subcommand, taken
from .settings import find_config


def scale(args: list[str]) -> int:
    """Scaling curves: the runs of a ladder, the laws of runs, and what can be asked of both."""
    usage = (
        "usage: aludel scale run SWEEP [flags]           the runs of a ladder that are missing\n"
        "       aludel scale fit RUNS|FILE.csv [flags]   laws of finished runs, with intervals\n"
        "       aludel scale predict FIT [flags]         the loss of a run that was not made\n"
        "       aludel scale probe FOLDER [flags]        what a ladder can do, and if suddenly\n"
        "       aludel scale noise RUN [flags]           up to what batch more rows save steps"
    )
    commands = {
        "run": scale_run,
        "fit": scale_fit,
        "predict": scale_predict,
        "probe": scale_probe,
        "noise": scale_noise,
    }
    return subcommand("scale", commands, usage, args)


def scale_run(args: list[str]) -> int:
    """Make the runs of a sweep that are missing."""
    from ..configs import names_of

    if not args or args[0] in ("-h", "--help"):
        print("usage: aludel scale run SWEEP [--shard I/N] [--out DIR] [--dry-run] [--FIELD VALUE]")
        print("\nSWEEP is the path of a Python file that sets `config`, a Sweep, or one of")
        print(f"  {'  '.join(names_of('scale run'))}")
        print("\n--shard 1/2 makes the first of two parts; machines may share the folder.")
        print("--dry-run lists the runs, their parameters, tokens and FLOPs.")
        print("\naludel scale run SWEEP --help lists every field with its default and its meaning.")
        return 0
    from ..train.config import with_out
    from ..train.flags import parse_flags
    from ..train.scaling.sweep import planned, share_of, tuning_runs
    from ..train.scaling.sweep_runs import plan_rows, run_sweep, settled
    from ..train.sizes import table

    name, *flags = args
    dry = "--dry-run" in flags
    shard, flags = taken([flag for flag in flags if flag != "--dry-run"], "--shard")
    part = shard_of(shard or "1/1")
    sweep = parse_flags(find_config(name, "scale run"), flags, f"aludel scale run {name}")
    sweep = with_out(sweep, Path("runs") / Path(name).stem)
    if dry:
        whole, _ = settled(sweep.resolved())
        runs = share_of(planned(whole), part)
        runs = [*tuning_runs(whole), *runs] if part[0] == 1 else runs
        print("\n".join(table(plan_rows(runs))))
        return 0
    out = stoppable(lambda: run_sweep(sweep, part))
    if out is None:
        return AGAIN
    print(out)
    return 0


def shard_of(text: str) -> tuple[int, int]:
    """(i, n) of I/N."""
    own, slash, machines = text.partition("/")
    if not (slash and own.isdecimal() and machines.isdecimal() and 0 < int(own) <= int(machines)):
        raise UserError(f"--shard must be I/N with I from 1 to N, for example 1/2, not {text!r}")
    return int(own), int(machines)


def scale_fit(args: list[str]) -> int:
    """Fit scaling laws to finished runs."""
    parser = Parser(
        "aludel scale fit",
        description="Fit L(N, D) = E + A/N^alpha + B/D^beta, and every other law that the runs "
        "determine. Compute is 6 N D.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", metavar="RUNS|FILE.csv", help="a folder of runs; or columns loss and two of N, D, C"
    )
    parser.add_argument(
        "--count",
        default="all",
        choices=("all", "blocks"),
        help="a run's parameters: all, or without embeddings and head (all)",
    )
    parser.add_argument(
        "--column",
        metavar="NAME=COLUMN",
        action="append",
        default=[],
        help="which column holds N, D, C, loss, or U (tokens that differ); may be repeated",
    )
    parser.add_argument(
        "--validation",
        default="",
        metavar="SOURCE",
        help="of runs on a mixture, the loss on this source (on all of them together)",
    )
    parser.add_argument("--drop-highest", type=int, default=0, help="runs of highest loss (0)")
    parser.add_argument("--hold-out", type=int, default=0, help="runs of most compute (0)")
    parser.add_argument("--irreducible", default="free", help="E: free, or a number (free)")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    parser.add_argument(
        "--law",
        action="append",
        default=[],
        choices=("isoflop", "envelope", "kaplan", "repeated"),
        help="fail where this one is not determined; may be repeated",
    )
    parser.add_argument("--out", help="the folder for fit.json and fit.html (runs/NAME-law)")
    options = parser.parse(args)
    from ..train.scaling import fit_scaling
    from ..train.scaling.page import counted
    from ..train.scaling.tables import approaches, held_out_rows, parameter_rows
    from ..train.sizes import table

    for name in ("drop_highest", "hold_out", "resamples", "seed"):
        if getattr(options, name) < 0:
            raise UserError(f"--{name.replace('_', '-')} must not be negative")
    out = Path(options.out or Path("runs") / f"{Path(options.runs).stem}-law")
    fitted = fit_scaling(
        options.runs,
        out,
        columns=dict(named_column(one) for one in options.column),
        drop_highest=options.drop_highest,
        hold_out=options.hold_out,
        irreducible=number_or_free(options.irreducible),
        resamples=options.resamples,
        seed=options.seed,
        laws=options.law,
        embeddings=options.count == "all",
        validation=options.validation,
    )
    print(counted(fitted))
    print("\n".join(table(parameter_rows(fitted))))
    print("\n" + "\n".join(table(approaches(fitted))))
    if len(fitted.held_out):
        print("\n" + "\n".join(table(held_out_rows(fitted))))
    print(out / "fit.html")
    return 0


def named_column(text: str) -> tuple[str, str]:
    """(name, column) of NAME=COLUMN."""
    name, equals, column = text.partition("=")
    if not (equals and name and column):
        raise UserError(f"--column must be NAME=COLUMN, not {text!r}")
    return name, column


def number_or_free(text: str) -> float | None:
    """A number that is not negative, or None for free."""
    if text == "free":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"--irreducible must be free or a number from 0, not {text!r}")
    return value


def scale_predict(args: list[str]) -> int:
    """Predict a run's loss from a fit."""
    parser = Parser(
        "aludel scale predict",
        description="The loss of a run that was not made, with an interval, the split of its "
        "compute at which the law's loss is lowest, and the size, learning rates and batch by the "
        "rule of the fit's runs.",
        allow_abbrev=False,
    )
    parser.add_argument("fit", metavar="FIT", help="fit.json, or the folder that holds it")
    parser.add_argument("--params", type=float, help="N")
    parser.add_argument("--tokens", type=float, help="D")
    parser.add_argument("--flops", type=float, help="C = 6 N D: alone, it is split at best")
    options = parser.parse(args)
    from ..train.scaling import predict
    from ..train.scaling.recipe import read_recipe
    from ..train.scaling.tables import prediction_rows, recipe_rows
    from ..train.sizes import table

    made = predict(options.fit, options.params, options.tokens, options.flops)
    advice = recipe_rows(read_recipe(options.fit), made.params)
    print("\n".join(table([*prediction_rows(made), *advice])))
    return 0


def scale_probe(args: list[str]) -> int:
    """Ask what the runs of a ladder can do."""
    parser = Parser(
        "aludel scale probe",
        description="What a ladder can do: every kept checkpoint of the longest run of each size "
        "is asked, and right answers and log-probs are drawn against compute. The same command "
        "goes on after an interruption.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="FOLDER", help="the folder of a sweep's runs")
    parser.add_argument("--control", metavar="FOLDER", help="of a like sweep on other text")
    add_probes(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="where emergence.html and emergence.png go (FOLDER)"
    )
    options = parser.parse(args)
    from ..train.probes.emergence import emerge
    from ..train.probes.page import reading_rows
    from ..train.sizes import table

    keep_memory()

    def probed() -> Path:
        readings, page = emerge(
            options.folder,
            control=options.control,
            kinds=options.kind,
            shots=options.shots,
            count=options.questions,
            run_code=options.run_code,
            out=options.out,
        )
        print("\n".join(table(reading_rows(readings))))
        return page

    page = stoppable(probed)
    if page is None:
        return AGAIN
    print(page)
    return 0


def scale_noise(args: list[str]) -> int:
    """Measure the gradient noise scale of a run."""
    parser = Parser(
        "aludel scale noise",
        description="The gradient noise scale of a run (McCandlish et al. 2018): well below it a "
        "batch twice as large nearly halves the steps, far above it more rows only cost text.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a pretraining run")
    parser.add_argument("--checkpoint", default="newest", help="newest, best or a step (newest)")
    parser.add_argument("--batches", type=int, default=32, help="gradients to compare (32)")
    parser.add_argument("--rows", type=int, help="in each of them (the run's batch)")
    options = parser.parse(args)
    from ..train.scaling.noise import measure, noise_rows
    from ..train.sizes import table

    keep_memory()
    found = measure(
        options.run, checkpoint=options.checkpoint, count=options.batches, rows=options.rows
    )
    print("\n".join(table(noise_rows(found))))
    return 0
