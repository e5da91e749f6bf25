"""Check the page at `/` of the embedded FaaS in a real browser. `.ci/run` runs it, because it needs Chromium.

    cd tests && python -m e2e.browser_page [FOLDER]

It uses the page with keyboard and mouse at the widths of a desktop and of a phone, in light and in dark mode. It runs
ordinary and hostile programs, enters wrong and right tokens, and attacks the server from a page of another origin.
Screenshots are written to FOLDER (default: a new temporary folder), to be inspected.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
from aiohttp import web

from e2e.browser_report import SCHEMES, Page, browser
from faasrt import SandboxConfig
from faasrt.local import LocalFaaS

WIDTHS = (1280, 390)
PATIENCE_S = 60
CTRL = 2  # a modifier of the DevTools protocol
TOKEN = "s3cret"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="  # PNG
HOSTILE = f"""
import base64
class Plot:
    def _repr_html_(self): return "<script>document.title = 'hacked'</script><b>bold</b>"
    def _repr_png_(self): return base64.b64decode("{PIXEL}")
class Table:
    def _repr_html_(self): return "<script>document.title = 'hacked'</script><table id=stolen></table>"
    def __repr__(self): return ""
print("<script>document.title = 'hacked'</script><img src=x onerror=\\"document.title = 'hacked'\\">")
display(Table())
Plot()
"""
# Texts whose contrast is lower than WCAG 2 demands at the level AA.
FAINT = """(() => {
    const context = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    const parse = (color) => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = color;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data];
    };
    const linear = (part) => part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4;
    const luminance = ([red, green, blue]) => 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
    const background = (one) => {
        const color = one === null ? [255, 255, 255, 255] : parse(getComputedStyle(one).backgroundColor);
        return color[3] === 255 ? color : background(one.parentElement);
    };
    const ratio = (one) => {
        const pair = [parse(getComputedStyle(one).color), background(one)].map(luminance).sort((a, b) => b - a);
        return (pair[0] + 0.05) / (pair[1] + 0.05);
    };
    const own = (one) => one.value || [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    return [...document.querySelectorAll("body *:not(:disabled)")]
        .filter((one) => one.checkVisibility() && own(one) && ratio(one) < 4.5)
        .map((one) => `${one.outerHTML.slice(0, 100)} ${ratio(one)}`);
})()"""
ATTACK = """<!doctype html><title>attack</title><iframe id="frame" src="URL/"></iframe>
<script type="module">
const body = '{"language": "javascript", "code": "1"}';
const attempts = {
  json: () => fetch("URL/run_code", {method: "POST", body, headers: {"Content-Type": "application/json"}}),
  plain: () => fetch("URL/run_code", {method: "POST", body}),
  blind: () => fetch("URL/run_code", {method: "POST", body, mode: "no-cors"}),
  health: () => fetch("URL/health"),
  script: () => new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "URL/page.js";
    script.onload = resolve;
    script.onerror = () => reject(new Error("blocked"));
    document.body.append(script);
  }),
};
const ended = {};
for (const [name, attempt] of Object.entries(attempts)) {
  ended[name] = await attempt().then((answer) => answer?.type ?? "loaded", () => "blocked");
}
window.ended = ended;
</script>"""


async def until(page: Page, expression: str) -> None:
    """Wait until a JavaScript expression is true."""
    async with asyncio.timeout(PATIENCE_S):
        while not await page.value(f"Boolean({expression})"):
            await asyncio.sleep(0.02)


async def text(page: Page, element: str) -> str:
    return str(await page.value(f"document.getElementById('{element}').innerText"))


async def write(page: Page, element: str, value: str) -> None:
    await page.value(f"document.getElementById('{element}').select()")
    await page.call("Input.insertText", text=value)


async def start(page: Page, code: str) -> None:
    """Write a program into the editor, and run it with the keyboard."""
    await write(page, "code", code)
    await page.key("Enter", 13, modifiers=CTRL)


async def run(page: Page, code: str) -> str:
    """Run a program to its end, and return the outcome."""
    await start(page, code)
    await until(page, "!document.getElementById('run').disabled")
    return await text(page, "outcome")


async def check_layout(page: Page, url: str, folder: Path) -> None:
    """Nothing overflows, no text is small, all controls have names, and all text has enough contrast."""
    for width, scheme in itertools.product(WIDTHS, SCHEMES):
        await page.open(url, width, scheme)
        await until(page, "document.querySelectorAll('td .badge.good').length === 2")
        await page.screenshot(folder / f"page-{width}-{scheme}.png")
        outcome = await run(page, "import sys\nprint('out')\nprint('err', file=sys.stderr)\n[1, 2][2]")
        assert outcome == "USER_ERROR"
        assert (await text(page, "message")).startswith("IndexError: ")
        assert "exit code 1" in await text(page, "notes")
        await page.screenshot(folder / f"page-{width}-{scheme}-error.png")
        wide = await page.value("document.documentElement.scrollWidth")
        assert wide <= width, f"the page is {wide} px wide on a screen of {width} px"
        sizes = "[...document.querySelectorAll('body *')].map((one) => parseFloat(getComputedStyle(one).fontSize))"
        assert min(await page.value(sizes)) >= 12
        assert await page.value(FAINT) == []
        tree = await page.call("Accessibility.getFullAXTree")
        for node in tree["nodes"]:
            if node.get("role", {}).get("value") in ("button", "textbox", "combobox", "spinbutton", "region", "image"):
                assert node["name"]["value"], node
    assert page.problems == []


async def check_accepted(page: Page, faas: LocalFaaS) -> None:
    """The page says what the server accepts: limits, and the lines that configure clients. A click selects these, and
    a refresh keeps the selection.
    """
    await page.open(faas.url, 1280, "light")
    await until(page, "!document.getElementById('main').hidden")
    assert (await text(page, "limitRows")).split() == [
        *("Time", "60", "s", "--timeout-s", "60", "s", "--max-timeout-s"),
        *("Memory", "128", "MiB", "--memory-mb", str(faas.max_sandbox.memory_limit_mb), "MiB", "--max-memory-mb"),
        *("Output,", "each", "stream", "256", "MiB", "--output-bytes", "256", "MiB", "--max-output-bytes"),
    ]
    port, settings = faas.url.rpartition(":")[2], await text(page, "settings")
    for line in (
        f"COZE_LOOP_FAAS_URL={faas.url}",
        f"SANDBOX_FUSION_ENDPOINT={faas.url}/sandboxfusion",
        f"PISTON_ENDPOINTS={faas.url}/piston/api/v2",
        f"COZE_LOOP_JS_FAAS_DOMAIN=127.0.0.1\nCOZE_LOOP_JS_FAAS_PORT={port}",
    ):
        assert line in settings, settings
    await page.value("getSelection().selectAllChildren(document.querySelector('#settings pre'))")
    await page.value("document.querySelector('#rows tr').id = 'old'")
    await page.value("document.dispatchEvent(new Event('visibilitychange'))")
    await until(page, "document.getElementById('old') === null")
    assert await page.value("getSelection().toString()") == f"COZE_LOOP_FAAS_URL={faas.url}"


async def check_editor(page: Page, url: str) -> None:
    """Tab indents, Enter keeps the indentation, Esc and Tab leave the editor, and a language brings its sample."""
    await page.open(url, 1280, "light")
    await until(page, "!document.getElementById('main').hidden")
    await write(page, "code", "if True:")
    for name, code in (("Enter", 13), ("Tab", 9), ("Enter", 13)):
        await page.key(name, code)
    await page.call("Input.insertText", text="pass")
    assert await page.value("document.getElementById('code').value") == "if True:\n    \n    pass"
    assert await text(page, "numbers") == "1\n2\n3"
    await page.key("Escape", 27)
    await page.key("Tab", 9)
    assert await page.value("document.activeElement.id") == "stdin"
    await choose(page, "javascript")
    assert await page.value("document.getElementById('code').value") == "if True:\n    \n    pass"  # not lost
    await write(page, "code", "")
    await choose(page, "python")
    assert "print(number" in await page.value("document.getElementById('code').value")


async def choose(page: Page, language: str) -> None:
    await page.value(f"document.getElementById('language').value = '{language}'")
    await page.value("document.getElementById('language').dispatchEvent(new Event('change'))")


async def check_runs(page: Page, faas: LocalFaaS) -> None:
    """Output is live, a program can be stopped, limits and stdin are used, and hostile output is only text."""
    await page.open(faas.url, 1280, "light")
    await until(page, "!document.getElementById('main').hidden")
    await start(page, "import time\nprint('first', flush=True)\ntime.sleep(50)")
    await until(page, "document.getElementById('output').textContent === 'first\\n'")
    assert await text(page, "outcome") == "running"
    await page.value("document.getElementById('stop').click()")
    await until(page, "document.getElementById('outcome').innerText === 'stopped'")
    async with asyncio.timeout(PATIENCE_S):
        while faas.health()["languages"]["python"]["active"]:
            await asyncio.sleep(0.02)
    await write(page, "stdin", "from stdin")
    assert await run(page, "print(input())") == "OK"
    assert await text(page, "output") == "from stdin\n"
    await write(page, "seconds", "0.3")
    assert await run(page, "while True: pass") == "TIMEOUT"
    assert "300 ms" in await text(page, "message")
    await write(page, "seconds", "61")
    await start(page, "print('never')")
    assert await page.value("document.querySelector('#play :invalid').id") == "seconds"
    assert await text(page, "outcome") == "TIMEOUT"  # nothing has run
    await write(page, "seconds", "50")

    assert await run(page, HOSTILE) == "OK"
    await until(page, "document.querySelector('#displays img')?.naturalWidth === 1")
    assert "<script>" in await text(page, "output")
    assert "<table id=stolen>" in await text(page, "displays")
    assert await page.value("document.querySelectorAll('main script, #output > :not(span), #stolen').length") == 0
    assert await page.value("document.title") == "faasrt"

    await start(page, "import sys\nfor _ in range(1_600): print('<b>' * 21_000)")
    while await text(page, "outcome") == "running":
        assert await page.value("document.getElementById('output').textContent.length") <= 50_000  # it answers
    assert await text(page, "outcome") == "OK", await text(page, "message")
    assert "of 100801600 characters" in await text(page, "notes")
    await start(page, "import sys\nfor _ in range(20_000): print(1, flush=True); print(2, file=sys.stderr, flush=True)")
    await until(page, "!document.getElementById('run').disabled")
    assert await page.value("document.getElementById('output').childNodes.length") <= 2_000
    assert page.problems == []
    assert {url.removeprefix(faas.url) for url in page.loaded if not url.startswith("data:")} <= {
        *("/", "/page.css", "/page.js", "/health", "/run_code")
    }


async def check_hidden(page: Page, url: str) -> None:
    """A hidden tab asks for nothing."""
    fast = "const timeout = setTimeout; window.setTimeout = (run, ms) => timeout(run, ms / 100)"
    script = await page.call("Page.addScriptToEvaluateOnNewDocument", source=fast)
    await page.open(url, 1280, "light")
    await page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])
    async with asyncio.timeout(PATIENCE_S):
        while page.loaded.count(f"{url}/health") < 5:
            await asyncio.sleep(0.02)
    change = "document.dispatchEvent(new Event('visibilitychange'))"
    await page.value(f"Object.defineProperty(document, 'hidden', {{value: true, writable: true}}); {change}")
    await asyncio.sleep(0.5)
    page.loaded.clear()
    await asyncio.sleep(1)  # twenty times as long as it waits when it is visible
    assert page.loaded == []
    await page.value(f"document.hidden = false; {change}")
    await until(page, "true")
    async with asyncio.timeout(PATIENCE_S):
        while page.loaded.count(f"{url}/health") < 3:
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def site(answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """Serve pages of another origin."""
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def proxy(url: str, path: str) -> AsyncIterator[str]:
    """Serve a server below a path of another origin, as nginx does with `proxy_pass` and `proxy_set_header Host`."""
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            target, body = url + request.raw_path.removeprefix(path), await request.read()
            headers = {name: value for name, value in request.headers.items() if name != "Accept-Encoding"}
            async with session.request(request.method, target, headers=headers, data=body) as upstream:
                kept = {name: value for name, value in upstream.headers.items() if name != "Transfer-Encoding"}
                response = web.StreamResponse(status=upstream.status, headers=kept)
                await response.prepare(request)
                async for chunk in upstream.content.iter_any():
                    await response.write(chunk)
                return response

        async with site(answer) as base:
            yield base + path


async def check_token(page: Page, folder: Path) -> None:
    """The page asks for the token, says that a wrong one is wrong, and keeps the right one for this tab only. All this
    also works behind a proxy.
    """
    async with LocalFaaS(["javascript"], workers=1, token=TOKEN) as faas, proxy(faas.url, "/tools/faasrt") as behind:
        await faas.wait_ready("javascript")
        for url, width in zip((faas.url, f"{behind}/"), WIDTHS, strict=True):
            await page.open(url, width, "light")
            await until(page, "!document.getElementById('login').hidden")
            assert await page.value("document.activeElement.id") == "token"
            assert not await text(page, "refused")
            await write(page, "token", "wrong")
            await page.key("Enter", 13, "\r")
            await until(page, "document.getElementById('refused').innerText")
            assert await text(page, "refused") == "The server refused this token."
            await page.screenshot(folder / f"token-{width}.png")
            await write(page, "token", TOKEN)
            await page.key("Enter", 13, "\r")
            await until(page, "!document.getElementById('main').hidden")
            assert await run(page, "console.log(6 * 7)") == "OK"
            assert await text(page, "output") == "42\n"
            address = url.rstrip("/").replace("://", "://user:TOKEN@")
            assert f"reward.sandbox_fusion.url={address}/sandboxfusion/run_code" in await text(page, "settings")
            is_behind_path = url != faas.url  # coze-loop's backend knows no paths
            assert ("FAAS_DOMAIN" in await text(page, "settings")) is not is_behind_path
            assert await page.value("[localStorage.length, document.cookie]") == [0, ""]
            assert TOKEN not in await page.value("document.documentElement.outerHTML")
            await page.call("Page.reload")
            await until(page, "document.getElementById('main')?.hidden === false")  # the tab has kept the token
            await page.value("document.getElementById('forget').click()")
            await until(page, "!document.getElementById('login').hidden")
            assert await page.value("sessionStorage.length") == 0
    assert not [url for url in page.loaded if TOKEN in url]
    refused = [problem for problem in page.problems if "401" not in problem]  # the browser logs each of them
    assert refused == []
    page.problems.clear()


async def check_attacks(page: Page, url: str, requests: list[str]) -> None:
    """A page of another origin can neither run a program nor read an answer nor embed this page: all is refused."""
    for host in ("127.0.0.1", "localhost"):
        requests.clear()
        html = ATTACK.replace("URL", url.replace("127.0.0.1", host))

        async def attack(request: web.BaseRequest, html: str = html) -> web.Response:
            return web.Response(text=html, content_type="text/html")

        async with site(attack) as attacker:
            await page.open(attacker, 1280, "light")
            await until(page, "window.ended")
            ended = await page.value("window.ended")
            assert ended.pop("blind") in ("opaque", "blocked")  # it was sent, and refused
            assert set(ended.values()) == {"blocked"}, ended
        assert {path for line in requests for path in re.findall(r"path=(\S+)", line)} == {
            *("/", "/page.js", "/health", "/run_code")
        }
        assert {status for line in requests for status in re.findall(r"status=(\d+)", line)} == {"403"}
    page.problems.clear()


async def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sandbox = SandboxConfig(timeout_limit_s=60, max_output_bytes=2**28)
    languages = ["python", "javascript"]
    requests: list[str] = []
    access_log = logging.Logger("access")
    access_log.addFilter(lambda record: requests.append(record.getMessage()) or False)
    async with LocalFaaS(languages, workers=2, sandbox=sandbox, access_log=access_log) as faas:
        for language in languages:
            await faas.wait_ready(language)
        with tempfile.TemporaryDirectory() as profile:
            async with browser(profile) as page:
                await page.call("Accessibility.enable")
                await check_layout(page, faas.url, folder)
                await check_accepted(page, faas)
                await check_editor(page, faas.url)
                await check_runs(page, faas)
                await check_hidden(page, faas.url)
                await check_token(page, folder)
                await check_attacks(page, faas.url, requests)
    print(f"all checks passed; the screenshots are in {folder}")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="faasrt-page-"))))
