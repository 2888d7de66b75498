"""`shoal api` at its doors: who gets in, how much, how slowly, and what stays behind when a reader or itself goes."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from api_server import FREED_S, Server, closed_by_server, start_api, until
from processes import Processes
from shoal.blocks.checkpoint import resolve
from shoal.blocks.spec import spec_of
from shoal.client.options import Model, SessionOptions
from shoal.client.swarm import join_swarm
from shoal.dht.invite import Invite
from shoal.routing.route import Hop, Route

from tests.steadiness import in_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from processes import Running
    from shoal.client.swarm import Swarm

pytestmark = [pytest.mark.swarm, pytest.mark.calm, pytest.mark.timeout(200)]

LONG = {"model": "demo", "prompt": "def f(", "max_tokens": 1500, "ignore_eos": True, "stream": True}
EMPTY_INVITE = Invite("default", "demo", ()).encode()
SHORT = {"prompt": "x = ", "max_tokens": 2}
KEY = {"Authorization": "Bearer second"}
DOORS = [
    "--api-key", "first", "--api-key", "second", "--allow-host", "api.example", "--allow-origin", "https://page.example",
    "--read-timeout", "1", "--max-body", "64KiB", "--max-in-flight", "3",
]  # fmt: skip


@pytest.fixture(scope="module")
def guarded(api_processes: Processes, api_invite: str) -> Server:
    return start_api(api_processes, api_invite, *DOORS)


def test_only_a_known_key_gets_in(guarded: Server) -> None:
    for headers, status, code in (
        ({}, 401, "missing_api_key"),
        ({"Authorization": "Basic second"}, 401, "missing_api_key"),
        ({"Authorization": "Bearer third"}, 401, "invalid_api_key"),
        ({"Authorization": "Bearer s\xe9cond"}, 401, "invalid_api_key"),
    ):
        found = guarded.ask("/v1/models", headers=headers)
        assert (found[0], found[1]["error"]["code"]) == (status, code)
    assert guarded.ask("/metrics")[0] == 401
    assert guarded.ask("/v1/models", headers=KEY)[0] == 200
    assert guarded.ask("/v1/models", headers={"X-Api-Key": "first"})[0] == 200
    assert guarded.ask("/health")[0] == 200


def test_who_has_one_key_learns_nothing_of_prompts_that_came_with_another(guarded: Server) -> None:
    """Not even that they came before: what peers know of a prompt is named for each key anew."""

    def known(key: str) -> int:
        body = {"prompt": "a prompt of its own: " + "0123456789 " * 30, "max_tokens": 2}
        status, found, _ = guarded.ask("/v1/completions", body, {"Authorization": f"Bearer {key}"})
        assert status == 200
        return found["usage"]["prompt_tokens_details"]["cached_tokens"]

    first, second, other, again = (known(key) for key in ("first", "first", "second", "second"))
    assert (first, other) == (0, 0)
    assert second == again >= 64


def test_a_rebound_name_and_a_foreign_page_stay_outside(guarded: Server) -> None:
    for headers, status in (
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:80"}, 403),
        ({"Host": "["}, 403),
        ({"Host": "api.example:8000"}, 200),
        ({"Host": "10.1.2.3"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": guarded.url}, 200),
    ):
        assert guarded.ask("/v1/models", headers={**KEY, **headers})[0] == status, headers
    page = {"Origin": "https://page.example"}
    status, _, headers = guarded.ask("/v1/models", headers={**KEY, **page})
    assert (status, headers["Access-Control-Allow-Origin"]) == (200, page["Origin"])
    preflight = {**page, "Access-Control-Request-Method": "POST"}
    status, _, headers = guarded.ask("/v1/completions", headers=preflight, method="OPTIONS")
    assert (status, "Authorization" in headers["Access-Control-Allow-Headers"]) == (204, True)
    for asked, taken in (("authorization,x-stainless-os,x-stainless-retry-count", True), ("x-a, x b", False)):
        wanted = {**preflight, "Access-Control-Request-Headers": asked}  # the first are those of OpenAI's client
        _, _, headers = guarded.ask("/v1/completions", headers=wanted, method="OPTIONS")
        assert (headers["Access-Control-Allow-Headers"] == asked) == taken
    # A page that may read an answer may read an error too.
    status, _, headers = guarded.ask("/v1/models", headers=page)
    assert (status, headers["Access-Control-Allow-Origin"]) == (401, page["Origin"])


def test_bodies_have_a_type_a_length_and_a_time(guarded: Server) -> None:
    for body, headers, status in (
        (SHORT, {"Content-Type": "text/plain"}, 415),
        (SHORT, {"Content-Type": "application/json; charset=latin-1"}, 415),
        ({"prompt": "x" * 70_000}, {}, 413),
        (b"{}" * 40_000, {}, 413),
        (b"{", {}, 400),
    ):
        assert guarded.ask("/v1/completions", body, {**KEY, **headers})[0] == status
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer first\r\n"
    typed = head + b"Content-Type: application/json\r\n"
    with closing(guarded.raw(typed + b"Content-Length: 99\r\n\r\n{")) as slow:
        began = time.monotonic()
        assert b" 408 " in slow.recv(65536)
        in_time(time.monotonic() - began < 3)
    with closing(guarded.raw(typed + b"Transfer-Encoding: chunked\r\n\r\n20000\r\n" + b" " * 0x20000)) as long:
        assert b" 413 " in long.recv(65536)
    bomb = b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope"
    with closing(guarded.raw(typed + bomb)) as broken:
        assert b" 400 " in broken.recv(65536)


def test_who_never_ends_his_request_s_head_is_cut_off(guarded: Server) -> None:
    in_time(closed_by_server(guarded.raw(b"GET /health HTTP/1.1\r\nHost: local"), 20) < 10)


@pytest.mark.alone
def test_too_many_at_a_time_are_told_when_to_come_back(guarded: Server) -> None:
    status, found, _ = guarded.ask("/v1/completions", {**SHORT, "n": 4}, KEY)
    assert (status, found["error"]["param"]) == (400, "n")
    readers = [guarded.raw(_post({**LONG, "n": 3}))]
    try:
        assert b" 200 " in readers[0].recv(65536)
        status, found, headers = guarded.ask("/v1/completions", SHORT, KEY)
        assert (status, found["error"]["type"]) == (429, "rate_limit_error")
        assert int(headers["Retry-After"]) >= 1
    finally:
        for reader in readers:
            reader.close()
    in_time(until(lambda: guarded.ask("/v1/completions", SHORT, KEY)[0] == 200) < FREED_S)


def test_a_second_signal_leaves_at_once(guarded: Server) -> None:
    """Last of those that ask this server."""
    with closing(guarded.raw(_post(LONG))) as reader:
        assert b" 200 " in reader.recv(65536)
        guarded.running.process.send_signal(signal.SIGTERM)
        until(lambda: any("finishing" in line for line in guarded.running.errors))
        began = time.monotonic()
        guarded.running.process.send_signal(signal.SIGTERM)
        assert guarded.running.process.wait(20) == 130
        in_time(time.monotonic() - began < 10)


def _post(body: dict) -> bytes:
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer first\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


# -- a swarm of its own: its only peer holds little KV, and goes -----------------------------------------------------


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes() as running:
        yield running


@pytest.fixture(scope="module")
def invite(processes: Processes) -> str:
    return processes.start("bootstrap", "--json", "--model", "demo").event("invite")["invite"]


@pytest.fixture(scope="module")
def peer(processes: Processes, invite: str) -> Running:
    """One with room for one long answer."""
    own = ["--blocks", "0:12", "--dtype", "float32", "--quant", "none", "--kv-tokens", "1600", "--host-memory", "1MiB"]
    started = processes.start("peer", "--model", "demo", "--join", invite, "--json", *own)
    started.event("event", "online")
    return started


@pytest.fixture(scope="module")
def tight(processes: Processes, invite: str, peer: Running) -> Server:
    return start_api(processes, invite, "--grace", "20")


@pytest.mark.alone
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_dropped_connection_frees_its_kv_within_a_second(tight: Server, invite: str, streamed: bool) -> None:
    """The peer itself is asked for the room, again and again: what it announces is older than that."""
    spec = spec_of(resolve("demo"))
    model = Model(spec.n_blocks, spec.hidden_size, resolve("demo").revision)
    async with join_swarm(Invite.parse(invite), model) as swarm:
        only = swarm.view.peers[0].peer_id
        swarm.plan = lambda plan, work: Route((Hop(only, plan.start, plan.stop),), 0.0, 0.0, 0.0)
        first = await asyncio.to_thread(_under_way, tight, {**LONG, "stream": streamed})
        async with asyncio.TaskGroup() as tasks:
            room = tasks.create_task(_room(swarm))
            await asyncio.sleep(0.5)
            assert not room.done(), "the peer has room for one only"
            first.close()
            began = time.monotonic()
            async with asyncio.timeout(30 * FREED_S):
                await room
            in_time(time.monotonic() - began < FREED_S)
    in_time(await asyncio.to_thread(until, lambda: tight.metric("shoal_api_in_flight") == 0) < FREED_S)


def _under_way(server: Server, body: dict) -> socket.socket:
    """A request that is being answered; until the last one's end has been announced, the peer is thought to be full."""
    for _ in range(10):
        before = server.metric("shoal_api_tokens_total")
        asked = server.post("/v1/completions", body)
        try:
            until(lambda now=before: server.metric("shoal_api_tokens_total") > now + 5, 3)
        except AssertionError:
            asked.close()
            continue
        return asked
    raise AssertionError("the peer stays full")


async def _room(swarm: Swarm) -> None:
    async with swarm.session(SessionOptions(1500, dtype="float32", wait_s=60)) as session:
        await session.ready(())


def test_a_full_swarm_says_when_to_come_back(tight: Server) -> None:
    with closing(_under_way(tight, LONG)):
        status, found, headers = tight.ask("/v1/completions", {**SHORT, "max_tokens": 1500})
        assert (status, found["error"]["code"]) == (429, "swarm_busy")
        assert int(headers["Retry-After"]) >= 1


def test_leaving_lets_what_runs_finish(processes: Processes, invite: str, peer: Running) -> None:
    server = start_api(processes, invite)
    with closing(server.post("/v1/completions", {**LONG, "max_tokens": 60})) as reader:
        assert b" 200 " in reader.recv(65536)
        server.running.tell(signal.SIGTERM)
        text = b"".join(iter(lambda: reader.recv(65536), b""))
    assert b"data: [DONE]" in text
    assert server.running.end() == 0


def test_missing_blocks_are_named_and_found_again(tight: Server, processes: Processes, peer: Running) -> None:
    """Last in this file: the peer goes."""
    assert tight.ask("/health/ready")[0] == 200
    assert peer.end() == 0
    until(lambda: tight.ask("/health")[0] == 503)
    status, found, headers = tight.ask("/health")
    assert (found["missing_blocks"], found["ready"], found["live"]) == (list(range(12)), False, True)
    assert tight.ask("/health/live")[0] == 200
    for path, body in (("/v1/completions", SHORT), ("/v1/embeddings", {"input": "x"})):
        status, found, headers = tight.ask(path, body)
        assert (status, found["error"]["code"]) == (503, "missing_blocks")
        assert "locks 0-11" in found["error"]["message"]
        assert int(headers["Retry-After"]) >= 1
    assert tight.metric("shoal_swarm_blocks_covered") == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], r"lets other machines in.*--api-keys-file"),
        (["--host", "no.such.host.invalid"], r"knows no address 'no.such.host.invalid'"),
        (["--api-key", "a b"], r"must have no spaces"),
        (["--allow-origin", "example.org"], r"write it as https://example.org"),
        (["--join", "nonsense"], r"invite"),
        (["--max-in-flight", "0"], r"whole number from 1 up"),
    ],
)
def test_a_bad_start_is_one_clear_line(processes: Processes, options: list[str], said: str) -> None:
    join = [] if "--join" in options else ["--join", EMPTY_INVITE]
    done = processes.run("api", "--model", "demo", "--port", "0", *join, *options)
    assert done.returncode in (1, 2)
    assert re.search(said, done.stderr), done.stderr
    assert (done.stderr.count("\n"), done.stdout) == (1, "")


def test_a_port_that_is_taken_is_named(processes: Processes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = processes.run("api", "--model", "demo", "--join", EMPTY_INVITE, "--port", port)
    assert done.returncode == 1
    assert re.search(f"port {port} is taken.*--port", done.stderr)
