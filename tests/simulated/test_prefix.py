"""Sessions whose prompts begin alike: peers hold what they computed, a client finds its own, and tokens stay right."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest
from shoal.client.options import SessionOptions
from shoal.client.prefix import Prompt
from shoal.peer.errors import NoRouteError
from shoal.peer.wire import Want

from tests.sim import toy
from tests.sim.clock import run
from tests.sim.swarm import N_BLOCKS, generate, states, world

SPANS = [(0, 2), (2, 4), (4, 6)]
PROMPT = [(37 * i + i // 7) % toy.VOCAB for i in range(150)]
LONGER = [*PROMPT, 5, 17, 42, 99, 7]
TURNED = [*PROMPT[:100], 1, *PROMPT[101:]]


def expected(prompt, count: int) -> list[int]:
    return toy.generate(prompt, N_BLOCKS, count)


async def complete(swarm, prompt, count=6, each=None, **options):
    """Tokens, and how many of the prompt were not run."""
    cached = []

    async def note(number, session):
        cached.append(session.stats.cached_tokens)
        if each is not None:
            await each(number, session)

    tokens = await generate(swarm, prompt, count, each=note, named=True, **options)
    return tokens, cached[-1]


def in_turn(prompts, spans=SPANS, between=None):
    """Results of generations one after the other by one client."""

    async def main():
        async with world(3, spans) as it, it.client() as swarm:
            results = []
            for prompt in prompts:
                if results and between is not None:
                    await between(it, swarm)
                results.append(await complete(swarm, prompt))
            return results

    return run(main())


def test_a_prompt_that_comes_again_is_run_from_its_last_group():
    assert in_turn([PROMPT, PROMPT, LONGER]) == [
        (expected(PROMPT, 6), 0),
        (expected(PROMPT, 6), 128),
        (expected(LONGER, 6), 128),
    ]


def test_prompts_share_what_comes_before_they_part():
    assert in_turn([PROMPT, TURNED, TURNED]) == [
        (expected(PROMPT, 6), 0),
        (expected(TURNED, 6), 64),
        (expected(TURNED, 6), 128),
    ]


def test_what_is_held_does_not_travel():
    async def main():
        async with world(3, SPANS) as it, it.client() as swarm:
            legs = [0]
            for _ in range(2):
                await complete(swarm, PROMPT, count=1)
                legs.append(it.net.legs)
            return [after - before for before, after in itertools.pairwise(legs)]

    chunks = [-(-150 // 8), -(-(150 - 128) // 8)]
    assert run(main()) == [3 * count + 1 for count in chunks]


def test_sessions_that_share_a_beginning_run_side_by_side():
    prompts = [[*PROMPT[:140], i, 2 * i, 3] for i in range(6)]

    async def main():
        async with world(3, SPANS) as it, it.client() as swarm:
            await complete(swarm, PROMPT)
            async with asyncio.TaskGroup() as tasks:
                runs = [tasks.create_task(complete(swarm, prompt, 12)) for prompt in prompts]
            return [task.result() for task in runs]

    assert run(main()) == [(expected(prompt, 12), 128) for prompt in prompts]


@pytest.mark.parametrize("name", ["other", "client"])
def test_another_client_finds_nothing(name):
    """Nor does one that takes the same peer id later: it lacks the secret."""

    async def main():
        async with world(3, SPANS) as it:
            async with it.client() as swarm:
                await complete(swarm, PROMPT)
            it.seed += 100
            async with it.client(name) as swarm:
                return await complete(swarm, PROMPT)

    assert run(main()) == (expected(PROMPT, 6), 0)


def test_users_of_one_client_find_what_they_ran_themselves_and_nothing_of_one_another():
    async def main():
        async with world(3, SPANS) as it, it.client() as swarm:
            return [await complete(swarm, PROMPT, user=user) for user in ("one", "two", "", "one", "two")]

    assert run(main()) == [(expected(PROMPT, 6), cached) for cached in (0, 0, 0, 128, 128)]


def test_the_hop_that_holds_least_decides():
    async def between(it, swarm):
        await it.kill("p1")
        await asyncio.sleep(1)
        it.net.revive("p1")
        await it.add_peer("p1", 2, 4)
        await swarm.refresh()
        await complete(swarm, PROMPT[:100])

    first, second = in_turn([PROMPT, PROMPT], between=between)
    assert first == (expected(PROMPT, 6), 0)
    assert second == (expected(PROMPT, 6), 64)


def test_a_hop_behind_another_peer_holds_nothing_of_use():
    async def between(it, swarm):
        await it.kill("p0")
        await it.add_peer("p9", 0, 2)
        await asyncio.sleep(2)

    first, second = in_turn([PROMPT, PROMPT], between=between)
    assert first == (expected(PROMPT, 6), 0)
    assert second == (expected(PROMPT, 6), 0)


def test_a_rewind_into_the_shared_beginning_spoils_it_for_nobody():
    async def main():
        async with world(3, SPANS) as it, it.client() as swarm:
            await complete(swarm, PROMPT)
            options = SessionOptions(max_tokens=300, prompt=Prompt(tuple(PROMPT)), chunk_tokens=8)
            async with swarm.session(options) as session:
                session.recall_with(lambda a, b: states(PROMPT[a:b]))
                await session.ready(PROMPT)
                held = session.position
                session.position = 70
                other = [*PROMPT[:70], *range(40)]
                session.recall_with(lambda a, b: states(other[a:b]))
                out = await session.step(states(other[70:]))
            return held, toy.choose(out[-1].tolist()), expected(other, 1)[0], await complete(swarm, PROMPT)

    held, got, wanted, after = run(main())
    assert held == 128
    assert got == wanted
    assert after == (expected(PROMPT, 6), 128)


@pytest.mark.parametrize("victim", ["p0", "p1", "p2"])
@pytest.mark.parametrize("number", [1, 5])
def test_a_hop_that_dies_in_a_session_that_began_behind_what_was_held_changes_nothing(victim, number):
    async def main():
        async with world(3, SPANS) as it, it.client() as swarm:
            await complete(swarm, PROMPT)

            async def each(at, session):
                repairs.append(session.stats.repairs)
                if at == number:
                    for index, span in enumerate(SPANS):
                        await it.add_peer(f"spare{index}", *span)
                    await it.kill(victim)

            return await complete(swarm, LONGER, 12, each, wait_s=30.0)

    repairs = []
    assert run(main()) == (expected(LONGER, 12), 128)
    assert repairs[-1] == 1


@pytest.mark.parametrize("seed", range(12))
def test_peers_that_die_and_return_change_nothing(seed):
    spans = [(0, 2), (0, 3), (2, 4), (3, 6), (4, 6), (0, 6)]

    async def main():
        rng = random.Random(seed)
        async with world(seed, spans) as it, it.client() as swarm:
            results = []

            async def each(number, session):
                if number in (2, 7):
                    name = rng.choice(session.route).peer_id
                    await it.kill(name)
                    it.net.revive(name)
                    await it.add_peer(name, *spans[int(name[1:])])

            for prompt in (PROMPT, PROMPT, LONGER, TURNED, PROMPT):
                tokens, _ = await complete(swarm, prompt, 10, each, wait_s=60.0)
                results.append(tokens == expected(prompt, 10))
            return results

    assert run(main()) == [True] * 5


async def turn(swarm, prompt, count=140, each=None, **options):
    """As `generate` does it: the answer is remembered. Its tokens, and how many of the prompt were not run."""
    tokens = list(prompt)
    given = SessionOptions(max_tokens=len(prompt) + count, prompt=Prompt(tuple(prompt)), **options)
    async with swarm.session(given) as session:
        session.recall_with(lambda a, b: states(tokens[a:b]))
        session.remember(lambda: tokens)
        await session.ready(tokens)
        for number in range(count):
            out = await session.step(states(tokens[session.position :]))
            tokens.append(toy.choose(out[-1].tolist()))
            if each is not None:
                await each(number, session)
        return tokens[len(prompt) :], session.stats.cached_tokens


def test_the_next_turn_finds_the_answer_too():
    async def main():
        async with world(3, SPANS) as it, it.client() as swarm:
            answer, _ = await turn(swarm, PROMPT)
            again = [*PROMPT, *answer, 3, 1, 4]
            return answer, again, await turn(swarm, again, 5)

    answer, again, second = run(main())
    assert answer == expected(PROMPT, 140)
    assert second == (expected(again, 5), (150 + 139) // 64 * 64)


def test_what_was_not_said_to_be_remembered_is_not():
    answer = expected(PROMPT, 140)
    assert in_turn([PROMPT, [*PROMPT, *answer, 3]])[1][1] == 128


def test_an_answer_that_was_left_in_the_middle_is_found_as_far_as_it_came():
    async def main():
        async with world(3, SPANS) as it, it.client() as swarm:

            async def each(number, session):
                if number == 60:
                    raise LookupError

            with pytest.raises(LookupError):
                await turn(swarm, PROMPT, each=each)
            again = [*PROMPT, *expected(PROMPT, 60), 9]
            return await turn(swarm, again, 5), again

    second, again = run(main())
    assert second == (expected(again, 5), 192)


def test_a_hop_whose_predecessor_is_replaced_at_the_prompt_names_nothing_more():
    """What it runs from then on comes from the new one, which may compute otherwise; the keys name the old one."""

    async def main():
        async with world(3, SPANS) as it, it.client() as swarm, asyncio.TaskGroup() as tasks:
            running = tasks.create_task(complete(swarm, PROMPT, chunk_tokens=8, wait_s=30.0))
            second = it.peers["p1"].node
            while not any(lease.holding.done >= 70 for lease in second.book.leases.values()):
                await asyncio.sleep(0.001)
            await it.add_peer("spare", *SPANS[0])
            await it.kill("p0")
            tokens, _ = await running
            return tokens, len(second.book.residency.prefix._chunks)

    tokens, known = run(main())
    assert tokens == expected(PROMPT, 6)
    assert known == 1


@pytest.mark.parametrize(("victim", "cached"), [("p0", 0), ("p1", 0), ("p2", 256)])
def test_hops_behind_one_that_was_replaced_name_nothing(victim, cached):
    """The last hop's KV is whole and of the same predecessors; one behind a new hop is of two."""

    async def main():
        async with world(3, SPANS) as it, it.client() as swarm:

            async def each(number, session):
                if number == 20:
                    for index, span in enumerate(SPANS):
                        await it.add_peer(f"spare{index}", *span)
                    await it.kill(victim)

            answer, _ = await turn(swarm, PROMPT, each=each, wait_s=30.0)
            again = [*PROMPT, *answer, 3, 1, 4]
            return answer, again, await turn(swarm, again, 5)

    answer, again, second = run(main())
    assert answer == expected(PROMPT, 140)
    assert second == (expected(again, 5), cached)


def test_the_route_that_holds_the_conversation_is_taken_again():
    """Of many like it."""

    async def main():
        async with world(3, [*SPANS, *SPANS, *SPANS]) as it, it.client() as swarm:
            conversation, found = list(PROMPT), []
            for _ in range(4):
                answer, cached = await turn(swarm, conversation, 70)
                found.append((cached, (len(conversation) - 1) // 64 * 64, answer == expected(conversation, 70)))
                conversation += [*answer, 1, 2, 3]
            return found

    first, *later = run(main())
    assert first == (0, 128, True)
    assert all(right and cached >= most - 64 for cached, most, right in later)


@pytest.mark.parametrize("want", Want)
@pytest.mark.parametrize("recalls", [False, True])
def test_a_caller_that_gives_all_rows_gets_what_it_asked_for(want, recalls):
    async def main():
        async with world(3, [*SPANS, (0, 6)]) as it, it.client() as swarm:
            results = []
            for _ in range(2):
                async with swarm.session(SessionOptions(max_tokens=200, prompt=Prompt(tuple(PROMPT)))) as session:
                    if recalls:
                        session.recall_with(lambda a, b: states([*PROMPT, 9][a:b]))
                    out = await session.step(states(PROMPT), want)
                    await it.kill(session.route[0].peer_id) if len(results) else None
                    last = await session.step(states([9]))
                    results.append((out.tolist(), last.tolist(), session.position))
                    cached = session.stats.cached_tokens
            return results, cached

    (first, second), cached = run(main())
    assert first == second
    assert len(first[0]) == {Want.NONE: 0, Want.LAST: 1, Want.ALL: 150}[want]
    assert first[2] == 151
    assert cached == (0 if want is Want.ALL else 128)


def test_blocks_that_nobody_serves_are_named_before_a_prompt_is_looked_up():
    async def main():
        async with world(2, [(0, 2), (4, 6)]) as it, it.client() as swarm:
            with pytest.raises(NoRouteError, match="2"):
                await complete(swarm, PROMPT)

    run(main())


def test_other_tokens_than_the_session_was_opened_for_are_run_from_0():
    async def main():
        async with world(3, SPANS) as it, it.client() as swarm:
            await complete(swarm, PROMPT)
            options = SessionOptions(max_tokens=200, prompt=Prompt(tuple(PROMPT)))
            async with swarm.session(options) as session:
                session.recall_with(lambda a, b: states(TURNED[a:b]))
                await session.ready(TURNED)
                at = session.position
                out = await session.step(states(TURNED[at:]))
            return at, toy.choose(out[-1].tolist())

    assert run(main()) == (0, expected(TURNED, 1)[0])


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("recalls", [False, True])
def test_who_gives_the_whole_prompt_after_its_hops_have_opened_gets_the_same(recalls, lost):
    """What the hops hold from before counts for those who asked (`ready`) or leave it to `step`; not as a position
    that the caller never heard of, and a hop that is lost before anything was given costs nothing but that."""

    async def main():
        async with world(3, SPANS) as it, it.client() as swarm:
            await complete(swarm, PROMPT)
            terms = SessionOptions(max_tokens=len(PROMPT) + 8, wait_s=30.0, prompt=Prompt(tuple(PROMPT)))
            async with swarm.session(terms) as session:
                given = []
                if recalls:
                    session.recall_with(lambda start, stop: states(given[start:stop]))
                await asyncio.sleep(1)
                at_first = session.position
                if lost:
                    await it.add_peer("spare", 0, 2)
                    await it.kill(session.route[0].peer_id)
                    await asyncio.sleep(3)
                given += PROMPT
                hidden = await session.step(states(PROMPT))
                return at_first, session.position, toy.choose(hidden[-1].tolist()), session.stats.cached_tokens

    at_first, position, token, cached = run(main())
    assert (at_first, position) == (0, len(PROMPT))
    assert token == expected(PROMPT, 1)[0]
    assert bool(cached) != lost
