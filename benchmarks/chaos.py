"""Servers that are killed again and again while clients use them: each call has one end, and runs at most once.

    python -m benchmarks.chaos [--calls 20000] [--servers 8] [--clients 3] [--every 1.5] [--signal KILL] [--language L]

Eight `faasrt serve` processes run programs of three client processes. At random times a server is killed, and started
again up to 3 s later on the same port. At most half of the servers are away at a time. A quarter of the calls may run
twice (`idempotent=True`).

Each server writes a line to a file of its own before a program is queued, and when it ends or is refused. Lines
survive the kill. They carry the number of the call, which the client sends in the `traceparent` header. So the files
show how often each call may have run: a program that was queued when its server was killed counts, too.

Checked are:

    one end        each call has one result or one typed error
    right          each result is that of its own program
    at most once   calls without permission to run twice were accepted by one server at most
    not sent       calls whose error says that nothing was sent were accepted by no server
    wasted         (not checked) the number of programs whose results reached no client

With `--discover`, the clients know one name. A resolver of their own, in place of DNS, returns the addresses of the
servers that run, and the clients ask it twice a second.

The exit code is 1 if a check failed. With `--signal TERM`, servers stop in order, so that no call may fail.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import attrs

from benchmarks.harness import forget_endpoints, parser
from benchmarks.report import Report
from benchmarks.simulate import quantile
from faasrt import LimiterSettings, RuntimeManager, ServiceError, Settings
from faasrt.discovery import DiscoverySettings
from faasrt.telemetry.events import Event, ExecutionFinished, ExecutionStarted, RetryScheduled

MODULE = [sys.executable, "-m", "benchmarks.chaos"]
PROGRAMS = {
    "python": "import time; time.sleep({delay}); print({number})",
    "javascript": "setTimeout(() => console.log({number}), 1000 * {delay})",
    "bash": "sleep {delay}; echo {number}",
}
IN_FLIGHT = 12
MAX_DELAY_S = 0.05
# A server that refused a program did not run it.
REFUSED = (429, 503)
_number: ContextVar[int] = ContextVar("number")


def may_run_twice(number: int) -> bool:
    """Return whether a call has the permission to run twice."""
    return number % 4 == 0


class Executions:
    """A sink for a server: appends a line to a file for the beginning and the end of each execution."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, event: Event) -> None:
        if isinstance(event, ExecutionStarted):
            self._write(os.getpid(), event.execution_id, "begin", int((event.traceparent or "")[3:35], 16) - 1)
        elif isinstance(event, ExecutionFinished):
            self._write(os.getpid(), event.execution_id, "end", event.status)

    def _write(self, *fields: object) -> None:
        # One system call, and no buffer in this process, so that the line survives a kill.
        os.write(self._file, f"{json.dumps(fields)}\n".encode())


def serve(file: str, arguments: Sequence[str]) -> None:
    """Run `faasrt serve` with a sink that records executions in a file."""
    from faasrt import cli, local

    local.LocalFaaS = functools.partial(local.LocalFaaS, telemetry=[Executions(Path(file))])  # type: ignore[misc]
    sys.argv[:] = ["faasrt", "serve", *arguments]
    cli.main()


class Trace:
    """A sink for a client: sends the number of the call in a header, and counts retries."""

    def __init__(self) -> None:
        self.retries = 0

    def __call__(self, event: Event) -> None:
        self.retries += isinstance(event, RetryScheduled)

    def is_enabled_for(self, kind: type[Event]) -> bool:
        """Return whether events of this class are counted."""
        return kind is RetryScheduled

    def request_headers(self, call_id: str) -> Mapping[str, str]:
        """Return the number of the call as a trace."""
        return {"traceparent": f"00-{_number.get() + 1:032x}-{1:016x}-01"}


def discovery(addresses: Path) -> dict[str, Any]:
    """Return the settings for a resolver that reads the addresses of all names from a file."""

    async def resolve(host: str, port: int) -> list[str]:
        return addresses.read_text().split()  # noqa: ASYNC240

    return {"discovery": DiscoverySettings(period_s=0.5, resolve=resolve)}


async def make_calls(urls: Sequence[str], language: str, numbers: Iterator[int], file: Path) -> None:
    """Make calls, and write a line for the end of each to a file, and one for the retries."""
    trace, chosen = Trace(), random.Random(1)
    options = discovery(file.parent / "addresses") if urls[0].startswith("dns+") else {}
    limiter = LimiterSettings(max_concurrency=IN_FLIGHT)
    settings = Settings.from_env(endpoints={language: urls}, limiter=limiter, **options)
    async with RuntimeManager(settings=settings, telemetry=[trace]) as manager:
        with file.open("w") as ends:

            async def work() -> None:
                for number in numbers:
                    _number.set(number)
                    started = time.perf_counter()
                    code = PROGRAMS[language].format(number=number, delay=round(chosen.uniform(0, MAX_DELAY_S), 3))
                    end: dict[str, Any] = {"number": number}
                    try:
                        result = await manager.run_code(code, language, 10_000, idempotent=may_run_twice(number))
                    except ServiceError as error:
                        end |= {"error": type(error).__name__, "sent": error.sent, "reason": str(error)}
                    else:
                        end |= {"right": (result.outcome.value, result.stdout) == ("OK", f"{number}\n")}
                    end["took_s"] = time.perf_counter() - started
                    print(json.dumps(end), file=ends)

            async with asyncio.TaskGroup() as group:
                for _ in range(IN_FLIGHT):
                    group.create_task(work())
            print(json.dumps({"retries": trace.retries}), file=ends)


@attrs.define
class Server:
    """A server that can be killed and started again."""

    host: str
    url: str
    command: list[str]
    env: dict[str, str]
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process, and wait until it listens."""
        self.process = await asyncio.create_subprocess_exec(
            *self.command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self.process.stdout is not None
        if not await self.process.stdout.readline():
            raise RuntimeError(f"a server did not start: {self.command}")

    async def stop(self, number: signal.Signals) -> None:
        """Send a signal to the process, and wait for its end."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
            await self.process.communicate()
            self.process = None


def free_port(hosts: Sequence[str]) -> int:
    """Return a port that is free on all hosts, outside of the range from which the kernel takes ports of clients."""
    while True:
        port = random.randrange(10_000, 30_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for host in hosts:
                stack.enter_context(socket.socket()).bind((host, port))
            return port


@contextlib.asynccontextmanager
async def fleet(count: int, language: str, folder: Path, token: str) -> AsyncIterator[list[Server]]:
    """Run servers on one port of several loopback addresses, and stop them afterwards."""
    hosts = [f"127.0.0.{number + 1}" for number in range(count)]
    port = free_port(hosts)
    (folder / "tmp").mkdir()
    env = {**os.environ, "FAASRT_TOKEN": token, "TMPDIR": str(folder / "tmp")}
    servers = []
    for number, host in enumerate(hosts):
        record = str(folder / f"executions-{number}")
        options = ["--host", host, "--port", str(port), "--language", language, "--workers", "2"]
        servers.append(Server(host, f"http://{host}:{port}", [*MODULE, "--serve", record, *options], env))
    try:
        for server in servers:
            await server.start()
        async with RuntimeManager(
            settings=Settings(endpoints={language: [s.url for s in servers]}, token=token)
        ) as manager:
            while not (await manager.get_health_status()).healthy:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        yield servers
    finally:
        for server in servers:
            await server.stop(signal.SIGTERM)


def write_addresses(servers: Sequence[Server], away: Collection[str], folder: Path) -> None:
    """Write the addresses of the servers that run, for the resolver of the clients."""
    running = [server.host for server in servers if server.url not in away]
    new = folder / "addresses.new"
    new.write_text("\n".join(running))
    new.replace(folder / "addresses")


async def disturb(
    servers: Sequence[Server], every_s: float, number: signal.Signals, kills: Counter[str], folder: Path
) -> None:
    """Kill servers at random times, and start them again, until cancelled."""

    async def kill(server: Server) -> None:
        away.add(server.url)
        await server.stop(number)
        kills[server.url] += 1
        write_addresses(servers, away, folder)
        await asyncio.sleep(random.uniform(0, 3))
        await server.start()
        away.discard(server.url)
        write_addresses(servers, away, folder)

    away: set[str] = set()
    async with asyncio.TaskGroup() as group:
        while True:
            await asyncio.sleep(random.expovariate(1 / every_s))
            if len(away) < len(servers) // 2:
                group.create_task(kill(random.choice([server for server in servers if server.url not in away])))


@attrs.frozen
class Evidence:
    """What clients and servers have written.

    Attributes:
        ends: The ends of each call.
        executions: For each call, how often a server may have run it.
        retries: The number of retries of all clients.
    """

    ends: dict[int, list[dict[str, Any]]]
    executions: Counter[int]
    retries: int


def read_evidence(folder: Path) -> Evidence:
    """Read the files of all clients and servers."""
    ends: dict[int, list[dict[str, Any]]] = {}
    executions, retries = Counter[int](), 0
    for file in folder.glob("ends-*"):
        for line in file.read_text().splitlines():
            end = json.loads(line)
            retries += end.get("retries", 0)
            if "number" in end:
                ends.setdefault(end["number"], []).append(end)
    for file in folder.glob("executions-*"):
        begun: dict[tuple[int, str], int] = {}
        for line in file.read_text().splitlines():
            process, execution, kind, value = json.loads(line)
            if kind == "begin":
                begun[process, execution] = value
            elif value in REFUSED:
                del begun[process, execution]
        executions.update(begun.values())
    return Evidence(ends, executions, retries)


def check(evidence: Evidence, calls: int, report: Report) -> bool:
    """Add the goals to the report, and return whether all are reached."""
    ends, executions = evidence.ends, evidence.executions
    all_ends = [end for call_ends in ends.values() for end in call_ends]
    not_once = sum(len(ends.get(number, ())) != 1 for number in range(calls))
    wrong = sum(not end.get("right", True) for end in all_ends)
    twice = sum(count > 1 and not may_run_twice(number) for number, count in executions.items())
    sent = sum(end.get("sent") == "no" and executions[end["number"]] > 0 for end in all_ends)
    unseen = sum("right" in end and not executions[end["number"]] for end in all_ends)
    for description, count in [
        ("each call has one result or one typed error", not_once),
        ("each result is that of its own program", wrong),
        ("no call ran twice without permission", twice),
        ("no call ran whose error says that it was not sent", sent),
        ("the servers recorded each call that has a result", unseen),
    ]:
        report.goal(description, count, not count)
    return not (not_once or wrong or twice or sent or unseen)


async def measure(args: Any, report: Report) -> bool:
    """Run servers, clients and kills, and add the figures to the report. Return whether all checks passed."""
    token, kills = secrets.token_hex(8), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with fleet(args.servers, args.language, folder, token) as servers:
            write_addresses(servers, (), folder)
            urls = ",".join(server.url for server in servers)
            if args.discover:
                urls = f"dns+http://fleet.test:{servers[0].url.rpartition(':')[2]}"
            disturbing = asyncio.ensure_future(
                disturb(servers, args.every, signal.Signals[f"SIG{args.signal}"], kills, folder)
            )
            started = time.perf_counter()
            clients = []
            for client in range(args.clients):
                options = ["--language", args.language, "--calls", str(args.calls), "--clients", str(args.clients)]
                command = [*MODULE, "--client", str(client), urls, str(folder / f"ends-{client}"), *options]
                clients.append(
                    await asyncio.create_subprocess_exec(*command, env={**os.environ, "FAASRT_TOKEN": token})
                )
            codes = [await process.wait() for process in clients]
            took_s = time.perf_counter() - started
            disturbing.cancel()
            await asyncio.gather(disturbing, return_exceptions=True)
        evidence = read_evidence(folder)
    assert not any(codes), f"exit codes of the clients: {codes}"
    all_ends = [end for call_ends in evidence.ends.values() for end in call_ends]
    took = sorted(end["took_s"] for end in all_ends if "right" in end)
    errors = Counter(end["error"] for end in all_ends if "error" in end)
    report.row(
        f"{args.servers} servers, {args.clients} clients, SIG{args.signal}{', discovered' if args.discover else ''}",
        calls=len(all_ends),
        kills=kills.total(),
        **{"calls/s": args.calls / took_s, "p50 ms": 1000 * quantile(took, 0.5), "p99 ms": 1000 * quantile(took, 0.99)},
        results=len(took),
        errors=errors.total(),
        retries=evidence.retries,
        executions=evidence.executions.total(),
        twice=sum(count > 1 for count in evidence.executions.values()),
        wasted=evidence.executions.total() - len(took),
    )
    for name, count in errors.most_common():
        of_kind = [end for end in all_ends if end.get("error") == name]
        report.row("Errors", error=name, count=count, **Counter(f"sent: {end['sent']}" for end in of_kind))
    passed = check(evidence, args.calls, report)
    if args.signal == "TERM":
        report.goal("no call fails when servers stop in order", errors.total(), not errors)
        passed = passed and not errors
    return passed


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3:])
        return
    options = parser(__doc__)
    options.add_argument("--calls", type=int, default=20_000, help="of all clients together")
    options.add_argument("--servers", type=int, default=8)
    options.add_argument("--clients", type=int, default=3)
    options.add_argument(
        "--every", type=float, default=1.5, help="mean seconds between two kills (default %(default)s)"
    )
    options.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    options.add_argument("--discover", action="store_true", help="the clients know a name instead of the servers")
    options.add_argument("--language", choices=list(PROGRAMS), default="python")
    options.add_argument("--client", nargs=3, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.client:
        number, urls, file = args.client
        numbers = iter(range(int(number), args.calls, args.clients))
        asyncio.run(make_calls(urls.split(","), args.language, numbers, Path(file)))
        return
    forget_endpoints()
    report = Report("chaos", vars(args))
    passed = asyncio.run(measure(args, report))
    report.print(args.json)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
