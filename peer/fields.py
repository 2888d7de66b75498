"""Fields of wire messages: each one declares what it takes. Knows no messages."""

from __future__ import annotations

from dataclasses import MISSING, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_ADDRS = 8


class WireError(ValueError):
    """A field is out of bounds; mapped to a local or a remote protocol error at the border."""


def integer(limit: int, default: Any = MISSING) -> Any:
    def check(value: object) -> bool:
        return type(value) is int and 0 <= value < limit

    return field(default=default, metadata={"check": check})


def _is_text(value: object, limit: int) -> bool:
    return type(value) is str and len(value) <= limit and not any("\ud800" <= char <= "\udfff" for char in value)


def text(limit: int) -> Any:
    return field(metadata={"check": lambda value: _is_text(value, limit)})


def raw(*sizes: int) -> Any:
    return field(metadata={"check": lambda value: type(value) is bytes and len(value) in sizes})


def blob(limit: int) -> Any:
    return field(metadata={"check": lambda value: type(value) is bytes and len(value) <= limit})


def flag() -> Any:
    return field(metadata={"check": lambda value: type(value) is bool})


def seconds() -> Any:
    return field(metadata={"check": lambda value: type(value) is float and 0.0 <= value < 1e6})


def one_of(values: frozenset[Any], kind: Callable[[Any], Any] = lambda value: value) -> Any:
    return field(metadata={"check": lambda value: value in values, "make": kind})


def addrs() -> Any:
    def check(value: object) -> bool:
        return type(value) is tuple and len(value) <= MAX_ADDRS and all(_is_text(a, 256) for a in value)

    return field(metadata={"check": check, "make": tuple})


def keys(size: int, limit: int) -> Any:
    def check(value: object) -> bool:
        return (
            type(value) is tuple
            and len(value) <= limit
            and all(type(key) is bytes and len(key) == size for key in value)
        )

    return field(default=(), metadata={"check": check, "make": tuple})
