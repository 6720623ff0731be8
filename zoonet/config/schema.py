"""Strict checking of configuration dataclasses, shared by Python callers and the file loader."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

import msgspec

from zoonet.errors import ConfigError

T = TypeVar("T", bound="Section")

_WORDS: dict[object, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


class FieldError(ConfigError):
    """One field of one section is wrong.

    `section` is "" for a field of the job itself, `field` is "" where the whole section is wrong.
    """

    def __init__(self, section: str, field: str, problem: str, *, message: str = "") -> None:
        self.section = section
        self.field = field
        super().__init__(message or f"{self.path} {problem}")

    @property
    def path(self) -> str:
        """Where the field is, such as `training.tokens`."""
        return f"{self.section}.{self.field}".strip(".")


class Section:
    """Base of the configuration dataclasses: checks the type of every field on construction.

    Subclasses set `SECTION`, the name that messages use, and put their rules into `check`.
    """

    __slots__ = ()
    SECTION: ClassVar[str]

    def __post_init__(self) -> None:
        for name, annotation in field_types(type(self)).items():
            value = getattr(self, name)
            object.__setattr__(self, name, convert(value, annotation, self.SECTION, name))
        self.check()

    def check(self) -> None:
        """Raise FieldError where the values do not make sense."""

    def require(self, field: str, is_right: bool, expected: str) -> None:
        """Raise FieldError that names the field, its value and what was expected."""
        if not is_right:
            found = shown(getattr(self, field))
            raise FieldError(self.SECTION, field, f"is {found}, expected {expected}")

    def require_between(self, low: float, high: float, *fields: str) -> None:
        """Require finite numbers in the closed interval."""
        for field in fields:
            value = getattr(self, field)
            is_right = math.isfinite(value) and low <= value <= high
            self.require(field, is_right, f"{low:,} to {high:,}")


def field_types(section_type: type) -> dict[str, Any]:
    """Annotations of a dataclass by field name, class variables left out."""
    hints = typing.get_type_hints(section_type)
    names = getattr(section_type, "__dataclass_fields__", hints)
    return {name: hint for name, hint in hints.items() if name in names and name != "SECTION"}


def build(section_type: type[T], values: Mapping[str, Any] | T) -> T:
    """Make a section from a mapping with exactly its keys. Raises FieldError."""
    if isinstance(values, section_type):
        return values
    section = section_type.SECTION
    if not isinstance(values, Mapping):
        expected = f"a mapping or {section_type.__name__}"
        raise FieldError(section, "", f"is {shown(values)}, expected {expected}")
    for key in values:
        if key not in field_types(section_type):
            raise unknown_key(section, key, field_types(section_type))
    for name, field in section_type.__dataclass_fields__.items():  # type: ignore[attr-defined]
        if name not in values and field.default is field.default_factory:  # both are MISSING
            raise FieldError(section, name, "is missing")
    return section_type(**values)


def unknown_key(section: str, key: object, valid: Iterable[str]) -> FieldError:
    """The error for a key that does not exist: names the nearest that does."""
    valid = sorted(valid)
    nearest = difflib.get_close_matches(str(key), valid, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"valid keys: {', '.join(valid)}"
    place = f" in {section}" if section else ""
    message = f"unknown key {shown(key)}{place}; {hint}"
    return FieldError(section, str(key), "is unknown", message=message)


def convert(value: object, annotation: Any, section: str, field: str) -> Any:
    """Return the value as the annotated type without loss, else raise FieldError."""
    try:
        return msgspec.convert(value, annotation, strict=True)
    except (msgspec.ValidationError, TypeError, ValueError, OverflowError) as error:
        raise FieldError(
            section, field, f"is {shown(value)}, expected {in_words(annotation)}"
        ) from error


def in_words(annotation: Any) -> str:
    """Describe a field's type to a user."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(argument) for argument in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"{len(arguments)} values, each {in_words(arguments[0])}"
    if origin is tuple:
        return f"a list, each entry {in_words(arguments[0])}"
    if origin is dict:
        return "a mapping"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def shown(value: object) -> str:
    """The value as a message shows it: short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
