"""A process that has loaded its model: the collector leaves what is there alone, and freed memory goes back."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import gc, json, psutil
from shoal.peer.settle import settle
rss = psutil.Process().memory_info().rss
kept = [bytes(1000) for _ in range(200_000)]
spare = kept[::2]
kept = kept[1::2]
last = bytes(1000)  # the heap's end stays in use: only a trim can give back what lies before
del spare, kept
before = psutil.Process().memory_info().rss
settle()
after = psutil.Process().memory_info().rss
print(json.dumps({"held": before - rss, "given_back": before - after, "frozen": gc.get_freeze_count()}))
"""


def test_what_is_loaded_is_frozen_and_what_was_freed_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["frozen"] > 1000
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc is asked to give memory back")
    assert found["given_back"] >= 0
    assert found["held"] - found["given_back"] < 50e6
