"""Fields of wire messages: each one declares what it takes. Knows no messages.

A field's test is an expression over `value`. Those of a message are made into one function (`test_of`), as dataclasses
makes methods: a call for each field costs more than the tests, above all where the caches are cold.
"""

from __future__ import annotations

from dataclasses import MISSING, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_ADDRS = 8


class WireError(ValueError):
    """A field is out of bounds; mapped to a local or a remote protocol error at the border."""


def test_of(kind: type) -> Callable[[Any], str]:
    """A function that says which field of a message of this kind is out of bounds, or ""."""
    names: dict[str, Any] = {"_is_text": _is_text, "_are_keys": _are_keys, "MAX_ADDRS": MAX_ADDRS}
    lines = ["def test(message):"]
    for f in fields(kind):
        if "test" in f.metadata:
            names[f"known_{f.name}"] = f.metadata.get("known")
            test = f.metadata["test"].replace("KNOWN", f"known_{f.name}")
            lines += [f" value = message.{f.name}", f" if not ({test}): return {f.name!r}"]
    exec("\n".join([*lines, " return ''"]), names)  # noqa: S102 - of this module's text and fields' names alone
    made: Callable[[Any], str] = names["test"]
    return made


def integer(limit: int, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"test": f"type(value) is int and 0 <= value < {limit}"})


def text(limit: int) -> Any:
    return field(metadata={"test": f"_is_text(value, {limit})"})


def raw(*sizes: int) -> Any:
    return field(metadata={"test": f"type(value) is bytes and len(value) in {sizes}"})


def blob(limit: int) -> Any:
    return field(metadata={"test": f"type(value) is bytes and len(value) <= {limit}"})


def flag() -> Any:
    return field(metadata={"test": "type(value) is bool"})


def seconds() -> Any:
    return field(metadata={"test": "type(value) is float and 0.0 <= value < 1e6"})


def one_of(values: frozenset[Any], kind: Callable[[Any], Any] | None = None) -> Any:
    return field(metadata={"test": "value in KNOWN", "known": values, **({"make": kind} if kind else {})})


def addrs() -> Any:
    test = "type(value) is tuple and len(value) <= MAX_ADDRS and all(_is_text(addr, 256) for addr in value)"
    return field(metadata={"test": test, "make": tuple})


def keys(size: int, limit: int) -> Any:
    return field(default=(), metadata={"test": f"_are_keys(value, {size}, {limit})", "make": tuple})


def _is_text(value: object, limit: int) -> bool:
    return type(value) is str and len(value) <= limit and not any("\ud800" <= char <= "\udfff" for char in value)


def _are_keys(value: object, size: int, limit: int) -> bool:
    return (
        type(value) is tuple and len(value) <= limit and all(type(key) is bytes and len(key) == size for key in value)
    )
