"""Reads the fields of a JSON object, each by its kind; what is wrong is told with the field's name. Pure: data only."""

from __future__ import annotations

import difflib
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from shoal.client.api.errors import refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

HINTED = 100
MAX_NAME = 80
T = TypeVar("T")
D = TypeVar("D")
Read: TypeAlias = "Callable[[Any, str], T]"  # (value, the field's name) -> what it means


class Fields:
    """`take` every field that is known, then `end`: a field that nobody took is refused. A null is not given."""

    def __init__(self, given: Mapping[str, Any], within: str = "") -> None:
        self._given, self._within = given, f"{within}." if within else ""
        self._known: set[str] = set()

    def take(self, name: str, read: Read[T], default: D) -> T | D:
        """What a field means; `default` where it is not given."""
        self._known.add(name)
        value = self._given.get(name)
        return default if value is None else read(value, self._within + name)

    def need(self, name: str, read: Read[T]) -> T:
        """What a field means that must be there."""
        self._known.add(name)
        if self._given.get(name) is None:
            message = f"`{self._within}{name}` is missing.{self._hint(name, self._given)}"
            refuse(self._within + name, message, "missing_required_parameter")
        return read(self._given[name], self._within + name)

    def ignore(self, *names: str) -> None:
        """Fields that may hold anything, since they change nothing here."""
        self._known.update(names)

    def cannot(self, why: str, *names: str) -> None:
        """Fields that must not ask for anything: `why` says what is not done."""
        self._known.update(names)
        for name in names:
            if self._given.get(name) not in (None, False, "", [], {}):
                refuse(self._within + name, f"`{self._within}{name}`: {why}", "unsupported_parameter")

    def end(self) -> None:
        """Refuse what nobody knows."""
        for name in self._given:
            if name not in self._known:
                where = (self._within + name)[:120]
                hint = self._hint(name, self._known)
                refuse(where, f"Unknown parameter: `{where}`.{hint}", "unknown_parameter")

    def _hint(self, name: str, among: Iterable[str]) -> str:
        """A name much like it, of at most HINTED; the rest of a long object is not worth the time."""
        names = [other for other in islice(among, HINTED) if len(other) <= MAX_NAME]
        close = difflib.get_close_matches(name[:MAX_NAME], names, n=1, cutoff=0.7)
        return f" Is it `{self._within}{close[0]}` that is meant?" if close else ""


def flag(value: Any, name: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        refuse(name, f"`{name}` must be true or false.", "invalid_type")
    return value


def text(most: int = 1 << 24, least: int = 0) -> Read[str]:
    """A string of `least` to `most` characters."""

    def read(value: Any, name: str) -> str:
        if not isinstance(value, str):
            refuse(name, f"`{name}` must be a string.", "invalid_type")
        if not least <= len(value) <= most:
            refuse(name, f"`{name}` must have from {least} to {most} characters, and has {len(value)}.")
        return value

    return read


def whole(low: int, high: int) -> Read[int]:
    """A whole number from `low` to `high`."""

    def read(value: Any, name: str) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            refuse(name, f"`{name}` must be a whole number.", "invalid_type")
        if not low <= value <= high:
            refuse(name, f"`{name}` is {value}, but must be from {low} to {high}.")
        return value

    return read


def number(low: float, high: float) -> Read[float]:
    """A number from `low` to `high`."""

    def read(value: Any, name: str) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            refuse(name, f"`{name}` must be a number.", "invalid_type")
        if not low <= value <= high:
            refuse(name, f"`{name}` is {value:.6g}, but must be from {low:g} to {high:g}.")
        return float(value)

    return read


def one_of(*choices: str) -> Read[str]:
    """One of some words."""

    def read(value: Any, name: str) -> str:
        if not isinstance(value, str) or value not in choices:
            refuse(name, f"`{name}` must be one of {', '.join(choices)}.")
        return value

    return read


def items(read_item: Read[T], most: int, least: int = 0) -> Read[tuple[T, ...]]:
    """A list of `least` to `most` items of one kind."""

    def read(value: Any, name: str) -> tuple[T, ...]:
        if not isinstance(value, list):
            refuse(name, f"`{name}` must be a list.", "invalid_type")
        if not least <= len(value) <= most:
            refuse(name, f"`{name}` must have from {least} to {most} items, and has {len(value)}.")
        return tuple(read_item(item, f"{name}[{at}]") for at, item in enumerate(value))

    return read


def mapping(value: Any, name: str) -> dict[str, Any]:
    """An object, whatever it holds."""
    if not isinstance(value, dict):
        refuse(name, f"`{name}` must be an object.", "invalid_type")
    return value
