"""What a command tells OpenMP before torch is there: its threads are not to keep the cores that they wait for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# A command as `shoal` runs it, as far as its own help.
START = """
import os, sys
from shoal.client.cli.main import main
try:
    main([sys.argv[1], "--help"])
except SystemExit:
    pass
print("torch" in sys.modules, os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("own", "looks"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["unsaid", "spins", "policy"],
)
@pytest.mark.parametrize("command", ["peer", "generate"])
def test_openmp_waits_briefly_unless_the_user_says_how(command: str, own: dict[str, str], looks: str) -> None:
    usual = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", START, command], env=usual | own, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == f"False {looks}"
