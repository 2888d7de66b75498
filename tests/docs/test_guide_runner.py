"""The runner of the pages' blocks: a wrong block, of whatever kind, is found; a right one is not complained about."""

from __future__ import annotations

import psutil
import pytest
from guide_output import json_differs, shows
from guide_page import PageError, read_page
from guide_runner import MARK, BlockError, Page

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(240)]

RIGHT = """\
# A page

```bash
shoal bootstrap --host 0.0.0.0 --port 4001 --identity own.key
COLOUR=green
```

```text
/ip4/...
invite: shoal1...
```

```bash
shoal invite --model demo --peers /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo... --json
test "$COLOUR" = green && test -s own.key
```

```json
{"invite": "shoal1..."}
```

<!-- exits with 1 -->
```bash
shoal status --join shoal1nonsense
```

```text
shoal: The invite is damaged: ...
```

```python
word = INVITE[:6]
```

```python
print(word, "of", 12, "letters")
```

```text
shoal1 of 3 letters
```

<!-- not run: needs root, and time -->
```bash
exit 1
```

```systemd
[Service]
ExecStart=shoal peer \\
  --join INVITE
```
"""

WRONG = {
    "a command that fails": ("```bash\nfalse\ntrue\n```", "exit status 1, not 0"),
    "a command in a pipe": ("```bash\nshoal nothing | cat\n```", "exit status 2, not 0"),
    "a command that should fail": ("<!-- exits with 1 -->\n```bash\nshoal --help\n```", "exit status 0, not 1"),
    "an option that is not there": ("```bash\nshoal peer --join INVITE --turbo\n```", "--turbo"),
    "a peer that does not get ready": ("```bash\nshoal peer --join INVITE --blocks 4:99\n```", "did not get ready"),
    "an invite too early": ("```bash\nshoal bootstrap\nshoal status --join INVITE\n```", "in a block behind the one"),
    "Python": ("```python\nmissing + 1\n```", "name 'missing' is not defined"),
    "a name of another page": ("```python\nprint(word)\n```", "'word' is not defined"),
    "output": ("```bash\necho two words\n```\n```text\nother words\n```", "not in the output"),
    "output of nothing": ("```bash\necho word\n```\n# Next\n```text\nword\n```", "no block before this one"),
    "JSON": ('```bash\necho \'{"a": [1]}\'\n```\n```json\n{"a": [2, 3]}\n```', "a has 1 items"),
    "a request": ("```json\n{'a': 1}\n```", "Expecting property name"),
    "a unit": ("```ini\nExecStart=shoal\n```", "no section headers"),
    "a container file": ("```Containerfile\nFROM debian\nINSTALL shoal\n```", "is no instruction"),
    "a language": ("```cobol\nSTOP RUN.\n```", "no test knows"),
    "no language": ("```\nshoal --help\n```", "no test knows"),
}


def written(folder, text: str):
    folder.mkdir(exist_ok=True)
    page = folder / "page.md"
    page.write_text(text)
    return page


def processes_in(folder, swarm) -> list[str]:
    """Command lines of the swarm's processes that work in `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == swarm.mark and str(folder) in process.cwd():
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_a_right_page_runs_and_leaves_nothing(swarm, tmp_path) -> None:
    blocks = read_page(written(tmp_path / "text", RIGHT))
    with Page(tmp_path / "page", swarm) as page:
        page.run(blocks)
        assert processes_in(tmp_path, swarm), "the bootstrap node runs until the page ends"
        assert page.invite != swarm.invite, "a page goes on with the swarm that it has started"
    assert page.counts == {"run": 5, "compared": 4, "not run: needs root, and time": 1, "parsed": 1}
    assert processes_in(tmp_path, swarm) == []


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_block_is_found(kind, swarm, tmp_path) -> None:
    text, complaint = WRONG[kind]
    blocks = read_page(written(tmp_path / "text", text))
    with pytest.raises(BlockError) as caught, Page(tmp_path / "page", swarm) as page:
        page.run(blocks)
    assert str(caught.value).startswith("page.md:")
    assert complaint in str(caught.value)


def test_what_dies_later_is_found(swarm, tmp_path) -> None:
    kill = '```bash\nshoal bootstrap --identity late.key\nkill -9 "$(cat "$GUIDE_FOLDER"/bootstrap-*.pid)"\n```'
    blocks = read_page(written(tmp_path / "text", kill))
    with pytest.raises(BlockError, match=r"bootstrap-.* did not end well"), Page(tmp_path / "page", swarm) as page:
        page.run(blocks)


@pytest.mark.parametrize("reason", ["no time", "needs roots", "tests/swarm/test_nothing.py runs it", "needs"])
def test_only_known_reasons_count(reason, tmp_path) -> None:
    page = written(tmp_path, f"<!-- not run: {reason} -->\n\n```bash\nshoal --help\n```")
    with pytest.raises(PageError, match="no reason not to run"):
        read_page(page)


def test_a_comment_is_about_the_next_block_alone(tmp_path) -> None:
    comment, block = "<!-- not run: needs root -->\n", "```bash\ntrue\n```\n"
    text = f"{comment}\n{block}{block}{comment}words\n{block}"
    assert [block.not_run for block in read_page(written(tmp_path, text))] == ["needs root", None, None]


def test_a_block_that_is_not_closed(tmp_path) -> None:
    with pytest.raises(PageError, match=r"page.md:3: this block is never closed"):
        read_page(written(tmp_path, "words\n\n```bash\nshoal --help\n"))


@pytest.mark.parametrize(
    ("output", "expected", "found"),
    [
        ("route: you > …abc123 [0:7] > you\n30 tokens", "route: you > …Xyz789 [0:5] > you", True),
        ("a\nroute: you", "route:    you", True),
        ("first\nsecond\nthird", "first\n...\nthird", True),
        ("63.2 tokens/s, first after 0.07 s", "5 tokens/s, ...", True),
        ("a route: you", "route: you", False),  # not a whole line
        ("route: you and others", "route: you", False),
        ("first\nthird", "first\nsecond\nthird", False),
        ("many tokens/s", "5 tokens/s", False),
    ],
)
def test_what_counts_as_shown(output, expected, found) -> None:
    assert shows(output, expected) == found


def test_what_counts_as_the_same_json() -> None:
    found = {"model": "demo", "choices": [{"index": 0, "text": "x"}], "ready": True, "usage": {"tokens": 7}}
    assert json_differs(found, {"choices": [{"text": "..."}], "usage": {"tokens": 12}}) is None
    assert json_differs(found, {"choices": ["..."], "ready": True}) is None
    assert json_differs(found, {"ready": False}) == ".ready is True"
    assert json_differs(found, {"usage": {"words": 7}}) == ".usage.words is not there"
    assert json_differs(found, {"model": "other"}) == ".model is 'demo'"
    assert json_differs(None, {"model": "demo"}) == "the whole is None"
