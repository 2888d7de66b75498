"""Set before any test is collected: Triton decides when it is first imported whether it interprets kernels."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

# By the driver's own file and not by torch: tests of the command line look at what is loaded.
if importlib.util.find_spec("triton") is not None and not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
