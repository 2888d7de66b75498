"""Our own threads for loops on the CPU (crew.h): one that does not get to run holds nobody up, and comes in later."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
from shoal.blocks.cpu import compiled

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(not any(map(shutil.which, compiled.COMPILERS)), reason="needs a C compiler")

# A loop notes by whom each index was done. `keep`: helpers that sleep do not get on, as where others have their
# processors. `meet`: an index waits until two threads are in the loop.
SOURCE = """
#include "crew.h"
static void note(const void *by, int64_t index, int64_t who) { ((int64_t *)by)[index] = who; }

static void wait_for_another(const void *inside, int64_t index, int64_t who) {
    _Atomic int64_t *count = (void *)inside;
    (void)index, (void)who;
    atomic_fetch_add(count, 1);
    while (atomic_load(count) < 2) sched_yield();
}

void run(int64_t threads, int64_t count, int64_t *by) {
    threads = gather(threads);
    each(threads, count, note, by);
    disband(threads);
}

void meet(void) {
    _Atomic int64_t inside = 0;
    int64_t threads = gather(2);
    each(threads, 2, wait_for_another, (const void *)&inside);
    disband(threads);
}

void keep(void) {
    while (!atomic_load(&crew.asleep)) sched_yield();
    pthread_mutex_lock(&crew.sleeping);
}

void let_go(void) { pthread_mutex_unlock(&crew.sleeping); }
"""


@pytest.fixture
def crew(tmp_path):
    compiler = next(found for name in compiled.COMPILERS if (found := shutil.which(name)))
    (tmp_path / "crew.c").write_text(SOURCE)
    folder = str(compiled.Path(compiled.__file__).parent)
    made = str(tmp_path / "crew.so")
    subprocess.run(
        [
            compiler,
            *compiled._ALWAYS,
            "-Wall",
            "-Wextra",
            "-Werror",
            "-I",
            folder,
            str(tmp_path / "crew.c"),
            "-o",
            made,
        ],
        check=True,
    )
    return ctypes.CDLL(made)


def in_time(call: Callable[[], object], callers: int = 1) -> None:
    """So many threads call it at once, and all return: C that waits for ever would hold up more than this test."""
    threads = [threading.Thread(target=call, daemon=True) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


def done_by(crew: ctypes.CDLL, threads: int, count: int) -> set[int]:
    """The threads that took part; -1: an index was left out."""
    by = (ctypes.c_int64 * count)(*[-1] * count)
    crew.run(ctypes.c_int64(threads), ctypes.c_int64(count), by)
    return set(by)


def test_who_is_kept_from_running_holds_nobody_up_and_comes_in_later(crew) -> None:
    found: list[set[int]] = []
    in_time(crew.meet)  # now there is a helper
    crew.keep()
    try:
        in_time(lambda: found.append(done_by(crew, 2, 1000)))
    finally:
        crew.let_go()
    assert found == [{0}]
    in_time(crew.meet)


def test_every_index_is_done_by_one_of_the_threads(crew) -> None:
    for threads, count in ((1, 7), (3, 1), (3, 5000), (2, 5000), (4, 2)) * 20:
        assert done_by(crew, threads, count) <= set(range(threads))


def test_of_two_callers_at_once_one_works_alone(crew) -> None:
    found: list[set[int]] = []
    in_time(lambda: found.extend(done_by(crew, 3, 20_000) for _ in range(100)), callers=2)
    assert len(found) == 200
    assert set().union(*found) <= {0, 1, 2}
