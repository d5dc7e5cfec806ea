"""The command `aludel`: parse, call one room, print. Rooms are imported when they are needed."""

import importlib
import os
import signal
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from ..errors import AGAIN, INTERRUPTED, MISTAKE, UserError
from ..memory import keep_memory, use_large_pages
from .data import data
from .ending import end, fail, stoppable
from .environment import keep_stdout, prepare, tpu_is_there
from .parsing import Parser, add_probes, taken
from .plan import plan
from .scale import scale
from .settings import find_config

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
  probe RUN                  what a run can do: copying, sums, brackets, code, your own questions
  info CONFIG|RUN            shapes, parameters, FLOPs, memory
  data build|info|check      token stores: make them, describe one, verify its checksums
  scale run|fit|predict      ladders of runs, their scaling laws, what a larger one will reach
  scale probe FOLDER         what a ladder's runs can do, and whether suddenly
  scale noise RUN            the gradient noise scale: up to what batch more rows save steps
  plan CONFIG --topology T   will it fit on a pod, how fast, how long, at what cost

aludel COMMAND --help says more; aludel pretrain CONFIG --help lists every setting."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; ends the process with its status."""
    if argv is None and sys.argv[1:2] and sys.argv[1] in COMPUTING:
        use_large_pages()
    end(run(list(sys.argv[1:] if argv is None else argv)))


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


def dispatch(argv: list[str]) -> int:
    """Call the command that `argv` names."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if argv[0] == "--version":
        from .. import __version__

        print(__version__)
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        from ..data.files import nearest

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
    from ..rlhf.demo import demo as run_demo
    from ..train.config import with_out
    from ..train.flags import parse_flags

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
    "pretrain": "..train.pretrain",
    "sft": "..train.sft",
    "reward": "..rlhf.reward",
    "ppo": "..rlhf.align",
}
PLACE = ("coordinator", "processes", "process")  # flags of each of several processes
FLAGS_OF = {
    "reward": "--init RUN [--data pairs:PATH]",
    "ppo": "--init RUN --reward RUN[=WEIGHT] --reward-fn FILE.py:NAME[=WEIGHT] [--data chat:PATH]",
    "pretrain": "[--data SOURCE]",
    "sft": "--init RUN [--data chat:PATH]",
}


def train(stage: str, args: list[str]) -> int:
    """The command of a stage of training."""
    from ..configs import names_of, presets_of

    if not args or args[0] in ("-h", "--help"):
        flags = f"{FLAGS_OF[stage]} [--out DIR] [--dry-run] [--FIELD VALUE]"
        print(f"usage: aludel {stage} CONFIG {flags}")
        print("\nCONFIG is the path of a Python file that sets `config`, or one of")
        print_names(names_of(stage))
        if presets_of(stage):
            print("\nor one of these, laid out for a pod of TPUs (docs/pods.md)")
            print_names(presets_of(stage))
        print(f"\naludel {stage} CONFIG --help lists every field with its default and its meaning.")
        print("\nOf several processes each gets --coordinator HOST:PORT --processes N --process I")
        print("(docs/pods.md), unless SLURM or the TPU's machines tell it.")
        return 0
    from ..train.processes import count, first, place_of
    from ..train.watch import joined

    name, *flags = args
    given = {}
    for flag in PLACE:
        given[flag], flags = taken(flags, f"--{flag}")
    place = place_of(given, os.environ)
    dry = "--dry-run" in flags
    flags = [flag for flag in flags if flag != "--dry-run"]
    if dry or {"-h", "--help"} & set(flags):
        from ..train.sizes import dry_run

        print("\n".join(dry_run(config_of(stage, name, flags))))
        return 0

    def work() -> Path:
        with joined(place, tpu_is_there()):
            if count() > 1:
                keep_stdout()
            config = config_of(stage, name, flags)
            run = importlib.import_module(MODULE_OF[stage], __package__)
            out = getattr(run, stage)(config)
            if first():
                print(out)
            return out

    return AGAIN if stoppable(work) is None else 0


def print_names(names: Sequence[str]) -> None:
    """Names in lines of 80 characters, none of them broken."""
    lines = textwrap.wrap(
        "  ".join(names),
        80,
        initial_indent="  ",
        subsequent_indent="  ",
        break_on_hyphens=False,
        break_long_words=False,
    )
    print("\n".join(lines))


def config_of(stage: str, name: str, flags: list[str]):
    """The settings of a command line: those of a config's name, and of flags."""
    from ..train.config import with_out
    from ..train.flags import parse_flags

    config = parse_flags(find_config(name, stage), flags, f"aludel {stage} {name}")
    return with_out(config, Path("runs") / run_name(name))


def run_name(config: str) -> str:
    """What a run folder is called where none is named: as the config, on whatever pod."""
    path = Path(config)
    return path.stem if path.suffix == ".py" else path.name.partition("@")[0]


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
    from ..train.samples import sample_run

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
    from ..model import SamplingConfig
    from ..serve import Conversation
    from ..serve.terminal import chat as talk

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
    from ..train.evaluate import evaluate as score
    from ..train.sizes import table

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


def probe(args: list[str]) -> int:
    """What a run can do."""
    parser = Parser(
        "aludel probe",
        description="What a run can do: the share of right answers to exercises that no corpus "
        "holds, and the log-prob of the right answer, with 95% intervals.",
        allow_abbrev=False,
    )
    parser.add_argument("run", help="the run folder")
    add_probes(parser)
    parser.add_argument("--file", help="your own: a line of JSON with prompt and answer for each")
    parser.add_argument("--checkpoint", default="newest", help="newest, best or a step (newest)")
    parser.add_argument("--out", help="where the figures go as JSON (RUN/probes.json)")
    options = parser.parse(args)
    from ..train.probes.probing import probe, table_of
    from ..train.sizes import table

    keep_memory()
    found = probe(
        options.run,
        kinds=options.kind,
        shots=options.shots,
        count=options.questions,
        file=options.file,
        checkpoint=options.checkpoint,
        run_code=options.run_code,
        out=options.out,
    )
    print("\n".join(table(table_of(found))))
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
    from ..train.run import find_run
    from ..train.scaling import Sweep
    from ..train.scaling.sweep_runs import describe_sweep
    from ..train.sizes import describe_config, describe_run

    def describe(one: object) -> list[str]:
        return describe_sweep(one) if isinstance(one, Sweep) else describe_config(one)

    if Path(options.what).expanduser().is_dir():
        lines = describe_run(find_run(options.what))
    else:
        config = find_config(options.what)
        lines = []
        for name, one in getattr(config, "stages", {"": config}).items():  # of a recipe, all
            lines += [*(["", f"aludel {name}"] if name else []), *describe(one)]
    print("\n".join(lines))
    return 0


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
    "probe": probe,
    "data": data,
    "scale": scale,
    "plan": plan,
}


COMPUTING = ("demo", "pretrain", "sft", "reward", "ppo", "sample", "chat", "eval", "probe", "scale")
