"""The text of a job: files, folders, the standard library, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoonet.client.text import read_text
from zoonet.config import DataConfig
from zoonet.errors import ConfigError


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\n\xc3\xa9")
    assert read_text(DataConfig(text=str(tmp_path / "a.txt"))) == "one\r\ntwo\n\u00e9"


def test_a_folder_is_its_text_files_in_order_without_hidden_and_binary_ones(
    tmp_path: Path,
) -> None:
    (tmp_path / "b.txt").write_text("second ")
    (tmp_path / "a.txt").write_text("first ")
    (tmp_path / "c" / ".git").mkdir(parents=True)
    (tmp_path / "c" / "d.txt").write_text("third")
    (tmp_path / "c" / ".git" / "config").write_text("hidden")
    (tmp_path / "picture").write_bytes(b"\x89PNG\xff")
    assert read_text(DataConfig(text=str(tmp_path))) == "first second third"


def test_the_standard_library_is_python_without_its_tests() -> None:
    text = read_text(DataConfig(max_bytes=2_000_000))
    assert 1_999_990 <= len(text.encode()) <= 2_000_000
    assert "def " in text


@pytest.mark.parametrize(
    ("max_bytes", "expected"), [(1, "a"), (2, "a"), (3, "a\u00e9"), (4, "a\u00e9b")]
)
def test_a_limit_never_cuts_a_character(tmp_path: Path, max_bytes: int, expected: str) -> None:
    (tmp_path / "a.txt").write_text("a\u00e9b", encoding="utf-8")
    for text in (tmp_path / "a.txt", tmp_path):
        assert read_text(DataConfig(text=str(text), max_bytes=max_bytes)) == expected


def test_data_that_vanished_says_where_it_should_be() -> None:
    with pytest.raises(ConfigError) as caught:
        read_text(DataConfig(text="/nowhere/corpus.txt"))
    expected = "data.text is '/nowhere/corpus.txt', but there is no such file or folder"
    assert str(caught.value) == expected


def test_a_file_that_is_not_text_names_the_byte(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"abc\xff")
    with pytest.raises(ConfigError, match="is not UTF-8 text: byte 3 is 0xff"):
        read_text(DataConfig(text=str(tmp_path / "a.bin")))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ConfigError, match="is empty"):
        read_text(DataConfig(text=str(tmp_path / "a.txt")))


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no UTF-8 text file"):
        read_text(DataConfig(text=str(tmp_path)))
