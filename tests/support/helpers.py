"""Helpers that several test files use."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import math
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import pytest

from faasrt import RetrySettings, RuntimeFactory, RuntimeManager, Settings, TimeoutSettings
from faasrt.config import EngineName
from faasrt.languages import LanguageOption
from faasrt.telemetry.events import Sink
from faasrt.transport.groups import EndpointGroup
from faasrt.transport.pool import Permit, PermitPool

T = TypeVar("T")
# What native programs see in their /tmp before they write there: the folder of this environment, if it is below /tmp.
FOUND_IN_TMP = [sys.prefix.split("/")[2]] if sys.prefix.startswith("/tmp/") else []
# For a busy machine.
PATIENT = TimeoutSettings(connect_s=30, health_s=30, grace_s=30)


Serve: TypeAlias = Callable[..., Awaitable[str]]
"""The fixture `serve`: it serves a handler of aiohttp, and returns its URL."""

NO_WAIT = RetrySettings(connect_retry_s=0)
"""Calls to endpoints that are down fail at once."""

QUICK = RetrySettings(connect_retry_s=0, base_delay_s=0.001, max_delay_s=0.002)
"""Like `NO_WAIT`, with short delays before retries."""


def manager_for(
    url: str, *, telemetry: Iterable[Sink] = (), clock: Callable[[], float] = time.monotonic, **settings: object
) -> RuntimeManager:
    """Return a manager that uses one URL for every language."""
    settings = {"timeouts": PATIENT, **settings}
    endpoints = {"python": url, "javascript": url, "typescript": url}
    factory = RuntimeFactory(Settings(endpoints=endpoints, **settings), telemetry=telemetry, clock=clock)  # type: ignore[arg-type]
    return RuntimeManager(factory)


def url_of(manager: RuntimeManager) -> str:
    """Return the URL of the embedded FaaS of a manager, which has been started."""
    assert manager.local_faas is not None
    return manager.local_faas.url


async def acquire(
    pool: PermitPool, group: EndpointGroup, *, avoid: Collection[str] = (), **options: Any
) -> Permit | None:
    """Return a permit, and wait for it if necessary, as calls do."""
    return pool.try_acquire(group, avoid=avoid) or await pool.wait(group, avoid=avoid, **options)


def skip_without(package: str) -> None:
    """Skip the test if a package is not installed. `pytest.importorskip` would import it, which may take a second."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


WASM: Mapping[LanguageOption, EngineName] = {"python": "wasm"}
"""The argument `engines` of an embedded FaaS that runs Python in WebAssembly."""


def descriptors() -> int:
    """Return the number of open file descriptors of this process."""
    return len([*Path("/proc/self/fd").iterdir()])


def open_files() -> list[str]:
    """Return what each file descriptor of this process refers to."""
    files = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself
            files.append(str(path.readlink()))
    return sorted(files)


async def descriptors_at_rest() -> int:
    """Return the number of open file descriptors when it no longer changes. Objects of earlier tests may own some, and
    processes that are just ending.
    """
    gc.collect()
    counts = [descriptors()]
    while len(counts) < 5 or len({*counts[-5:]}) > 1:
        await asyncio.sleep(0.01)
        counts.append(descriptors())
    return counts[-1]


class Clock:
    """The monotonic clock of the machine, which a test can advance and stop. See the fixture `clock`."""

    def __init__(self) -> None:
        self._ahead_s, self._stopped_at = 0.0, math.inf

    def __call__(self) -> float:
        return min(time.monotonic(), self._stopped_at) + self._ahead_s

    def advance(self, seconds: float) -> None:
        """Let time pass at once. Timers that are due then run at the next `await`."""
        self._ahead_s += seconds

    def stop(self) -> None:
        """From now on, let time pass only by `advance`. Timers that are not due yet run only after it."""
        self._stopped_at = time.monotonic()


async def fast_forward(clock: Clock, call: Awaitable[T], step_s: float = 1) -> T:
    """Let time pass in steps until a call ends, and return its result."""
    task = asyncio.ensure_future(call)
    while not task.done():
        clock.advance(step_s)
        await asyncio.sleep(0.001)
    return await task


async def until_active(manager: RuntimeManager, language: str, count: int) -> None:
    """Wait until the embedded FaaS runs this number of programs of a language."""
    while True:
        status = await manager.get_health_status()
        languages = status.endpoints[0].details.get("languages", {})  # a busy machine may not answer in time
        if language in languages and languages[language]["active"] == count:
            return
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def manager_at(place: str, local: RuntimeManager) -> AsyncIterator[RuntimeManager]:
    """Yield a manager for the doubles or the embedded FaaS, or one that uses the envelope on the embedded FaaS."""
    if place == "doubles":
        from support.doubles import doubles  # needs Deno, which the tests of the client do not need

        async with doubles() as (manager, _, _):
            yield manager
    elif place == "embedded":
        yield local
    else:
        url = url_of(local)
        async with manager_for(url, envelope="always") as manager:
            yield manager
