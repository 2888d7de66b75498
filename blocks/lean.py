"""Owns what a process of ours leaves unimported; must not know anything else."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Final

# transformers imports these wherever they are installed. No decoder layer needs them, and they cost a process hundreds
# of megabytes and seconds of its start.
UNNEEDED: Final = ("accelerate", "pandas", "pyarrow", "scipy", "sklearn", "torchaudio", "torchvision")
# Packages of which we use some modules, and whose own first lines import all of them.
IN_PARTS: Final = ("hivemind",)
VALIDATORS: Final = "transformers.utils.type_validators"


def leave_out() -> None:
    """Make the packages of UNNEEDED look as if they were not installed, and import of IN_PARTS only what is asked for.
    For programs of ours, never for a library's user, who may need them; call it before transformers is imported."""
    for name in UNNEEDED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # Python's own way to say that there is none
    for name in IN_PARTS:
        spec = importlib.util.find_spec(name) if name not in sys.modules else None
        if spec is not None:
            sys.modules[name] = importlib.util.module_from_spec(spec)  # its own code is not run


def leave_layers_out() -> None:
    """Have transformers read configs and tokenizers without importing its layers' code, and with it torch's compiler:
    it would only do so to check the names of activations, which it leaves be where there are none."""
    if VALIDATORS in sys.modules:
        return
    from transformers import tokenization_utils_base, video_utils  # noqa: F401  what it imports besides, as ever
    from transformers.utils import import_utils

    usual = import_utils.is_torch_available
    import_utils.is_torch_available = lambda: False
    try:
        if importlib.util.find_spec(VALIDATORS) is not None:
            importlib.import_module(VALIDATORS)
    finally:
        import_utils.is_torch_available = usual
