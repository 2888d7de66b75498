"""A hub on 127.0.0.1 for tests: model info, resolve with a redirect to a second origin, ranges; it can misbehave."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


@dataclass
class Hub:
    """What the server has and how it fails; `requests` is what it was asked, in order."""

    repo: str = "org/tiny"
    files: dict[str, bytes] = field(default_factory=dict)
    lfs_suffixes: tuple[str, ...] = (".safetensors", ".bin")
    gated: bool = False
    cuts: dict[str, list[int]] = field(default_factory=dict)  # after so many bytes of an answer, close the connection
    stalls: dict[str, int] = field(default_factory=dict)  # after so many bytes, say nothing until who asked has gone
    stalled: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)  # files that have come to that
    corrupt: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)  # sizes to claim in place of the real ones
    ignore_range: bool = False
    models: tuple[str, ...] = ("org/tiny", "org/tiny-chat", "other/unlike")
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, file name, Range
    tokens: list[tuple[str, str | None]] = field(default_factory=list)  # "hub" or "cdn", Authorization
    sent: dict[str, int] = field(default_factory=dict)  # bytes of bodies, by file name
    endpoint: str = ""
    cdn: str = ""

    def fetched(self) -> set[str]:
        return {name for method, name, _ in self.requests if method == "GET"}

    def ranges(self, name: str) -> list[str | None]:
        return [asked for method, got, asked in self.requests if method == "GET" and got == name]

    def sibling(self, name: str) -> dict[str, object]:
        body = self.files[name]
        size = self.sizes.get(name, len(body))
        found: dict[str, object] = {"rfilename": name, "size": size, "blobId": git_blob_id(body)}
        if self.is_lfs(name):
            found["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": size, "pointerSize": 130}
        return found

    def is_lfs(self, name: str) -> bool:
        return name.endswith(self.lfs_suffixes)


def git_blob_id(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    origin: str

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.tokens.append((self.origin, self.headers.get("Authorization")))
        info, resolve, cdn = f"/api/models/{self.hub.repo}", f"/{self.hub.repo}/resolve/", "/cdn/"
        if path == "/api/models":
            self.body(json.dumps([{"id": model} for model in self.hub.models]).encode())
        elif path in (info, f"{info}/revision/main", f"{info}/revision/{COMMIT}"):
            self.info()
        elif path.startswith(f"{info}/revision/"):
            self.refuse(404, "RevisionNotFound")
        elif path.startswith(resolve):
            self.resolve(path.removeprefix(resolve).partition("/")[2])
        elif path.startswith(cdn):
            self.file(path.removeprefix(cdn))
        else:
            self.refuse(404, "RepoNotFound")

    def info(self):
        if self.hub.gated:
            self.refuse(403, "GatedRepo")
            return
        siblings = [self.hub.sibling(name) for name in self.hub.files]
        self.body(json.dumps({"id": self.hub.repo, "sha": COMMIT, "siblings": siblings}).encode())

    def resolve(self, name):
        if name not in self.hub.files:
            self.refuse(404, "EntryNotFound")
        elif self.hub.is_lfs(name):
            sibling = self.hub.sibling(name)["lfs"]
            self.send_response(302)
            self.send_header("Location", f"{self.hub.cdn}/cdn/{name}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Etag", f'"{sibling["sha256"]}"')
            self.send_header("X-Linked-Size", str(sibling["size"]))
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.file(name)

    def file(self, name):
        asked = self.headers.get("Range")
        self.hub.requests.append((self.command, name, asked))
        body = self.hub.files[name]
        if name in self.hub.corrupt:
            body = bytes([body[0] ^ 1]) + body[1:]
        start, stop = 0, len(body)
        if asked and not self.hub.ignore_range:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1, len(body)) if last else len(body)
        self.body(body[start:stop], 206 if (start, stop) != (0, len(body)) else 200, name)

    def body(self, body, status=200, name=""):
        cuts = self.hub.cuts.get(name)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{git_blob_id(self.hub.files.get(name, body))}"')
        self.end_headers()
        if self.command == "HEAD":
            return
        if cuts:
            body = body[: cuts.pop(0)]
            self.close_connection = True
        stalls = name in self.hub.stalls
        body = body[: self.hub.stalls[name]] if stalls else body
        self.hub.sent[name] = self.hub.sent.get(name, 0) + len(body)
        self.wfile.write(body)
        if stalls:
            self.stall(name)

    def stall(self, name):
        self.close_connection = True
        self.hub.stalled.put(name)
        self.connection.settimeout(None)
        with suppress(ConnectionError):
            self.connection.recv(1)

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True


@contextmanager
def serving(hub: Hub):
    """Two origins, as the real one has: the hub, and where large files lie."""
    servers = [_serve(hub, origin) for origin in ("hub", "cdn")]
    hub.endpoint, hub.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server, _ in servers)
    try:
        yield hub
    finally:
        for server, thread in servers:
            server.shutdown()
            server.server_close()
            thread.join()


def _serve(hub, origin):
    answer = type("Answer", (_Answer,), {"hub": hub, "origin": origin, "timeout": 2})
    server = _Server(("127.0.0.1", 0), answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    return server, thread
