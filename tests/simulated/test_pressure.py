"""The real node with few pages and many guests in virtual time: everybody's tokens are right, nobody starves, a device
that fails or is lost ends what it must and no more.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
from contextlib import AsyncExitStack

import pytest
from shoal.client.options import SessionOptions
from shoal.peer import channel
from shoal.peer.book import LeaseBook, Limits
from shoal.peer.errors import NoRouteError
from shoal.peer.wire import Refused

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, generate, states, world

PROMPTS = [[5 + i, 17, 42 + i, 99, 7, 3, 250, 1, 2 * i, 90, 33] for i in range(6)]


def expected(prompt, count: int) -> list[int]:
    return toy.generate(prompt, N_BLOCKS, count)


def everything_is_free(peer) -> bool:
    book = peer.node.book
    book.pages.check()
    cached = book.residency.prefix.idle_pages
    return book.pages.free + cached == peer.engine.n_pages and not book.residency.committed and not peer.node.steps.jobs


@pytest.mark.parametrize("seed", range(4))
def test_more_sessions_than_the_device_has_pages_for_are_all_exact(seed):
    """Six sessions of 18 pages on 24 pages of device memory, over two hops that swap at different times."""

    async def main():
        async with world(seed, []) as it:
            limits = Limits(swap_pages=90, grace_s=0.5)
            peers = [await it.add_peer("a", 0, 3, limits, n_pages=24), await it.add_peer("b", 3, 6, limits, n_pages=20)]
            async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
                clients = [await stack.enter_async_context(it.client(f"c{i}")) for i in range(3)]
                told = [
                    tasks.create_task(generate(clients[i % 3], prompt, 60, wait_s=5.0))
                    for i, prompt in enumerate(PROMPTS)
                ]
                async with asyncio.timeout(300):
                    tokens = await asyncio.gather(*told)
            await asyncio.sleep(3)
            counts = [peer.node.book.residency.counts for peer in peers]
            return tokens, [(count.saved, count.restored) for count in counts], all(map(everything_is_free, peers))

    tokens, moved, free = run(main())
    assert tokens == [expected(prompt, 60) for prompt in PROMPTS]
    assert all(saved > 0 and restored > 0 for saved, restored in moved)
    assert free


@pytest.mark.parametrize("seed", range(3))
def test_prompts_whose_chunks_shrink_while_they_wait_for_pages_are_all_exact(seed):
    """Prompts of many chunks beside decodes, on a device with pages for two of the six."""
    prompts = [[(7 * i + 3 * j + i * j) % toy.VOCAB for j in range(90 + 37 * i)] for i in range(6)]

    async def main():
        async with world(seed, []) as it:
            peer = await it.add_peer("a", 0, 6, Limits(swap_pages=400, grace_s=0.5), n_pages=90, step_s=0.02)
            async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
                clients = [await stack.enter_async_context(it.client(f"c{i}")) for i in range(3)]
                told = [
                    tasks.create_task(generate(clients[i % 3], prompt, 25, wait_s=5.0, chunk_tokens=len(prompt)))
                    for i, prompt in enumerate(prompts)
                ]
                return await asyncio.gather(*told), peer.node.book.residency.counts.saved

    tokens, saved = run(main())
    assert tokens == [expected(prompt, 25) for prompt in prompts]
    assert saved > 0


def test_without_host_memory_the_last_ones_are_refused_before_their_first_token():
    async def main():
        async with world(3, []) as it:
            await it.add_peer("a", 0, 6, n_pages=16)
            async with it.client() as swarm, asyncio.TaskGroup() as tasks:
                kept = [tasks.create_task(generate(swarm, prompt, 20)) for prompt in PROMPTS[:2]]
                await asyncio.sleep(0.05)
                with pytest.raises(NoRouteError):
                    await generate(swarm, PROMPTS[2], 20)
                return await asyncio.gather(*kept)

    assert run(main()) == [expected(prompt, 20) for prompt in PROMPTS[:2]]


@pytest.mark.parametrize("cut_s", [0.12, 0.4])
def test_a_session_whose_link_was_cut_is_let_in_again_while_its_last_step_still_runs(monkeypatch, cut_s):
    """A device that it fills alone, whose steps take half a second: its own pages are not held against it."""
    refusals, opened = [], LeaseBook.open

    def watched(*given):
        answer = opened(*given)
        if isinstance(answer, Refused):
            refusals.append(answer)
        return answer

    monkeypatch.setattr(LeaseBook, "open", watched)

    async def main():
        async with world(3, []) as it:
            peer = await it.add_peer("a", 0, 6, n_pages=8, step_s=0.5)
            async with it.client() as swarm:
                running = asyncio.create_task(generate(swarm, PROMPTS[0], 20, wait_s=20.0))
                await asyncio.sleep(cut_s)
                assert peer.node.steps.jobs
                it.net.reset("a", "client")
                tokens = await running
            await asyncio.sleep(1)
            return tokens, peer.node.book.opened, everything_is_free(peer)

    assert run(main()) == (expected(PROMPTS[0], 20), 2, True)
    assert refusals == []


# -- long sessions -----------------------------------------------------------------------------------------------------

PAGE_S = 0.005  # that a page takes to or from host memory
LONG = [[(7 * i + 3 * j) % toy.VOCAB for j in range(150)] for i in range(2)]


def slow_to_move(engine) -> None:
    """Its pages cost time one by one, each way."""
    save, restore = engine.save, engine.restore

    async def saving(pages):
        await asyncio.sleep(PAGE_S * len(pages))
        return await save(pages)

    async def restoring(saved, pages):
        await asyncio.sleep(PAGE_S * len(pages))
        await restore(saved, pages)

    engine.save, engine.restore = saving, restoring


async def ask(swarm, prompt, go: asyncio.Event) -> list[list[int]]:
    """What a session gives for a prompt and, when it may go on, for a token behind it."""
    async with swarm.session(SessionOptions(max_tokens=160, wait_s=5.0)) as session:
        first = (await session.step(states(prompt)))[-1].tolist()
        await go.wait()
        return [first, (await session.step(states([5])))[-1].tolist()]


async def beside_one_who_comes_back(meanwhile=None):
    """A session of 38 pages had to leave for such another one; now it goes on, while a short one decodes.

    Returns the task of the long one, the times and the text of the short one's tokens, and whether all is free in the
    end. `meanwhile(world, task)` is called when the first pages are back."""
    async with world(4, []) as it:
        limits = Limits(swap_pages=64, grace_s=0.5, step_pages=2)
        peer = await it.add_peer("a", 0, 6, limits, n_pages=52)
        slow_to_move(peer.engine)
        counts, times, go = peer.node.book.residency.counts, [], asyncio.Event()

        async def each(number, _session):
            times.append(asyncio.get_running_loop().time())
            if number == 3:
                assert counts.saved > 20
                go.set()

        async with AsyncExitStack() as stack:
            guest, other, short = [await stack.enter_async_context(it.client(name)) for name in ("g", "o", "s")]
            long = asyncio.create_task(ask(guest, LONG[0], go))
            await asyncio.sleep(1.0)
            idle = asyncio.create_task(ask(other, LONG[1], asyncio.Event()))
            await asyncio.sleep(1.0)
            decoding = asyncio.create_task(generate(short, PROMPTS[2], 30, each=each, wait_s=5.0))
            while not counts.restored:
                await asyncio.sleep(0.001)
            if meanwhile is not None:
                await meanwhile(it, long)
            await asyncio.wait([long, decoding])
            idle.cancel()
        await asyncio.sleep(2)
    return long, times, decoding.result(), everything_is_free(peer)


def test_a_long_session_that_comes_back_holds_up_no_other_for_more_than_a_piece():
    """A token takes 16 ms here; two pages each way come to four times that, and the whole session to 0.3 s."""

    async def main():
        whole = toy.Whole(0, N_BLOCKS)
        wanted = [(await whole.step(piece))[-1] for piece in (LONG[0], [5])]
        long, times, tokens, free = await beside_one_who_comes_back()
        return long.result() == wanted, times, tokens, free

    exact, times, tokens, free = run(main())
    assert exact
    assert tokens == expected(PROMPTS[2], 30)
    assert free
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert sum(gap > 0.05 for gap in gaps) >= 5, "it came back while this one decoded"
    assert max(gaps) < 0.1


async def close(_world, task) -> None:
    task.cancel()


async def vanish(world, _task) -> None:
    world.net.kill("g")


async def fail(world, _task) -> None:
    world.peers["a"].engine.fault_next = True


@pytest.mark.parametrize("end", [close, vanish, fail])
def test_one_who_ends_on_the_way_back_leaves_nothing_behind(end):
    async def main():
        long, _, tokens, free = await beside_one_who_comes_back(end)
        if end is not fail:
            assert long.cancelled() or long.exception() is not None
        return tokens, free

    assert run(main()) == (expected(PROMPTS[2], 30), True)


async def back_and_forth(swarm, prompt, pause_s=0.15):
    """Whether a session that is rewound finds its own tokens."""
    async with swarm.session(SessionOptions(max_tokens=40, wait_s=5.0)) as session:
        first = (await session.step(states(prompt)))[-1].tolist()
        for token in range(9):
            await session.step(states([token]))
            await asyncio.sleep(pause_s)
        session.position = len(prompt) - 3
        return first == (await session.step(states(prompt[-3:])))[-1].tolist()


def test_rewinding_sessions_under_pressure_stay_exact():
    async def main():
        async with world(2, []) as it:
            peer = await it.add_peer("a", 0, 6, Limits(swap_pages=64), n_pages=10)
            async with it.client() as swarm, asyncio.TaskGroup() as tasks:
                results = [tasks.create_task(back_and_forth(swarm, prompt)) for prompt in PROMPTS]
                await asyncio.gather(*results)
            return [task.result() for task in results], peer.node.book.residency.counts.saved

    results, saved = run(main())
    assert results == [True] * len(PROMPTS)
    assert saved > 0


def test_cached_prompts_make_room_before_any_session_is_moved():
    prompts = [[(7 * i + j) % toy.VOCAB for j in range(70)] for i in range(3)]

    async def main():
        async with world(2, []) as it:
            peer = await it.add_peer("a", 0, 6, Limits(swap_pages=64), n_pages=40)
            async with it.client() as swarm:
                tokens = [await generate(swarm, prompt, 4, named=True) for prompt in (*prompts, prompts[-1])]
            return tokens, peer.node.book.residency.counts

    tokens, counts = run(main())
    assert tokens == [expected(prompt, 4) for prompt in (*prompts, prompts[-1])]
    assert (counts.hits, counts.saved) == (1, 0)
    assert counts.evicted_chunks > 0


@pytest.mark.parametrize("when", range(8))
def test_a_fault_while_pages_move_costs_repairs_and_no_tokens(when):
    async def main():
        async with world(when, []) as it:
            limits = Limits(swap_pages=64, grace_s=0.5)
            peers = [await it.add_peer(name, 0, 6, limits, n_pages=10) for name in "ab"]
            for peer in peers:
                save, number = peer.engine.save, itertools.count()

                async def failing(pages, engine=peer.engine, save=save, number=number):
                    engine.fault_next = engine.fault_next or next(number) == when
                    return await save(pages)

                peer.engine.save = failing
            async with it.client() as swarm, asyncio.TaskGroup() as tasks:
                told = [tasks.create_task(generate(swarm, prompt, 15, wait_s=20.0)) for prompt in PROMPTS]
            await asyncio.sleep(3)
            return [task.result() for task in told], all(map(everything_is_free, peers))

    tokens, free = run(main())
    assert tokens == [expected(prompt, 15) for prompt in PROMPTS]
    assert free


def test_a_lost_device_ends_every_lease_and_is_told_to_the_program():
    async def main():
        async with world(5, []) as it:
            lost = await it.add_peer("lost", 0, 6)
            async with it.client() as swarm, asyncio.TaskGroup() as tasks:
                told = [tasks.create_task(generate(swarm, prompt, 30, wait_s=20.0)) for prompt in PROMPTS]
                await asyncio.sleep(0.1)
                assert not lost.node.broken.is_set()
                lost.engine.break_next = True
                await lost.node.broken.wait()
                leases = len(lost.node.book.leases)
                await it.add_peer("other", 0, 6)
            return [task.result() for task in told], leases, lost.node.book.draining

    tokens, leases, draining = run(main())
    assert tokens == [expected(prompt, 30) for prompt in PROMPTS]
    assert (leases, draining) == (0, True)


# -- fairness ----------------------------------------------------------------------------------------------------------


async def times_of(swarm, prompt, count: int) -> list[float]:
    """Seconds between the tokens of one generation."""
    loop, times = asyncio.get_running_loop(), []

    async def each(_number, _session):
        times.append(loop.time())

    await generate(swarm, prompt, count, each=each, wait_s=5.0)
    return [after - before for before, after in itertools.pairwise(times)]


async def prompts_without_end(swarm, tokens: int, over: asyncio.Event) -> int:
    """One long prompt after the other; returns how many positions have run."""
    done = 0
    while not over.is_set():
        async with swarm.session(SessionOptions(max_tokens=tokens, chunk_tokens=tokens, wait_s=5.0)) as session:
            await session.step(states([done % toy.VOCAB] * tokens))
            done += tokens
    return done


def gaps_beside_prompts(prompts: int) -> tuple[float, int]:
    """Median seconds between tokens of a session while so many clients send long prompts, and how much of them ran."""

    async def main():
        async with world(1, []) as it, AsyncExitStack() as stack:
            await it.add_peer("a", 0, 6, n_pages=2048, step_s=0.02)
            decoding = await stack.enter_async_context(it.client("decoding"))
            others = [await stack.enter_async_context(it.client(f"o{i}")) for i in range(prompts)]
            over = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                sent = [tasks.create_task(prompts_without_end(other, 400, over)) for other in others]
                gaps = await times_of(decoding, PROMPTS[0], 60)
                over.set()
            return statistics.median(gaps[10:]), sum(task.result() for task in sent)

    return run(main())


def test_long_prompts_do_not_stall_a_session_that_decodes():
    """A step of one token takes 20 ms here and a prompt of 400 tokens 80 ms more in one piece."""
    alone, _ = gaps_beside_prompts(0)
    beside, ran = gaps_beside_prompts(2)
    # A step of prompts alone that is under way when the token comes is waited for: it lasts 1.25 decode steps.
    assert beside <= alone + (1.25 + 0.5) * 0.0202
    assert ran > 800


def time_beside_prompts(prompts: int) -> float:
    """Seconds for a prompt of 300 tokens while another client keeps so many of them waiting."""

    async def main():
        async with world(1, []) as it, it.client("many") as many, it.client("one") as one:
            await it.add_peer("a", 0, 6, n_pages=4096)
            loop, over = asyncio.get_running_loop(), asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                for _ in range(prompts):
                    tasks.create_task(prompts_without_end(many, 300, over))
                await asyncio.sleep(1.0)
                started = loop.time()
                await generate(one, [i % toy.VOCAB for i in range(300)], 1, chunk_tokens=300, wait_s=5.0)
                over.set()
                return loop.time() - started

    return run(main())


def test_a_client_with_many_sessions_does_not_starve_another():
    """Thirty prompts of one client wait when that of another comes; together they take 2 s."""
    full_step_s = 0.004 + 0.0002 * 512
    assert time_beside_prompts(30) < time_beside_prompts(0) + 3.5 * full_step_s


def test_a_peer_computes_no_more_of_a_prompt_than_its_line_takes(monkeypatch):
    """Behind a slow line what waits stays little."""
    monkeypatch.setattr(channel, "CLOGGED_BYTES", 1000)
    monkeypatch.setattr(channel, "CLOGGED_S", 0.0)
    prompt = [i % 250 for i in range(800)]

    async def main():
        async with world(3, []) as it:
            a = await it.add_peer("a", 0, 3)
            await it.add_peer("b", 3, 6)
            most = 0

            async def look():
                nonlocal most
                while True:
                    links = [entry.channel for entry in a.node._pool._entries.values() if entry.channel is not None]
                    most = max([most, *(link._turns.bytes for link in links)])
                    await asyncio.sleep(0.001)

            async with it.client("c") as client, asyncio.TaskGroup() as tasks:
                await generate(client, prompt[:4], 2, wait_s=20.0)  # the link stands
                a.node.config.line.up.rate = 1000.0
                looking = tasks.create_task(look())
                tokens = await generate(client, prompt, 3, wait_s=20.0, chunk_tokens=32)
                looking.cancel()
            return tokens, most

    tokens, most = run(main())
    assert tokens == toy.generate(prompt, N_BLOCKS, 3)
    assert 1000 < most < 3000
