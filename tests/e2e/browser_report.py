"""Check the pages of `faasrt report` in a real browser. `.ci/run` runs it, because it needs Chromium.

    apt-get install chromium          # or any Chromium on PATH
    cd tests && python -m e2e.browser_report [FOLDER]

It makes one page from ordinary results and one from hostile results. It opens each at the widths of a desktop and of
a phone, in light and in dark mode, and checks that nothing overflows the page, that the browser reports no problem (a
blocked script or style, an exception), that nothing else is loaded, and that the filter works with the keyboard alone.
Screenshots, and a PDF of the printed page, are written to FOLDER (default: a new temporary folder), to be inspected.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import aiohttp

from e2e.report_files import hostile, ordinary, write_lines

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
WIDTHS = {1280: 900, 360: 740}
SCHEMES = ("light", "dark")


class Page:
    """A browser page, controlled through the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.problems: list[str] = []
        self.loaded: list[str] = []
        self.opened = asyncio.Event()

    async def listen(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            if "id" in event:
                self._answers.pop(event["id"]).set_result(event)
            elif event["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                self.problems.append(json.dumps(event["params"])[:1_000])
            elif event["method"] == "Network.requestWillBeSent":
                self.loaded.append(event["params"]["request"]["url"])
            elif event["method"] == "Page.loadEventFired":
                self.opened.set()

    async def call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        event = await asyncio.wait_for(answer, 60)
        assert "error" not in event, event
        return event["result"]

    async def value(self, expression: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def open(self, page: Path | str, width: int, scheme: str) -> None:
        self.opened.clear()
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=WIDTHS.get(width, 844),
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", media="", features=media)
        await self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        await asyncio.wait_for(self.opened.wait(), 60)

    async def key(self, name: str, code: int, text: str = "", *, modifiers: int = 0) -> None:
        key = {"key": name, "code": name, "windowsVirtualKeyCode": code, "text": text, "modifiers": modifiers}
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, **key)

    async def screenshot(self, path: Path) -> None:
        save(path, await self.call("Page.captureScreenshot", captureBeyondViewport=True))


@contextlib.asynccontextmanager
async def browser(profile: str) -> AsyncIterator[Page]:
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if program is None:
        sys.exit("no browser on PATH: apt-get install chromium")
    process = await asyncio.create_subprocess_exec(
        *(program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"),
        *(f"--user-data-dir={profile}", "about:blank"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        while not (line := (await asyncio.wait_for(process.stderr.readline(), 60)).decode()).startswith("DevTools"):
            assert line, "the browser has ended"
        base = "http://" + line.split("ws://")[1].split("/")[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{base}/json") as answer:
                pages = [target for target in await answer.json() if target["type"] == "page"]
            async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                listening = asyncio.create_task(page.listen())
                for domain in ("Page", "Log", "Runtime", "Network"):
                    await page.call(f"{domain}.enable")
                yield page
                listening.cancel()
    finally:
        process.terminate()
        await process.wait()


async def check_page(page: Page, path: Path, folder: Path) -> None:
    for width, scheme in itertools.product(WIDTHS, SCHEMES):
        await page.open(path, width, scheme)
        await page.screenshot(folder / f"{path.stem}-{width}-{scheme}.png")
        await page.value("for (const task of document.querySelectorAll('details')) task.open = true")
        over = """[...document.querySelectorAll('main *')].filter((element) => !element.closest('caption, svg, pre > *')
            && element.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
            .map((element) => element.outerHTML.slice(0, 200))"""
        assert await page.value(over) == [], f"{path.name} at {width} px"
        wide = await page.value("document.documentElement.scrollWidth")
        assert wide <= width, f"{path.name} is {wide} px wide on a screen of {width} px"
        await page.screenshot(folder / f"{path.stem}-{width}-{scheme}-open.png")
    assert page.problems == []
    assert set(page.loaded) == {path.as_uri()}
    page.loaded.clear()


async def filter_by_keyboard(page: Page, path: Path) -> None:
    await page.open(path, 1280, "light")
    visible = "[...document.querySelectorAll('[data-kind]:not([hidden])')].map((task) => task.dataset.kind)"
    assert len(set(await page.value(visible))) > 2
    for _ in range(200):
        await page.key("Tab", 9)
        if await page.value("document.activeElement.id") == "kind":
            break
    await page.key("ArrowDown", 40)
    await page.key("ArrowDown", 40)
    kind = await page.value("document.activeElement.value")
    assert kind not in ("", "OK")
    assert set(await page.value(visible)) == {kind}
    await page.key("ArrowUp", 38)
    await page.key("ArrowUp", 38)
    await page.key("Tab", 9)
    assert await page.value("document.activeElement.id") == "search"
    shown = "[...document.querySelectorAll('details:not([hidden]) .id')].map((id) => id.textContent)"
    task_id = (await page.value(shown))[0]
    await page.call("Input.insertText", text=task_id)
    assert await page.value(shown) == [task_id]


def make(results: Path, lines: Iterable[dict[str, Any]]) -> Path:
    results.parent.mkdir(parents=True, exist_ok=True)
    write_lines(results, lines)
    subprocess.run([Path(sys.executable).parent / "faasrt", "report", results], check=True)
    return results.with_suffix(".html")


def save(path: Path, answer: dict[str, str]) -> None:
    path.write_bytes(base64.b64decode(answer["data"]))


async def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as profile:
        async with browser(profile) as page:
            for name, lines in (("ordinary", ordinary(3_000)), ("hostile", hostile())):
                await check_page(page, make(folder / f"{name}.jsonl", lines), folder)
            await filter_by_keyboard(page, folder / "ordinary.html")
            await page.open(folder / "ordinary.html", 1280, "dark")
            save(folder / "ordinary.pdf", await page.call("Page.printToPDF"))
            assert page.problems == []
    print(f"all checks passed; the screenshots are in {folder}")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="faasrt-report-"))))
