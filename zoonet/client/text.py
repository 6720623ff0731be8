"""The text of a job, from wherever the submitter has it."""

from __future__ import annotations

import logging
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from zoonet.config import STDLIB, DataConfig
from zoonet.errors import ConfigError

MAX_DATASET_BYTES: Final = 1 << 30  # of a data set by name, where the job sets no limit
_NOT_STDLIB: Final = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
)

log = logging.getLogger(__name__)


def read_text(data: DataConfig) -> str:
    """Return the job's text, at most `max_bytes` of it as UTF-8.

    Raises ConfigError where it is missing, empty or not text.
    """
    if data.dataset:
        text = _dataset_text(data.dataset, data.max_bytes or MAX_DATASET_BYTES)
    elif data.text == STDLIB:
        root = Path(sysconfig.get_path("stdlib"))
        text = _joined(_stdlib_files(root), data.max_bytes)
    else:
        text = _path_text(Path(data.text).expanduser(), data.max_bytes)
    if not text:
        raise ConfigError(f"the text of the job, {data.dataset or data.text}, is empty")
    return text


def _stdlib_files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        if not _NOT_STDLIB.intersection(path.relative_to(root).parts):
            yield path


def _path_text(path: Path, max_bytes: int) -> str:
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if _is_visible_file(file, path))
        text = _joined(files, max_bytes)
        if not text:
            raise ConfigError(f"data.text is the folder {path}, which holds no UTF-8 text file")
        return text
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes or -1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"data.text is {str(path)!r}, but there is no such file or folder"
        ) from error
    except OSError as error:
        raise ConfigError(f"data.text, {path}, cannot be read: {error.strerror}") from error
    try:
        return _decode(raw, is_cut=bool(max_bytes))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"data.text, {path}, is not UTF-8 text: byte {error.start} is 0x{raw[error.start]:02x}"
        ) from error


def _is_visible_file(path: Path, root: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not is_hidden and path.is_file()


def _joined(files: Iterator[Path], max_bytes: int) -> str:
    """The files one after the other, those that are no text left out."""
    parts: list[str] = []
    num_bytes = 0
    for path in files:
        try:
            raw = path.read_bytes()
            parts.append(raw.decode("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            log.info("left out of the text path=%s: %s", path, error)
            continue
        num_bytes += len(raw)
        if max_bytes and num_bytes >= max_bytes:
            break
    text = "".join(parts)
    if max_bytes:
        return _decode(text.encode()[:max_bytes], is_cut=True)
    return text


def _decode(raw: bytes, *, is_cut: bool) -> str:
    """UTF-8, where a cut may have left part of a character at the end."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if is_cut and error.start >= len(raw) - 3 and error.reason == "unexpected end of data":
            return raw[: error.start].decode("utf-8")
        raise


def _dataset_text(name: str, max_bytes: int) -> str:
    """The text column of a Hugging Face data set's train split; `name:config` picks a config."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "data.dataset needs the datasets library; "
            'install it with: pip install "zoo-compute[hf]"'
        ) from error
    path, _, config = name.partition(":")
    parts: list[str] = []
    num_bytes = 0
    try:
        for row in datasets.load_dataset(path, config or None, split="train", streaming=True):
            part = _text_of(row)
            parts.append(part)
            num_bytes += len(part.encode())
            if num_bytes >= max_bytes:
                break
    except ConfigError:
        raise
    except Exception as error:  # the library raises whatever its many backends do
        raise ConfigError(f"the data set {name!r} cannot be read: {str(error)[:300]}") from error
    return _decode("\n".join(parts).encode()[:max_bytes], is_cut=True)


def _text_of(row: dict[str, Any]) -> str:
    for value in (row.get("text"), *row.values()):
        if isinstance(value, str):
            return value
    raise ConfigError(f"the data set has no column of text, only {', '.join(map(str, row))}")
