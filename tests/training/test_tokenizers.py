from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoonet.errors import ConfigError
from zoonet.training.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    load_tokenizer,
    make_tokenizer,
)

WORDS = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "truncation": None,
    "padding": None,
    "model": {
        "type": "WordLevel",
        "vocab": {"[UNK]": 0, "peers": 1, "train": 2},
        "unk_token": "[UNK]",
    },
}


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_come_back_as_the_same_text(text: str) -> None:
    tokenizer = load_tokenizer(ByteTokenizer().to_bytes())
    assert tokenizer.vocab_size == 256
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_characters_come_back_as_the_same_text(text: str) -> None:
    tokenizer = load_tokenizer(CharTokenizer.of(text).to_bytes())
    ids = tokenizer.encode(text)
    assert tokenizer.vocab_size == len(set(text))
    assert tokenizer.decode(ids) == text
    assert ids.dtype == np.uint8 or tokenizer.vocab_size > 256


def test_the_vocabulary_is_the_characters_in_the_order_of_their_code_points() -> None:
    assert make_tokenizer("char", "cabbage").encode("abceg").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("unknown", ["z", " ", "\U0001f600"])
def test_a_character_outside_the_vocabulary_is_named(unknown: str) -> None:
    with pytest.raises(ConfigError, match="is not in the job's vocabulary") as error:
        CharTokenizer.of("cabbage").encode("cab" + unknown)
    assert repr(unknown) in str(error.value)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer.of("abc")])
@pytest.mark.parametrize("ids", [[-1], [256], [0, 2**40]])
def test_ids_outside_the_vocabulary_are_refused(
    tokenizer: ByteTokenizer | CharTokenizer, ids: list[int]
) -> None:
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.decode(np.array(ids))


def test_a_tokenizers_file_travels_with_the_job(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(WORDS))
    tokenizer = load_tokenizer(make_tokenizer(str(path), "").to_bytes())
    assert tokenizer.vocab_size == 3
    assert tokenizer.encode("peers train hard").tolist() == [1, 2, 0]
    assert tokenizer.decode(np.array([1, 2])) == "peers train"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b'{"kind": "code", "source": "import os"}',
        b'{"kind": "byte", "more": 1}',
        b'{"kind": "char"}',
        b'{"kind": "char", "characters": ""}',
        b'{"kind": "char", "characters": "ba"}',
        b'{"kind": "char", "characters": "aa"}',
        b'{"kind": "char", "characters": "\xff"}',
        b'{"kind": "char", "characters": "\\ud800"}',
        b'{"kind": "tokenizers", "tokenizer": "{}"}',
        b'{"kind": "tokenizers", "tokenizer": ' + b"[" * 10_000,
    ],
)
def test_a_stranger_s_malformed_tokenizer_is_refused(raw: bytes) -> None:
    with pytest.raises(ConfigError):
        load_tokenizer(raw)


@given(raw=st.binary(max_size=200))
def test_arbitrary_bytes_are_no_tokenizer(raw: bytes) -> None:
    with pytest.raises(ConfigError):
        load_tokenizer(raw)


def test_an_oversized_tokenizer_is_refused_before_it_is_read() -> None:
    with pytest.raises(ConfigError, match="at most"):
        load_tokenizer(bytes((32 << 20) + 1))


@pytest.mark.parametrize("kind", ["chars", "/nowhere/tokenizer.json", "."])
def test_a_tokenizer_that_is_not_there_is_named(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.tokenizer is"):
        make_tokenizer(kind, "text")


def test_a_vocabulary_of_an_empty_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty"):
        make_tokenizer("char", "")
