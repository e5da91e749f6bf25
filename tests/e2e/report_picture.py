"""Make the picture of a report for the guide: run a batch on the embedded FaaS, and open its report in a real browser.

    apt-get install chromium          # or any Chromium on PATH
    cd tests && python -m e2e.report_picture ../faasrt/docs/images/report.webp

The batch has twelve samples of each of fifty problems, as a model might write them: some are wrong, fail or do not end.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from e2e.browser_report import browser, save
from support.served import FAASRT

PROBLEMS, SAMPLES = 50, 12
GOOD = "n = int(input())\nprint(n * {factor})"
BAD = [
    "n = int(input())\nprint(n + {factor})",
    "n = int(input())\nprint(n * {factor} / 0)",
    "n = int(input()\nprint(n)",
    "while True:\n    pass",
    "n = int(input())\nx = [n] * 10**9\nprint(len(x))",
]


def tasks() -> list[dict[str, Any]]:
    """Return the tasks. They are always the same."""
    chance, made = random.Random(7), []
    for problem in range(PROBLEMS):
        factor, difficulty = problem + 2, chance.random()
        tests = [{"stdin": str(n), "expected": str(n * factor)} for n in (1, 7)]
        for sample in range(SAMPLES):
            code = GOOD if chance.random() > difficulty else chance.choices(BAD, [12, 4, 2, 1, 1])[0]
            made.append(
                {
                    "id": f"problem-{problem:02}/{sample:02}",
                    "task_id": f"problem-{problem:02}",
                    "language": "python",
                    "code": code.format(factor=factor),
                    "tests": tests,
                    "timeout_ms": 2_000,
                }
            )
    return made


async def main(picture: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks()))
        batch = [FAASRT, "batch", folder / "tasks.jsonl", "-o", folder / "results.jsonl", "--quiet"]
        await asyncio.to_thread(subprocess.run, batch, check=True)
        await asyncio.to_thread(subprocess.run, [FAASRT, "report", folder / "results.jsonl"], check=True)
        async with browser(str(folder / "profile")) as page:
            await page.open(folder / "results.html", 1280, "light")
            await page.call("Emulation.setScrollbarsHidden", hidden=True)
            end = await page.value("document.querySelectorAll('h2')[2].getBoundingClientRect().top")
            clip = {"x": 60, "y": 0, "width": 1160, "height": end - 20, "scale": 1}
            save(picture, await page.call("Page.captureScreenshot", format="webp", quality=85, clip=clip))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
