"""A process that has loaded its model: the collector leaves what is there alone, and freed memory goes back."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest
from shoal.peer.settle import unwritten

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


LIBRARY = """
import ctypes, json, mmap, sys
from shoal.peer.settle import trim, unwritten
import torch
def resident():
    with open("/proc/self/smaps") as maps:
        lines = maps.read().splitlines()
    library, found = False, 0
    for line in lines:
        key, *rest = line.split()
        if not key.endswith(":"):
            library = "libtorch_cpu.so" in line
        found += int(rest[0]) if library and key == "Rss:" else 0
    return found, len(list(unwritten(lines)))
x = torch.randn(64, 64)
expected = (x @ x).softmax(-1)
before, parts = resident()
trim()
after, left = resident()
same = torch.equal((x @ x).softmax(-1), expected)
print(json.dumps({"before": before, "after": after, "parts": parts, "left": left, "same": same}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which pages a process holds")
def test_libraries_that_nobody_wrote_to_are_dropped_and_come_back_as_they_were() -> None:
    done = subprocess.run([sys.executable, "-c", LIBRARY], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["before"] > 10_000
    assert found["after"] < 0.5 * found["before"]
    assert found["left"] < 0.5 * found["parts"]
    assert found["same"]


SMAPS = """
1000-3000 r-xp 00000000 fe:00 7 /usr/lib/libone.so.1
Rss: 8 kB
Anonymous: 0 kB
VmFlags: rd ex mr
3000-4000 r--p 00003000 fe:00 7 /usr/lib/libone.so.1
Rss: 4 kB
Anonymous: 4 kB
VmFlags: rd mr
4000-5000 rw-p 00004000 fe:00 7 /usr/lib/libone.so.1
Rss: 4 kB
Anonymous: 0 kB
VmFlags: rd wr
5000-6000 r-xp 00000000 fe:00 8 /usr/lib/locked.so
Rss: 4 kB
Anonymous: 0 kB
VmFlags: rd ex lo
6000-7000 r--p 00000000 fe:00 9 /models/weights.safetensors
Rss: 4 kB
Anonymous: 0 kB
VmFlags: rd mr
7000-8000 r--s 00000000 fe:00 8 /usr/lib/shared.so
Rss: 4 kB
Anonymous: 0 kB
VmFlags: rd mr
8000-9000 r-xp 00000000 fe:00 8 /usr/lib/two.cpython-311.so
Rss: 0 kB
Anonymous: 0 kB
VmFlags: rd ex
9000-a000 r-xp 00000000 00:00 0 [vdso]
Rss: 4 kB
Anonymous: 0 kB
VmFlags: rd ex
b000-c000 rw-p 00000000 00:00 0
Rss: 4 kB
Anonymous: 4 kB
VmFlags: rd wr
"""


def test_only_what_can_be_read_from_a_librarys_file_again_is_dropped() -> None:
    """Relocated and written pages, locked ones, weights and shared mappings stay."""
    assert list(unwritten(SMAPS.strip().splitlines())) == [(0x1000, 0x3000)]
