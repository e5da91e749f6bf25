"""The number of machine instructions that a call costs, counted by callgrind (part of valgrind).

    python -m benchmarks.instructions [--contenders faasrt server hand] [--check] [--save] [--profile]

The contenders are clients and the embedded FaaS, `server`. A client makes 200 calls in one process, and 1,200 in
another; the server serves 10 and 60. The difference is divided by the number of further calls, so that start-up and
warm-up do not count.

The server of the clients runs in another process, and answers at once. They have 64 calls in flight. faasrt runs with
`envelope="never"` and without telemetry sinks. The embedded FaaS runs `print(42)` on the engine `native`; its launcher
and its client run outside of callgrind. The client makes one call after another, with pauses in which the server gets
the next process ready. Without them, other work of the machine would decide how many programs wait for a process, which
costs the server 4 % more instructions. With them, the figures of clients are the same within 1 %, and those of the
server within 3 %.

`--check` fails if the figure of faasrt exceeds the one in `instructions.json` by more than 3 %, or that of the server
by more than 6 %. It only prints the growth if that file was written with another Python or aiohttp. `--save` writes
the file. `--profile` also prints the functions of faasrt with the largest cost, together with the
functions that they call. It needs Python 3.12, whose calls can be seen from outside.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from aiohttp import ClientSession

from benchmarks import load
from benchmarks.clients import Client, check as check_stdout, faasrt, hand, request_body, tuned
from benchmarks.harness import parser
from benchmarks.report import Report
from benchmarks.stub import stub

IN_FLIGHT = 64
CALLS = {"server": (10, 60)}
PAUSE_S = 0.4
CALLS_OF_CLIENTS = (200, 1_200)
# The server also works between programs, so its figure depends on the time that they take.
TOLERANCES = {"faasrt": 0.03, "server": 0.06}
CLIENTS: dict[str, Client] = {"faasrt": functools.partial(faasrt, envelope="never"), "hand": hand, "tuned": tuned}
CHECKED = ("faasrt", "server")
REFERENCE = Path(__file__).with_suffix(".json")
PACKAGE = f"{os.sep}faasrt{os.sep}"
_ROWS = 60


async def make_calls(contender: str, url: str, calls: int) -> None:
    """Make calls in this process, which runs in callgrind."""
    async with CLIENTS[contender](url, IN_FLIGHT) as call:
        gc.freeze()  # what the start-up has made would be traversed again, in one of both processes or in both
        await load.drive(call, IN_FLIGHT, range(calls))


def send_signal(pidfd: int, number: int) -> None:
    """Send a signal as `signal.pidfd_send_signal` does. Valgrind 3.24 does not know this system call."""
    pid = int(re.findall(r"\nPid:\s+(-?\d+)", Path(f"/proc/self/fdinfo/{pidfd}").read_text())[0])
    if pid > 0:  # it has not ended
        os.kill(pid, number)


async def serve_calls(calls: int) -> None:
    """Serve calls in this process, which runs in callgrind."""
    from faasrt.local import LocalFaaS  # clients must not load it, because callgrind is slow

    signal.pidfd_send_signal = send_signal
    async with LocalFaaS(["python"], workers=1) as faas:
        await faas.wait_ready("python")
        client = await asyncio.create_subprocess_exec(*command("client", faas.url, calls))
        if await client.wait():
            raise RuntimeError("a call of the server failed")


async def make_calls_of_server(url: str, calls: int) -> None:
    """Make calls of the server in this process, which does not run in callgrind."""
    body = {**request_body(), "code": "print(42)"}
    async with ClientSession() as session:
        for _ in range(calls):
            await asyncio.sleep(PAUSE_S)
            async with session.post(f"{url}/run_code", json=body) as response:
                check_stdout((await response.json())["output"]["stdout"])


def command(contender: str, url: str, calls: int) -> list[str]:
    options = f"--contender {contender} --calls {calls} --url {url}"
    return [sys.executable, "-m", "benchmarks.instructions", *options.split()]


def count(contender: str, url: str, folder: Path, *, names_functions: bool) -> list[tuple[Path, int]]:
    """Make both numbers of calls in callgrind, at the same time. Return the profile and the process id of each."""
    # The order of sets must be the same each time, and modules must be compiled.
    env = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPERFSUPPORT": "1" if names_functions else ""}
    subprocess.run(command(contender, url, 1), check=True)
    started = []
    for calls in CALLS.get(contender, CALLS_OF_CLIENTS):
        profile = folder / f"{contender}-{calls}"
        callgrind = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={profile}"]
        process = subprocess.Popen([*callgrind, *command(contender, url, calls)], env=env)
        started.append((profile, process))
    for _, process in started:
        if process.wait():
            raise RuntimeError(f"the calls of {contender} failed in callgrind")
    return [(profile, process.pid) for profile, process in started]


def total(profile: Path) -> int:
    """Return the number of all instructions in a profile of callgrind."""
    return int(re.findall(r"^(?:totals|summary): (\d+)", profile.read_text(), re.MULTILINE)[0])


def costs(profile: Path, names: Mapping[int, str]) -> Counter[str]:
    """Return the inclusive cost of each function of Python.

    With `PYTHONPERFSUPPORT`, Python calls each function through a piece of machine code of its own. Callgrind reports
    the costs of these pieces by address, and Python writes their addresses and names to a file.
    """
    found: Counter[str] = Counter()
    addresses: dict[str, str] = {}
    function, is_call = "", False
    for line in profile.read_text().splitlines():
        if match := re.match(r"(c?)fn=(\(\d+\))(?: (.*))?", line):
            if match[3]:
                addresses[match[2]] = match[3]
            if not match[1]:
                function = addresses[match[2]]
        elif line.startswith("calls="):
            is_call = True
        elif is_call:
            is_call = False
            # Callgrind appends the depth of a recursion: 0x4a2c0'2.
            if function.startswith("0x") and (name := names.get(int(function.partition("'")[0], 16))):
                found[name] += int(line.split()[1])
    return found


def names_of(process_id: int) -> Iterator[tuple[int, str]]:
    """Yield the address and the name of each function of faasrt in a process that has ended."""
    file = Path(f"/tmp/perf-{process_id}.map")
    for line in file.read_text().splitlines():
        address, _, name = line.split(" ", 2)
        if PACKAGE in name:
            yield int(address, 16), name.removeprefix("py::").partition(":")[0]
    file.unlink()


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "aiohttp": version("aiohttp")}


def check(counted: Mapping[str, int]) -> None:
    """End the process with an error if a figure is too large."""
    reference = json.loads(REFERENCE.read_text())
    for contender in counted.keys() & reference["instructions"].keys():
        expected = reference["instructions"][contender]
        growth = counted[contender] / expected - 1
        print(f"{contender}: {counted[contender]:,} instructions a call, {growth:+.1%} against {REFERENCE.name}")
        if versions() != {name: reference[name] for name in versions()}:
            print(f"not checked, because {REFERENCE.name} has figures of other versions than {versions()}; see --save")
        elif growth > TOLERANCES[contender]:
            sys.exit(
                f"a call costs more than {TOLERANCES[contender]:.0%} more instructions than {expected:,}. If the cost "
                "is justified: --save"
            )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--contenders", nargs="+", choices=[*CLIENTS, "server"], default=["faasrt", "server", "hand"])
    options.add_argument("--check", action="store_true", help="fail if a figure is larger than the saved one")
    options.add_argument("--save", action="store_true", help="save the figures of faasrt and the server")
    options.add_argument("--profile", action="store_true", help="print the costs of functions")
    options.add_argument("--calls", type=int, help=argparse.SUPPRESS)
    options.add_argument("--url", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.contender in CLIENTS:
        asyncio.run(make_calls(args.contender, args.url, args.calls))
        return
    if args.contender == "server":
        asyncio.run(serve_calls(args.calls))
        return
    if args.contender == "client":
        asyncio.run(make_calls_of_server(args.url, args.calls))
        return
    if args.profile:
        if sys.version_info < (3, 12):
            options.error("--profile needs Python 3.12")
        if args.check or args.save:
            options.error("--profile changes the figure, so it cannot be combined with --check and --save")
    report = Report("instructions", vars(args))
    instructions = {}
    with stub() as url, tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as threads:
        count_in = functools.partial(count, url=url, folder=Path(folder), names_functions=args.profile)
        for contender, profiles in zip(args.contenders, threads.map(count_in, args.contenders), strict=True):
            few_calls, many_calls = CALLS.get(contender, CALLS_OF_CLIENTS)
            calls = many_calls - few_calls
            (few, _), (many, _) = profiles
            instructions[contender] = (total(many) - total(few)) // calls
            report.row("Instructions of a call", contender=contender, instructions=instructions[contender])
            if args.profile:
                of_few, of_many = (costs(profile, dict(names_of(pid))) for profile, pid in profiles)
                of_many.subtract(of_few)
                for function, cost in of_many.most_common(_ROWS):
                    report.row(f"{contender}, with callees", function=function, instructions=cost // calls)
    report.print(args.json)
    if args.save:
        saved = {name: instructions[name] for name in CHECKED}
        REFERENCE.write_text(json.dumps({"instructions": saved, **versions()}, indent=2) + "\n")
    if args.check:
        check(instructions)


if __name__ == "__main__":
    main()
