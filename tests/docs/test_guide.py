"""Every block of the README and of the pages in docs/ does what its page says, against peers with the demo model."""

from __future__ import annotations

from collections import Counter

import pytest
from guide_page import ROOT, read_page
from guide_runner import Page

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(240)]

GENERATED = {"commands.md"}  # tests/unit/test_docs.py compares it with what the commands say
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = [page for page in PAGES if page.name not in GENERATED]


@pytest.mark.parametrize("page", [page for page in WRITTEN if read_page(page)], ids=lambda page: page.name)
def test_every_block_of_the_page(page, swarm, tmp_path, capsys) -> None:
    with Page(tmp_path / "page", swarm) as at_work:
        at_work.run(read_page(page))
    with capsys.disabled():
        print(f"\n{page.name}: {', '.join(f'{number} {what}' for what, number in at_work.counts.items())}")


def test_most_blocks_run(capsys) -> None:
    blocks = [block for page in WRITTEN for block in read_page(page)]
    reasons = Counter(block.not_run for block in blocks if block.not_run)
    with capsys.disabled():
        print(f"\n{len(blocks)} blocks in {len(WRITTEN)} pages, {reasons.total()} of them not run:")
        for reason, number in sorted(reasons.items()):
            print(f"  {number} {reason}")
    assert reasons.total() < len(blocks) / 3
