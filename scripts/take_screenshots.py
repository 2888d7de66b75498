"""Takes pictures of the pages as they are: a real swarm, real answers, and a peer that is really killed."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playwright.async_api import async_playwright
from shoal.client.cli.children import Children

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

PEERS = (
    ("0:5", "none", "attic"),
    ("3:8", "int8", "lab-2"),
    ("6:11", "nf4", "workshop"),
    ("8:12", "none", "kitchen"),
)
PROMPTS = ("import json", "class PhoneBook:")
SETTINGS = '{"max_tokens": "56", "temperature": "0"}'
DESK: dict[str, Any] = {"viewport": {"width": 1200, "height": 780}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")


async def main(folder: Path) -> None:
    """Start everything, take each picture, end everything."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is needed: on Debian, apt-get install chromium")
    with tempfile.TemporaryDirectory() as keys:
        async with Children({"OMP_NUM_THREADS": "1"}) as children, async_playwright() as playwright:
            identity = ["--identity", f"{keys}/bootstrap"]
            node = await children.start("bootstrap", ["bootstrap", "--json", "--model", "demo", *identity])
            join = ["--join", str((await node.event("invite"))["invite"])]
            started = []
            for number, (blocks, quantization, name) in enumerate(PEERS):
                own = ["--blocks", blocks, "--quant", quantization, "--public-name", name, "--device", "cpu", "--json"]
                argv = ["peer", "--model", "demo", *join, *own, "--identity", f"{keys}/{number}"]
                started.append(await children.start(name, argv))
            for peer in started:
                await peer.event("event", "online")
            server = await children.start("api", ["api", *join, "--port", "0", "--json"])
            url = str((await server.event("event", "serving"))["url"]).rstrip("/")
            browser = await playwright.chromium.launch(executable_path=chromium, args=[*ARGUMENTS])
            await _take_all(browser, url, folder, lambda: started[0].signal(signal.SIGKILL))
            await browser.close()


async def _take_all(browser: Browser, url: str, folder: Path, kill: Any) -> None:
    chat = await _open(browser, f"{url}/", DESK, "light")
    for prompt in PROMPTS:
        await _ask(chat, prompt)
    await chat.click(".via summary >> nth=-1")
    await _take(chat, folder / "chat.png")
    phone = await _open(browser, f"{url}/", PHONE, "dark")
    await _ask(phone, PROMPTS[1])
    await _take(phone, folder / "chat-phone.png")
    swarm = await _open(browser, f"{url}/swarm", DESK, "light")
    await swarm.wait_for_selector("#picture .lit")
    await _take(swarm, folder / "swarm.png")
    dark = await _open(browser, f"{url}/swarm", DESK, "dark")
    kill()
    await dark.wait_for_selector("#gap:visible")
    await _take(dark, folder / "swarm-gap.png")
    await chat.fill("#input", PROMPTS[1])
    await chat.keyboard.press("Enter")
    await chat.wait_for_selector(".trouble")
    await _take(chat, folder / "chat-error.png")


async def _open(browser: Browser, url: str, options: dict[str, Any], scheme: str) -> Page:
    context = await browser.new_context(**options, color_scheme=scheme, reduced_motion="reduce")
    page = await context.new_page()
    await page.goto(url)
    await page.evaluate("settings => localStorage.setItem('shoal.settings', settings)", SETTINGS)
    await page.reload()
    return page


async def _ask(page: Page, prompt: str) -> None:
    done = await page.locator(".answer[aria-busy=false] .via").count()
    await page.fill("#input", prompt)
    await page.keyboard.press("Enter")
    await page.locator(".answer[aria-busy=false] .via").nth(done).wait_for()


async def _take(page: Page, path: Path) -> None:
    await page.wait_for_timeout(1500)  # the newest figures and the last frame
    await page.screenshot(path=path)  # makes the folder if need be
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
