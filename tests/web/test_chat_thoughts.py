"""The chat page in a real browser with a model that thinks: its reasoning is folded, its answer is not."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from aiohttp import web
from shoal.client.api.app import make_app
from shoal.client.api.options import ApiOptions, Doors

from tests.unit.scripted_model import QWEN3, scripted, thinking_model

pytestmark = [pytest.mark.swarm, pytest.mark.calm, pytest.mark.timeout(240)]

TEXT = "<think>\nIs it <b>so</b>?\n</think>\n\nIt **is**.<|im_end|>"
SWARM = {"model": "demo", "n_blocks": 12, "missing": [], "peers": [], "in_flight": 0}


@contextmanager
def served(app: web.Application):
    """Its address, while another thread serves it."""
    loop, url = asyncio.new_event_loop(), Future()

    async def serve() -> None:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            await web.SockSite(runner, listening).start()
            url.set_result(f"http://127.0.0.1:{listening.getsockname()[1]}")
            await ended.wait()
            await runner.cleanup()

    ended = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        yield url.result(30)
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def site():
    app = make_app(scripted(thinking_model(QWEN3), TEXT), ApiOptions("demo", Doors(frozenset()), wait_s=1.0))
    with served(app) as url:
        yield SimpleNamespace(url=url)


def test_reasoning_is_folded_and_kept_out_of_the_answer(open_page):
    page = open_page("/static/icon.svg")  # so that the page itself finds a swarm in place
    page.route("**/swarm.json", lambda route: route.fulfill(json=SWARM))
    page.goto(page.url.removesuffix("static/icon.svg"))
    page.fill("#input", "Is it?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer[aria-busy=false] .answer-tools")
    assert page.inner_text(".answer .md") == "It is."
    assert not page.is_visible(".thought div")
    assert page.inner_text(".thought summary") == "Thought before answering"
    page.click(".thought summary")
    assert page.inner_text(".thought div") == "Is it <b>so</b>?"
    page.reload()
    page.wait_for_selector(".answer-tools")
    assert page.text_content(".thought div") == "Is it <b>so</b>?"
    with page.expect_request("**/v1/chat/completions") as asked:
        page.fill("#input", "And now?")
        page.keyboard.press("Enter")
    messages = asked.value.post_data_json["messages"]
    assert [message["content"] for message in messages] == ["Is it?", "It **is**.", "And now?"]
