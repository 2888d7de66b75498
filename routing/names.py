"""Owns what a peer may call itself: names are strangers' text on other people's screens. Knows no announcement.

Letters of every script are welcome. What acts on the text around it or cannot be seen is not: control characters,
overrides of the writing direction, invisible letters, towers of combining marks.
"""

from __future__ import annotations

import unicodedata
from typing import Final

MAX_NAME_CHARS: Final = 40
MAX_MARKS: Final = 3  # combining marks on one letter: no script needs more
# Letters and symbols by their class that show nothing: fillers of Hangul, the empty Braille cell.
INVISIBLE: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")


def checked_name(text: str) -> str:
    """Return `text` in its composed form with single spaces. Raises ValueError, with one sentence, if it cannot be a
    name; an empty one is none and is fine."""
    name = " ".join(unicodedata.normalize("NFC", text).split(" ")).strip()
    for char in name:
        if not char.isprintable() or char in INVISIBLE:
            kind = unicodedata.name(char, "a control character")
            raise ValueError(f"a name cannot hold U+{ord(char):04X} ({kind.lower()})")
    if len(name) > MAX_NAME_CHARS:
        raise ValueError(f"a name has at most {MAX_NAME_CHARS} characters, this one has {len(name)}")
    if shown_name(name) != name:
        raise ValueError(f"a name cannot hold more than {MAX_MARKS} combining marks in a row")
    return name


def shown_name(text: str) -> str:
    """Return what may be shown of a stranger's `text`: never longer, and `checked_name` refuses none of it."""
    kept: list[str] = []
    marks = 0
    for char in text[:MAX_NAME_CHARS]:
        if not char.isprintable() or char in INVISIBLE:
            continue
        marks = marks + 1 if unicodedata.category(char) in ("Mn", "Me") else 0
        if marks <= MAX_MARKS:
            kept.append(char)
    return "".join(kept).strip()
