"""The pages' files over HTTP: headers that hold a hostile text down, tags, packing, and nothing outside the folder."""

from __future__ import annotations

import gzip
import re

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from shoal.client.api.gate import Gate
from shoal.client.api.options import Doors
from shoal.client.web.files import STATIC, read_files
from shoal.client.web.pages import add_pages

PLAIN = {"Accept-Encoding": "identity"}


@pytest.fixture
async def client():
    app = web.Application()
    add_pages(app, None, "demo")  # files need no swarm
    async with TestClient(TestServer(app), auto_decompress=False) as client:
        yield client


async def test_pages_come_with_a_policy_that_allows_nothing_from_outside(client):
    for path in ("/", "/swarm", "/static/chat.js", "/static/base.css", "/static/icon.svg"):
        answer = await client.get(path, headers=PLAIN)
        assert answer.status == 200
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"


async def test_a_file_that_the_browser_has_is_not_sent_again(client):
    first = await client.get("/static/chat.js", headers=PLAIN)
    again = await client.get("/static/chat.js", headers={**PLAIN, "If-None-Match": first.headers["ETag"]})
    other = await client.get("/static/chat.js", headers={**PLAIN, "If-None-Match": '"old"'})
    assert (first.status, again.status, other.status) == (200, 304, 200)
    assert await again.read() == b""
    assert first.headers["Cache-Control"] == again.headers["Cache-Control"] == "no-cache"


async def test_files_are_packed_for_who_can_unpack(client):
    plain = await client.get("/static/chat.js", headers=PLAIN)
    packed = await client.get("/static/chat.js", headers={"Accept-Encoding": "gzip, br"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["ETag"] != plain.headers["ETag"]
    body, raw = await packed.read(), await plain.read()
    assert len(body) < len(raw) / 2
    assert gzip.decompress(body) == raw == (STATIC / "chat.js").read_bytes()


@pytest.mark.parametrize(
    "path", ["/static/", "/static/../files.py", "/static/%2e%2e/files.py", "/static/..%2ffiles.py", "/static/chat.html"]
)
async def test_nothing_else_is_served(client, path):
    assert (await client.get(path)).status == 404


def test_pages_need_nothing_from_outside_and_nothing_inline():
    files = read_files()
    known = {f"/static/{name}" for name in files} | {"/", "/swarm"}
    for name, file in files.items():
        text = file.body.decode()
        if name.endswith(".html"):
            assert set(re.findall(r'(?:src|href)="([^"#]+)"', text)) <= known
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", text)
        if name.endswith(".js"):
            assert {f"/static/{made}" for made in re.findall(r'from "\./([^"]+)"', text)} <= known
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text)
        if name.endswith(".css"):
            assert "@import" not in text
            assert "url(" not in text


def test_a_page_may_ask_its_own_server_behind_tls_too():
    gate = Gate(Doors())
    assert gate._knows("https://swarm.example", "swarm.example")
    assert gate._knows("http://swarm.example", "swarm.example")
    assert not gate._knows("https://swarm.example", "other.example")
