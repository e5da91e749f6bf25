"""Checks the syntax of Python programs locally, with `ast` in a separate process. The programs are not run.

A program can make the parser use seconds of CPU time, gigabytes of memory, or the whole C stack. In a separate process,
this affects neither the event loop nor the application.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import signal
import struct
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any, Literal

from faasrt.errors import DeadlineExceededError, InvalidRequestError, ServerError, safe_repr
from faasrt.languages import Language
from faasrt.results import Diagnostic, ValidationResult
from faasrt.transport.endpoint_registry import EndpointRegistry

MAX_CODE_BYTES = 2 * 2**20
_LENGTH = struct.Struct("!I")
_PROGRAM = Path(__file__).with_name("syntax_worker.py")
# Larger programs get their own process, so that small programs do not wait for them. At most so many at once, because
# each may use 2 GiB.
_SMALL_BYTES, _MOST_LARGE = 65_536, 2
_TIMEOUT_S = 30.0
_START_S = 30.0
_REASON_CHARS = 300
# If the parser crashes, its process dies from one of these signals, or on Windows with an exit code of at least this
# one. If the process ends in another way, the cause is external, for example SIGKILL when the system is out of memory.
_FAULTS = {getattr(signal, name, None) for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE")}
_WINDOWS_FAULT = 0xC0000000
_REMEDY = "check the limits of memory, processes and file descriptors, or use where='remote'"
Where = Literal["local", "remote", "auto"]


class _ProcessDiedError(Exception):
    def __init__(self, returncode: int) -> None:
        super().__init__(returncode)
        self.is_fault = -returncode in _FAULTS or returncode >= _WINDOWS_FAULT
        self.reason = f"was ended by signal {-returncode}" if returncode < 0 else f"ended with exit code {returncode}"


class PythonChecker:
    """Checks Python programs. The first check starts the process, and `aclose` ends it."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._lock = asyncio.Lock()
        self._large = asyncio.Semaphore(_MOST_LARGE)
        self._checked_by = f"{platform.python_implementation()} {platform.python_version()}"

    async def check(self, code: str) -> ValidationResult:
        """Return whether a program of at most 2 MiB in UTF-8 parses.

        Raises:
            DeadlineExceededError: The parser took more than 30 seconds.
            ServerError: The process cannot start, was killed, or lacks memory. `sent` is "no".

        Cancellation: ends the process.
        """
        source = code.encode("utf-8", "surrogatepass")
        if len(source) > MAX_CODE_BYTES:
            raise InvalidRequestError(f"code must have at most {MAX_CODE_BYTES:,} bytes for a local check")
        try:
            try:
                answer = await self._ask(source)
            except _ProcessDiedError:
                # The process may have died for another reason, for example while it was idle. The program is to blame
                # only if it crashes the parser in a new process, too.
                answer = await self._ask(source)
        except _ProcessDiedError as error:
            if not error.is_fault:
                raise _failure(f"the process that checks Python {error.reason}") from None
            answer = ["the program crashes Python's parser", None, None]
        if answer is None:
            raise _failure("the process that checks Python has too little memory")
        diagnostics = (Diagnostic(*answer),) if answer else ()
        return ValidationResult(not diagnostics, diagnostics, self._checked_by)

    async def aclose(self) -> None:
        """End the process. A later check starts a new one."""
        process, self._process = self._process, None
        if process is not None:
            await _end(process)

    async def _ask(self, source: bytes) -> list[Any] | None:
        if len(source) > _SMALL_BYTES:
            async with self._large:
                process = await _start()
                try:
                    return await _exchange(process, source)
                finally:
                    await _end(process)
        async with self._lock:
            idle, self._process = self._process, None
            process = idle or await _start()
            try:
                answer = await _exchange(process, source)
            except BaseException:
                await _end(process)
                raise
            self._process = process
            return answer


async def _start() -> Process:
    if not sys.executable:
        raise _failure("the process that checks Python cannot start: sys.executable names no interpreter")
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-W", "ignore", str(_PROGRAM), stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
    except (OSError, RuntimeError) as error:  # RuntimeError: no thread can start; NotImplementedError: no processes
        raise _failure("the process that checks Python cannot start", str(error)) from None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(_START_S):
            if await process.stdout.read(1):
                return process
            reason = (await process.stderr.read()).decode("utf-8", "replace").strip()
            await process.wait()
    except BaseException as error:
        await _end(process)
        if isinstance(error, TimeoutError):
            raise _failure(f"the process that checks Python did not start within {_START_S:g} s") from None
        raise
    died = _ProcessDiedError(process.returncode or 0)
    last_line = reason.rpartition("\n")[2][:_REASON_CHARS] or "no reason given"
    raise _failure(f"the process that checks Python cannot start: it {died.reason}", last_line)


def _failure(reason: str, quote: str = "") -> ServerError:
    return ServerError(reason, quote=quote, hint=_REMEDY, sent="no")


async def _exchange(process: Process, source: bytes) -> list[Any] | None:
    """Return the answer. Raise _ProcessDiedError if the process ended before, and DeadlineExceededError if it is
    late.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            try:
                process.stdin.write(_LENGTH.pack(len(source)) + source)
                await process.stdin.drain()
                head = await process.stdout.readexactly(_LENGTH.size)
                answer: list[Any] | None = json.loads(await process.stdout.readexactly(_LENGTH.unpack(head)[0]))
                return answer
            except (ConnectionError, asyncio.IncompleteReadError):
                raise _ProcessDiedError(await process.wait()) from None
    except TimeoutError:
        raise DeadlineExceededError(f"Python's parser took more than {_TIMEOUT_S:g} s", sent="no") from None


async def _end(process: Process) -> None:
    assert process.stdin is not None
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    try:
        process.stdin.close()
    except RuntimeError:  # the event loop that started the process is closed, so none can wait for it
        return
    await process.wait()


def check_where(where: Where, language: Language | str) -> bool:
    """Return whether a program may be checked locally, which is possible for Python only."""
    if where not in ("local", "remote", "auto"):
        raise InvalidRequestError(f"where must be 'local', 'remote' or 'auto', got {safe_repr(where)}")
    if where == "local" and language is not Language.PYTHON:
        raise InvalidRequestError(f"where must be 'remote' or 'auto' for {language}: only Python is checked locally")
    return language is Language.PYTHON and where != "remote"


async def validates_locally(registry: EndpointRegistry, where: Where, language: Language | str) -> bool:
    """Return whether a program is checked on this machine. With "auto", this may ask the endpoints for their Python."""
    if where != "auto" or language is not Language.PYTHON:
        return where == "local"
    version = ".".join(platform.python_version_tuple()[:2])
    return not await registry.validates_another_python(version)
