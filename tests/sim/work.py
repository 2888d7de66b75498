"""What clients do in a simulation: sessions of several kinds, and what each must give whatever happens on the way."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Job:
    """One session. It feeds `prompt`, then `count` tokens of its own choice.

    `style`: "greedy"; "all": every state comes back; "quiet": the prompt's first half is answered with nothing;
    "rewind": sets its position back to `back` after `turn` tokens and goes on with other ones; "kept": greedy, and the
    session keeps its inputs itself; "guess": greedy, with guesses that go along, of which some are wrong.
    `named`: the session is told its prompt, for the prefix cache.
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

    @property
    def max_tokens(self) -> int:
        return len(self.prompt) + self.count + len(self.prompt) // 2


class Ends(Protocol):
    """Feeds tokens to blocks; `position` may be set back."""

    position: int

    async def feed(self, tokens: Sequence[int], want: Want, *, prompt: bool = True) -> list[list[int]]: ...


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


class _Remote:
    """A session through the swarm."""

    def __init__(self, job: Job, session: RemoteSession) -> None:
        self._job, self._session = job, session
        self._tokens: list[int] = []
        if job.style != "kept":
            session.recall_with(lambda a, b: states(self._tokens[a:b]))

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
            await self._session.ready(self._tokens)
            tokens = tokens[self._session.position :]
        rows = await self._session.step(states(tokens), want, prompt=prompt)
        return [[int(number) for number in row] for row in rows.tolist()]


def expected(job: Job) -> list[int]:
    """What the job gives where nothing happens."""
    return _at_once(play(job, _Undisturbed(job)))


async def perform(
    job: Job, swarm: Swarm, note: Callable[[int], None], opened: Callable[[RemoteSession], None]
) -> list[int]:
    """Run the job through a swarm. Errors: what the session raises."""
    options = SessionOptions(
        max_tokens=job.max_tokens, start=job.start, stop=job.stop, chunk_tokens=job.chunk_tokens, wait_s=job.wait_s,
        priority=job.priority, prompt=Prompt(job.prompt) if job.named else None,
    )  # fmt: skip
    async with swarm.session(options) as session:
        opened(session)
        return await play(job, _Remote(job, session), note)
