"""Use the page of `faasrt.examples.fastapi_streaming` in a real browser. `.ci/run` runs it, because it needs Chromium.

    cd tests && python -m e2e.browser_app [FOLDER]

uvicorn serves the application, with the embedded FaaS, as for a user who runs the example. Screenshots are written to
FOLDER (default: a new temporary folder), to be inspected.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from e2e.browser_page import PATIENCE_S, text, until, write
from e2e.browser_report import SCHEMES, Page, browser
from support.served import CLEAN

HOSTILE = "print('<b>bold</b><img src=x onerror=\"document.title = 1\">')"
ENDLESS = "print('begun', flush=True)\nwhile True: pass"
CANCELLED = r'^faasrt_calls_total{.*error="CancelledError".*} (.*)$'


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[str]:
    """Run the example as a command, and yield its URL."""
    log = folder / "log"
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "faasrt.examples.fastapi_streaming", "--port", "0"),
            env={**CLEAN, "PYTHONUNBUFFERED": "1"},
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (found := re.search(r"http://[\d.]+:\d+", log.read_text())):
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.02)
        yield found[0]
    finally:
        process.terminate()
        await process.wait()
    assert "Traceback" not in log.read_text(), log.read_text()


async def click(page: Page, element: str) -> None:
    await page.value(f"document.getElementById('{element}').click()")


async def start(page: Page, code: str) -> None:
    await write(page, "code", code)
    await click(page, "run")


async def until_cancelled(client: aiohttp.ClientSession, calls: int) -> None:
    """Wait until the metrics of the application count calls whose client has gone."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with client.get("/metrics") as answer:
                found = re.findall(CANCELLED, await answer.text(), re.MULTILINE)
            if sum(map(float, found)) == calls:
                return
            await asyncio.sleep(0.02)


async def check_runs(page: Page, url: str, client: aiohttp.ClientSession, folder: Path) -> None:
    """Output is live, and only text. Stop and leaving the page end the program. A third program is refused."""
    for scheme in SCHEMES:
        await page.open(url, 390, scheme)
        await click(page, "run")  # the program that the page shows
        await until(page, "document.getElementById('output').textContent.startsWith('0\\n')")
        assert await text(page, "state") == "running"
        await until(page, "!document.getElementById('run').disabled")
        assert await text(page, "state") == "OK"
        assert await text(page, "output") == "0\n1\n2\n3\n4\n"
        assert await page.value("document.documentElement.scrollWidth") <= 390
        await page.screenshot(folder / f"app-{scheme}.png")

    await start(page, HOSTILE)
    await until(page, "document.getElementById('state').value === 'OK'")
    assert await text(page, "output") == '<b>bold</b><img src=x onerror="document.title = 1">\n'
    assert await page.value("document.title") == "Run a program"
    await start(page, "1 / 0")
    await until(page, "!document.getElementById('run').disabled")
    assert await text(page, "state") == "USER_ERROR: ZeroDivisionError: division by zero"
    assert "Traceback" in await text(page, "output")

    await start(page, ENDLESS)
    await until(page, "document.getElementById('output').textContent === 'begun\\n'")
    await click(page, "stop")
    await until(page, "document.getElementById('state').value === 'stopped'")
    await until_cancelled(client, 1)

    async with client.post("/run", json={"code": ENDLESS}) as one, client.post("/run", json={"code": ENDLESS}) as two:
        await one.content.readany()
        await two.content.readany()
        await start(page, "print(1)")
        await until(page, "!document.getElementById('run').disabled")
        assert await text(page, "state") == "failed: you already run 2 programs"
    await until_cancelled(client, 3)
    assert all("429" in problem for problem in page.problems), page.problems  # the browser logs it

    await start(page, ENDLESS)
    await until(page, "document.getElementById('output').textContent === 'begun\\n'")
    await page.open("about:blank", 390, "light")
    await until_cancelled(client, 4)
    assert {loaded.removeprefix(url) for loaded in page.loaded} <= {"/", "/run", "about:blank", "data:,"}


async def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        async with serving(folder) as url, browser(profile) as page, aiohttp.ClientSession(url) as client:
            await check_runs(page, url, client, folder)
    print(f"all checks passed; the screenshots are in {folder}")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="faasrt-app-"))))
