"""Sessions on a server whose processes are killed again and again: each run has one end, and state crosses no sessions.

    python -m benchmarks.session_chaos [--runs 20000] [--sessions 200] [--active 50] [--engine native] [--every 1]

`faasrt serve` runs in a process of its own. At random times one of its processes is killed, and sometimes the server
itself, which is started again on the same port. Up to `--sessions` sessions are open; in `--active` of them, tasks run
programs. Most programs count in a variable of their session. Others loop, use too much memory, print or write too
much, end their process, or are cancelled. Tasks fork their sessions, and go on with the fork. Clients open sessions
and vanish.

Checked are:

    one end        each run has one result, or one typed error
    right          each result is that of the program, with the state of its own session and of no other
    at most once   no run counted twice, nor one whose error says that it was not sent
    nothing left   sessions of clients that vanished end; killed servers leave no processes; after SIGTERM with running
                   programs, the server ends in time, with no processes and no files

The exit code is 1 if a check failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import aiohttp
import attrs
import psutil

from benchmarks.chaos import Server, free_port
from benchmarks.harness import forget_endpoints, parser
from benchmarks.report import Report
from benchmarks.server import FAASRT
from benchmarks.simulate import quantile
from faasrt import Language, Outcome, RuntimeManager, ServiceError, Session, SessionLostError, Settings

LANGUAGES: dict[str, Literal["python", "javascript"]] = {"native": "python", "wasm": "python", "deno": "javascript"}
PROGRAMS: Mapping[str, Mapping[str, str]] = {
    "python": {
        "open": "import os\ntoken, x = {token!r}, 0\nopen('of-' + token, 'w').close()",
        "count": "x += 1; print(token, x)",
        "look": "print(*[n for n in os.listdir() if n[:3] == 'of-'], *[n for n in globals() if n[:3] == 'of_'])",
        "mark": "of_{token} = 1",
        "loop": "while True: pass",
        "flood": "while True: print('x' * 10_000)",
        "hog": "data = []\nwhile True: data.append(bytearray(10**6))",
        "forget": "data = None",
        "fill": "try:\n    with open('data', 'wb') as file:\n        for _ in range(10_000): file.write(bytes(10**6))\n"
        "except OSError: print('full')\nos.remove('data')",
        "exit": "os._exit(3)",
    },
    "javascript": {
        "open": "let token = '{token}', x = 0, data; Deno.writeTextFileSync('of-' + token, '')",
        "count": "x += 1; console.log(token, x)",
        "look": "console.log(...[...Deno.readDirSync('.')].map((file) => file.name).filter((name) => name[2] === '-'), "
        "...Object.keys(globalThis).filter((name) => name.startsWith('of_')))",
        "mark": "var of_{token} = 1",
        "loop": "for (;;) {{}}",
        "flood": "for (;;) console.log('x'.repeat(10_000))",
        "hog": "data = []; for (;;) data.push(new Array(1e5).fill(data.length))",
        "forget": "data = null",
        "fill": "try {{ for (;;) Deno.writeFileSync('data', new Uint8Array(1e6), {{ append: true }}) }} "
        "catch {{ console.log('full') }} Deno.removeSync('data')",
        "exit": "process.abort()",
    },
}
# The next step of a task, and how often it is taken. Most of them count.
STEPS = {
    "count": 200, "look": 10, "fork": 8, "cancel": 4, "loop": 4, "flood": 3, "hog": 2, "fill": 2, "exit": 2, "pause": 4,
}  # fmt: skip
MEMORY_MB = 96
IDLE_S = 60.0
SERVER_KILLS = 0.05  # the part of the kills that end the server
ENDED = (Outcome.CRASHED, Outcome.MEMORY_LIMIT)  # of a program whose process was killed


@attrs.define
class Counts:
    """The results that the tasks have seen."""

    outcomes: Counter[str] = attrs.field(factory=Counter)
    errors: Counter[str] = attrs.field(factory=Counter)
    wrong: list[str] = attrs.field(factory=list)
    took_s: list[float] = attrs.field(factory=list)
    forks: int = 0
    opened: int = 0
    vanished: int = 0
    kills: Counter[str] = attrs.field(factory=Counter)
    left_processes: int = 0


class Actor:
    """A task that uses one session after another, and knows the state of each.

    Args:
        manager: Opens the sessions.
        programs: The programs of the language.
        counts: The results that all tasks have seen.
        chosen: Chooses what it does.
    """

    def __init__(
        self, manager: RuntimeManager, language: Literal["python", "javascript"], counts: Counts, chosen: random.Random
    ) -> None:
        self._manager, self._language, self._counts, self._random = manager, language, counts, chosen
        self._programs = PROGRAMS[language]
        self._session: Session | None = None
        self._token = ""
        self._values = {0}  # the possible values of x: several after an error, because the program may have run

    async def work(self, numbers: Iterator[int]) -> None:
        """Take a step for each number."""
        for _ in numbers:
            try:
                if self._session is None:
                    await self._open()
                step = self._random.choices([*STEPS], [*STEPS.values()])[0]
                await getattr(self, f"_{step}")()
            except SessionLostError as error:
                self._counts.errors[f"SessionLostError: {_kind(error)}"] += 1
                self._session = None
            except ServiceError as error:
                self._counts.errors[f"{type(error).__name__} (sent: {error.sent})"] += 1
                await asyncio.sleep(0.1)
        await self.aclose()

    async def aclose(self) -> None:
        """End the session, if the server still has it."""
        if self._session is not None:
            with contextlib.suppress(ServiceError):
                await self._session.aclose()
            self._session = None

    async def _open(self) -> None:
        session = self._manager.session(self._language, idle_timeout_s=IDLE_S)
        await session.__aenter__()
        self._counts.opened += 1
        self._session, self._token, self._values = session, secrets.token_hex(8), {0}
        await self._run("open")
        await self._run("mark")

    async def _run(self, name: str, *expected: Outcome, timeout_ms: float = 10_000) -> str | None:
        """Run a program, and return its output; None if it has not the outcome OK."""
        assert self._session is not None
        code = self._programs[name].format(token=self._token)
        started = time.perf_counter()
        result = await self._session.run_code(code, timeout_ms=timeout_ms)
        if name == "count":
            self._counts.took_s.append(time.perf_counter() - started)
        self._counts.outcomes[f"{name}: {result.outcome.value}"] += 1
        if result.outcome not in (*(expected or (Outcome.OK,)), *ENDED):
            self._counts.wrong.append(f"{name}: {result!r} {result.stderr[-500:]}")
        return result.stdout if result.outcome is Outcome.OK else None

    async def _count(self) -> None:
        before, self._values = self._values, {*self._values, *(value + 1 for value in self._values)}
        try:
            output = await self._run("count")
        except ServiceError as error:
            if error.sent == "no":
                self._values = before
            raise
        if output is None:
            return
        token, _, value = output.partition(" ")
        if token != self._token or int(value) - 1 not in before:
            self._counts.wrong.append(f"expected {self._token} and a value after {before}, got {output}")
        self._values = {int(value)}

    async def _look(self) -> None:
        own = {f"of-{self._token}", f"of_{self._token}"}
        if (output := await self._run("look")) is not None and not own.issuperset(output.split()):
            self._counts.wrong.append(f"names of other sessions than {self._token}: {output}")

    async def _fork(self) -> None:
        assert self._session is not None
        if self._language == "javascript":
            return
        parent = self._session
        self._session = await parent.fork()
        self._counts.forks += 1
        await parent.aclose()
        await self._count()

    async def _cancel(self) -> None:
        running = asyncio.create_task(self._run("loop"))
        await asyncio.sleep(self._random.uniform(0, 0.1))
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    async def _loop(self) -> None:
        await self._run("loop", Outcome.TIMEOUT, timeout_ms=self._random.uniform(1, 200))

    async def _flood(self) -> None:
        await self._run("flood", Outcome.OUTPUT_LIMIT)

    async def _hog(self) -> None:
        await self._run("hog", Outcome.MEMORY_LIMIT)
        await self._run("forget")

    async def _fill(self) -> None:
        await self._run("fill")

    async def _exit(self) -> None:
        await self._run("exit", Outcome.CRASHED)
        if await self._run("count") is not None:
            self._counts.wrong.append("a session went on after its process had ended")

    async def _pause(self) -> None:
        await asyncio.sleep(self._random.uniform(0, 0.5))


def _kind(error: SessionLostError) -> str:
    """Return the reason without its details, to count it."""
    return str(error).removeprefix("the session is lost: ").partition(" [")[0].partition(" (")[0][:80]


class Idler(Actor):
    """A task that only looks now and then whether its session still has its state."""

    async def work(self, numbers: Iterator[int]) -> None:
        while True:
            try:
                if self._session is None:
                    await self._open()
                await asyncio.sleep(self._random.uniform(0, IDLE_S / 2))
                await self._count()
            except ServiceError as error:
                self._counts.errors[f"idle: {type(error).__name__}"] += 1
                if isinstance(error, SessionLostError):
                    self._session = None
                await asyncio.sleep(0.5)


async def vanish(url: str, language: str, token: str, counts: Counts) -> None:
    """Open sessions, and never end them."""
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers) as client:
        while True:
            await asyncio.sleep(1)
            with contextlib.suppress(aiohttp.ClientError):
                async with client.post(f"{url}/sessions", json={"language": language, "idle_timeout_s": 5}) as response:
                    counts.vanished += response.status == 201


async def disturb(server: Server, token: str, every_s: float, counts: Counts) -> None:
    """Kill processes of the server at random times, and sometimes the server, until cancelled. Spare an engine that
    starts, because it would wait for longer after each failure.
    """
    while True:
        await asyncio.sleep(random.expovariate(1 / every_s))
        await until_ready(server, token)
        assert server.process is not None
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            children = psutil.Process(server.process.pid).children(recursive=True)
            if random.random() < SERVER_KILLS:
                await server.stop(signal.SIGKILL)
                counts.kills["server"] += 1
                _, left = await asyncio.to_thread(psutil.wait_procs, children, 20)
                counts.left_processes += len(left)
                await server.start()
            else:
                random.choice(children).kill()
                counts.kills["other process"] += 1


def entries(folder: Path) -> list[Path]:
    """Return the entries of a folder."""
    return [*folder.iterdir()]


async def metrics_of(server: Server, token: str) -> dict[str, Any]:
    """Return the metrics of a server."""
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as client, client.get(f"{server.url}/metrics") as response:
        metrics: dict[str, Any] = await response.json()
        return metrics


async def until_ready(server: Server, token: str) -> None:
    """Wait until a server can run programs."""
    while not all(engine["ready"] for engine in (await metrics_of(server, token))["engines"].values()):  # noqa: ASYNC110
        await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def cancelled_after(*works: Any) -> AsyncIterator[None]:
    """Run tasks during a block."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(end, Exception):
                raise end


async def stop(
    server: Server, manager: RuntimeManager, language: Literal["python", "javascript"], folder: Path
) -> tuple[float, int, int]:
    """Send SIGTERM while programs run. Return how long the end took, and how many processes and files are left."""
    assert server.process is not None
    children = psutil.Process(server.process.pid).children(recursive=True)
    async with contextlib.AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(manager.session(language)) for _ in range(8)]
        loop = PROGRAMS[language]["loop"].format(token="")
        runs = [asyncio.create_task(session.run_code(loop, timeout_ms=1000)) for session in sessions]
        await asyncio.sleep(0.5)
        started = time.perf_counter()
        await server.stop(signal.SIGTERM)
        took_s = time.perf_counter() - started
        for end in await asyncio.gather(*runs, return_exceptions=True):
            if isinstance(end, BaseException) and not isinstance(end, ServiceError):
                raise end
        _, left = await asyncio.to_thread(psutil.wait_procs, children, 5)
        with contextlib.suppress(ServiceError):
            await stack.aclose()
    return took_s, len(left), len(entries(folder))


async def measure(args: Any, report: Report) -> bool:
    """Run the server, the tasks and the kills, and add the figures to the report. Return whether all checks passed."""
    language, token, counts = LANGUAGES[args.engine], secrets.token_hex(8), Counts()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port = free_port(["127.0.0.1"])
        options = ["--port", str(port), "--language", language, "--workers", "2", "--memory-mb", str(MEMORY_MB)]
        options += ["--engine", f"{language}={args.engine}", "--max-sessions", str(args.sessions + 100)]
        options += ["--output-bytes", "100000"]
        env = {**os.environ, "FAASRT_TOKEN": token, "TMPDIR": name}
        url = f"http://127.0.0.1:{port}"
        server = Server("127.0.0.1", url, [*FAASRT, "serve", *options], env)
        await server.start()
        await until_ready(server, token)
        settings = Settings(endpoints={Language.parse(language): [url]}, token=token)
        try:
            async with RuntimeManager(settings=settings) as manager:
                numbers, started = iter(range(args.runs)), time.perf_counter()
                actors = [Actor(manager, language, counts, random.Random(n)) for n in range(args.active)]
                idlers = [
                    Idler(manager, language, counts, random.Random(-n))
                    for n in range(1, args.sessions - args.active + 1)
                ]
                async with cancelled_after(
                    disturb(server, token, args.every, counts),
                    vanish(url, language, token, counts),
                    *[idler.work(numbers) for idler in idlers],
                ):
                    async with asyncio.TaskGroup() as group:
                        for actor in actors:
                            group.create_task(actor.work(numbers))
                    took_s = time.perf_counter() - started
                    most = (await metrics_of(server, token))["sessions"]
            deadline = time.monotonic() + 2 * IDLE_S
            while (left_open := (await metrics_of(server, token))["sessions"]) and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.5)
            async with RuntimeManager(settings=settings) as manager:
                await server.stop(signal.SIGTERM)
                for left in entries(folder):  # of servers that were killed
                    await asyncio.to_thread(shutil.rmtree, left)
                await server.start()
                await until_ready(server, token)
                stop_s, left_processes, left_files = await stop(server, manager, language, folder)
        finally:
            await server.stop(signal.SIGKILL)
    took = sorted(counts.took_s)
    report.row(
        f"{args.engine}, {args.sessions} sessions, {args.active} active",
        runs=counts.outcomes.total(),
        **{"runs/s": counts.outcomes.total() / took_s},
        **{"count p50 ms": 1000 * quantile(took, 0.5), "count p99 ms": 1000 * quantile(took, 0.99)},
        opened=counts.opened,
        forks=counts.forks,
        vanished=counts.vanished,
        **{"open at the end": most, "errors": counts.errors.total(), "stop s": stop_s},
        **{f"kills: {name}": count for name, count in counts.kills.items()},
    )
    report.row("Results", **dict(sorted(counts.outcomes.items())))
    for error, count in counts.errors.most_common():
        report.row("Errors", error=error, count=count)
    for description, figure in [
        ("each result is that of its own program and session", len(counts.wrong)),
        ("sessions of clients that vanished have ended", left_open),
        ("killed servers left no processes", counts.left_processes),
        ("a stopped server left no processes", left_processes),
        ("a stopped server left no files", left_files),
        ("a stopped server ended within 10 s", max(0, round(stop_s) - 10)),
    ]:
        report.goal(description, figure, not figure)
    for text in counts.wrong[:10]:
        print(text, file=sys.stderr)
    return not (counts.wrong or left_open or counts.left_processes or left_processes or left_files or stop_s > 10)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=20_000)
    options.add_argument("--sessions", type=int, default=200, help="open at once (default %(default)s)")
    options.add_argument("--active", type=int, default=50, help="of them, those that are used (default %(default)s)")
    options.add_argument("--engine", choices=[*LANGUAGES], default="native")
    options.add_argument(
        "--every", type=float, default=1.0, help="mean seconds between two kills (default %(default)s)"
    )
    args = options.parse_args()
    forget_endpoints()
    report = Report("session_chaos", vars(args))
    passed = asyncio.run(measure(args, report))
    report.print(args.json)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
