"""Makes the tokenizer that the user asked for: trained on the training part, or imported."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from ..errors import UserError
from .files import nearest
from .tokenizer import SEPARATOR, Tokenizer, byte_names

Texts = Callable[[], Iterator[str]]
SMALLEST = 257  # the 256 bytes and the separator


def make_tokenizer(spec: str, train_texts: Texts) -> Tokenizer:
    """`char`, `byte`, `bpe:SIZE`, or a path to a `tokenizer.json` or a GPT-2 `vocab.bpe`.

    `train_texts` gives the texts of the training part; it is called only where the vocabulary
    is made from them. Raises UserError for anything else.
    """
    if spec == "char":
        return Tokenizer(char_tokenizer(train_texts()))
    if spec == "byte":
        return Tokenizer(byte_tokenizer())
    name, colon, size = spec.partition(":")
    if name == "bpe":
        if not size.isdecimal() or int(size) < SMALLEST:
            raise UserError(
                f"tokenizer {spec}: write bpe:SIZE with a SIZE of at least {SMALLEST} "
                "(256 bytes and the separator)"
            )
        return Tokenizer(bpe_tokenizer(int(size), train_texts()))
    path = Path(spec).expanduser()
    if not path.is_file():
        hint = nearest(spec, ("char", "byte", "bpe:SIZE", "PATH/tokenizer.json", "PATH/vocab.bpe"))
        raise UserError(f"tokenizer {spec}: no such file, and not a kind of tokenizer{hint}")
    if path.suffix == ".bpe" or path.name == "merges.txt":
        return Tokenizer(gpt2_tokenizer(path))
    return Tokenizer.load(path)


def char_tokenizer(texts: Iterator[str]) -> tokenizers.Tokenizer:
    """A token for each character that occurs, in the order of their code points; no separator."""
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    if not characters:
        raise UserError("the training part has no text to take characters from: add documents")
    vocabulary = {character: number for number, character in enumerate(sorted(characters))}
    # An unknown token that is in no vocabulary: the library then refuses what it doesn't know.
    library = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    library.decoder = decoders.Fuse()
    return library


def byte_tokenizer() -> tokenizers.Tokenizer:
    """Token i is byte i; token 256 is the separator."""
    vocabulary = {name: byte for byte, name in enumerate(byte_names())}
    return _byte_level(vocabulary, [], use_regex=False)


def bpe_tokenizer(size: int, texts: Iterator[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE trained on `texts`, split into words by GPT-2's pattern; separator first.

    The vocabulary is smaller than `size` where the texts have too few pairs that repeat.
    """
    library = _byte_level({}, [], use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return library


def gpt2_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """GPT-2's own files: the merges, and `encoder.json` beside them where there is one.

    Without it the ids are those by which GPT-2 numbered them: the bytes (those that print
    first), the merges in their order, the separator.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise UserError(f"{path}:{number}: a merge must be two symbols, not {line!r}")
        merges.append((pair[0], pair[1]))
    if not merges:
        raise UserError(f"{path}: no merges in it")
    encoder = next(
        (
            path.with_name(name)
            for name in ("encoder.json", "vocab.json")
            if path.with_name(name).is_file()
        ),
        None,
    )
    if encoder is None:
        symbols = [*sorted(byte_names()), *(left + right for left, right in merges)]
        vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    else:
        try:
            vocabulary = json.loads(encoder.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{encoder}: cannot be read: {error}") from None
    try:
        return _byte_level(vocabulary, merges, use_regex=True)
    except Exception as error:  # the library raises bare Exception: a merge of unknown symbols
        raise UserError(f"{path}: merges and vocabulary do not fit: {error}") from None


def _byte_level(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], use_regex: bool
) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    library.decoder = decoders.ByteLevel()
    if vocabulary:  # when training, the trainer adds it
        library.add_special_tokens([SEPARATOR])
    return library
