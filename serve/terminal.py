"""`aludel chat`: a conversation in a terminal, or line by line where there is none."""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path

from ..errors import UserError
from ..paths import cache_dir
from .conversation import Conversation

HELP = """\
/reset            forget what was said
/save FILE        write the conversation as a record that aludel sft reads
/params           how answers are drawn; /params temperature 0.5 changes it
/help             this
\\                 at the end of a line: what you say goes on with the next
/quit             leave (as Ctrl-D does); Ctrl-C ends an answer"""
NUMBERS = {"temperature": float, "top_p": float, "top_k": int, "max_tokens": int}
DIM, PLAIN = "\033[2m", "\033[0m"
HISTORY = 1000


def chat(conversation: Conversation) -> None:
    """Read lines and answer them until the input ends."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    with history() if terminal else contextlib.nullcontext():
        if terminal:
            print(f"{DIM}/help lists what else you can type; Ctrl-D leaves{PLAIN}")
        while True:
            line = read(terminal)
            if line is None or line in ("/quit", "/exit"):
                return
            try:
                if line.startswith("/"):
                    print(command(conversation, line))
                elif line:
                    answer(conversation, line, terminal)
            except UserError as error:
                print(f"aludel: {error}", file=sys.stderr, flush=True)


def read(terminal: bool) -> str | None:
    """What is said next, None where there is nothing; a line that ends with a backslash goes on."""
    lines: list[str] = []
    try:
        while True:
            line = input(("...  " if lines else "you: ") if terminal else "")
            if not line.endswith("\\"):
                return "\n".join([*lines, line]).strip()
            lines.append(line[:-1])
    except (EOFError, KeyboardInterrupt):
        if terminal:
            print()
        return None


def answer(conversation: Conversation, line: str, terminal: bool) -> None:
    """Print the answer as it is drawn; Ctrl-C ends it."""
    if terminal:
        print("run: ", end="", flush=True)
    pieces = conversation.say(line)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()
    print()
    if terminal and conversation.rate:
        print(f"{DIM}{conversation.tokens} tokens, {conversation.rate:,.0f} tokens/s{PLAIN}")


def command(conversation: Conversation, line: str) -> str:
    """What a line that begins with a slash does, in words."""
    name, *words = line.split()
    if name == "/help":
        return HELP
    if name == "/reset":
        conversation.reset()
        return "forgotten"
    if name == "/save":
        return save(conversation, words)
    if name == "/params":
        return params(conversation, words)
    raise UserError(f"no command {name}; /help lists them")


def save(conversation: Conversation, words: list[str]) -> str:
    """Append the conversation to a file of records."""
    if len(words) != 1:
        raise UserError("write /save FILE")
    if not any(message["role"] == "assistant" for message in conversation.messages):
        raise UserError("nothing was said yet")
    path = Path(words[0]).expanduser()
    record = json.dumps({"messages": conversation.messages}, ensure_ascii=False)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(record + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return f"saved: {path}"


def params(conversation: Conversation, words: list[str]) -> str:
    """How answers are drawn; with a name and a number, that is changed."""
    if words:
        if len(words) != 2 or words[0] not in NUMBERS:
            raise UserError(f"write /params NAME NUMBER, NAME one of {', '.join(NUMBERS)}")
        name, given = words
        try:
            value = NUMBERS[name](given)
        except ValueError:
            raise UserError(f"{name} must be a number, not {given!r}") from None
        conversation.set(dataclasses.replace(conversation.sampling, **{name: value}))
    shown = [f"{name} {getattr(conversation.sampling, name)}" for name in NUMBERS]
    return ", ".join(shown)


@contextlib.contextmanager
def history():
    """Arrow keys, and the lines of earlier conversations, where the system has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    path = cache_dir() / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_history_length(HISTORY)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
