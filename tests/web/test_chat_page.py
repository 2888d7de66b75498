"""The chat page in a real browser: streaming, stop, again, edit, keys, settings, storage, and a hostile text."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.steadiness import in_time

pytestmark = [pytest.mark.swarm, pytest.mark.calm, pytest.mark.timeout(240)]

HOSTILE = """\
<script>window.hurt = 1</script> <img src=x onerror="window.hurt = 2">

# A [link](javascript:window.hurt=3) and [another](data:text/html,x) and [a good one](https://example.org/a?b=c)

![picture](https://example.org/spy.png)

```html
<script>window.hurt = 4</script>
```

| a | b |
|---|--:|
| <b>1</b> | `__init__` |

- one **two** *three*
  - four __init__ ~~five~~

1. six
2. seven
"""


def ask(page, text):
    page.fill("#input", text)
    page.keyboard.press("Enter")


def answered(page, number=1):
    """Until the page has so many finished answers."""
    page.wait_for_function(
        "n => document.querySelectorAll('.answer[aria-busy=false] .answer-tools').length === n", arg=number
    )


def limit(page, tokens, **more):
    """Settings as the dialog would keep them."""
    settings = json.dumps({"max_tokens": str(tokens), "temperature": "0", **more})
    page.evaluate("settings => localStorage.setItem('shoal.settings', settings)", settings)
    page.reload()


def in_flight(page):
    return page.evaluate("fetch('/swarm.json').then(answer => answer.json()).then(swarm => swarm.in_flight)")


def test_an_answer_streams_and_says_how_it_was_made(open_page):
    page = open_page()
    limit(page, 60)
    page.evaluate(
        """() => {
          window.lengths = new Set();
          new MutationObserver(() => window.lengths.add(document.querySelector('.md')?.textContent.length ?? 0))
            .observe(document.body, { subtree: true, childList: true, characterData: true });
        }"""
    )
    ask(page, "class PhoneBook:")
    answered(page)
    assert len(page.evaluate("[...window.lengths]")) > 10  # it grew, piece by piece
    assert re.fullmatch(r"via \d peers?, [\d.]+ tokens/s", page.inner_text(".via summary").strip())
    page.click(".via summary")
    tiles = page.locator(".tiles li").all_inner_texts()
    assert "blocks 0–" in tiles[0]
    assert tiles[-1].endswith("–11")
    assert "60 after a prompt of" in page.inner_text(".facts")
    text = page.inner_text(".md")
    page.reload()
    answered(page)
    assert page.inner_text(".md") == text  # conversations are kept
    assert page.inner_text("#past [aria-current]") == "class PhoneBook:"


@pytest.mark.alone
def test_stop_ends_the_answer_and_the_work_for_it(open_page):
    page = open_page()
    limit(page, 1500)
    ask(page, "def add(a, b):")
    page.wait_for_function("() => document.querySelector('.md')?.textContent.length > 20")
    while not in_flight(page):  # the picture may be half a second old
        assert page.get_attribute(".answer", "aria-busy") == "true"
    page.keyboard.press("Escape")
    answered(page)
    assert "Stopped." in page.inner_text(".answer-foot")
    assert re.match(r"via \d peers?", page.inner_text(".via summary").strip())  # known from its beginning
    page.click(".via summary")
    assert page.locator(".tiles li").last.inner_text().endswith("–11")
    assert page.inner_text(".md")
    begun = time.monotonic()
    while in_flight(page):
        in_time(time.monotonic() - begun < 1.5)
    page.wait_for_selector("#send:visible")


def test_answers_can_be_made_again_and_questions_asked_differently(open_page):
    page = open_page()
    limit(page, 12)
    ask(page, "import os")
    answered(page)
    page.click("[aria-label='Answer again']")
    page.wait_for_selector("text='2 / 2'")
    assert page.is_disabled("[aria-label='Later answer']")
    page.click("[aria-label='Earlier answer']")
    page.wait_for_selector("text='1 / 2'")
    ask(page, "import sys")
    answered(page, 2)
    page.hover(".question >> nth=0")
    page.click("[aria-label='Edit and send again'] >> nth=0")
    page.fill(".editing textarea", "import re")
    page.keyboard.press("Enter")
    answered(page)
    assert page.locator(".bubble").all_inner_texts() == ["import re"]
    page.click("[aria-label='Delete import re']")
    page.wait_for_selector("text='Deleted.'")
    assert page.locator("#past li").count() == 0
    page.click("text='Undo'")
    assert page.locator(".bubble").all_inner_texts() == ["import re"]


def test_everything_can_be_done_with_keys_alone(open_page):
    page = open_page()
    limit(page, 8)
    assert page.evaluate("document.activeElement.id") == "input"
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    answered(page)
    assert page.inner_text(".bubble") == "first line\nsecond line"
    reached = set()
    page.focus(".skip")
    while page.evaluate("document.activeElement !== document.body"):
        name, ring = page.evaluate(
            """() => {
              const it = document.activeElement;
              const style = getComputedStyle(it.id === "input" ? it.form : it);
              return [it.getAttribute("aria-label") || it.id || it.textContent.trim(), style.boxShadow];
            }"""
        )
        assert ring != "none", f"{name} does not show that it has the focus"
        reached.add(name)
        page.keyboard.press("Tab")
    wanted = {"new", "Settings", "input", "Copy answer", "Answer again", "Edit and send again", "Send"}
    assert wanted <= reached
    page.focus("#open-settings")
    page.keyboard.press("Enter")
    page.wait_for_selector("#settings[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#settings:not([open])", state="attached")
    page.focus("body")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "input"
    page.keyboard.press("ArrowUp")
    assert page.input_value(".editing textarea") == "first line\nsecond line"


def test_settings_are_sent_and_the_key_stays_in_the_tab(open_page):
    page = open_page()
    page.click("#open-settings")
    page.fill("#set-temperature", "7")
    page.click("text='Done'")
    assert "Temperature" in page.inner_text("#settings-wrong")
    page.fill("#set-temperature", "0.5")
    page.fill("#set-top_p", "0.9")
    page.fill("#set-max_tokens", "6")
    page.fill("#set-seed", "11")
    page.fill("#set-system", "Be short.")
    page.fill("#set-key", "a secret")
    page.click("text='Done'")
    with page.expect_request("**/v1/chat/completions") as caught:
        ask(page, "hello")
    body = caught.value.post_data_json
    assert {name: body[name] for name in ("temperature", "top_p", "max_tokens", "seed", "stream")} == {
        "temperature": 0.5, "top_p": 0.9, "max_tokens": 6, "seed": 11, "stream": True,
    }  # fmt: skip
    assert body["messages"] == [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hello"}]
    assert caught.value.headers["authorization"] == "Bearer a secret"
    answered(page)
    assert "a secret" not in page.evaluate("JSON.stringify(localStorage)")
    assert page.evaluate("sessionStorage.getItem('shoal.key')") == "a secret"


def test_a_hostile_text_becomes_nothing_but_text(open_page):
    page = open_page()
    open_page.expected.add("TrustedHTML")
    found = page.evaluate(
        """async text => {
          const { show } = await import("/static/markdown.js");
          const box = document.createElement("div");
          document.body.append(box);
          for (let end = 1; end <= text.length; end += 1) show(box, text.slice(0, end)); // as it streams
          const streamed = box.cloneNode(true);
          const whole = document.createElement("div");
          show(whole, text);
          const tags = [...new Set([...box.querySelectorAll("*")].map(it => it.tagName.toLowerCase()))];
          const links = [...box.querySelectorAll("a")].map(link => [link.href, link.rel, link.target]);
          return { tags, links, same: whole.isEqualNode(streamed), text: box.textContent };
        }""",
        HOSTILE,
    )
    assert not {"script", "img", "iframe", "style", "b"} & set(found["tags"])
    assert {"h3", "table", "ul", "ol", "pre", "strong", "em", "del"} <= set(found["tags"])
    assert [link[0] for link in found["links"]] == ["https://example.org/a?b=c", "https://example.org/spy.png"]
    assert all("noopener" in rel and target == "_blank" for _, rel, target in found["links"])
    assert found["same"]  # streaming ends where showing it at once does
    assert "__init__ five" in found["text"]
    assert page.evaluate("window.hurt") is None
    with pytest.raises(Exception, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<p>'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_the_switch_and_can_be_read(open_page, scheme):
    page = open_page(color_scheme=scheme)

    def contrasts():
        return page.evaluate(
            """() => {
              const probe = document.createElement("p");
              document.body.append(probe);
              const channels = name => {
                probe.style.color = `var(--${name})`;
                return getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number);
              };
              const light = name => channels(name).map(c => c / 255)
                .map(c => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
                .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
              const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
              const pairs = [["text", "paper"], ["text", "accent-soft"], ["muted", "paper"], ["muted", "raised"],
                ["muted", "route-soft"], ["accent", "surface"], ["on-accent", "accent"], ["bad", "bad-soft"],
                ["good", "surface"], ["warn", "surface"], ["tok-comment", "code"], ["tok-number", "code"]];
              const found = pairs.map(([a, b]) => [`${a} on ${b}`, ratio(a, b)]).sort((a, b) => a[1] - b[1]);
              const dark = light("paper") < 0.2;
              probe.remove();
              return { dark, worst: found[0] };
            }"""
        )

    assert contrasts()["dark"] == (scheme == "dark")
    assert contrasts()["worst"][1] >= 4.5, contrasts()["worst"]
    page.click("[data-theme-switch]")  # light
    assert not contrasts()["dark"]
    page.click("[data-theme-switch]")  # dark
    page.reload()
    assert contrasts()["dark"]
