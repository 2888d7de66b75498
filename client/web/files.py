"""The pages' own files, read once: what each is, its tag, and how browsers may treat it. Knows no swarm.

Browsers keep files but ask each time whether they changed: a page and its modules then always fit each other.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp import hdrs, web

if TYPE_CHECKING:
    from collections.abc import Mapping

STATIC: Final = Path(__file__).parent / "static"
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts, styles and requests of this origin alone; nothing inline; a string that became HTML would be an error.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
SAFETY: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True)
class File:
    """One file: as it is, packed, and its strong tag."""

    kind: str
    body: bytes
    packed: bytes
    tag: str

    def answer(self, request: web.Request) -> web.Response:
        """The file, or that the browser's own copy is still right."""
        headers = {**SAFETY, hdrs.CACHE_CONTROL: "no-cache", hdrs.VARY: hdrs.ACCEPT_ENCODING}
        packs = "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, "").lower()
        tag = self.tag + "-gzip" if packs else self.tag
        headers[hdrs.ETAG] = f'"{tag}"'
        if any(known.value in (tag, "*") for known in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        headers[hdrs.CONTENT_TYPE] = self.kind
        if packs:
            headers[hdrs.CONTENT_ENCODING] = "gzip"
        return web.Response(body=self.packed if packs else self.body, headers=headers)


def read_files(folder: Path = STATIC) -> Mapping[str, File]:
    """Every file of a kind that pages use, by name."""
    return {path.name: _read(path) for path in sorted(folder.iterdir()) if path.suffix in TYPES}


def _read(path: Path) -> File:
    body = path.read_bytes()
    return File(TYPES[path.suffix], body, gzip.compress(body, 9, mtime=0), sha256(body).hexdigest()[:20])
