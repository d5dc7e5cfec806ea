"""Text to token ids and back, exactly; what is stored is a `tokenizer.json` of `tokenizers`.

The text of a special token inside a document is text like any other: only `separator` marks
where a document begins. Characters and bytes are looked up in a table, and the words of BPE
in the memory of those seen (`words.py`): the ids are the library's, many times as fast.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

from ..errors import UserError
from .words import Words

SEPARATOR = "<|endoftext|>"
SEPARATORS = (SEPARATOR, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
"""Tokens of other people's tokenizers that end a document, in the order we look for them."""
ALPHABET = frozenset(pre_tokenizers.ByteLevel.alphabet())


class UnknownCharacterError(UserError):
    """A character outside the vocabulary of `char`, and its index in the text."""

    def __init__(self, character: str, index: int, where: str = "the text"):
        self.character, self.index, self.where = character, index, where
        super().__init__(
            f"{where}: character {index} is {character!r} (U+{ord(character):04X}), which the char "
            "tokenizer has not seen in its training text: remove it, or take byte or bpe:SIZE"
        )

    def __reduce__(self):
        return type(self), (self.character, self.index, self.where)


class Tokenizer:
    """A tokenizer of the `tokenizers` library, used so that no text is taken for a special token.

    `kind` says what is known of it: "char" and "byte" give a token for each; "bpe" is
    byte-level BPE within the words of GPT-2's pattern, which loses nothing; "other" promises
    nothing.
    """

    def __init__(self, library: tokenizers.Tokenizer):
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = True
        self._library = library
        config = json.loads(library.to_str())
        vocabulary = library.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values()) + 1
        special = {token["content"] for token in config["added_tokens"] if token["special"]}
        name = next((name for name in SEPARATORS if name in special), None)
        self.separator: int | None = None if name is None else vocabulary[name]
        self.digest: str = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
        self.kind: Literal["char", "byte", "bpe", "other"] = _kind(config)
        self.told_loss = False
        """Whether the user has been told what this tokenizer loses."""
        self._table = _table(self.kind, config["model"]["vocab"])
        self._special = {name: vocabulary[name] for name in special}
        self._words = Words(self._encode) if self.kind == "bpe" else None

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32 [tokens]; without the separator."""
        return next(self.encode_batch([text]))

    def encode_batch(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """Ids of each text, int32. Raises UnknownCharacterError (`char` only)."""
        if self.kind == "char":
            yield from map(self._characters, texts)
        elif self.kind == "byte":
            for text in texts:
                yield self._table[np.frombuffer(text.encode("utf-8"), np.uint8)]
        elif self.kind == "bpe":
            yield from map(self._words.ids, texts)
        else:
            for encoding in self._encode(texts):
                yield np.array(encoding.ids, np.int32)

    def control(self, name: str) -> int | None:
        """The id of a special token, None where there is none of that name."""
        return self._special.get(name)

    def to_json(self) -> str:
        """The text of `tokenizer.json`."""
        return self._library.to_str(pretty=True)

    def _encode(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        return self._library.encode_batch_fast(list(texts), add_special_tokens=False)

    def _characters(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = self._table[np.minimum(codes, len(self._table) - 1)]
        if ids.size and ids.min() < 0:
            index = int(ids.argmin())
            raise UnknownCharacterError(text[index], index)
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of token ids; a special token as its name, broken UTF-8 as U+FFFD."""
        return self._library.decode(np.asarray(ids).tolist(), skip_special_tokens=False)

    def save(self, path: Path | str) -> None:
        """Writes `tokenizer.json`."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """Reads a `tokenizer.json`. Raises UserError where it is not one."""
        try:
            return cls(tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path}: not a tokenizer.json that can be read: {error}") from None


def _kind(config: dict) -> Literal["char", "byte", "bpe", "other"]:
    """What a tokenizer.json is, by its parts."""
    model, before = config["model"], config["pre_tokenizer"] or {}
    only_special = all(token["special"] for token in config["added_tokens"])
    if config["normalizer"] is not None:
        return "other"
    if model["type"] == "WordLevel" and before.get("type") == "Split":
        one_each = before["pattern"] == {"Regex": r"[\s\S]"} and only_special
        return "char" if one_each and all(len(token) == 1 for token in model["vocab"]) else "other"
    byte_level = (
        model["type"] == "BPE"
        and model.get("dropout") is None
        and before.get("type") == "ByteLevel"
        and not before["add_prefix_space"]
        and (config["decoder"] or {}).get("type") == "ByteLevel"
        and set(model["vocab"]) >= ALPHABET
        and only_special
    )
    if not byte_level:
        return "other"
    if before["use_regex"]:
        return "bpe"
    return "other" if model["merges"] else "byte"  # merges across words: may be cut nowhere


def _table(kind: str, vocabulary: dict[str, int]) -> np.ndarray | None:
    """Ids by code point (char; -1 unknown, as its last entry always is) or by byte."""
    if kind == "char":
        codes = np.array([ord(character) for character in vocabulary], np.int64)
        table = np.full(int(codes.max(initial=0)) + 2, -1, np.int32)
        table[codes] = list(vocabulary.values())
        return table
    if kind == "byte":
        names = byte_names()
        return np.array([vocabulary[names[byte]] for byte in range(256)], np.int32)
    return None


def byte_names() -> list[str]:
    """The printable character by which byte-level BPE writes each byte (GPT-2's encoder.py)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    names = dict(zip(shown, map(chr, shown), strict=True))
    names |= {byte: chr(256 + number) for number, byte in enumerate(hidden)}
    return [names[byte] for byte in range(256)]
