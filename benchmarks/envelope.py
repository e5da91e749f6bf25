"""The cost of the envelope compared with plain requests: bytes, CPU time of the client, and time of the run.

    python -m benchmarks.envelope [--runs 20] [--rounds 5]

The same programs run on the embedded FaaS with and without the envelope. This server does not need the envelope, but
`Settings.envelope="always"` forces it. The client's work (making the request, reading the answer) is measured
separately from the run, which is the time from sending the request to the end of the answer. Each request with the
envelope contains a guest program: about 40 KB as base64 for Python, and 24 KB for JavaScript.
"""

from __future__ import annotations

import asyncio
import functools
import json
import statistics
import time
import urllib.request
from collections.abc import Callable
from typing import Any, Literal

import aiohttp

from benchmarks.harness import Figures, contenders, parser, run_rounds, serve_requests, spread
from benchmarks.report import Report, Spread
from benchmarks.server import faas
from faasrt import Language, Outcome, SandboxConfig
from faasrt.protocol.answer import Answer
from faasrt.protocol.execution import Execution
from faasrt.protocol.health import read_profile
from faasrt.protocol.program import Program

MODES: dict[str, Literal["never", "always"]] = {"plain": "never", "envelope": "always"}
MB = 1_000_000
LINE = "The quick brown fox jumps over the lazy dog, again.\\n"
COMMENT = {"python": "#", "javascript": "//"}
SMALL = {"python": "print(6 * 7)", "javascript": "console.log(6 * 7)"}
FIGURES = ("request KB", "answer KB", "encode us", "decode us", "run ms")


def programs(language: str) -> dict[str, str]:
    """Return a small program, one with a MB of comments, and one with a MB of output."""
    small, comment = SMALL[language], f"{COMMENT[language]} {LINE}".replace("\\n", "\n")
    repeated = f'"{LINE}" * {MB // 52}' if language == "python" else f'"{LINE}".repeat({MB // 52})'
    return {
        "small": small,
        "code": comment * (MB // len(comment)) + small,
        "output": f"print({repeated})" if language == "python" else f"console.log({repeated})",
    }


def cpu_us(action: Callable[[], object], runs: int) -> float:
    """Return the CPU time of an action. It is the median of several, because the garbage collector slows some down."""
    times = []
    for _ in range(runs):
        started = time.process_time_ns()
        action()
        times.append(time.process_time_ns() - started)
    return statistics.median(times) / 1000


def measure(way: str, url: str, language: str, runs: int) -> Figures:
    """Return the figures of all programs."""
    figures: Figures = {}
    with urllib.request.urlopen(f"{url}/health") as health:
        profile = read_profile(json.load(health))

    async def one_program(session: aiohttp.ClientSession, name: str, code: str) -> None:
        checked = Program.checked(Language.parse(language), code, SandboxConfig())
        program = Execution(program=checked, mode=MODES[way])
        times = []
        for _ in range(runs):
            request = program.request(profile, checked.timeout_ms, "")
            headers = {"Content-Type": "application/json"}
            started = time.perf_counter()
            async with session.post(f"{url}/run_code", data=request.body, headers=headers) as response:
                answer = Answer(status=response.status, body=await response.read())
            times.append(time.perf_counter() - started)
            result = request.read(answer).result()
            assert result.outcome is Outcome.OK, result
            assert not result.truncated, result.truncated
        values = (
            len(request.body) / 1000,
            len(answer.body) / 1000,
            cpu_us(lambda: program.request(profile, checked.timeout_ms, ""), runs),
            cpu_us(lambda: request.read(answer).result(), runs),
            1000 * statistics.median(times),
        )
        figures.update({f"{name} {figure}": value for figure, value in zip(FIGURES, values, strict=True)})

    async def all_programs() -> None:
        async with aiohttp.ClientSession() as session:
            for name, code in programs(language).items():
                await one_program(session, name, code)

    asyncio.run(all_programs())
    return figures


def main() -> None:
    options = parser(__doc__, rounds=5)
    options.add_argument("--runs", type=int, default=20, help="of each program in a round")
    options.add_argument("--languages", nargs="+", choices=SMALL, default=list(SMALL))
    args = options.parse_args()
    if args.contender:
        serve_requests(functools.partial(measure, args.contender))
        return
    report = Report("envelope", vars(args))
    with faas() as server, contenders("benchmarks.envelope", MODES) as started:
        for language in args.languages:
            rounds = run_rounds(started, args, url=server.url, language=language, runs=args.runs)
            for way in MODES:
                figures = {figure: spread(rounds, way, f"small {figure}") for figure in FIGURES}
                report.row("A small program", language=language, way=way, **figures)
            for name, figures_of_rounds in rounds.items():
                for kind in ("code", "output"):
                    more: dict[str, Any] = {
                        figure: Spread.of(
                            each[f"{kind} {figure}"] - each[f"small {figure}"] for each in figures_of_rounds
                        )
                        for figure in FIGURES
                    }
                    report.row(f"Each MB of {kind} adds", language=language, way=name, **more)
    report.print(args.json)


if __name__ == "__main__":
    main()
