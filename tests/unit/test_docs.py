"""The guides: the command reference is what the commands say, links lead somewhere, commands named in them exist."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from shoal.client.cli.commands import find_commands

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]


def test_the_command_reference_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "command_reference.py"))["reference"]()
    stored = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    # Word by word: Python versions wrap the usage line at different places.
    assert stored.split() == made.split(), "run: python scripts/command_reference.py > docs/commands.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]


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
