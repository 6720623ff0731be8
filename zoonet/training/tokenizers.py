"""From text to token ids and back: bytes, characters, or a `tokenizers` file.

A tokenizer travels with its job as JSON. `load_tokenizer` reads such bytes from a stranger: they
hold a vocabulary, never code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from zoonet.errors import ConfigError
from zoonet.training.tokens import token_dtype

Ids = NDArray[np.unsignedinteger[Any]]

MAX_TOKENIZER_BYTES: Final = 32 << 20


class Tokenizer(Protocol):
    """Turns text into ids below `vocab_size`, and ids into text."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> Ids:
        """Return the ids in the narrowest dtype. Raises ConfigError for text without ids."""
        ...

    def decode(self, ids: NDArray[Any]) -> str:
        """Return the text of the ids. Raises ValueError for an id outside the vocabulary."""
        ...

    def to_bytes(self) -> bytes:
        """Return what `load_tokenizer` reads."""
        ...


class ByteTokenizer:
    """The 256 bytes of UTF-8."""

    vocab_size = 256

    def encode(self, text: str) -> Ids:
        return np.frombuffer(text.encode("utf-8", errors="replace"), np.uint8)

    def decode(self, ids: NDArray[Any]) -> str:
        _check_ids(ids, self.vocab_size)
        return ids.astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def to_bytes(self) -> bytes:
        return msgspec.json.encode(_ByteFile())


class CharTokenizer:
    """The distinct characters of a text, in the order of their code points."""

    def __init__(self, characters: str) -> None:
        if not characters or list(characters) != sorted(set(characters)):
            raise ConfigError("the characters of a vocabulary must be distinct and in order")
        self._characters = characters
        self._points = _code_points(characters)

    @classmethod
    def of(cls, text: str) -> CharTokenizer:
        """Take the vocabulary from the text. Raises ConfigError where the text is empty."""
        if not text:
            raise ConfigError("the text is empty: it has no characters to make a vocabulary of")
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        return len(self._characters)

    def encode(self, text: str) -> Ids:
        points = _code_points(text)
        ids = np.searchsorted(self._points, points).clip(max=self.vocab_size - 1)
        unknown = np.flatnonzero(self._points[ids] != points)
        if unknown.size:
            raise ConfigError(
                f"the character {text[int(unknown[0])]!r} is not in the job's vocabulary of "
                f"{self.vocab_size} characters"
            )
        return ids.astype(token_dtype(self.vocab_size))

    def decode(self, ids: NDArray[Any]) -> str:
        _check_ids(ids, self.vocab_size)
        return "".join(self._characters[int(index)] for index in ids)

    def to_bytes(self) -> bytes:
        return msgspec.json.encode(_CharFile(characters=self._characters))


class HuggingFaceTokenizer:
    """A vocabulary in the JSON format of the `tokenizers` library (the extra `hf`)."""

    def __init__(self, text: str) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise ConfigError(
                "this job's tokenizer needs the tokenizers library; "
                'install it with: pip install "zoo-compute[hf]"'
            ) from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception for a malformed file
            raise ConfigError(f"this is not a tokenizers file: {str(error)[:200]}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._text = text
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise ConfigError("this tokenizers file has no vocabulary")
        self.vocab_size: int = max(ids) + 1
        if self.vocab_size > 1 << 32:
            raise ConfigError(f"a tokenizers file with an id of {self.vocab_size - 1}")

    def encode(self, text: str) -> Ids:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.asarray(ids, token_dtype(self.vocab_size))

    def decode(self, ids: NDArray[Any]) -> str:
        _check_ids(ids, self.vocab_size)
        text: str = self._tokenizer.decode([int(index) for index in ids])
        return text

    def to_bytes(self) -> bytes:
        return msgspec.json.encode(_HuggingFaceFile(tokenizer=self._text))


def make_tokenizer(kind: str, text: str) -> Tokenizer:
    """Make the tokenizer that a job file names: "byte", "char", or the path of a JSON file.

    `text` is what a vocabulary of characters is taken from. Raises ConfigError.
    """
    if kind == "byte":
        return ByteTokenizer()
    if kind == "char":
        return CharTokenizer.of(text)
    path = Path(kind)
    try:
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise ConfigError(f"the tokenizer {path} is larger than {MAX_TOKENIZER_BYTES} bytes")
        return HuggingFaceTokenizer(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"data.tokenizer is {kind!r}, expected byte, char or the path of a tokenizers JSON "
            f"file: {error.strerror}"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the tokenizer {path} is not a JSON file in UTF-8") from error


def load_tokenizer(raw: bytes) -> Tokenizer:
    """Read a tokenizer that came from a stranger. Raises ConfigError."""
    if len(raw) > MAX_TOKENIZER_BYTES:
        raise ConfigError(f"a tokenizer of {len(raw)} bytes, at most {MAX_TOKENIZER_BYTES}")
    try:
        file = _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"this is not a tokenizer of a job: {str(error)[:200]}") from error
    match file:
        case _ByteFile():
            return ByteTokenizer()
        case _CharFile():
            return CharTokenizer(file.characters)
        case _:
            return HuggingFaceTokenizer(file.tokenizer)


class _ByteFile(msgspec.Struct, tag="byte", tag_field="kind", forbid_unknown_fields=True):
    pass


class _CharFile(msgspec.Struct, tag="char", tag_field="kind", forbid_unknown_fields=True):
    characters: str


class _HuggingFaceFile(
    msgspec.Struct, tag="tokenizers", tag_field="kind", forbid_unknown_fields=True
):
    tokenizer: str


_DECODER = msgspec.json.Decoder(_ByteFile | _CharFile | _HuggingFaceFile)


def _code_points(text: str) -> NDArray[np.uint32]:
    try:
        return np.frombuffer(text.encode("utf-32-le"), "<u4")
    except UnicodeEncodeError as error:
        raise ConfigError(f"the text has a lone surrogate at position {error.start}") from error


def _check_ids(ids: NDArray[Any], vocab_size: int) -> None:
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ValueError(f"an id outside the vocabulary of {vocab_size}")
