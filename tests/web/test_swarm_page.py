"""The swarm page in a real browser, and what both pages show when the swarm or the line fails."""

from __future__ import annotations

import re
import signal
import time

import pytest
from test_chat_page import answered, ask, limit

from tests.steadiness import in_time

pytestmark = [pytest.mark.swarm, pytest.mark.calm, pytest.mark.timeout(240)]

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


def too_wide(page):
    return page.evaluate("document.documentElement.scrollWidth > innerWidth")


def test_the_swarm_is_drawn_and_told(open_page, site):
    page = open_page("/swarm")
    page.wait_for_selector("#live[data-state=good]")
    page.wait_for_function("() => document.querySelectorAll('#peers tbody tr[data-state=here]').length === 3")
    assert page.locator("#picture g[data-peer]").count() == 3
    assert "3 peers over 12 blocks. Every block is held." in page.get_attribute("#picture svg", "aria-label")
    assert page.inner_text("#peers tbody tr >> nth=1").split()[1:3] == ["…" + site.names[1][-6:], "4–8"]
    assert re.search(r"[\d.]+ ms", page.inner_text("#peers td[data-name=Distance] >> nth=0"))


def test_the_way_of_the_last_answer_is_lit_up_while_it_is_made(open_page):
    swarm, chat = open_page("/swarm"), open_page()
    limit(chat, 40)
    ask(chat, "import os")
    answered(chat)
    swarm.wait_for_selector("#picture .lit")
    assert swarm.locator("#picture .lit").count() == 3
    way = swarm.locator(".way li").all_inner_texts()
    assert (way[0], way[-1], len(way)) == ("you", "you", 5)
    swarm.wait_for_function("() => document.getElementById('route').textContent.includes('tokens/s')")


def test_strangers_names_are_text_and_nothing_is_too_wide_on_a_phone(open_page):
    page = open_page("/swarm", **PHONE)
    page.wait_for_selector("#picture g[data-peer]")
    assert not too_wide(page)
    drawn = page.evaluate(
        """async () => {
          const { draw } = await import("/static/picture.js");
          const { PeerTable } = await import("/static/peertable.js");
          const swarm = await (await fetch("/swarm.json")).json();
          for (const peer of swarm.peers) peer.name = "<img src=x onerror=alert(1)>" + "W".repeat(14);
          draw(document.getElementById("picture"), swarm, document.getElementById("picture").clientWidth);
          new PeerTable(document.getElementById("peers")).show(swarm);
          return [document.querySelectorAll("main img").length, document.getElementById("peers").textContent];
        }"""
    )
    assert drawn[0] == 0
    assert "<img src=x onerror=alert(1)>" in drawn[1]
    assert not too_wide(page)
    chat = open_page(**PHONE)
    limit(chat, 8)
    ask(chat, "W" * 300)
    answered(chat)
    chat.click(".via summary")
    assert not too_wide(chat)
    chat.click("#open-side")
    chat.wait_for_selector("#side.open")
    assert not too_wide(chat)
    chat.keyboard.press("Escape")
    assert chat.evaluate("document.activeElement.id") == "open-side"


def test_a_full_server_is_asked_again_after_a_countdown(open_page):
    first, second = open_page(), open_page()
    open_page.expected.add("status of 429")
    limit(first, 1500)
    limit(second, 8)
    ask(first, "def one():")
    first.wait_for_function("() => document.querySelector('.md')?.textContent.length > 5")
    ask(second, "def two():")
    second.wait_for_selector(".trouble[data-kind=busy]")
    assert re.fullmatch(r"Trying again in \d+ s", second.inner_text(".countdown"))
    first.keyboard.press("Escape")
    second.wait_for_selector(".trouble", state="detached")
    answered(second)
    assert second.inner_text(".md")


def test_a_lost_connection_is_told_and_the_answer_goes_on_when_the_server_is_back(open_page, site):
    chat, swarm = open_page(), open_page("/swarm")
    open_page.expected.add("net::")
    swarm.wait_for_selector("#live[data-state=good]")
    limit(chat, 400)
    ask(chat, "import os")
    chat.wait_for_function("() => document.querySelector('.md')?.textContent.length > 20")
    site.server.process.send_signal(signal.SIGKILL)
    chat.wait_for_selector(".trouble[data-kind=lost]")
    swarm.wait_for_selector("#live[data-state=bad]")
    assert "What is shown may be old" in swarm.inner_text("#wrong")
    chat.click("text='Stop trying'")
    assert chat.inner_text(".countdown") == ""
    before = chat.text_content(".md")
    site.start_server()
    with chat.expect_request("**/v1/chat/completions") as caught:
        chat.click("text='Try now'")
    assert caught.value.post_data_json["continue_final_message"]
    assert caught.value.post_data_json["messages"][-1]["role"] == "assistant"
    chat.wait_for_function("length => document.querySelector('.md').textContent.length > length", arg=len(before))
    chat.keyboard.press("Escape")
    answered(chat)
    assert chat.text_content(".md").startswith(before)
    swarm.wait_for_selector("#live[data-state=good]")


@pytest.mark.alone
def test_a_killed_peer_is_shown_within_5_s_and_the_gap_is_named_until_it_is_filled(open_page, site):
    swarm, chat = open_page("/swarm"), open_page()
    open_page.expected.add("status of 503")
    limit(chat, 8)
    swarm.wait_for_function("() => document.querySelectorAll('#peers tbody tr[data-state=here]').length === 3")
    site.peers[1].process.send_signal(signal.SIGKILL)
    killed_at = time.monotonic()
    swarm.wait_for_selector(f"#picture g[data-peer='{site.names[1]}'][data-state=lost]")
    swarm.wait_for_selector("#gap:visible")
    in_time(time.monotonic() - killed_at < 5)
    assert "No peer holds blocks 5–7" in swarm.inner_text("#gap")
    assert "shoal peer --model demo --join INVITE --blocks 5:8" in swarm.inner_text("#gap")
    assert swarm.text_content("#picture .gap-text") == "gap 5–7"
    assert "Nobody holds blocks 5–7" in swarm.get_attribute("#picture svg", "aria-label")
    assert "lost" in swarm.inner_text("#peers tbody tr[data-state=lost]")
    assert "Nobody holds blocks 5–7 now." in swarm.text_content("#say")
    chat.reload()
    chat.wait_for_selector(".gap-notice")
    assert "no peer holds 5–7" in chat.inner_text("#pill")
    ask(chat, "import os")
    chat.wait_for_selector(".trouble")
    assert "Trying again in" in chat.inner_text(".countdown")
    site.peers[1] = site.start_peer(1)
    site.peers[1].event("event", "online")
    chat.wait_for_selector(".trouble", state="detached")  # by itself
    answered(chat)
    assert chat.inner_text(".md")
    swarm.wait_for_selector("#gap", state="hidden")
