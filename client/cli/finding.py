"""What an examination found: data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "broken"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `text`: how it is; `advice`: what to do about it, empty if nothing need be done.

    A "note" is worth knowing and stops nothing.
    """

    name: str
    state: State
    text: str
    advice: str = ""
