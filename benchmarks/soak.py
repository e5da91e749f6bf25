"""Runs a server under a mixed load for a long time. Every result is checked, and its use of resources must not grow.

    python -m benchmarks.soak [--runs 5000] [--kills 50] [--idle 5] [--engine native]

The server is `faasrt serve` in a process of its own. Its resources are measured after a fifth of the runs and at the
end, when no program runs. Then its processes are killed with SIGKILL, one after another, and every language must work
again. The exit code is 1 if a result was wrong, or if a resource has grown by more than its SLACK.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import parser
from benchmarks.report import Report
from benchmarks.server import FAASRT, serving as running
from faasrt import RetrySettings, RuntimeManager, ServiceError, Settings

IN_FLIGHT = 8
FIRST = 0.2
# How much each resource may grow between the first fifth of the runs and the end. Each Deno process has about eight
# open files.
SLACK = {
    "server MB": 24, "worker MB": 48, "descriptors": 120, "threads": 8, "processes": 8, "zombies": 2, "files": 80,
    "mounts": 0, "namespaces": 80,
}  # fmt: skip
LOOPS = {"python": "while True: pass", "javascript": "while (true) {}", "typescript": "for (;;) {}"}
FLOODS = {"python": "while True: print('x' * 10**5)", "javascript": "for (;;) console.log('x'.repeat(1e5))"}
BOMBS = {
    "python": "x = []\nwhile True: x.append(bytearray(10**6))",
    "javascript": "const x = []; for (;;) x.push(new Array(1e5).fill(x.length))",
}
# Language, program, outcome, stdout. {} is replaced by the number of the run.
PROGRAMS = [
    ("python", "print({})", "OK", "{}\n"),
    ("python", "import json\nreturn_val(json.dumps([{}]))\nprint({})", "OK", "{}\n"),
    ("python", "import asyncio\nasync def f(): print({})\nasyncio.run(f())", "OK", "{}\n"),
    ("javascript", "console.log({})", "OK", "{}\n"),
    ("javascript", "setTimeout(() => console.log({}), 5)", "OK", "{}\n"),
    ("typescript", "const x: number = {}; console.log(x)", "OK", "{}\n"),
    ("python", "print({})\n1 / 0", "USER_ERROR", "{}\n"),
    ("javascript", "console.log({}); throw new Error('x')", "USER_ERROR", "{}\n"),
    ("typescript", "console.log({}); null!.x", "USER_ERROR", "{}\n"),
    ("python", "def f(:", "SYNTAX_ERROR", ""),
    ("javascript", "let a = ;", "SYNTAX_ERROR", ""),
    ("typescript", "let a: = {};", "SYNTAX_ERROR", ""),
    ("python", "import os\nos._exit({} % 5)", "CRASHED", ""),
    ("javascript", "process.abort()", "CRASHED", ""),
]
# Programs for native Python that start processes or threads, send signals, or fill /tmp, and their outcomes. The server
# must remove everything that they leave behind.
HOSTILE = [
    (
        "import os, time\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        time.sleep(1)",
        "TIMEOUT",
    ),
    ("import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)", "OK"),
    ("import threading\nfor _ in range(60):\n    threading.Timer(60, print).start()\nimport os\nos.abort()", "CRASHED"),
    ("import os\nos.kill(os.getpid(), 9)", "CRASHED"),
    ("import os\ntry:\n    os.kill(-1, 9)\nexcept ProcessLookupError:\n    print('alone')", "OK"),
    ("open('/tmp/x', 'wb').write(bytes(30 * 2**20))", "OK"),
    ("import os\nx = []\nos.fork()\nos.fork()\nwhile True:\n    x.append(b'x' * 10**6)", "MEMORY_LIMIT"),
]
FUNCTIONS = {
    "python": "def double(n):\n    return 2 * n",
    "javascript": "function double(n) { return 2 * n; }",
    "typescript": "function double(n: number): number { return 2 * n; }",
}


class Soak:
    """The runs. The kind of each is random, with a fixed seed."""

    def __init__(self, manager: RuntimeManager, server: Watched, python: str) -> None:
        self._manager, self._server, self._python = manager, server, python
        extra = (self._hostile, self._hostile) if python == "native" else ()
        self._random = random.Random(1)
        self._kinds: tuple[Callable[[int], Awaitable[None]], ...] = (
            self._program, self._program, self._program, self._program, self._timeout, self._bomb, self._flood,
            self._cancelled, self._validation, self._function, self._cases, *extra,
        )  # fmt: skip
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def run(self, numbers: range) -> None:
        """Make the runs with these numbers, several at once."""
        queue = iter(numbers)

        async def work() -> None:
            for number in queue:
                kind = self._random.choice(self._kinds)
                try:
                    await kind(number)
                except Exception as error:
                    self.wrong.append(f"{number} {kind.__name__}: {type(error).__name__}: {error}")
                self.done[kind.__name__.strip("_")] += 1

        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))

    async def _program(self, number: int) -> None:
        language, code, outcome, stdout = self._random.choice(PROGRAMS)
        result = await self._manager.run_code(code.replace("{}", str(number)), language)
        expect((result.outcome.value, result.stdout), (outcome, stdout.replace("{}", str(number))))

    async def _timeout(self, number: int) -> None:
        language = self._random.choice(list(LOOPS))
        result = await self._manager.run_code(LOOPS[language], language, 150)
        expect(result.outcome.value, "TIMEOUT")

    async def _bomb(self, number: int) -> None:
        language = self._random.choice(list(BOMBS))
        result = await self._manager.run_code(BOMBS[language], language)
        expect(result.outcome.value, "USER_ERROR" if (language, self._python) == ("python", "wasm") else "MEMORY_LIMIT")

    async def _hostile(self, number: int) -> None:
        code, outcome = self._random.choice(HOSTILE)
        result = await self._manager.run_code(code, "python", 1_000 if outcome == "TIMEOUT" else 5_000)
        expect(result.outcome.value, outcome)

    async def kill(self, number: int) -> None:
        """Kill one process of the server with SIGKILL, and wait until every language runs again."""
        self._random.choice(psutil.Process(self._server.process.pid).children(recursive=True)).kill()
        for language in FUNCTIONS:
            while True:
                runtime = await self._manager.get_runtime(language)
                with contextlib.suppress(ServiceError):
                    result = await runtime.call_function(FUNCTIONS[language], "double", [number])
                    expect((result.outcome.value, result.value), ("OK", 2 * number))
                    break
                await asyncio.sleep(0.1)

    async def _flood(self, number: int) -> None:
        language = self._random.choice(list(FLOODS))
        result = await self._manager.run_code(FLOODS[language], language)
        expect((result.outcome.value, result.truncated), ("OUTPUT_LIMIT", {"stdout"}))

    async def _cancelled(self, number: int) -> None:
        language = self._random.choice(list(LOOPS))
        call = asyncio.ensure_future(self._manager.run_code(LOOPS[language], language))
        await asyncio.wait({call}, timeout=self._random.random() / 5)
        call.cancel()
        await asyncio.wait({call})
        expect(call.cancelled(), True)

    async def _validation(self, number: int) -> None:
        valid = self._random.random() < 0.5
        language = self._random.choice(list(FUNCTIONS))
        code = FUNCTIONS[language] if valid else f"{FUNCTIONS[language]} ]"
        result = await self._manager.validate_code(code, language, where="remote")
        expect((result.valid, bool(result.diagnostics)), (valid, not valid))

    async def _function(self, number: int) -> None:
        language = self._random.choice(list(FUNCTIONS))
        runtime = await self._manager.get_runtime(language)
        result = await runtime.call_function(FUNCTIONS[language], "double", [number])
        expect((result.outcome.value, result.value), ("OK", 2 * number))

    async def _cases(self, number: int) -> None:
        language = self._random.choice(list(FUNCTIONS))
        runtime = await self._manager.get_runtime(language)
        results = await runtime.run_cases(FUNCTIONS[language], "double", [(number + n,) for n in range(10)])
        expect([result.value for result in results], [2 * (number + n) for n in range(10)])


def expect(got: Any, wanted: Any) -> None:
    if got != wanted:
        raise AssertionError(f"expected {wanted!r:.300}, got {got!r:.300}")


class Watched:
    """A server whose process is observed from outside."""

    def __init__(self, process: subprocess.Popen[str], url: str, folder: Path) -> None:
        self.process, self.url, self._folder = process, url, folder

    def figures(self) -> dict[str, int]:
        """Return the resources that the server uses."""
        server = psutil.Process(self.process.pid)
        states, workers_mb, namespaces = Counter[str](), [0], set[str]()
        for child in server.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                namespaces |= {str(path.readlink()) for path in Path(f"/proc/{child.pid}/ns").iterdir()}
                states[child.status()] += 1
                if "wasm.worker" in " ".join(child.cmdline()):
                    workers_mb.append(child.memory_info().rss // 2**20)
        zombies = states.pop(psutil.STATUS_ZOMBIE, 0)
        return {
            "server MB": server.memory_info().rss // 2**20,
            "worker MB": max(workers_mb),
            "descriptors": server.num_fds(),
            "threads": server.num_threads(),
            "processes": states.total(),
            "zombies": zombies,
            "mounts": len(Path(f"/proc/{server.pid}/mountinfo").read_text().splitlines()),
            "namespaces": len(namespaces),
            "files": sum("wasi-python-zip" not in str(path) for path in self._folder.rglob("*")),
        }

    def cpu_s(self) -> float:
        """Return the CPU time that the server and its processes have used, in seconds."""
        server, seconds = psutil.Process(self.process.pid), 0.0
        for process in (server, *server.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                seconds += sum(process.cpu_times()[:2])
        return seconds


@contextlib.contextmanager
def serving(engine: str) -> Iterator[Watched]:
    """Run `faasrt serve`. At the end check that it exits with code 0 and leaves no files behind."""
    with tempfile.TemporaryDirectory() as name:
        with running(
            [*FAASRT, "serve", "--port", "0", "--engine", f"python={engine}"], env={**os.environ, "TMPDIR": name}
        ) as server:
            yield Watched(server.process, server.url, Path(name))
        left = (server.process.returncode, os.listdir(name))  # noqa: PTH208
        assert left == (0, []), f"exit code and remaining files must be (0, []), got {left}"


async def wait_for_health(manager: RuntimeManager, condition: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until the health of every language meets a condition."""
    while True:
        status = await manager.get_health_status()
        languages = status.endpoints[0].details.get("languages", {})
        if languages and all(condition(entry) for entry in languages.values()):
            return
        await asyncio.sleep(0.1)


async def measure(runs: int, kills: int, idle_s: float, engine: str, report: Report) -> bool:
    """Run the soak, and add its figures to the report. Return whether it passed."""
    with serving(engine) as server:
        settings = Settings(
            endpoints=dict.fromkeys(FUNCTIONS, server.url),
            # Long programs delay others. Programs that wait too long in the queue are refused, so retry them.
            retry=RetrySettings(max_attempts=50, base_delay_s=0.01),
        )
        async with RuntimeManager(settings=settings) as manager:
            await wait_for_health(manager, lambda entry: entry["status"] == "ready")
            soak = Soak(manager, server, engine)
            figures = []
            started = time.perf_counter()
            for first, last in itertools.pairwise((0, max(1, int(runs * FIRST)), runs)):
                await soak.run(range(first, last))
                await wait_for_health(manager, lambda entry: not entry["active"] and not entry["queued"])
                figures.append(server.figures())
                report.row("The server", runs=last, **figures[-1])
            per_second = runs / (time.perf_counter() - started)
            for number in range(kills):
                await soak.kill(number)
            await wait_for_health(manager, lambda entry: entry["status"] == "ready" and not entry["active"])
            figures.append(server.figures())
            report.row("The server", runs=f"{kills} kills", **figures[-1])
        await asyncio.sleep(min(1.0, idle_s))
        before = server.cpu_s()
        await asyncio.sleep(idle_s)
        idle = 100 * (server.cpu_s() - before) / idle_s
    report.row(f"{IN_FLIGHT} in flight", **{"runs/s": per_second, "idle % of a core": idle}, **soak.done)
    grown = [
        name for name, slack in SLACK.items() if max(figures[1][name], figures[2][name]) - figures[0][name] > slack
    ]
    report.goal("no wrong result", len(soak.wrong), not soak.wrong)
    report.goal(f"no resource grows{''.join(f' ({name} does)' for name in grown)}", len(grown), not grown)
    print(*soak.wrong[:10], sep="\n", file=sys.stderr)
    return not soak.wrong and not grown


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=5_000)
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--engine", choices=["native", "wasm"], default="native", help="engine for Python")
    options.add_argument("--idle", type=float, default=5.0, help="seconds to measure while idle (default %(default)s)")
    args = options.parse_args()
    report = Report("soak", vars(args))
    passed = asyncio.run(measure(args.runs, args.kills, args.idle, args.engine, report))
    report.print(args.json)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
