"""Check the documentation in a real browser. Run by hand and by `.ci/run`, not by pytest, because it needs Chromium.

    python .ci/docs site
    (cd tests && python -m e2e.browser_site ../site [FOLDER])

It opens each page at the widths of a desktop and of a phone, and checks that nothing overflows the page, that the
browser reports no problem, that nothing is loaded from another site, and that the search finds a method. With FOLDER,
it writes screenshots to this folder, to be inspected.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from e2e.browser_report import WIDTHS, Page, browser

SCROLLS = "[...document.querySelectorAll('main pre, main table')].map((one) => getComputedStyle(one).overflowX)"


async def check_page(page: Page, path: Path, folder: Path | None) -> None:
    for width in WIDTHS:
        await page.open(path, width, "light")
        wide = await page.value("document.documentElement.scrollWidth")
        assert wide <= width, f"{path} is {wide} px wide on a screen of {width} px"
        assert "visible" not in await page.value(SCROLLS), f"{path}: code or a table does not scroll"
        if folder is not None:
            await page.screenshot(folder / f"{path.stem}-{width}.png")


async def search(page: Page, path: Path) -> None:
    await page.open(path, 1280, "light")
    await page.value("document.querySelector('nav input[type=search]').focus()")
    await page.call("Input.insertText", text="run_cases")
    async with asyncio.timeout(30):
        while "Runtime.run_cases" not in await page.value("document.querySelector('main').innerText"):
            await asyncio.sleep(0.05)


async def main(site: Path, folder: Path | None) -> None:
    with tempfile.TemporaryDirectory() as profile:
        async with browser(profile) as page:
            pages = sorted(set(site.rglob("*.html")) - {site / "index.html"})
            assert pages
            for path in pages:
                await check_page(page, path, folder)
            assert page.problems == []
            await search(page, site / "faasrt/errors.html")  # it logs its index to the console
            assert {url for url in page.loaded if not url.startswith((site.as_uri(), "data:"))} == set()
    print(f"all {len(pages)} pages passed")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
