"""Owns how a page of the guide is read: its fenced blocks and what the comment before each says; runs nothing.

A block that no test can run says so in the source of the page, right before it:

    <!-- not run: needs root -->

and one that is to fail says with which status: `<!-- exits with 1 -->`. Any other comment is somebody's note.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^( *)```(\S*)[^\n]*$")
COMMENT = re.compile(r"^<!-- *(.*?) *-->$")
NOT_RUN = re.compile(r"not run: (.+)")
EXITS = re.compile(r"exits with (\d+)")

# Why a block may stand in a page without being run: nothing else counts.
REASONS = (
    "needs a second machine",
    "needs root",
    "needs a GPU",
    "needs a hub",
    "needs a router",
    "needs a service manager",
    "needs a container engine",
    "needs Petals",
    "needs its own clone",
    "needs a terminal",
    "takes minutes",
)
ELSEWHERE = re.compile(r"(tests/\S+\.py|\.ci/run) runs it")


class PageError(Exception):
    """What is wrong with a page, and where."""


@dataclass(frozen=True)
class Block:
    """One fenced block: `line` is its first line of code, `section` the number of headings before it."""

    page: Path
    line: int
    language: str
    code: str
    section: int
    not_run: str | None = None
    status: int = 0

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


def read_page(page: Path) -> list[Block]:
    """All fenced blocks, in order. Errors: `PageError` for a fence that is not closed, or a reason that is none."""
    lines = page.read_text(encoding="utf-8").splitlines()
    blocks: list[Block] = []
    section, at, comment = 0, 0, ""
    while at < len(lines):
        opening = FENCE.match(lines[at])
        if opening:
            end = _closing(page, lines, at, opening[1])
            code = "".join(f"{line.removeprefix(opening[1])}\n" for line in lines[at + 1 : end])
            blocks.append(_block(page, at + 2, opening[2], code, section, comment))
            at = end
        found = COMMENT.match(lines[at].strip())
        if found or lines[at].strip():  # blank lines may stand between a comment and its block
            comment = found[1] if found else ""
        section += lines[at].startswith("#")
        at += 1
    return blocks


def _closing(page: Path, lines: list[str], opening: int, indent: str) -> int:
    for at in range(opening + 1, len(lines)):
        if lines[at].rstrip() == f"{indent}```":
            return at
    raise PageError(f"{page.name}:{opening + 1}: this block is never closed")


def _block(page: Path, line: int, language: str, code: str, section: int, comment: str) -> Block:
    reason, status = NOT_RUN.fullmatch(comment), EXITS.fullmatch(comment)
    if reason and not known(reason[1]):
        raise PageError(f"{page.name}:{line}: {reason[1]!r} is no reason not to run a block; one of: {REASONS}")
    return Block(page, line, language, code, section, reason and reason[1], int(status[1]) if status else 0)


def known(reason: str) -> bool:
    """Whether a block may stay unrun for this: what it needs, after that a comma and more words if wanted, or the
    path of what runs it."""
    elsewhere = ELSEWHERE.fullmatch(reason)
    if elsewhere:
        return (ROOT / elsewhere[1]).is_file()
    return reason.partition(",")[0] in REASONS
