"""The command `aludel`: parse, call one room, print. Rooms are imported when they are needed."""

import importlib
import importlib.util
import os
import shlex
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import UserError
from .memory import keep_memory, use_large_pages
from .parsing import Parser, subcommand
from .paths import cache_dir

USAGE = """\
usage: aludel COMMAND ...

  demo                       text, language model, assistant, reward model, PPO, a chat: all of it
  pretrain CONFIG [flags]    train on your text: --data text:PATH
  sft CONFIG --init RUN      tune a run on conversations: --data chat:PATH
  reward CONFIG --init RUN   a reward model, from comparisons: --data pairs:PATH
  ppo CONFIG --init RUN      PPO with --reward RUN or --reward-fn FILE.py:NAME
  sample RUN --prompt TEXT   let a run write
  chat RUN                   talk with it
  eval RUN --data SOURCE     nats per token, perplexity, bits per byte
  info CONFIG|RUN            shapes, parameters, FLOPs, memory
  data build|info|check      token stores: make them, describe one, verify its checksums
  scale fit|predict          scaling laws of finished runs, and what a larger one will reach

aludel COMMAND --help says more; aludel pretrain CONFIG --help lists every setting."""
MISTAKE, AGAIN, INTERRUPTED = 2, 75, 130
KEPT_PROGRAMS = 2 << 30  # bytes of compiled programs; the longest unused make room


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; ends the process with its status."""
    if argv is None and sys.argv[1:2] and sys.argv[1] in COMPUTING:
        use_large_pages()
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """The exit status of a command line."""
    prepare()
    try:
        return dispatch(argv)
    except UserError as error:
        fail(str(error))
        return MISTAKE
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror or error}")
        return MISTAKE
    except KeyboardInterrupt:
        fail("interrupted")
        return INTERRUPTED


def fail(text: str) -> None:
    """One line on stderr."""
    print(f"aludel: {' '.join(text.split())}", file=sys.stderr, flush=True)


def dispatch(argv: list[str]) -> int:
    """Call the command that `argv` names."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if argv[0] == "--version":
        from . import __version__

        print(__version__)
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        from .data.files import nearest

        raise UserError(f"no command {name!r}{nearest(name, COMMANDS)}")
    return COMMANDS[name](rest)


def demo(args: list[str]) -> int:
    """The whole recipe, then a chat where there is a terminal."""
    if args and args[0] in ("-h", "--help"):
        print("usage: aludel demo [CONFIG] [--seeds N] [--out DIR] [--chat no] [--FIELD VALUE]")
        print("\nCONFIG is recipe (the default), recipe-gpu, or a Python file that sets `config`.")
        print("With --seeds each seed does it all, SFT twice as long and PPO without KL beside it.")
        print("\naludel demo recipe --help lists every field with its default and its meaning.")
        return 0
    from .rlhf.demo import demo as run_demo
    from .train.config import with_out
    from .train.flags import parse_flags

    name, flags = (args[0], args[1:]) if args and not args[0].startswith("-") else ("recipe", args)
    seeds, flags = taken(flags, "--seeds")
    chats, flags = taken(flags, "--chat")
    if seeds is not None and not (seeds.isdecimal() and int(seeds) > 0):
        raise UserError(f"--seeds must be a number from 1, not {seeds!r}")
    if chats not in (None, "yes", "no"):
        raise UserError(f"--chat must be yes or no, not {chats!r}")
    recipe = parse_flags(find_config(name, "demo"), flags, f"aludel demo {name}")
    default = "demo" if name == "recipe" else Path(name).stem
    recipe = with_out(recipe, Path("runs") / default)
    out = stoppable(lambda: run_demo(recipe, int(seeds or 1)))
    if out is None:
        return AGAIN
    print(out)
    if chats != "no" and sys.stdin.isatty() and sys.stdout.isatty() and int(seeds or 1) == 1:
        return chat([str(out / "ppo")])
    return 0


def taken(args: list[str], flag: str) -> tuple[str | None, list[str]]:
    """(the value of a flag, None where it is not there; the other arguments)."""
    value, rest, waiting = None, [], False
    for arg in args:
        name, equals, given = arg.partition("=")
        if waiting:
            value, waiting = arg, False
        elif name == flag:
            value, waiting = (given, False) if equals else (None, True)
        else:
            rest.append(arg)
    if waiting:
        raise UserError(f"{flag} needs a value")
    return value, rest


def pretrain(args: list[str]) -> int:
    """Train, or go on with, a run."""
    return train("pretrain", args)


def sft(args: list[str]) -> int:
    """Tune a run on conversations."""
    return train("sft", args)


def reward(args: list[str]) -> int:
    """Train a reward model on comparisons."""
    return train("reward", args)


def ppo(args: list[str]) -> int:
    """Align a tuned run by PPO."""
    return train("ppo", args)


MODULE_OF = {
    "pretrain": ".train.pretrain",
    "sft": ".train.sft",
    "reward": ".rlhf.reward",
    "ppo": ".rlhf.align",
}
FLAGS_OF = {
    "reward": "--init RUN [--data pairs:PATH]",
    "ppo": "--init RUN --reward RUN[=WEIGHT] --reward-fn FILE.py:NAME[=WEIGHT] [--data chat:PATH]",
    "pretrain": "[--data SOURCE]",
    "sft": "--init RUN [--data chat:PATH]",
}


def train(stage: str, args: list[str]) -> int:
    """The command of a stage of training."""
    from .configs import names_of

    if not args or args[0] in ("-h", "--help"):
        flags = f"{FLAGS_OF[stage]} [--out DIR] [--dry-run] [--FIELD VALUE]"
        print(f"usage: aludel {stage} CONFIG {flags}")
        print("\nCONFIG is the path of a Python file that sets `config`, or one of")
        names = "  ".join(names_of(stage))
        print(textwrap.fill(names, 80, initial_indent="  ", subsequent_indent="  "))
        print(f"\naludel {stage} CONFIG --help lists every field with its default and its meaning.")
        return 0
    from .train.config import with_out
    from .train.flags import parse_flags

    name, *flags = args
    dry = "--dry-run" in flags
    flags = [flag for flag in flags if flag != "--dry-run"]
    config = parse_flags(find_config(name, stage), flags, f"aludel {stage} {name}")
    config = with_out(config, Path("runs") / Path(name).stem)
    if dry:
        from .train.sizes import dry_run

        print("\n".join(dry_run(config)))
        return 0
    run = importlib.import_module(MODULE_OF[stage], __package__)
    out = stoppable(lambda: getattr(run, stage)(config))
    if out is None:
        return AGAIN
    print(out)
    return 0


def stoppable(train: Callable[[], Path]) -> Path | None:
    """What training makes; None where a signal ended it: then it is said how it goes on."""
    from .train.loop import StoppedError

    try:
        return train()
    except StoppedError as stopped:
        again = shlex.join(["aludel", *sys.argv[1:]])
        saved = "what was finished" if stopped.step is None else f"step {stopped.step:,}"
        fail(f"stopped: {saved} is saved; the same command goes on: {again}")
        return None


def find_config(name: str, stage: str | None = None):
    """The settings that a name in `configs`, or a Python file, holds; of this stage, or of any."""
    from .configs import MODULES, named, names_of
    from .data.files import nearest

    known = names_of(stage)
    if name in known:
        return named(name)
    for other in MODULES:
        if name in names_of(other):
            raise UserError(f"{name} is a config of aludel {other}, not of aludel {stage}")
    path = Path(name).expanduser()
    if path.suffix != ".py" and not path.exists():
        raise UserError(f"no config {name!r}{nearest(name, known)}")
    return config_of_file(path, stage)


def config_of_file(path: Path, stage: str | None = None):
    """The variable `config` of a Python file."""
    wanted = config_type(stage)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"{path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        # From the text, not from a cached .pyc: that goes by the second and the size.
        exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:
        where = f"{path}:{error.lineno}" if isinstance(error, SyntaxError) else str(path)
        raise UserError(f"{where}: cannot be run: {type(error).__name__}: {error}") from None
    config = getattr(module, "config", None)
    if not isinstance(config, wanted):
        raise UserError(
            f"{path}: sets no variable `config` that is an {wanted.__module__}.{wanted.__name__}"
        )
    return config


def config_type(stage: str | None) -> type:
    """What a config of a stage is; None: of any stage of training."""
    from .train.config import StageConfig
    from .train.run import STAGES

    if stage == "demo":
        from .rlhf.recipe import Recipe

        return Recipe
    return STAGES[stage] if stage else StageConfig


def add_sampling(parser: Parser, tokens: int, temperature: float) -> None:
    """The flags that say what is drawn, with these defaults, and of which checkpoint."""

    def add(name: str, kind: type, default: float | int | None, says: str) -> None:
        shown = "" if default is None else f" ({default:g})"
        parser.add_argument(name, type=kind, default=default, help=says + shown)

    add("--tokens", int, tokens, "new tokens at most")
    add("--temperature", float, temperature, "0 takes the likeliest")
    add("--top-k", int, 0, "among the k likeliest; 0: all")
    add("--top-p", float, 0.95, "among the likeliest of mass p")
    add("--seed", int, None, "for the same text again")
    parser.add_argument("--checkpoint", default="newest", help="newest, best or a step (newest)")


def sample(args: list[str]) -> int:
    """Let a run go on from prompts."""
    parser = Parser(
        "aludel sample", description="Let a run go on from a prompt.", allow_abbrev=False
    )
    parser.add_argument("run", help="the run folder")
    parser.add_argument("--prompt", action="append", help="the beginning; may be repeated")
    add_sampling(parser, tokens=200, temperature=0.8)
    parser.add_argument("--stop", action="append", default=[], help="text of a token that ends it")
    parser.add_argument("--count", type=int, default=1, help="samples of each prompt (1)")
    options = parser.parse(args)
    from .train.samples import sample_run

    keep_memory()
    for text in sample_run(
        options.run,
        options.prompt or [""],
        tokens=options.tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        stop=options.stop,
        count=options.count,
        checkpoint=options.checkpoint,
    ):
        print(text, end="\n\n" if options.count > 1 or len(options.prompt or []) > 1 else "\n")
    return 0


def chat(args: list[str]) -> int:
    """Talk with a run."""
    parser = Parser("aludel chat", description="Talk with a run.", allow_abbrev=False)
    parser.add_argument("run", help="the run folder")
    parser.add_argument("--system", default="", help="a message that stands before all others")
    add_sampling(parser, tokens=128, temperature=0.7)
    options = parser.parse(args)
    keep_memory()
    from .model import SamplingConfig
    from .serve import Conversation
    from .serve.terminal import chat as talk

    sampling = SamplingConfig(
        max_tokens=options.tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
    )
    talk(
        Conversation(
            options.run,
            sampling,
            system=options.system,
            seed=options.seed,
            checkpoint=options.checkpoint,
        )
    )
    return 0


def evaluate(args: list[str]) -> int:
    """Score a run on text."""
    parser = Parser("aludel eval", description="Score a run on text.", allow_abbrev=False)
    parser.add_argument("run", help="the run folder")
    parser.add_argument("--data", action="append", required=True, help="SOURCE; may be repeated")
    parser.add_argument("--split", default="all", choices=("all", "train", "validation"))
    parser.add_argument("--stride", type=int, help="windows slide by so many tokens (no overlap)")
    parser.add_argument("--checkpoint", default="newest", help="newest, best or a step (newest)")
    parser.add_argument("--text-field", help="the field of a record that holds its text")
    parser.add_argument("--decode-errors", choices=("strict", "replace"))
    parser.add_argument("--out", help="write the figures to this file, as JSON")
    options = parser.parse(args)
    from .train.evaluate import evaluate as score
    from .train.sizes import table

    keep_memory()
    figures = score(
        options.run,
        options.data,
        split=options.split,
        stride=options.stride,
        checkpoint=options.checkpoint,
        text_field=options.text_field,
        decode_errors=options.decode_errors,
        out=options.out,
    )
    rows = [
        (name.replace("_", " "), f"{value:.5f}" if isinstance(value, float) else str(value))
        for name, value in figures.items()
        if not isinstance(value, (dict, list))
    ]
    for source, one in figures.get("sources", {}).items():
        rows.append((source, f"{one['nats_per_token']:.5f} nats, {one['bits_per_byte']:.5f} bits"))
    print("\n".join(table(rows)))
    if options.out:
        print(options.out)
    return 0


def info(args: list[str]) -> int:
    """What a config or a run amounts to."""
    parser = Parser(
        "aludel info", description="Shapes, parameters, FLOPs, memory.", allow_abbrev=False
    )
    parser.add_argument(
        "what", metavar="CONFIG|RUN", help="a config's name, a file, or a run folder"
    )
    options = parser.parse(args)
    from .train.run import find_run
    from .train.sizes import describe_config, describe_run

    if Path(options.what).expanduser().is_dir():
        lines = describe_run(find_run(options.what))
    else:
        config = find_config(options.what)
        lines = []
        for name, one in getattr(config, "stages", {"": config}).items():  # of a recipe, all
            lines += [*(["", f"aludel {name}"] if name else []), *describe_config(one)]
    print("\n".join(lines))
    return 0


def data(args: list[str]) -> int:
    """Token stores."""
    usage = (
        "usage: aludel data build SOURCE ... [--tokenizer SPEC]   tokenise, or go on with it\n"
        "       aludel data info STORE                            what a store holds\n"
        "       aludel data check STORE ...                       verify its checksums"
    )
    parsers = {"build": data_build, "info": data_info, "check": data_check}
    return subcommand("data", parsers, usage, args)


def data_build(args: list[str]) -> int:
    """Make the token stores of sources."""
    parser = Parser(
        "aludel data build",
        description="Tokenise sources into stores, where pretrain and eval find them. A build "
        "that was stopped goes on; a corpus that grew is not tokenised again.",
        allow_abbrev=False,
    )
    parser.add_argument("data", metavar="SOURCE", nargs="+", help="text:PATH, jsonl:PATH, ...")
    parser.add_argument(
        "--tokenizer",
        default="bpe:4096",
        help="char, byte, bpe:SIZE, a tokenizer.json or a run folder's (bpe:4096)",
    )
    parser.add_argument(
        "--split", action="append", choices=("train", "validation", "all"), help="(the first two)"
    )
    parser.add_argument("--text-field", default="text", help="of a record, what holds its text")
    parser.add_argument("--decode-errors", choices=("strict", "replace"), default="strict")
    parser.add_argument("--workers", type=int, help="processes (as many as there are cores)")
    options = parser.parse(args)
    from .train.stores import build, describe

    gap = ""
    for store, source, split in build(
        options.data,
        options.tokenizer,
        splits=options.split or ["validation", "train"],
        text_field=options.text_field,
        decode_errors=options.decode_errors,
        workers=options.workers,
    ):
        lines = describe(store, [("source", source), ("split", split)])
        print(gap + "\n".join(lines), flush=True)
        gap = "\n"
    return 0


def data_info(args: list[str]) -> int:
    """What a store holds."""
    parser = Parser("aludel data info", description="Describe a token store.", allow_abbrev=False)
    parser.add_argument("store", help="its folder")
    options = parser.parse(args)
    from .train.stores import describe

    print("\n".join(describe(Path(options.store).expanduser())))
    return 0


def data_check(args: list[str]) -> int:
    """Verify the checksums of stores."""
    parser = Parser(
        "aludel data check",
        description="Read all of a token store and verify its checksums.",
        allow_abbrev=False,
    )
    parser.add_argument("stores", metavar="STORE", nargs="+", help="its folder")
    options = parser.parse(args)
    from .data import check_store

    for store in options.stores:
        meta = check_store(Path(store).expanduser())
        print(f"whole: {len(meta['shards']):,} shards, {meta['tokens']:,} tokens")
        print(store)
    return 0


def scale(args: list[str]) -> int:
    """Scaling laws of finished runs."""
    from .cli_scale import scale

    return scale(args)


COMMANDS = {
    "demo": demo,
    "pretrain": pretrain,
    "sft": sft,
    "reward": reward,
    "ppo": ppo,
    "sample": sample,
    "chat": chat,
    "eval": evaluate,
    "info": info,
    "data": data,
    "scale": scale,
}


COMPUTING = ("demo", "pretrain", "sft", "reward", "ppo", "sample", "chat", "eval")


def prepare() -> None:
    """Before JAX is imported: programs that were compiled once are kept for the next run, and
    libraries speak up only when something is wrong."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "compiled"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(KEPT_PROGRAMS))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1") if not tpu_is_there() else None
    if importlib.util.find_spec("libtpu") and not tpu_is_there() and not gpu_is_there():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu without a TPU cries out otherwise

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if issubclass(category, UserWarning) and __package__ in Path(filename).parts[-3:]:
            print(f"note: {message}", file=sys.stderr)

    warnings.showwarning = show


def tpu_is_there() -> bool:
    """Whether a TPU's device files are."""
    return bool(list(Path("/dev").glob("accel*")) or list(Path("/dev").glob("vfio/[0-9]*")))


def gpu_is_there() -> bool:
    """Whether a GPU's device files are."""
    return any(Path("/dev", name).exists() for name in ("nvidia0", "kfd", "dxg"))


if __name__ == "__main__":
    main()
