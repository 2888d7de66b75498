"""What commands say while they work, on stderr, and how they name peers; decides nothing."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
import threading
import warnings
from typing import TYPE_CHECKING, TypeVar

from shoal.dht.ending import end_soon
from shoal.dht.starting import INTERRUPTED, at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from shoal.routing.route import Hop
    from shoal.routing.view import View

T = TypeVar("T")


def tell(line: str) -> None:
    """One line of progress on stderr; stdout is for results."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def write(text: str) -> None:
    """Part of the result, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def short(peer_id: str) -> str:
    """The end of a peer id: all of them begin alike."""
    return f"…{peer_id[-6:]}"


def route_line(hops: Sequence[Hop]) -> str:
    """A route for people: `you > …abc123 [0:5] > …def456 [5:12] > you`."""
    return " > ".join(["you", *(f"{short(hop.peer_id)} [{hop.start}:{hop.stop}]" for hop in hops), "you"])


def route_json(hops: Iterable[Hop]) -> list[dict[str, object]]:
    """A route as `[{"peer": ..., "blocks": [A, B]}, ...]`."""
    return [{"peer": hop.peer_id, "blocks": [hop.start, hop.stop]} for hop in hops]


def spans(blocks: Iterable[int]) -> str:
    """Block numbers for people: `0-3, 7`."""
    runs: list[list[int]] = []
    for block in sorted(blocks):
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def gap_teller() -> Callable[[View], None]:
    """A listener that says which blocks nobody serves yet, each time this changes."""
    said: list[str] = [""]

    def on_view(view: View) -> None:
        gaps = spans(view.missing())
        if gaps != said[-1]:
            said.append(gaps)
            tell(f"waiting for blocks {gaps}" if gaps else "every block is held")

    return on_view


def run_async(work: Coroutine[object, object, T]) -> T:
    """Run `work` on a fresh event loop: uvloop's if it is there. Ctrl-C cancels it, a second one leaves at once.

    Errors: `KeyboardInterrupt` after Ctrl-C, whatever else went wrong on the way out.
    """
    interrupted = threading.Event()
    try:
        with at_once():
            run = _runner()
        return run(_interruptible(work, interrupted))
    except BaseException:
        if interrupted.is_set():
            raise KeyboardInterrupt from None
        raise


async def _interruptible(work: Coroutine[object, object, T], interrupted: threading.Event) -> T:
    # Left to asyncio.run, a signal that the kernel gives to another thread is noted and does not wake the loop.
    loop, me = asyncio.get_running_loop(), asyncio.current_task()

    def on_interrupt() -> None:
        if interrupted.is_set() or me is None:
            end_soon(INTERRUPTED)
            raise KeyboardInterrupt
        interrupted.set()
        me.cancel()

    loop.add_signal_handler(signal.SIGINT, on_interrupt)
    try:
        return await work
    finally:
        if not interrupted.is_set():  # else a second one is heard until the loop has closed
            loop.remove_signal_handler(signal.SIGINT)


def _runner() -> Callable[[Coroutine[object, object, T]], T]:
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.run
    import uvloop

    run: Callable[[Coroutine[object, object, T]], T] = uvloop.run
    return run


def quiet_libraries() -> None:
    """Keep libraries from writing between our lines (SHOAL_DEBUG=1 lets them)."""
    if not os.environ.get("SHOAL_DEBUG"):
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        warnings.filterwarnings("ignore")
