"""The guides: the command reference is what the commands say, links lead somewhere, commands named in them exist."""

from __future__ import annotations

import re
import runpy
from collections import Counter
from pathlib import Path

import pytest
from shoal.client.cli.commands import find_commands

ROOT = Path(__file__).resolve().parents[2]
IGNORED = {".venv", "build", "node_modules", ".git", ".pytest_cache"}
LINKING = [page for page in sorted(ROOT.rglob("*.md")) if not IGNORED & set(page.relative_to(ROOT).parts)]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]


def test_the_command_reference_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "command_reference.py"))["reference"]()
    stored = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    # Word by word: Python versions wrap the usage line at different places.
    assert stored.split() == made.split(), "run: python scripts/command_reference.py > docs/commands.md"


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Other page\n\n## `shoal x`: what's new?\n\n## Twice\n\n## Twice\n")
    (tmp_path / "page.md").write_text(
        "# Here\n[a](other.md) [b](other.md#shoal-x-whats-new) [c](#here) [d](https://example.org/#x)\n[e](other.md#twice-1)\n"
        '![f](none.svg) [g](other.md#news) [h](#there) [i](gone.md#here) <img src="none.png">\n```bash\n[j](k)\n```\n'
    )
    assert dead_links(tmp_path / "page.md") == ["none.svg", "other.md#news", "#there", "gone.md#here", "none.png"]


def test_pages_and_pictures_are_linked_from_somewhere() -> None:
    linked = {(page.parent / target.partition("#")[0]).resolve() for page in LINKING for target in links(page)}
    linked.add(ROOT / "docs" / "README.md")  # the index, which a folder's page on GitHub shows by itself
    found = {path for kind in ("*.md", "*.svg", "*.png", "*.webp") for path in (ROOT / "docs").rglob(kind)}
    assert sorted(found - linked) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_in_the_guides_exist(page: Path) -> None:
    reference = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## shoal (\w+)\n\n```text\n(.*?)\n```", reference, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(find_commands())
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for command, rest in re.findall(r"\bshoal (\w+)((?: +[^\s`|;&#)]+)*)", "\n".join(code_of(text))):
        if command not in sections:
            continue
        for option in re.findall(r"(?<=\s)--[a-z-]+", rest):
            assert option in sections[command], f"shoal {command} has no {option}"


def code_of(text: str) -> list[str]:
    """Fenced blocks and inline code of a page."""
    return re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)


def links(page: Path) -> list[str]:
    """Where a page's links and pictures lead on this disk."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)[^)]*\)|(?:src|srcset|href)=\"([^\"]+)\"", text)
    return [either or other for either, other in found if not re.match(r"https?:|mailto:", either or other)]


def dead_links(page: Path) -> list[str]:
    """Links to files that are not there, and to headings that no page has."""
    dead = []
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            dead.append(link)
    return dead


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    seen: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        names.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names
