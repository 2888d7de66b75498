"""python -m tests.forks SCRIPT ARGUMENTS: runs one of scripts/benches, whose peers start as forks."""

import asyncio
import runpy
import sys
from pathlib import Path

import uvloop

from tests.forks.popen import forked

if __name__ == "__main__":
    uvloop.run = asyncio.run  # uvloop starts processes past `subprocess`
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    with forked():
        runpy.run_path(sys.argv[0], run_name="__main__")
