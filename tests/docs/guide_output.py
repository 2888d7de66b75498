"""Owns when what a block printed counts as what the page shows; runs nothing.

Text: a piece of the output, beginning and ending with a line. `...` stands for anything, a number for any number,
`…abc123` for any peer; how much space there is between words does not count.
JSON: every shown field is there and of the same kind; `"..."` stands for anything.
"""

from __future__ import annotations

import json
import re
from typing import Any

PARTS = re.compile(r"(?P<any>\.\.\.)|(?P<peer>…\w+)|(?P<number>\d+(?:[.,]\d+)*)|(?P<space>\s+)")
STANDS_FOR = {"any": r".*?", "peer": r"…\w+", "number": r"\d+(?:[.,]\d+)*", "space": r"\s+"}


def shows(output: str, expected: str) -> bool:
    """Whether `expected` is a part of `output`, loosely."""
    pattern, at = [], 0
    expected = expected.strip()
    for part in PARTS.finditer(expected):
        pattern += [re.escape(expected[at : part.start()]), STANDS_FOR[str(part.lastgroup)]]
        at = part.end()
    pattern.append(re.escape(expected[at:]))
    return re.search(rf"^[^\S\n]*{''.join(pattern)}[^\S\n]*$", output, re.DOTALL | re.MULTILINE) is not None


def json_in(output: str) -> Any:
    """The first JSON value that `output` holds from the beginning of some line on; None if there is none."""
    decoder = json.JSONDecoder()
    for start in re.finditer(r"^[\[{]", output, re.MULTILINE):
        try:
            return decoder.raw_decode(output, start.start())[0]
        except ValueError:
            continue
    return None


def json_differs(found: Any, expected: Any, where: str = "") -> str | None:
    """Where `found` is not what the page shows; None if nowhere."""
    if expected == "...":
        return None
    if isinstance(expected, dict) and isinstance(found, dict):
        each = (_field(found, key, value, where) for key, value in expected.items() if key != "...")
        return next(filter(None, each), None)
    if isinstance(expected, list) and isinstance(found, list):
        return _items(found, expected, where)
    numbers = (int, float)
    if isinstance(expected, numbers) and isinstance(found, numbers) and not isinstance(expected, bool):
        return None
    alike = found == expected if not isinstance(expected, str) else isinstance(found, str) and shows(found, expected)
    return None if alike else f"{where or 'the whole'} is {found!r}"


def _field(found: dict[str, Any], key: str, value: Any, where: str) -> str | None:
    return json_differs(found[key], value, f"{where}.{key}") if key in found else f"{where}.{key} is not there"


def _items(found: list[Any], expected: list[Any], where: str) -> str | None:
    """A list that ends with `"..."` may be longer."""
    open_end = bool(expected) and expected[-1] == "..."
    wanted = expected[:-1] if open_end else expected
    if len(found) < len(wanted) or (len(found) > len(wanted) and not open_end):
        return f"{where or 'the whole'} has {len(found)} items"
    return next(filter(None, (json_differs(*pair, f"{where}[]") for pair in zip(found, wanted, strict=False))), None)
