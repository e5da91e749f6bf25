"""Python's syntax, checked here and without running anything, by `ast` in a process of its own.

A process, because a parser can be made to use seconds, gigabytes and the whole C stack: whatever a program does to it,
neither the event loop nor the application notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import struct
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from typing import Any, Literal

from faasrt.errors import ConfigurationError, DeadlineExceededError, InvalidRequestError
from faasrt.languages import Language
from faasrt.results import Diagnostic, ValidationResult

MAX_CODE_BYTES = 2 * 2**20
_LENGTH = struct.Struct("!I")
_PROGRAM = Path(__file__).with_name("validation_main.py")
# Larger programs get a process of their own: small ones, which are nearly all, need not wait behind them.
_SMALL_BYTES = 65_536
_TIMEOUT_S = 30.0
Where = Literal["local", "remote", "auto"]


class PythonChecker:
    """Checks Python programs. The process is started with the first one, and kept until `aclose`."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._turn = asyncio.Lock()
        self._checked_by = f"{platform.python_implementation()} {platform.python_version()}"

    async def check(self, code: str) -> ValidationResult:
        """Tell whether a program parses.

        Args:
            code: The program, at most 2 MiB in UTF-8.

        Raises:
            InvalidRequestError: The program is larger.
            DeadlineExceededError: The parser took more than 30 seconds.
            ConfigurationError: No process can be started.

        Cancellation: the process is ended.
        """
        source = code.encode("utf-8", "surrogatepass")
        if len(source) > MAX_CODE_BYTES:
            raise InvalidRequestError(f"code must have at most {MAX_CODE_BYTES:,} bytes to be checked here")
        found = await self._ask(source)
        if found is None:
            # The process may have ended for another reason, while it rested or by the system's hand: only a program
            # that brings a second one down is to blame for it.
            found = await self._ask(source)
        if found == []:
            return ValidationResult(True, (), self._checked_by)
        diagnostic = Diagnostic("it crashes Python's parser") if found is None else Diagnostic(*found)
        return ValidationResult(False, (diagnostic,), self._checked_by)

    async def aclose(self) -> None:
        """End the process. Closing twice is harmless, and a later check starts another."""
        process, self._process = self._process, None
        if process is not None:
            await _end(process)

    async def _ask(self, source: bytes) -> list[Any] | None:
        if len(source) > _SMALL_BYTES:
            process = await _start()
            try:
                return await _exchange(process, source)
            finally:
                await _end(process)
        async with self._turn:
            kept, self._process = self._process, None
            process = kept or await _start()
            try:
                found = await _exchange(process, source)
            except BaseException:
                await _end(process)
                raise
            if found is None:
                await _end(process)
            else:
                self._process = process
            return found


async def _start() -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-W", "ignore", str(_PROGRAM), stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )
    except OSError as error:
        raise ConfigurationError(f"cannot start {sys.executable} to check Python: {error}") from None


async def _exchange(process: Process, source: bytes) -> list[Any] | None:
    """Send a program and read the judgement; None when the process ends instead."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            process.stdin.write(_LENGTH.pack(len(source)) + source)
            await process.stdin.drain()
            head = await process.stdout.readexactly(_LENGTH.size)
            found: list[Any] = json.loads(await process.stdout.readexactly(_LENGTH.unpack(head)[0]))
            return found
    except TimeoutError:
        raise DeadlineExceededError(f"Python's parser took more than {_TIMEOUT_S:g} s", sent="no") from None
    except (ConnectionError, asyncio.IncompleteReadError):
        return None


async def _end(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def check_where(where: Where, language: Language) -> bool:
    """Tell whether a program is to be checked locally.

    Raises:
        InvalidRequestError: `where` is none of its values, or asks for what cannot be.
    """
    if where not in ("local", "remote", "auto"):
        raise InvalidRequestError(f"where must be 'local', 'remote' or 'auto', got {where!r}")
    if where == "local" and language is not Language.PYTHON:
        raise InvalidRequestError(f"only Python can be checked locally: check {language} with where='remote'")
    return language is Language.PYTHON and where != "remote"
