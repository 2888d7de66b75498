"""Owns what a process of ours leaves unimported; must not know anything else."""

from __future__ import annotations

import importlib.util
import sys
from typing import Final

# transformers imports these wherever they are installed. No decoder layer needs them, and they cost a process hundreds
# of megabytes and seconds of its start.
UNNEEDED: Final = ("accelerate", "pandas", "pyarrow", "scipy", "sklearn", "torchaudio", "torchvision")
# Packages of which we use some modules, and whose own first lines import all of them.
IN_PARTS: Final = ("hivemind",)


def leave_out() -> None:
    """Make the packages of UNNEEDED look as if they were not installed, and import of IN_PARTS only what is asked for.
    For programs of ours, never for a library's user, who may need them; call it before transformers is imported."""
    for name in UNNEEDED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # Python's own way to say that there is none
    for name in IN_PARTS:
        spec = importlib.util.find_spec(name) if name not in sys.modules else None
        if spec is not None:
            sys.modules[name] = importlib.util.module_from_spec(spec)  # its own code is not run
