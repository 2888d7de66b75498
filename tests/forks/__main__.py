"""python -m tests.forks SCRIPT ARGUMENTS: runs one of scripts/benches, whose peers start as forks."""

import runpy
import sys
from pathlib import Path

from tests.forks.popen import forked

if __name__ == "__main__":
    sys.modules["uvloop"] = None  # its processes are started past `subprocess`
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    with forked():
        runpy.run_path(sys.argv[0], run_name="__main__")
