"""Events on real sockets: a reader that lags holds the writer back, and one that takes nothing is cut off."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from shoal.client.api.admission import Admission
from shoal.client.api.errors import ApiError
from shoal.client.api.logprobs import Places, Scored, completion_logprobs
from shoal.client.api.stream import EventStream
from shoal.client.api.tokens import TokenTexts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WRITE_S = 1.0
EVENT = {"text": "x" * 10_000}


class Writer:
    """An endpoint that writes events for ever."""

    def __init__(self) -> None:
        self.events = 0
        self.ended = asyncio.Event()
        self.error: BaseException | None = None

    async def serve(self, request: web.Request) -> web.StreamResponse:
        stream = EventStream(request, {}, WRITE_S)
        try:
            while True:
                stream.add(EVENT)
                await stream.flush()
                self.events += 1
                await asyncio.sleep(0)
        except (ConnectionError, asyncio.CancelledError) as error:
            self.error = error
            raise
        finally:
            self.ended.set()


@asynccontextmanager
async def served(writer: Writer, buffer: int) -> AsyncIterator[socket.socket]:
    """A connection with such a buffer on which the endpoint was asked."""
    app = web.Application()
    app.router.add_get("/", writer.serve)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
        server = await asyncio.get_running_loop().create_server(runner.server, sock=listening)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.connect(listening.getsockname())
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.setblocking(False)
        yield client
        server.close()
        await runner.cleanup()


async def test_a_reader_that_takes_nothing_is_cut_off() -> None:
    writer = Writer()
    async with served(writer, 4096):
        began = time.monotonic()
        async with asyncio.timeout(20):
            await writer.ended.wait()
        assert time.monotonic() - began >= WRITE_S
        assert isinstance(writer.error, ConnectionResetError)


async def test_a_reader_that_lags_holds_the_writer_back() -> None:
    writer = Writer()
    async with served(writer, 1 << 20) as client:
        loop, taken = asyncio.get_running_loop(), 0
        end = loop.time() + 2 * WRITE_S
        while loop.time() < end:
            taken += len(await loop.sock_recv(client, 1 << 16))
            await asyncio.sleep(0.01)
        assert not writer.ended.is_set()
        # Sent and not taken: what the kernel and one write buffer hold, not what a free writer would have made.
        assert writer.events * 10_000 - taken < 16 << 20


async def test_places_are_counted_and_given_back() -> None:
    admission = Admission(3)
    with admission.enter(2):
        assert (admission.in_flight, admission.idle.is_set()) == (2, False)
        with pytest.raises(ApiError) as busy, admission.enter(2):
            pass
        assert (busy.value.status, busy.value.headers["Retry-After"]) == (429, "1")
    assert (admission.in_flight, admission.idle.is_set()) == (0, True)
    with pytest.raises(ApiError) as never, admission.enter(4):
        pass
    assert never.value.status == 400
    admission.close()
    with pytest.raises(ApiError) as leaving, admission.enter(1):
        pass
    assert leaving.value.status == 503


@pytest.mark.parametrize("text", ["naïve 🐟 = 1\n", "def f(x):\n\treturn x"])
def test_the_bytes_of_tokens_are_those_of_the_text(text: str) -> None:
    from shoal.blocks.checkpoint import DEMO_PATH
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO_PATH)
    texts = TokenTexts(tokenizer)
    ids = tokenizer(text)["input_ids"]
    assert texts.is_special(ids[0])
    assert texts.of(ids[0])[0] == "<bos>"
    assert b"".join(bytes(texts.of(token)[1]) for token in ids[1:]).decode() == text


class Pieces:
    """A tokenizer whose decoder, like Llama's, leaves out the space that a text would begin with."""

    all_special_ids = (0,)
    vocabulary = ("<s>", "x", "▁Hello", "▁world", "s", "world", "<0xC3>", "<0xA9>")

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert (text, add_special_tokens) == ("x", False)
        return {"input_ids": [1]}

    def convert_ids_to_tokens(self, number: int) -> str:
        return self.vocabulary[number]

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(self.vocabulary[number] for number in ids).replace("▁", " ").removeprefix(" ")


def test_tokens_keep_their_spaces_and_say_where_they_begin() -> None:
    texts = TokenTexts(Pieces())
    ids = [2, 4, 3, 5, 6, 7, 4]  # " Hellos worldworldés"
    assert [texts.of(number)[0] for number in ids[:4]] == [" Hello", "s", " world", "world"]
    whole = completion_logprobs(texts, [Scored(number, -1.0) for number in ids], Places(texts))
    assert whole["text_offset"] == [0, 6, 7, 13, 18, 18, 19]
    places = Places(texts)
    streamed = [completion_logprobs(texts, [Scored(number, -1.0)], places)["text_offset"][0] for number in ids]
    assert streamed == whole["text_offset"], "in pieces as in one"
    both = completion_logprobs(texts, [Scored(3, -1.0, ((3, -1.0), (5, -2.0)))], Places(texts))
    assert both["top_logprobs"] == [{" world": -1.0, "world": -2.0}]
