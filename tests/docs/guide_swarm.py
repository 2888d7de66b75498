"""Starts the one swarm that all pages share: the forks that run commands, a bootstrap node, three peers."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from guide_page import Block
from guide_runner import HERE, Page, Swarm, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

FORKS_S = 90.0
EVEN = "--quant none --dtype float32"
BOOTSTRAP = "shoal bootstrap --model demo\n"
PEERS = f"""\
shoal peer --join INVITE --blocks 0:7 {EVEN} & one=$!
shoal peer --join INVITE --blocks 5:12 {EVEN} & two=$!
shoal peer --join INVITE --blocks 0:12 {EVEN}
wait $one
wait $two
"""


@contextmanager
def shared_swarm(folder: Path) -> Iterator[Swarm]:
    """A swarm in `folder` (its name short: sockets have names of 100 characters), ended at the end."""
    (folder / "home").mkdir()
    path, mark = str(folder / "forks"), uuid.uuid4().hex
    argv = [sys.executable, str(HERE / "guide_forks.py"), path]
    forks = subprocess.Popen(argv, env=environment(folder / "home", mark, path, folder))
    try:
        end = time.monotonic() + FORKS_S
        while not Path(path).exists():
            if forks.poll() is not None or time.monotonic() > end:
                raise AssertionError("the forks did not get ready")
            time.sleep(0.05)
        with ExitStack() as stack:
            page = stack.enter_context(Page(folder / "swarm", Swarm("", "", path, folder / "home", mark)))
            page.run([Block(Path("bootstrap"), 1, "bash", BOOTSTRAP, 0)])
            peer_id = re.findall(r"12D3Koo\w+", page.output[1])[0]
            page.run([Block(Path("peers"), 1, "bash", PEERS, 0)])
            yield Swarm(page.invite, peer_id, path, folder / "home", mark)
    finally:
        forks.kill()
        forks.wait()
