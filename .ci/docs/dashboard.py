"""Draws the dashboard of `faasrt deploy grafana-dashboard`, with the answers of a real Prometheus to its queries.

    apt-get install prometheus
    python .ci/docs/dashboard.py faasrt/docs/images/dashboard.webp

For four minutes, three clients run programs on two servers. One of the servers is killed in between, and started again.
Prometheus scrapes all of them every second. The picture has the panels of the dashboard, at their places.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import prometheus_client
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from faasrt import FaasrtError, Language, RuntimeManager
from faasrt.telemetry.prometheus import PrometheusSink

SERVER_PORTS, CLIENT_PORT, PROMETHEUS_PORT = (18_001, 18_002), 18_003, 18_004
SECONDS, KILLED_AT, RESTARTED_AT = 240, 130, 165
SCRAPE_S, STEP_S, RATE_INTERVAL = 1, 2, "10s"
CLIENTS, MOST_IN_FLIGHT = 3, 6
PYTHON, JAVASCRIPT = Language.PYTHON, Language.JAVASCRIPT
PROGRAMS = [
    *[(PYTHON, "print(sum(range(100_000)))")] * 8,
    *[(PYTHON, "import time; time.sleep(0.3)")] * 6,
    *[(JAVASCRIPT, "console.log([1, 2, 3].map((x) => x * x))")] * 6,
    (PYTHON, "print(1 / 0)"),
    (PYTHON, "def f(:"),
    (PYTHON, "while True: pass"),
    (PYTHON, "x = bytearray(10**9); x[::4096] = b'x' * len(x[::4096])"),
    (JAVASCRIPT, "throw new Error('no')"),
]
COLUMNS, WIDTH, ROW_HEIGHT, GAP = 24, 960, 25, 6  # sizes in pixels
CANVAS, PANEL, BORDER, TEXT, FAINT = "#f4f5f5", "#ffffff", "#dcdfe3", "#24292e", "#6a737c"
SERIES = ["#4e9a51", "#d9a514", "#3585c6", "#e07b29", "#d0443e", "#7d5fb2", "#b84a95", "#8a8f98"]
COLOURS = {"green": SERIES[0], "orange": SERIES[3], "red": SERIES[4]}


class Series(NamedTuple):
    """A line of a panel: its name, the times in minutes, and the values."""

    name: str
    times: Sequence[float]
    values: Sequence[float]

    @property
    def last(self) -> float:
        """The last value that is a number; NaN if there is none."""
        return next((value for value in reversed(self.values) if not math.isnan(value)), math.nan)


@contextlib.asynccontextmanager
async def running(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command, and end it afterwards."""
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def serve(port: int) -> contextlib.AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """Run a server."""
    faasrt = str(Path(sys.executable).parent / "faasrt")
    return running(faasrt, "serve", "--port", str(port), "-l", "python", "-l", "javascript", "--workers", "2")


async def until_ready(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until a server answers with 200."""
    async with asyncio.timeout(120):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.2)


def configuration() -> str:
    """Return the configuration of Prometheus, which is also YAML."""
    servers = [{"targets": [f"127.0.0.1:{port}"]} for port in SERVER_PORTS]
    jobs = [
        {"job_name": "servers", "static_configs": servers},
        {"job_name": "clients", "static_configs": [{"targets": [f"127.0.0.1:{CLIENT_PORT}"]}]},
    ]
    return json.dumps({"global": {"scrape_interval": f"{SCRAPE_S}s"}, "scrape_configs": jobs})


async def load(manager: RuntimeManager) -> None:
    """Run programs: more and more of them at once, then fewer, and so on."""
    chance, began, tasks = random.Random(7), time.monotonic(), set[asyncio.Task[None]]()  # noqa: S311

    async def run() -> None:
        language, code = chance.choice(PROGRAMS)
        with contextlib.suppress(FaasrtError):
            await manager.run_code(code, language, timeout_ms=1_000, idempotent=True)

    async with asyncio.TaskGroup() as group:
        while (elapsed := time.monotonic() - began) < SECONDS:
            wanted = 1 + MOST_IN_FLIGHT * math.sin(math.pi * elapsed / SECONDS * 2.5) ** 2
            while len(tasks) < wanted:
                task = group.create_task(run())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.sleep(0.02)


async def measure(dashboard: dict[str, Any]) -> dict[int, list[Series]]:
    """Return the series of each panel, by its id."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "prometheus.yml").write_text(configuration())
        first = await stack.enter_async_context(serve(SERVER_PORTS[0]))
        await stack.enter_async_context(serve(SERVER_PORTS[1]))
        prometheus = f"http://127.0.0.1:{PROMETHEUS_PORT}"
        flags = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", "--log.level=error"]
        await stack.enter_async_context(running("prometheus", *flags, f"--web.listen-address={prometheus[7:]}"))
        prometheus_client.start_http_server(CLIENT_PORT, "127.0.0.1")
        session = await stack.enter_async_context(aiohttp.ClientSession())
        urls = [f"http://127.0.0.1:{port}" for port in SERVER_PORTS]
        for url in [*(f"{url}/readyz" for url in urls), f"{prometheus}/-/ready"]:
            await until_ready(session, url)
        began, sink = time.time(), PrometheusSink()
        clients = [
            RuntimeManager.from_url({"python": urls, "javascript": urls}, telemetry=[sink]) for _ in range(CLIENTS)
        ]
        loads = [asyncio.create_task(load(await stack.enter_async_context(client))) for client in clients]
        await asyncio.sleep(KILLED_AT)
        first.kill()
        await asyncio.sleep(RESTARTED_AT - KILLED_AT)
        await stack.enter_async_context(serve(SERVER_PORTS[0]))
        await asyncio.gather(*loads)
        return {
            panel["id"]: [
                series for target in panel["targets"] for series in await query(session, prometheus, target, began)
            ]
            for panel in dashboard["panels"]
            if "targets" in panel
        }


async def query(session: aiohttp.ClientSession, prometheus: str, target: dict[str, Any], began: float) -> list[Series]:
    """Return the answer of Prometheus to a query of a panel."""
    # What Grafana puts in the place of its variables.
    expression = target["expr"].replace("$__rate_interval", RATE_INTERVAL).replace("$job", ".*")
    fields = {"query": expression, "start": str(began), "end": str(began + SECONDS), "step": str(STEP_S)}
    async with session.post(f"{prometheus}/api/v1/query_range", data=fields) as answer:
        body = await answer.json()
    assert body["status"] == "success", body
    found = []
    template = target["legendFormat"].replace("{{", "{").replace("}}", "}")
    steps = range(0, SECONDS + 1, STEP_S)
    for series in body["data"]["result"]:
        known = {round(at - began): float(value) for at, value in series["values"]}  # without the steps that have none
        name = template.format_map(defaultdict(str, series["metric"]))
        found.append(Series(name, [step / 60 for step in steps], [known.get(step, math.nan) for step in steps]))
    return found


def text_of(value: float, unit: str) -> str:
    """Return a value with its unit, as on an axis of Grafana."""
    match unit:
        case "percentunit":
            return f"{100 * value:.3g} %"
        case "reqps":
            return f"{value:.3g} req/s"
        case "s":
            return f"{value:.3g} s" if value >= 1 or not value else f"{1000 * value:.3g} ms"
    return f"{value:.3g}"


def draw_stat(axes: Any, panel: dict[str, Any], found: Sequence[Series]) -> None:
    """Draw the last values, over their course."""
    defaults = panel["fieldConfig"]["defaults"]
    steps = defaults.get("thresholds", {}).get("steps", [{"color": "green", "value": None}])
    width = 1 / max(1, len(found))
    for number, series in enumerate(found):
        colour = COLOURS[[step["color"] for step in steps if step["value"] is None or series.last >= step["value"]][-1]]
        text = text_of(series.last, defaults["unit"])
        text = text if len(found) == 1 else f"{series.name} {text}"
        style: dict[str, Any] = {
            "color": colour,
            "fontsize": 13 if len(found) == 1 else 8,
            "weight": "bold",
            "ha": "center",
        }
        axes.text((number + 0.5) * width, 0.55, text, transform=axes.transAxes, **style)
        course = axes.inset_axes([number * width, 0, width, 0.42])
        course.axis("off")
        course.fill_between(series.times, series.values, color=colour, alpha=0.25, linewidth=0)
        course.set_xlim(0, SECONDS / 60)
        course.set_ylim(0, max(1e-9, *(value for value in series.values if not math.isnan(value))))
    axes.axis("off")


def draw_series(axes: Any, panel: dict[str, Any], found: Sequence[Series]) -> None:
    """Draw lines, or areas on top of each other."""
    defaults = panel["fieldConfig"]["defaults"]
    custom, unit, top = defaults["custom"], defaults["unit"], 0.0
    below: defaultdict[float, float] = defaultdict(float)  # by time
    for series, colour in zip(found, itertools.cycle(SERIES), strict=False):
        low = [below[at] for at in series.times]
        high = [base + value for base, value in zip(low, series.values, strict=True)]
        if "stacking" in custom:
            below.update((at, total) for at, total in zip(series.times, high, strict=True) if not math.isnan(total))
        top = max(top, *(value for value in high if not math.isnan(value)))
        axes.plot(series.times, high, color=colour, linewidth=1, label=series.name or "none")
        axes.fill_between(series.times, low, high, color=colour, alpha=custom["fillOpacity"] / 100, linewidth=0)
    axes.set_xlim(0, SECONDS / 60)
    axes.set_ylim(0, defaults.get("max", 1.1 * top or 1))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=unit == "short"))
    axes.yaxis.set_major_formatter(lambda value, _: text_of(value, unit))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} min")
    axes.tick_params(colors=FAINT, labelsize=7.5, length=0)
    axes.grid(color=BORDER, linewidth=0.6)
    axes.spines[:].set_visible(False)
    if found:
        columns = 3 if max(len(series.name) for series in found) < 16 else 2
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (-0.24, -0.08), "ncols": columns}
        axes.legend(**place, frameon=False, fontsize=7.5, labelcolor=TEXT, handlelength=0.8, columnspacing=0.8)
    else:
        axes.text(0.5, 0.5, "No data", color=FAINT, fontsize=10, ha="center", transform=axes.transAxes)


def draw(dashboard: dict[str, Any], found: dict[int, list[Series]], path: Path) -> None:
    """Write the picture."""
    height = GAP + ROW_HEIGHT * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    column = (WIDTH - GAP) / COLUMNS
    figure = Figure(figsize=(WIDTH / 100, height / 100), dpi=100, facecolor=CANVAS)

    def share(x: float, y: float, width: float, tall: float) -> tuple[float, float, float, float]:
        """Return a rectangle in pixels from the top left corner, as shares from the bottom left one."""
        return x / WIDTH, 1 - (y + tall) / height, width / WIDTH, tall / height

    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        bold: dict[str, Any] = {"color": TEXT, "weight": "bold"}
        x, y = GAP + grid["x"] * column, GAP + grid["y"] * ROW_HEIGHT
        width, tall = grid["w"] * column - GAP, grid["h"] * ROW_HEIGHT - GAP
        if panel["type"] == "row":
            figure.text(*share(x + 4, y + 15, 0, 0)[:2], panel["title"], fontsize=10.5, **bold)
            continue
        left, bottom, *size = share(x, y, width, tall)
        figure.add_artist(Rectangle((left, bottom), *size, facecolor=PANEL, edgecolor=BORDER, zorder=-1))
        figure.text(*share(x + 8, y + 16, 0, 0)[:2], panel["title"], fontsize=9, **bold)
        if panel["type"] == "stat":
            draw_stat(figure.add_axes(share(x, y + 22, width, tall - 22)), panel, found[panel["id"]])
        else:
            axes = figure.add_axes(share(x + 54, y + 28, width - 68, tall - 88))
            draw_series(axes, panel, found[panel["id"]])
    figure.savefig(path, pil_kwargs={"quality": 85})


def main(path: Path) -> None:
    """Measure, and draw."""
    if shutil.which("prometheus") is None:
        sys.exit("no prometheus on PATH: apt-get install prometheus")
    templates = files("faasrt.cli.deploy").joinpath("templates")
    dashboard = json.loads(templates.joinpath("grafana-dashboard.json").read_text("utf-8"))
    draw(dashboard, asyncio.run(measure(dashboard)), path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
