"""Verdicts under load: programs whose need of CPU time is known are OK, and endless loops are TIMEOUT, whatever runs.

    python -m benchmarks.verdicts [--kinds python session javascript c] [--right 1000] [--loops 500]
        [--at-once 1 8 32 128] [--busy 0 8] [--limit 1]

The right programs need 0.1 to 0.9 of their time limit, as the kernel counts their CPU time. `--busy` is the number of
other processes that compute beside the embedded FaaS. A verdict is wrong if a right program is not OK with the right
output, or a loop is not TIMEOUT. A failure is an error instead of a verdict.

Under `taskset -c 0` there is one CPU, and under `tests/support/dockerlike.py` the jail has another level, which the
tables name. The exit code is 1 if a verdict was wrong, or a call failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

import attrs

from benchmarks.harness import parser
from benchmarks.report import Report
from faasrt import ExecutionResult, FaasrtError, LimiterSettings, RuntimeManager, Settings

RIGHT = {
    "python": "import time\nuntil = time.process_time() + {}\nwhile time.process_time() < until: pass\nprint('right')",
    "javascript": "function used() {{ const {{ user, system }} = process.cpuUsage(); return (user + system) / 1e6; }}\n"
    "const until = used() + {}; while (used() < until) for (let i = 0; i < 1e5; i++); console.log('right')",
    "c": "#include <stdio.h>\n#include <time.h>\n"
    'int main(void) {{ while ((double)clock() / CLOCKS_PER_SEC < {}); puts("right"); }}',
}
LOOPS = {"python": "while True: pass", "javascript": "for (;;);", "c": "int main(void) { for (;;); }"}
KINDS = ("python", "session", "javascript", "c")
SEED = 1


@contextlib.contextmanager
def busy_processes(count: int, cpu: int | None = None) -> Iterator[None]:
    """Let processes of others compute until the end of the block, on one CPU or on all of this process."""
    cpus = os.sched_getaffinity(0) if cpu is None else {cpu}
    # They end with this process.
    code = f"import os\nos.sched_setaffinity(0, {cpus})\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    command = [sys.executable, "-I", "-c", code]
    others = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@attrs.define
class Verdicts:
    """Runs programs of a kind, and counts their verdicts.

    Attributes:
        wrong: The wrong verdicts, by what was expected and what was found.
        failures: The errors instead of verdicts, by type.
    """

    manager: RuntimeManager
    kind: str
    limit_s: float
    wrong: Counter[str] = attrs.field(factory=Counter)
    failures: Counter[str] = attrs.field(factory=Counter)

    async def run(self, needs: list[float | None], at_once: int) -> None:
        """Run programs, at most `at_once` at a time. `needs` has the CPU seconds of each; None for an endless loop."""
        left = iter(needs)
        work = self._in_session if self.kind == "session" else self._as_programs
        await asyncio.gather(*(work(left) for _ in range(at_once)))

    async def _as_programs(self, left: Iterator[float | None]) -> None:
        for need_s in left:
            code = LOOPS[self.kind] if need_s is None else RIGHT[self.kind].format(need_s)
            with self._failures():
                self._check(need_s, await self.manager.run_code(code, self.kind, timeout_ms=self.limit_s * 1000))

    async def _in_session(self, left: Iterator[float | None]) -> None:
        with self._failures():
            async with self.manager.session("python") as session:
                for need_s in left:
                    code = LOOPS["python"] if need_s is None else RIGHT["python"].format(need_s)
                    self._check(need_s, await session.run_code(code, timeout_ms=self.limit_s * 1000))

    def _check(self, need_s: float | None, result: ExecutionResult) -> None:
        expected = ("TIMEOUT", "") if need_s is None else ("OK", "right\n")
        if (result.outcome, result.stdout) != expected:
            need = "a loop" if need_s is None else f"{need_s / self.limit_s:.1f} of the limit"
            self.wrong[f"{need}: {result.outcome}"] += 1

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except FaasrtError as error:
            self.failures[f"{type(error).__name__}: {error}"[:300]] += 1


async def measure(kind: str, right: int, loops: int, at_once: int, limit_s: float) -> tuple[Verdicts, str]:
    """Run right programs and loops, and return their verdicts and the level of the jail."""
    needs: list[float | None] = [0.1 * limit_s * (1 + number % 9) for number in range(right)]
    needs += [None] * loops
    random.Random(SEED).shuffle(needs)
    language = "python" if kind == "session" else kind
    settings = Settings(limiter=LimiterSettings(max_concurrency=max(256, at_once)))
    async with RuntimeManager.local([language], settings=settings) as manager:
        first = await manager.run_code(LOOPS[language], language, timeout_ms=1_000)
        verdicts = Verdicts(manager, kind, limit_s)
        await verdicts.run(needs, at_once)
        return verdicts, str(first.metadata.get("level", ""))


def main() -> None:
    """Run programs of each kind in each situation, and print the report."""
    options = parser(__doc__)
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options.add_argument("--right", type=int, default=1_000, help="programs that end in time (default %(default)s)")
    options.add_argument("--loops", type=int, default=500, help="endless loops (default %(default)s)")
    options.add_argument("--at-once", type=int, nargs="+", default=[1, 8, 32, 128], help="default %(default)s")
    options.add_argument("--busy", type=int, nargs="+", default=[0, 8], help="other processes (default %(default)s)")
    options.add_argument("--limit", type=float, default=1.0, help="time limit in seconds (default %(default)s)")
    args = options.parse_args()
    report, bad = Report("verdicts", vars(args)), 0
    for kind, busy, at_once in itertools.product(args.kinds, args.busy, args.at_once):
        began = time.perf_counter()
        with busy_processes(busy):
            verdicts, level = asyncio.run(measure(kind, args.right, args.loops, at_once, args.limit))
        wrong, failed = verdicts.wrong.total(), verdicts.failures.total()
        total_s = time.perf_counter() - began
        report.row(f"{args.right} right programs and {args.loops} loops", kind=kind, level=level, at_once=at_once,
                   busy=busy, wrong=wrong, failures=failed, total_s=total_s)  # fmt: skip
        for text, count in [*verdicts.wrong.items(), *verdicts.failures.items()]:
            report.row("Wrong verdicts and failures", kind=kind, at_once=at_once, busy=busy, count=count, text=text)
        bad += wrong + failed
    report.goal("wrong verdicts and failures", bad, bad == 0)
    report.print(args.json)
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
