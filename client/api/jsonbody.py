"""A request's JSON, read strictly: what readers might understand differently is refused. Pure: bytes in, data out."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, NoReturn

from shoal.client.api.errors import ApiError

MAX_DEPTH = 64
MAX_DIGITS = 32
_SURROGATE = "\\ud"


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object that `body` holds.

    Errors: `ApiError` (400) for anything else, among it NaN and Infinity, numbers past a float's range, a key given
    twice, half a surrogate pair, and more than MAX_DEPTH levels.
    """
    try:
        text = body.decode()
        found = json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_float, parse_int=_int
        )
    except UnicodeDecodeError:
        _refuse("The body is not UTF-8.")
    except RecursionError:
        _refuse(f"The JSON is nested deeper than {MAX_DEPTH} levels.")
    except ValueError as error:
        _refuse(f"The body is not JSON: {error}.")
    if not isinstance(found, dict):
        _refuse("The body must be a JSON object, in {}.")
    _check_depth(found)
    if _SURROGATE in text.lower():
        _check_text(found)
    return found


def _refuse(message: str) -> NoReturn:
    raise ApiError(400, message, code="invalid_json")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        _refuse(f"The key {twice[:80]!r} is given twice.")
    return found


def _no_constant(name: str) -> NoReturn:
    _refuse(f"{name} is not a JSON number.")


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        _refuse(f"The number {digits[:40]} is too large.")
    return number


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        _refuse(f"A whole number has {len(digits)} digits; {MAX_DIGITS} are allowed.")
    return int(digits)


def _check_depth(found: object) -> None:
    """Level by level, so that depth costs no stack."""
    level: list[Any] = [found]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    _refuse(f"The JSON is nested deeper than {MAX_DEPTH} levels.")


def _check_text(found: object) -> None:
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        _refuse("A string holds half of a surrogate pair (\\ud800 to \\udfff), which is no character.")
