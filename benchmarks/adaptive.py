"""The adaptive limit compared with fixed limits, on a server that does not state its capacity.

    python -m benchmarks.adaptive [--calls 2000] [--rounds 3]

The server is fastest with 8 calls in flight. With more, each call takes longer, in proportion; beyond 16, calls are
refused with 429. The fixed limits are semaphores in a loop over aiohttp. Each contender has a server of its own.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp

from benchmarks.harness import Figures, contenders, parser, run_rounds, serve_requests, spreads
from benchmarks.report import Report, Spread
from faasrt import FaasrtError, LimiterSettings, RetrySettings, RuntimeManager, Settings
from faasrt.testing import FakeFaaS, Reply

KNEE, MOST, CALL_S = 8, 16, 0.02
FIXED = ("1", "2", "4", "8", "12", "16", "24", "32", "64")


@asynccontextmanager
async def server() -> AsyncIterator[FakeFaaS]:
    async with FakeFaaS() as fake:
        fake.capacity = MOST
        fake.handler = lambda body: Reply(delay_s=CALL_S * max(1.0, fake.in_flight / KNEE))
        yield fake


async def rate(call: Callable[[], Awaitable[bool]], calls: int) -> Figures:
    started = time.perf_counter()
    answered = sum(await asyncio.gather(*(call() for _ in range(calls))))
    return {"answered/s": answered / (time.perf_counter() - started), "refused": calls - answered}


async def fixed(limit: int, calls: int) -> Figures:
    async with server() as fake, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        semaphore, body = asyncio.Semaphore(limit), {"language": "python", "code": "1"}

        async def call() -> bool:
            async with semaphore, session.post(f"{fake.url}/run_code", json=body) as response:
                await response.read()
                return response.status == 200

        return {**await rate(call, calls), "limit at the end": limit}


async def adaptive(calls: int) -> Figures:
    async with server() as fake:
        settings = Settings(
            endpoints={"python": fake.url},
            limiter=LimiterSettings(max_queue=calls, queue_timeout_s=600),
            retry=RetrySettings(max_attempts=1),
        )
        async with RuntimeManager(settings=settings) as manager:

            async def call() -> bool:
                try:
                    return (await manager.run_code("1", "python")).ok
                except FaasrtError:
                    return False

            await call()
            return {**await rate(call, calls), "limit at the end": manager.get_metrics().states[0].limit}


def measure(contender: str, calls: int) -> Figures:
    """Return the answered calls per second, the number of refused calls, and the limit at the end."""
    return asyncio.run(adaptive(calls) if contender == "adaptive" else fixed(int(contender), calls))


def main() -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("--calls", type=int, default=2_000)
    options.add_argument("--fixed", nargs="+", default=FIXED, help="the fixed limits")
    args = options.parse_args()
    if args.contender:
        serve_requests(functools.partial(measure, args.contender))
        return
    report = Report("adaptive", vars(args))
    with contenders("benchmarks.adaptive", [*args.fixed, "adaptive"]) as started:
        rounds = run_rounds(started, args, calls=args.calls)
    best = [max(rounds[name][number]["answered/s"] for name in args.fixed) for number in range(args.rounds)]
    for name, figures in rounds.items():
        of_best = Spread.of(mine["answered/s"] / best_rate for mine, best_rate in zip(figures, best, strict=True))
        report.row(f"{args.calls} calls", limit=name, **spreads(rounds, name), **{"of the best fixed": of_best})
    report.print(args.json)


if __name__ == "__main__":
    main()
