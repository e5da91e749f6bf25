"""Check the site in a real browser. Run by hand and by `.ci/run`, not by pytest, because it needs Chromium.

    python .ci/docs site
    (cd tests && python -m e2e.browser_site ../site [FOLDER])

It opens each page at the widths of a desktop and of a phone, without scripts, which take most of the time, and checks
that no text, table, picture or code is wider than the page. With scripts, it opens some pages in light and in dark
mode, searches for sections and methods, copies a program, and switches to dark. The browser must report no problem, and
load nothing from another server. With FOLDER, it opens all pages with scripts and in both modes, and writes screenshots
to this folder, to be inspected.
"""

from __future__ import annotations

import asyncio
import functools
import http.server
import itertools
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from e2e.browser_report import SCHEMES, Page, browser

WIDTHS = (1280, 390)
# A page with a list, one with a picture, one with tables, and one of the reference.
SAMPLE = ("index.html", "concurrency.html", "configuration.html", "reference/faasrt.RuntimeManager.html")
# The elements that are wider than the page, and not in an element that scrolls.
WIDE = """[...document.querySelectorAll("article *")].filter((element) => {
    if (element.getBoundingClientRect().right <= document.documentElement.clientWidth + 1) return false;
    for (let around = element; around && around !== document.body; around = around.parentElement)
        if (getComputedStyle(around).overflowX !== "visible") return false;
    return true;
}).map((element) => element.outerHTML.slice(0, 200))"""
BRIGHTNESS = "Math.max(...getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).slice(0, 3))"
RESULTS = """[...[...document.querySelectorAll("div")].find((element) => element.shadowRoot).shadowRoot
    .querySelectorAll("a")].map((link) => new URL(link.href)).map((url) => url.pathname.slice(1) + url.hash)"""
SEARCHES = {
    "add a package": "adding-packages.html#",
    "memory limit": "limits.html#limit-memory",
    "run_cases": "reference/faasrt.Runtime.html#faasrt.Runtime.run_cases",
    "ServiceError": "reference/faasrt.errors.html#faasrt.ServiceError",
}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the files of a folder without a log."""

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


async def until(page: Page, expression: str) -> Any:
    """Return the value of an expression when it is true."""
    async with asyncio.timeout(30):
        while not (value := await page.value(expression)):
            await asyncio.sleep(0.05)
    return value


async def check_layout(page: Page, url: str, width: int, scheme: str) -> None:
    await page.open(url, width, scheme)
    assert await page.value(WIDE) == [], f"{url} at {width} px"


async def check_page(page: Page, url: str, folder: Path | None) -> None:
    for width, scheme in itertools.product(WIDTHS, SCHEMES):
        await check_layout(page, url, width, scheme)
        wide = await page.value("document.documentElement.scrollWidth")
        assert wide <= width, f"{url} is {wide} px wide on a screen of {width} px"
        await until(page, f"({BRIGHTNESS} < 64) === {str(scheme == 'dark').lower()}")
        if folder is not None:
            await page.screenshot(folder / f"{url.rpartition('/')[2].removesuffix('.html')}-{width}-{scheme}.png")


async def check_search(page: Page, url: str) -> None:
    """The first result of a search is the section, or the method."""
    for query, expected in SEARCHES.items():
        await page.open(url, WIDTHS[0], "light")
        await until(page, "!!document.querySelector('.md-search__button')")
        await page.value("document.querySelector('.md-search__button').click()")
        await until(page, "[...document.querySelectorAll('div')].some((element) => element.shadowRoot?.activeElement)")
        await page.call("Input.insertText", text=query)
        results = await until(page, RESULTS)
        assert results[0].startswith(expected), (query, results)


async def check_buttons(page: Page, url: str) -> None:
    """A program can be copied, and the switch changes from the scheme of the system to light, and to dark."""
    await page.open(url, WIDTHS[0], "light")
    await page.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    await page.call("Page.bringToFront")
    blocks = "[...document.querySelectorAll('.highlight')]"
    program = f"{blocks}.find((block) => block.innerText.startsWith('import asyncio'))"
    button = f"{program}?.querySelector('.md-code__button[data-md-type=copy]')"
    await until(page, f"!!{button}")
    await page.value(f"{button}.scrollIntoView({{block: 'center'}})")
    box = await page.value(f"{button}.getBoundingClientRect().toJSON()")
    where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    for kind in ("mousePressed", "mouseReleased"):
        await page.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)
    read = {"expression": "navigator.clipboard.readText()", "awaitPromise": True, "returnByValue": True}
    async with asyncio.timeout(30):
        while not (await page.call("Runtime.evaluate", **read))["result"]["value"].startswith("import asyncio\n"):
            await asyncio.sleep(0.05)
    for scheme in ("default", "slate"):
        await page.value("document.querySelector('[data-md-component=palette] label:not([hidden])').click()")
        await until(page, f"document.body.dataset.mdColorScheme === '{scheme}'")
    assert await page.value(BRIGHTNESS) < 64


async def main(site: Path, folder: Path | None) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    assert pages
    with tempfile.TemporaryDirectory() as profile:
        async with browser(profile) as page:
            if folder is None:
                await page.call("Emulation.setScriptExecutionDisabled", value=True)
                for width, name in itertools.product(WIDTHS, pages):
                    await check_layout(page, f"{base}/{name}", width, "light")
                await page.call("Emulation.setScriptExecutionDisabled", value=False)
            for name in SAMPLE if folder is None else pages:
                await check_page(page, f"{base}/{name}", folder)
            await check_search(page, f"{base}/index.html")
            await check_buttons(page, f"{base}/tutorial.html")
            # The dialog of the search asks for the focus, which it sometimes has already.
            problems = [problem for problem in page.problems if "Autofocus processing was blocked" not in problem]
            assert problems == []
            assert {url for url in page.loaded if not url.startswith((base, "data:", "blob:"))} == set()
    server.shutdown()
    print(f"all {len(pages)} pages passed")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
