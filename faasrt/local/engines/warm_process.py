"""Starts processes that wait for a program, in a jail with a runner, and runs programs in them."""

from __future__ import annotations

import asyncio
import functools
import time

import attrs

from faasrt.local.engines.base import EngineJob, EngineResult, NotStartedError
from faasrt.local.engines.collection import add_files
from faasrt.local.engines.native_run import NativeRun
from faasrt.local.jail.jail import Jail, JailedProcess
from faasrt.local.process import MESSAGES, ignore_output
from faasrt.local.time_limit import TimeLimit
from faasrt.results import Outcome

_TIMEOUT_S = 60.0


async def start_warm(jail: Jail, name: str, *, compiles: bool = False) -> JailedProcess:
    """Start a process, and wait until its runner is ready for a program.

    Args:
        jail: The jail.
        name: The name of the process in errors, such as "a Python process".
        compiles: Whether it is a compiler; see `Jail.start`.

    Raises:
        NotStartedError: The process ended, or was not ready in time.

    Cancellation: ends the process.
    """
    process = await jail.start(channel=True, compiles=compiles)
    ready = asyncio.Event()
    output = bytearray()

    def receive(fd: int, data: bytes) -> None:
        output.extend(data)
        if fd == MESSAGES:
            ready.set()

    process.receive(receive, ready.set)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await ready.wait()
        if process.ended.is_set():
            reason = output[-500:].decode("utf-8", "replace").strip()
            raise NotStartedError(f"{name} did not start (exit code {process.returncode}): {reason}")
    except BaseException as error:
        await process.end()
        if isinstance(error, TimeoutError):
            raise NotStartedError(f"{name} did not start within {_TIMEOUT_S:g} s") from None
        raise
    return process


async def run_warm(
    process: JailedProcess,
    run: NativeRun,
    job: EngineJob,
    *,
    instance: str,
    headroom_mb: int = 0,
    max_files_bytes: int | None = None,
) -> EngineResult:
    """Run a program in a warm process, and return its result. Afterwards the process is killed.

    Args:
        process: The process.
        run: The run.
        job: The program, its limits, and the files to collect.
        instance: The name of the kind of process, for `instance_id`.
        headroom_mb: Memory that the program may use beyond its limit, in MiB.
        max_files_bytes: The largest size of the collected files together. None means the output limit.

    Raises:
        EngineError: The process failed, not the program.

    Cancellation: ends the program.
    """
    limits, folder = job.limits, None
    try:
        memory_bytes, limit_s = (limits.memory_limit_mb + headroom_mb) * 2**20, limits.timeout_ms / 1000
        if job.input.collect:
            folder = await process.open_folder()
        started = time.perf_counter()
        process.limit_time(limit_s, memory_bytes=memory_bytes)
        time_limit = TimeLimit(limit_s, functools.partial(run.end, Outcome.TIMEOUT))
        try:
            run.begin(memory_bytes)
            await run.ended.wait()
        finally:
            time_limit.cancel()
        duration_ms = round((time.perf_counter() - started) * 1000, 3)
        result = attrs.evolve(run.result(), duration_ms=duration_ms, instance_id=f"{instance}-{process.pid}")
        if folder is not None:
            await process.end()
            result = await add_files(result, job, folder, max_files_bytes)
        return result
    finally:
        process.kill()
        process.receive(ignore_output)
