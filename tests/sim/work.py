"""What clients do in a simulation: sessions of several kinds, and what each must give whatever happens on the way."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Protocol, TypeVar

from shoal.client.options import SessionOptions
from shoal.client.prefix import Prompt
from shoal.peer.wire import Want

from tests.sim import toy
from tests.sim.swarm import N_BLOCKS, states

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from shoal.client.remote import RemoteSession
    from shoal.client.swarm import Swarm

T = TypeVar("T")
STYLES = ("greedy", "all", "quiet", "rewind", "kept", "guess")
PAUSES_S = (0.02, 0.3, 1.2, 3.0)  # a "mixed" session's, who thinks between its steps
FOLLOW_UP = 3  # tokens that a user adds to an answer


@dataclass(frozen=True)
class Job:
    """One session. It feeds `prompt`, then `count` tokens of its own choice.

    `style`: "greedy"; "all": every state comes back; "quiet": the prompt's first half is answered with nothing;
    "rewind": sets its position back to `back` after `turn` tokens and goes on with other ones; "kept": greedy, and the
    session keeps its inputs itself; "guess": greedy, with guesses that go along, of which some are wrong.
    "mixed": a few tokens at a time, for some, all or none of their states, with rewinds and pauses between; "chat":
    `turns` named sessions, each with all of the last one's text before it, and what it ran remembered.
    `named`: the session is told its prompt, for the prefix cache. It waits for `dwell_s` before its first inputs, and
    before that for its hops if it `asks`.
    """

    client: str
    prompt: tuple[int, ...]
    count: int
    style: str = "greedy"
    start: int = 0
    stop: int = N_BLOCKS
    turn: int = 0
    back: int = 0
    named: bool = False
    priority: int = 0
    chunk_tokens: int = 8
    wait_s: float = 60.0
    begin_s: float = 0.0
    turns: int = 1
    asks: bool = True
    dwell_s: float = 0.0

    @property
    def max_tokens(self) -> int:
        text = len(self.prompt) + (self.turns - 1) * (self.count + FOLLOW_UP)
        return text + self.count + text // 2


class Ends(Protocol):
    """Feeds tokens to blocks; `position` may be set back."""

    position: int

    async def feed(self, tokens: Sequence[int], want: Want, *, prompt: bool = True) -> list[list[int]]: ...

    async def pause(self, seconds: float) -> None: ...


async def play(job: Job, ends: Ends, note: Callable[[int], None] = lambda _number: None) -> list[int]:
    """Every number that comes back, in order; `note(how many steps are done)`."""
    seen: list[int] = []

    async def run(tokens: Sequence[int], want: Want, *, prompt: bool = True) -> list[int]:
        rows = await ends.feed(tokens, want, prompt=prompt)
        seen.extend(number for row in rows for number in row)
        note(len(seen))
        return [toy.choose(row) for row in rows]

    async def feed(tokens: Sequence[int], want: Want) -> int:
        return [0, *await run(tokens, want)][-1]

    want = Want.ALL if job.style == "all" else Want.LAST
    half = len(job.prompt) // 2 if job.style == "quiet" else 0
    if half:
        await feed(job.prompt[:half], Want.NONE)
    token = await feed(job.prompt[half:], want)
    if job.style == "mixed":
        await _mix(job, ends, run, token)
        return seen
    done = 0
    while job.style == "guess" and done < job.count - 1:
        guesses = _guesses(job, done)
        chosen = await run([token, *guesses], Want.ALL, prompt=not guesses)
        right = next((i for i, guess in enumerate(guesses) if guess != chosen[i]), len(guesses))
        ends.position -= len(guesses) - right
        token, done = chosen[right], done + right + 1
    for number in range(done, job.count - 1):
        if job.style == "rewind" and number == job.turn:
            ends.position = job.back
            token = await feed([(token + i) % toy.VOCAB for i in range(len(job.prompt) // 2)], want)
        token = await feed([token], want)
    return seen


async def _mix(job: Job, ends: Ends, run: Callable[..., Coroutine[object, object, list[int]]], token: int) -> None:
    """As an unsteady caller of the Python session does it."""
    rng = random.Random(f"mixed {job.prompt} {job.turn} {job.back}")
    for _ in range(job.count - 1):
        if rng.random() < 0.25:
            ends.position = rng.randrange(ends.position + 1)
        if rng.random() < 0.2:
            await ends.pause(rng.choice(PAUSES_S))
        count = min(rng.choice([1, 1, 1, 2, 4, 9]), job.max_tokens - ends.position)
        if count:
            tokens = [(token + 3 * i) % toy.VOCAB for i in range(count)]
            want = rng.choice([Want.LAST, Want.ALL, Want.NONE])
            token = [token + 1, *await run(tokens, want, prompt=rng.random() < 0.4)][-1]


def _guesses(job: Job, number: int) -> list[int]:
    """For what follows token `number` of the text: up to three, and now and then a wrong one."""
    count = min((number + len(job.prompt)) % 4, job.count - 2 - number)
    text = _text(job)[number + 1 : number + 1 + count]
    return [token if (number + 2 * i) % 5 else (token + 1) % toy.VOCAB for i, token in enumerate(text)]


@cache
def _text(job: Job) -> list[int]:
    """The tokens that a greedy session chooses."""
    whole, chosen, tokens = toy.Whole(job.start, job.stop), [], list(job.prompt)
    for _ in range(job.count):
        tokens = [toy.choose(_at_once(whole.step(tokens))[-1])]
        chosen += tokens
    return chosen


def _at_once(playing: Coroutine[object, object, T]) -> T:
    """What a coroutine gives that waits for nothing."""
    try:
        playing.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("the undisturbed run waited for something")


class _Undisturbed:
    """The whole model in one place."""

    def __init__(self, job: Job) -> None:
        self._whole = toy.Whole(job.start, job.stop)

    @property
    def position(self) -> int:
        return self._whole.position

    @position.setter
    def position(self, position: int) -> None:
        self._whole.position = position

    async def feed(self, tokens: Sequence[int], want: Want, *, prompt: bool = True) -> list[list[int]]:
        rows = await self._whole.step(tokens)
        return {Want.NONE: [], Want.LAST: rows[-1:], Want.ALL: rows}[want]

    async def pause(self, seconds: float) -> None:
        return


class _Remote:
    """A session through the swarm."""

    def __init__(self, job: Job, session: RemoteSession) -> None:
        self._job, self._session = job, session
        self._tokens: list[int] = []
        if job.style != "kept":
            session.recall_with(lambda a, b: states(self._tokens[a:b]))
        if job.style == "chat":
            session.remember(lambda: self._tokens)

    @property
    def position(self) -> int:
        return len(self._tokens)

    @position.setter
    def position(self, position: int) -> None:
        self._session.position = position
        del self._tokens[position:]

    async def feed(self, tokens: Sequence[int], want: Want, *, prompt: bool = True) -> list[list[int]]:
        before = len(self._tokens)
        self._tokens += tokens
        if self._job.named and not before:
            if self._job.asks:
                await self._session.ready(self._tokens)
            if self._job.dwell_s:
                await asyncio.sleep(self._job.dwell_s)
            tokens = tokens[self._session.position :]
        rows = await self._session.step(states(tokens), want, prompt=prompt)
        return [[int(number) for number in row] for row in rows.tolist()]

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def expected(job: Job) -> list[int]:
    """What the job gives where nothing happens."""
    return [number for turn in _turns(job) for number in _at_once(play(turn, _Undisturbed(turn)))]


def _turns(job: Job) -> list[Job]:
    """The sessions of which a job consists."""
    turns = [replace(job, turns=1)]
    while len(turns) < job.turns:
        last = turns[-1]
        text = (*last.prompt, *_text(last)[: last.count])
        turns.append(replace(last, prompt=(*text, *((text[-1] + 1 + i) % toy.VOCAB for i in range(FOLLOW_UP)))))
    return turns


async def perform(
    job: Job, swarm: Swarm, note: Callable[[int], None], opened: Callable[[RemoteSession], None]
) -> list[int]:
    """Run the job through a swarm. Errors: what the session raises."""
    return [number for turn in _turns(job) for number in await _converse(turn, swarm, note, opened)]


async def _converse(
    job: Job, swarm: Swarm, note: Callable[[int], None], opened: Callable[[RemoteSession], None]
) -> list[int]:
    options = SessionOptions(
        max_tokens=job.max_tokens, start=job.start, stop=job.stop, chunk_tokens=job.chunk_tokens, wait_s=job.wait_s,
        priority=job.priority, prompt=Prompt(job.prompt) if job.named else None,
    )  # fmt: skip
    async with swarm.session(options) as session:
        opened(session)
        return await play(job, _Remote(job, session), note)
