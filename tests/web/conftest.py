"""A swarm, `shoal api` over it and a real browser, for all tests of the pages; started once, ended at the end."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from tests.swarm.processes import Processes, Running

if TYPE_CHECKING:
    from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SPANS = ("0:5", "4:9", "8:12")  # killing one leaves a gap
PEER = ("--quant", "none", "--dtype", "float32", "--device", "cpu", "--json")
WAIT_MS = 40_000


@dataclass
class Site:
    """Three peers and an API server that makes one answer at a time."""

    processes: Processes
    keys: Path
    invite: str
    url: str
    peers: list[Running]
    names: list[str]
    server: Running | None = None

    def start_server(self) -> None:
        """At a free port, or where it was before it was killed."""
        port = str(urlsplit(self.url).port or 0)
        options = ("--port", port, "--json", "--max-in-flight", "1")
        self.server = self.processes.start("api", "--join", self.invite, *options)
        self.url = self.server.event("event", "serving")["url"].rstrip("/")

    def start_peer(self, index: int) -> Running:
        """One of the peers, under the identity that it had before if it was killed."""
        own = ("--blocks", SPANS[index], "--identity", str(self.keys / f"peer-{index}"))
        return self.processes.start("peer", "--model", "demo", "--join", self.invite, *own, *PEER)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys")
    with Processes() as processes:
        node = processes.start("bootstrap", "--json", "--model", "demo", "--identity", str(keys / "bootstrap"))
        made = Site(processes, keys, node.event("invite")["invite"], "", [], [])
        made.peers = [made.start_peer(index) for index in range(len(SPANS))]
        made.start_server()
        made.names = [peer.event("event", "online")["peer"] for peer in made.peers]
        until_ready(made.url)
        yield made


def until_ready(url):
    """Until the server has seen a holder of every block."""
    end = time.monotonic() + WAIT_MS / 1000
    while not ready(url):
        assert time.monotonic() < end
        time.sleep(0.2)


def ready(url):
    try:
        with urlopen(f"{url}/health/ready", timeout=5):
            return True
    except HTTPError as error:
        error.close()
        return False


@pytest.fixture(scope="session")
def chromium():
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, site):
    """Opens pages in profiles of their own. In the end: no request has left the origin, and no console has complained
    of anything but what holds one of the words in `expected`."""
    opened, strayed, complaints, expected = [], [], [], set()

    def on_console(message):
        if message.type in ("error", "warning") and not any(word in message.text for word in expected):
            complaints.append(message.text)

    def on_request(request):
        if urlsplit(request.url).netloc != urlsplit(site.url).netloc:
            strayed.append(request.url)

    def opener(path="/", **options):
        context = chromium.new_context(**{"viewport": {"width": 1100, "height": 800}, **options})
        opened.append(context)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("console", on_console)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", on_request)
        page.goto(site.url + path)
        return page

    opener.expected = expected
    yield opener
    for context in opened:
        context.close()
    assert not strayed
    assert not complaints
