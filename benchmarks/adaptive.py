"""Where the adaptive limit settles, against fixed limits, on a server that does not tell its size.

    python -m benchmarks.adaptive [--calls 2000]

The server gives its best at 8 in flight: beyond that each call takes longer, in proportion, and one beyond 16 is
refused with 429. The fixed limits are those of a loop over aiohttp with a semaphore, as one writes it by hand.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from faasrt import FaasrtError, LimiterSettings, RetrySettings, RuntimeManager, Settings
from faasrt.testing import FakeFaas, Reply

KNEE, MOST, CALL_S = 8, 16, 0.02
FIXED = (1, 2, 4, 8, 12, 16, 24, 32, 64)


@asynccontextmanager
async def server() -> AsyncIterator[FakeFaas]:
    async with FakeFaas() as fake:
        fake.capacity = MOST
        fake.handler = lambda body: Reply(delay_s=CALL_S * max(1.0, fake.in_flight / KNEE))
        yield fake


async def measure(call: Callable[[], Awaitable[bool]], calls: int) -> tuple[float, int]:
    """Answered calls a second, and refusals."""
    started = time.perf_counter()
    answered = sum(await asyncio.gather(*(call() for _ in range(calls))))
    return answered / (time.perf_counter() - started), calls - answered


async def fixed(limit: int, calls: int) -> tuple[float, int, float]:
    async with server() as fake, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        semaphore, body = asyncio.Semaphore(limit), {"language": "python", "code": "1"}

        async def call() -> bool:
            async with semaphore, session.post(f"{fake.url}/run_code", json=body) as response:
                await response.read()
                return response.status == 200

        return *await measure(call, calls), float(limit)


async def adaptive(calls: int) -> tuple[float, int, float]:
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
            throughput, refused = await measure(call, calls)
            return throughput, refused, manager.get_metrics().states[0].limit


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=2_000)
    options = parser.parse_args()
    rows: list[tuple[Any, ...]] = [(limit, *asyncio.run(fixed(limit, options.calls))) for limit in FIXED]
    best = max(row[1] for row in rows)
    rows.append(("adaptive", *asyncio.run(adaptive(options.calls))))
    print(f"{'limit':>9} {'calls/s':>8} {'of best':>8} {'refused':>8} {'limit at the end':>17}")
    for name, throughput, refused, limit in rows:
        print(f"{name:>9} {throughput:8.0f} {throughput / best:8.2f} {refused:8} {limit:17.1f}")


if __name__ == "__main__":
    main()
