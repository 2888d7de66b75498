"""Owns what a process of ours leaves unimported; must not know anything else."""

from __future__ import annotations

import sys
from typing import Final

# transformers imports these wherever they are installed. No decoder layer needs them, and they cost a process hundreds
# of megabytes and seconds of its start.
UNNEEDED: Final = ("accelerate", "pandas", "pyarrow", "sklearn", "torchaudio", "torchvision")


def leave_out() -> None:
    """Make the packages of UNNEEDED look as if they were not installed. For programs of ours, never for a library's
    user, who may need them; call it before transformers is imported."""
    for name in UNNEEDED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # Python's own way to say that there is none
