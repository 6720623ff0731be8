"""Reads a job file: YAML, strict, and every error names its line.

Values follow YAML 1.2 (`2e-3` is a number, `no` is text). Aliases and tags are refused: a job
file is data, and a small one must not unfold into a large one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from zoonet.config.job import STDLIB, ComputeJob
from zoonet.config.schema import FieldError, shown, unknown_key
from zoonet.errors import ConfigError, SpecError

MAX_FILE_BYTES: Final = 256 * 1024
_MAX_DEPTH: Final = 20
_SECTIONS: Final = {
    "model": "model_config",
    "data": "data_config",
    "training": "training_config",
    "checkpoint": "checkpoint_config",
    "verification": "verification_config",
    "peers": "peers_config",
}
_KEYS: Final = ("name", *_SECTIONS, "budget")
_INTEGER: Final = re.compile(r"[-+]?[0-9][0-9_]*")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Final = {"true": True, "false": False, "null": None, "~": None, "": None}


class _Lines:
    """Where each key stands, by its dotted path: `training.tokens` -> 12."""

    def __init__(self) -> None:
        self.by_path: dict[str, int] = {}

    def of(self, error: FieldError) -> int:
        """The line of the field that the error blames, else of its section."""
        return self.by_path.get(error.path, self.by_path.get(error.section, 0))


class _Loader(yaml.BaseLoader):
    """PyYAML's composer without aliases, and with a bound on nesting."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise SpecError("anchors and aliases are not used in a job file", line=line)
        if self._depth >= _MAX_DEPTH:
            raise SpecError(f"nested deeper than {_MAX_DEPTH} levels", line=line)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def load_job(path: Path | str) -> ComputeJob:
    """Read a job file; relative paths in it start at its own folder.

    Raises ConfigError where the file cannot be read, SpecError with the line where it is wrong.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the job file {path}: {error.strerror}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"the job file {path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecError("not UTF-8 text", line=line) from error
    return parse_job(text, folder=path.parent)


def parse_job(text: str, *, folder: Path) -> ComputeJob:
    """Read a job from text; relative paths start at `folder`. Raises SpecError."""
    lines = _Lines()
    document = _value(_compose(text), "", lines)
    if not isinstance(document, dict):
        raise SpecError("a job file is a mapping: name, model, data, training, ...", line=1)
    try:
        return ComputeJob(**_arguments(document, folder))
    except FieldError as error:
        raise SpecError(str(error), line=lines.of(error)) from error


def _compose(text: str) -> Node:
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        raise SpecError(f"not YAML: {error.problem or error.context}", line=line) from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        position = getattr(error, "position", 0)
        line = text.count("\n", 0, position) + 1
        raise SpecError(f"not YAML: {getattr(error, 'reason', error)}", line=line) from error
    if node is None:
        raise SpecError("the job file is empty")
    return node


def _value(node: Node, path: str, lines: _Lines) -> Any:
    lines.by_path.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, MappingNode):
        return _mapping(node, path, lines)
    if isinstance(node, SequenceNode):
        _refuse_tag(node, "tag:yaml.org,2002:seq")
        return [_value(entry, f"{path}[{index}]", lines) for index, entry in enumerate(node.value)]
    _refuse_tag(node, "tag:yaml.org,2002:str")
    return _scalar(cast(ScalarNode, node))


def _mapping(node: MappingNode, path: str, lines: _Lines) -> dict[str, Any]:
    _refuse_tag(node, "tag:yaml.org,2002:map")
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode):
            raise SpecError("a key is a list or a mapping, expected a word", line=line)
        key = key_node.value
        inner = f"{path}.{key}".strip(".")
        if key in values:
            first = lines.by_path[inner]
            raise SpecError(f"the key {key!r} stands twice, first in line {first}", line=line)
        lines.by_path[inner] = line
        values[key] = _value(value_node, inner, lines)
    return values


def _refuse_tag(node: Node, expected: str) -> None:
    if node.tag != expected:
        line = node.start_mark.line + 1
        raise SpecError(f"the tag {shown(node.tag)} is not used in a job file", line=line)


def _scalar(node: ScalarNode) -> Any:
    text = node.value
    if node.style is not None:  # quoted, or a block of text
        return text
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text) and len(text) < 40:
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text


def _arguments(document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The document as the arguments of `ComputeJob`."""
    arguments: dict[str, Any] = {"training_config": {}}
    for key, value in document.items():
        if key not in _KEYS:
            raise unknown_key("", key, _KEYS)
        if value is None:
            raise FieldError("", key, "is empty")
        if key == "budget":
            arguments["budget_max"] = _budget(value)
        else:
            arguments[_SECTIONS.get(key, key)] = value
    _resolve(arguments, "data_config", "text", folder, {STDLIB})
    _resolve(arguments, "data_config", "tokenizer", folder, {"byte", "char"})
    _resolve(arguments, "model_config", "hf_config", folder, set())
    return arguments


def _budget(value: object) -> Any:
    if not isinstance(value, dict):
        raise FieldError("budget", "", f"is {shown(value)}, expected a mapping with the key max")
    for key in value:
        if key != "max":
            raise unknown_key("budget", key, ("max",))
    return value.get("max", 0)


def _resolve(
    arguments: dict[str, Any], section: str, field: str, folder: Path, words: set[str]
) -> None:
    values = arguments.get(section)
    if not isinstance(values, dict):
        return
    value = values.get(field)
    if isinstance(value, str) and value and value not in words:
        values[field] = str((folder / Path(value).expanduser()).absolute())
